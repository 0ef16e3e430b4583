"""Generated adapters: HyperFormer's from tasks and layers, HyperDecoder's from the input; and fused adapters."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.fusion import VALUE_PENALTY, FusedAdapters, TaskAdapters, TaskFusions
from attempt_cli.backbones.generated import (
    AdapterGenerator,
    InputHypernetwork,
    adapted,
    hyperdecoder_parameters,
    hyperformer_parameters,
)
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.backbones.shapes import backbone_shapes
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.methods import METHODS

WIDTH, TASKS = 32, 3
Numbers = dict[str, Any]


def started(module: nn.Module, seed: int = 0) -> nn.Module:
    """The module in float64, with large numbers: it starts near nothing."""
    generator = torch.Generator().manual_seed(seed)
    module = module.double()
    for tensor in module.parameters():
        nn.init.normal_(tensor, std=0.5, generator=generator)
    return module


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def numbers(module: nn.Module) -> Numbers:
    return {name: tensor.detach().numpy().copy() for name, tensor in module.named_parameters()}


def check_gradient(
    modules: dict[str, nn.Module], forward: Callable[[dict[str, Numbers]], float], loss: torch.Tensor
) -> None:
    """Compares autograd's slope in a random direction with central differences of the numpy forward, by tensor."""
    values = {name: numbers(module) for name, module in modules.items()}
    assert forward(values) == pytest.approx(loss.item(), rel=1e-10)
    loss.backward()
    draws = np.random.default_rng(0)
    for name, module in modules.items():
        for key, tensor in module.named_parameters():
            direction = draws.standard_normal(tuple(tensor.shape))
            assert tensor.grad is not None, key
            slope = float((tensor.grad.numpy() * direction).sum())
            step = 1e-6
            moved = []
            for sign in (1, -1):
                changed = {one: dict(own) for one, own in values.items()}
                changed[name][key] = changed[name][key] + sign * step * direction
                moved.append(forward(changed))
            assert slope == pytest.approx((moved[0] - moved[1]) / (2 * step), rel=1e-4, abs=1e-6), (name, key)


def gelu_tanh(x: Any) -> Any:
    return 0.5 * x * (1 + np.tanh(math.sqrt(2 / math.pi) * (x + 0.044715 * x**3)))


def gelu(x: Any) -> Any:
    return 0.5 * x * (1 + np.vectorize(math.erf)(x / math.sqrt(2)))


def normed(x: Any, epsilon: float) -> Any:
    return (x - x.mean()) / np.sqrt(((x - x.mean()) ** 2).mean() + epsilon)


def of(values: Numbers, layer: str, x: Any) -> Any:
    return values[f"{layer}.weight"] @ x + values[f"{layer}.bias"]


# --- the equations, in float64, forward and gradient


def test_hyperformer_s_equations() -> None:
    """x + LN_γβ(U GELU(D x + b) + b'), with all of it generated from task, layer and place; three rows of two tasks."""
    generator = started(AdapterGenerator(2, WIDTH, torch.Generator()))
    embeddings = nn.ParameterDict({"z": nn.Parameter(drawn(TASKS, 64, seed=1))})
    tasks, layer, place = [2, 0, 2], 1, 1
    x, towards = drawn(3, 4, WIDTH, seed=2), drawn(3, 4, WIDTH, seed=3)
    assert isinstance(generator, AdapterGenerator)
    made = [one[layer, place][torch.tensor(tasks)] for one in generator(embeddings["z"])]
    loss = ((adapted(x, *made) + x) * towards).sum()

    def forward(values: dict[str, Numbers]) -> float:
        own, total = values["generator"], 0.0
        for row, task in enumerate(tasks):
            told = np.concatenate(
                [values["tasks"]["z"][task], own["layer_embeddings"][layer], own["place_embeddings"][place]]
            )
            said = normed(of(own, "second", np.maximum(0, of(own, "first", told))), 1e-6)
            said = said * own["norm.weight"] + own["norm.bias"]
            down, up = of(own, "down", said).reshape(1, WIDTH), of(own, "up", said).reshape(WIDTH, 1)
            for token, toward in zip(x[row].numpy(), towards[row].numpy(), strict=True):
                inner = gelu_tanh(down @ token + of(own, "down_bias", said))
                changed = up @ inner + of(own, "up_bias", said)
                total += (
                    (token + normed(changed, 1e-5) * of(own, "scale", said) + of(own, "shift", said)) * toward
                ).sum()
        return float(total)

    check_gradient({"generator": generator, "tasks": embeddings}, forward, loss)


