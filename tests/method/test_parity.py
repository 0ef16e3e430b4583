"""The package against `reference.py`, values and gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from torch import Tensor

from attempt_cli.method import PromptAttention, PromptMixture, pool_input, pool_prompts
from tests.method import reference
from tests.method.reference import Array, Parameters


@dataclass
class Case:
    """A batch with its parameters, in numbers that float32 holds exactly."""

    lengths: list[int]
    task_ids: list[int]
    inputs: list[Array]  # each [l, d]
    sources: Array  # [t, m, d]
    parameters: Parameters
    temperature: float
    towards: Array  # [b, m, d], the loss's weights on the prompts
    towards_weights: Array  # [b, t + 1], and on the attention

    def loss(self, parameters: Parameters) -> float:
        prompts, weights = reference.instance_prompts(
            self.inputs, self.task_ids, self.sources, parameters, self.temperature
        )
        return float((prompts * self.towards).sum() + (weights * self.towards_weights).sum())


D, R, M = 5, 3, 2
BATCHES = {
    "one row, one task": ([4], [0], 2),
    "one token": ([1], [0], 2),
    "ragged, one task": ([4, 1, 6], [0, 0, 0], 3),
    "ragged, three tasks": ([3, 6, 1, 2], [2, 0, 2, 1], 2),
    "a task without rows": ([2, 5], [1, 1], 1),
    "no source": ([2, 3], [0, 1], 0),
}


def make(name: str, seed: int = 0) -> Case:
    lengths, task_ids, t = BATCHES[name]
    draw = np.random.default_rng(seed)

    def normal(*shape: int, mean: float = 0.0, spread: float = 1.0) -> Array:
        return draw.normal(mean, spread, size=shape).astype(np.float32).astype(np.float64)

    gain, bias = normal(D, mean=1.0, spread=0.25), normal(D, spread=0.25)
    parameters = Parameters(normal(3, M, D), normal(R, D), normal(D, R), gain, bias)
    return Case(
        lengths,
        task_ids,
        [normal(length, D) for length in lengths],
        normal(t, M, D),
        parameters,
        math.sqrt(D),
        normal(len(lengths), M, D),
        normal(len(lengths), t + 1),
    )


def module_of(case: Case, dtype: torch.dtype) -> PromptMixture:
    p = case.parameters
    attention = PromptAttention(D, R, case.temperature)
    with torch.no_grad():
        attention.down.weight.copy_(torch.from_numpy(p.down))
        attention.up.weight.copy_(torch.from_numpy(p.up))
        attention.norm.weight.copy_(torch.from_numpy(p.gain))
        attention.norm.bias.copy_(torch.from_numpy(p.bias))
    return PromptMixture(torch.from_numpy(p.targets), torch.from_numpy(case.sources), attention).to(dtype)


def padded(case: Case, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """The inputs as a batch with loud padding, and their mask."""
    longest = max(case.lengths) + 2
    embeddings = torch.full((len(case.lengths), longest, D), 1e4, dtype=dtype)
    for row, values in zip(embeddings, case.inputs, strict=True):
        row[: len(values)] = torch.from_numpy(values)
    return embeddings, torch.arange(longest) < torch.tensor(case.lengths)[:, None]


def run(case: Case, dtype: torch.dtype) -> tuple[PromptMixture, Tensor, Tensor]:
    mixture = module_of(case, dtype)
    prompts, weights = mixture(torch.tensor(case.task_ids), pool_input(*padded(case, dtype)))
    loss = (prompts * torch.from_numpy(case.towards).to(dtype)).sum()
    loss = loss + (weights * torch.from_numpy(case.towards_weights).to(dtype)).sum()
    loss.backward()
    return mixture, prompts.detach(), weights.detach()


def gradients_of(mixture: PromptMixture) -> dict[str, Tensor]:
    g = mixture.attention
    return {
        "targets": mixture.target_prompts.grad,
        "down": g.down.weight.grad,
        "up": g.up.weight.grad,
        "gain": g.norm.weight.grad,
        "bias": g.norm.bias.grad,
    }


@pytest.mark.parametrize("name", BATCHES)
@pytest.mark.parametrize(("dtype", "tolerance"), [(torch.float64, 1e-12), (torch.float32, 5e-6)])
def test_values(name: str, dtype: torch.dtype, tolerance: float) -> None:
    case = make(name)
    _, prompts, weights = run(case, dtype)
    expected_prompts, expected_weights = reference.instance_prompts(
        case.inputs, case.task_ids, case.sources, case.parameters, case.temperature
    )
    np.testing.assert_allclose(weights.double().numpy(), expected_weights, rtol=tolerance, atol=tolerance)
    np.testing.assert_allclose(prompts.double().numpy(), expected_prompts, rtol=tolerance, atol=tolerance)


@pytest.mark.parametrize("name", BATCHES)
def test_pooling_and_query(name: str) -> None:
    case = make(name)
    mixture = module_of(case, torch.float64)
    pooled = pool_input(*padded(case, torch.float64))
    for x_hat, row in zip(pooled.numpy(), case.inputs, strict=True):
        np.testing.assert_array_equal(x_hat, reference.pool(row))
    queries = mixture.attention.query(pooled).detach().numpy()
    for h, row in zip(queries, case.inputs, strict=True):
        np.testing.assert_allclose(h, reference.query(reference.pool(row), case.parameters), rtol=1e-12, atol=1e-12)
    for p_hat, source in zip(pool_prompts(mixture.source_prompts).numpy(), case.sources, strict=True):
        np.testing.assert_array_equal(p_hat, reference.pool(source))


@pytest.mark.parametrize("name", BATCHES)
def test_gradients(name: str) -> None:
    case = make(name)
    expected = reference.numeric_gradients(case.loss, case.parameters)
    exact = gradients_of(run(case, torch.float64)[0])
    single = gradients_of(run(case, torch.float32)[0])
    for parameter, gradient in expected.items():
        np.testing.assert_allclose(exact[parameter].numpy(), gradient, rtol=1e-8, atol=1e-8, err_msg=parameter)
        np.testing.assert_allclose(
            single[parameter].double().numpy(), gradient, rtol=2e-5, atol=2e-5, err_msg=parameter
        )
    if name != "no source":  # there the softmax of one is constant and G has nothing to learn
        assert all(np.abs(gradient).max() > 1e-3 for gradient in expected.values())
    else:
        assert all(not exact[parameter].any() for parameter in ("down", "up", "gain", "bias"))


def test_prompt_tuning_gradients() -> None:
    # equation 1: without sources the gradient of a target prompt is the sum over its rows
    case = make("ragged, three tasks")
    mixture = PromptMixture(torch.from_numpy(case.parameters.targets)).double()
    prompts, _ = mixture(torch.tensor(case.task_ids))
    (prompts * torch.from_numpy(case.towards)).sum().backward()
    rows = {task: [i for i, t in enumerate(case.task_ids) if t == task] for task in range(3)}
    expected = np.stack([case.towards[rows[task]].sum(axis=0) for task in range(3)])
    np.testing.assert_allclose(mixture.target_prompts.grad.numpy(), expected, rtol=1e-14)