def test_hyperdecoder_s_equations() -> None:
    """U ReLU(D x + b) + b', with all of it generated from the mean of the input's states and the layer."""
    network = started(InputHypernetwork(3, 6, torch.Generator()))
    assert isinstance(network, InputHypernetwork)
    pooled, x, towards, layer = drawn(2, 6, seed=1), drawn(2, 3, 6, seed=2), drawn(2, 3, 6, seed=3), 2
    down, down_bias, up, up_bias = network(network.processed(pooled), layer)
    changed = torch.relu(x @ down.transpose(1, 2) + down_bias[:, None]) @ up.transpose(1, 2) + up_bias[:, None]
    loss = (changed * towards).sum()

    def forward(values: dict[str, Numbers]) -> float:
        own, total = values["network"], 0.0
        for row in range(2):
            read = of(own, "process.1", np.maximum(0, of(own, "process.0", pooled[row].numpy())))
            said = np.maximum(0, of(own, "first", np.concatenate([read, own["layer_embeddings"][layer]])))
            matrix, back = of(own, "down", said).reshape(64, 6), of(own, "up", said).reshape(6, 64)
            for token, toward in zip(x[row].numpy(), towards[row].numpy(), strict=True):
                inner = np.maximum(0, matrix @ token + of(own, "down_bias", said))
                total += ((back @ inner + of(own, "up_bias", said)) * toward).sum()
        return float(total)

    check_gradient({"network": network}, forward, loss)


def test_adapterfusion_s_equations() -> None:
    """Σ_i a_i V z_i with a = softmax_i(Q x · K z_i) and z_i = U GELU(D x + b) + b'; and a task's own adapter alone."""
    adapters, fusions = (
        started(kind(TASKS, WIDTH, torch.Generator()), seed) for seed, kind in enumerate((TaskAdapters, TaskFusions))
    )
    x, towards, task = drawn(2, 3, WIDTH, seed=5) / 4, drawn(2, 3, WIDTH, seed=6), 1
    loss = (fusions(x, adapters(x), task) * towards).sum()

    def output(own: Numbers, one: int, token: Any) -> Any:
        inner = gelu(own["down"][one] @ token + own["down_bias"][one])
        return own["up"][one] @ inner + own["up_bias"][one]

    def forward(values: dict[str, Numbers]) -> float:
        total, fusion = 0.0, values["fusions"]
        for row in range(2):
            for token, toward in zip(x[row].numpy(), towards[row].numpy(), strict=True):
                z = [output(values["adapters"], one, token) for one in range(TASKS)]
                scores = [float((fusion["query"][task] @ token) @ (fusion["key"][task] @ one)) for one in z]
                shares = np.exp(np.array(scores) - max(scores))
                shares /= shares.sum()
                total += (
                    sum(a * (fusion["value"][task] @ one) for a, one in zip(shares, z, strict=True)) * toward
                ).sum()
        return float(total)

    check_gradient({"adapters": adapters, "fusions": fusions}, forward, loss)
    own = adapters.own(x, torch.tensor([2, 0]))  # type: ignore[operator]
    for row, one in enumerate((2, 0)):
        for place in range(3):
            expected = output(numbers(adapters), one, x[row, place].numpy())
            np.testing.assert_allclose(own[row, place].detach().numpy(), expected, rtol=1e-9, atol=1e-12)


# --- in a backbone


@pytest.fixture(params=["llama", "t5", "gpt2"])
def backbone(request: pytest.FixtureRequest, folders: dict[str, Path]) -> FrozenBackbone:
    return load_backbone(str(folders[request.param]), device="cpu", dtype="float32")


def built(backbone: FrozenBackbone, method: str, tasks: int = 2) -> PromptedModel:
    """The method's model, far from its start."""
    row = METHODS[method]
    tuned = row.builder()(backbone, 0, **({"tasks": tasks} if row.per_task else {}))
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for tensor in tuned.parameters():
            tensor.add_(0.05 * torch.randn(tensor.shape, generator=generator))
    return PromptedModel(backbone, tuned=tuned)


def encoded(backbone: FrozenBackbone, tasks: tuple[int, ...] = (0, 1, 0)) -> list[EncodedRow]:
    words = [backbone.target_tokens(word, end=False) for word in ("yes", "no", "good")]
    texts = ["it is good label:", "the text was bad one two label:", "five label:"]
    return [replace(row, task=task) for row, task in zip(backbone.encode(texts, words, 64), tasks, strict=True)]


@pytest.mark.parametrize("method", ["hyperformer", "hyperdecoder", "adapterfusion"])
def test_a_row_scores_the_same_alone_and_among_rows_of_other_tasks(backbone: FrozenBackbone, method: str) -> None:
    model = built(backbone, method)
    labels = backbone.label_tokens(["yes", "no", "good"])
    try:
        rows = encoded(backbone)
        together = model.log_likelihood(rows).detach()
        torch.testing.assert_close(
            together, torch.cat([model.log_likelihood([row]) for row in rows]).detach(), rtol=1e-4, atol=1e-4
        )
        scores, _ = model.score_labels(rows, labels)
        own = torch.stack([scores[row, column] for row, column in enumerate((0, 1, 2))])
        if backbone.architecture == "decoder-only":  # T5's targets have an end token each
            torch.testing.assert_close(own, together, rtol=1e-4, atol=1e-4)
        others = model.score_labels([replace(row, task=1 - row.task) for row in rows], labels)[0]
        assert torch.equal(others, scores) == (method == "hyperdecoder")  # it looks at no task
        texts = model.generate(rows, 4)[0]
        assert texts == [model.generate([row], 4)[0][0] for row in rows]
    finally:
        model.release()


def test_hyperdecoder_s_adapters_depend_on_the_input_alone(backbone: FrozenBackbone) -> None:
    """With the input's states read otherwise, the same row has other scores."""
    model = built(backbone, "hyperdecoder")
    rows = encoded(backbone)
    try:
        before = model.log_likelihood(rows).detach()
        network = model.trained.hypernetwork
        with torch.no_grad():
            network.process[0].weight.zero_()  # all inputs are read alike
        assert not torch.allclose(model.log_likelihood(rows).detach(), before)
    finally:
        model.release()


def test_the_stages_of_a_fusion(folders: dict[str, Path]) -> None:
    """First each task's adapter learns from its own rows, then the attentions, and what is frozen has no gradient."""
    backbone = load_backbone(str(folders["llama"]), device="cpu", dtype="float32")
    model = built(backbone, "adapterfusion", tasks=3)
    fused = model.trained
    assert isinstance(fused, FusedAdapters)

    def gradients(step: int) -> tuple[list[torch.Tensor | None], list[torch.Tensor | None]]:
        fused.zero_grad()
        with fused.in_step(step, 10):
            model.log_likelihood(encoded(backbone)).sum().backward()
            assert (fused.penalty() is None) == (step < 5)
        return [one.grad for one in fused.adapters.parameters()], [one.grad for one in fused.fusions.parameters()]

    try:
        first, none = gradients(4)
        assert all(gradient is None for gradient in none)
        for gradient in first:
            assert gradient is not None
            assert [bool(one.any()) for one in gradient] == [True, True, False]  # no row is of the third task
        none, second = gradients(5)
        assert all(gradient is None for gradient in none)
        for gradient in second:
            assert gradient is not None
            assert [bool(one.any()) for one in gradient] == [True, True, False]
        assert all(tensor.requires_grad for tensor in fused.parameters())
        assert [fused.schedule(step, 11) for step in (0, 4, 5, 10)] == [(0, 5), (4, 5), (0, 6), (5, 6)]
        with fused.in_step(9, 10):
            penalty = fused.penalty()
        assert penalty is not None
        eye = torch.eye(backbone.width)
        expected = sum((part.value - eye).square().sum() for part in fused.fusions.values())
        torch.testing.assert_close(penalty, VALUE_PENALTY * expected)
    finally:
        model.release()


# --- the papers' counts


def test_the_papers_parameters() -> None:
    base = backbone_shapes()["t5-base"]
    # HyperFormer++: 0.29 % of T5-base a task, of eight
    assert hyperformer_parameters(base, 8) / base.parameters == pytest.approx(0.0029, abs=5e-5)
    # HyperDecoder: later tables print 1.8M a task, of eight; with both layers before the hypernetwork it is 1.9M
    assert hyperdecoder_parameters(base, 8) == pytest.approx(1.9e6, rel=0.01)
