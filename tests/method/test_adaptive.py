"""Adaptive decomposed prompt tuning: a short prompt, and the offset W₂ ReLU(W₁ x + b₁) + b₂ of every input token x."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attempt_cli.method import BuildInputs
from attempt_cli.method.adaptive import AdaptivePrompt, adaptive_shape, build, parameters
from attempt_cli.training.config import make_config


def module_of(tasks: int = 2, length: int = 3, width: int = 5, inner: int = 4) -> AdaptivePrompt:
    generator = torch.Generator().manual_seed(0)
    module = AdaptivePrompt(torch.randn(tasks, length, width, generator=generator), inner, generator=generator).double()
    for tensor in module.parameters():
        torch.nn.init.normal_(tensor, generator=generator)
    return module


def test_values_and_gradients_are_those_of_the_equation() -> None:
    """Against float64 numpy, token by token: three rows, one task in two of them."""
    module, tasks = module_of(), [1, 0, 1]
    generator = torch.Generator().manual_seed(1)
    x, towards = (torch.randn(3, 6, 5, generator=generator, dtype=torch.float64) for _ in range(2))
    offsets = module.offsets(torch.tensor(tasks), x)
    (offsets * towards).sum().backward()
    w1, b1, w2, b2 = (one.detach().numpy() for one in (module.down, module.down_bias, module.up, module.up_bias))
    gradients = [np.zeros_like(one) for one in (w1, b1, w2, b2)]
    for row, k in enumerate(tasks):
        for token in range(6):
            inner = [sum(w1[k, j, i] * float(x[row, token, j]) for j in range(5)) + b1[k, i] for i in range(4)]
            held = [max(0.0, one) for one in inner]
            for j in range(5):
                expected = sum(w2[k, i, j] * held[i] for i in range(4)) + b2[k, j]
                assert offsets[row, token, j].item() == pytest.approx(expected, rel=1e-12)
            t = towards[row, token].numpy()
            for i in range(4):
                slope = float(w2[k, i] @ t) * (inner[i] > 0)
                gradients[0][k, :, i] += slope * x[row, token].numpy()
                gradients[1][k, i] += slope
                gradients[2][k, i] += held[i] * t
            gradients[3][k] += t
    for tensor, gradient in zip((module.down, module.down_bias, module.up, module.up_bias), gradients, strict=True):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)


def test_a_token_has_the_same_offset_everywhere() -> None:
    module, token = module_of(), torch.randn(5, dtype=torch.float64)
    offsets = module.offsets(torch.tensor([0]), torch.stack([token, -token, token])[None])
    assert torch.equal(offsets[0, 0], offsets[0, 2])
    assert not torch.equal(offsets[0, 0], offsets[0, 1])


def test_the_input_starts_as_it_is() -> None:
    module = AdaptivePrompt(torch.ones(1, 2, 5), 3)
    assert not module.offsets(torch.tensor([0]), torch.randn(1, 4, 5)).any()
    assert module(torch.tensor([0]))[0].tolist() == torch.ones(1, 2, 5).tolist()
    assert {name: len(tensors) for name, tensors in module.param_groups().items()} == {"prompts": 1, "attention": 4}


def test_a_task_s_parts_make_its_module_again() -> None:
    module, x = module_of(), torch.randn(1, 4, 5, dtype=torch.float64)
    again = AdaptivePrompt.from_parts(module.target_prompts[1], module.kept_parts(1))  # in float32, as it is kept
    torch.testing.assert_close(
        again.offsets(torch.tensor([0]), x.float()), module.offsets(torch.tensor([1]), x).float()
    )
    assert torch.equal(again.target_prompts[0], module.target_prompts[1].float())


@pytest.mark.parametrize(
    ("length", "width", "shape", "count"),
    [
        (100, 768, (60, 19), 76_051),
        (20, 576, (12, 3), 10_947),
    ],
)
def test_the_formula_counts_its_parameters(length: int, width: int, shape: tuple[int, int], count: int) -> None:
    inputs = BuildInputs(
        make_config(None, method="adept"), torch.zeros(3, length, width), None, torch.Generator(), positions=8
    )
    module = build(inputs)
    assert adaptive_shape(width, length) == shape
    assert parameters(inputs) == count == sum(tensor.numel() for tensor in module.parameters()) / 3
    assert module.target_prompts.shape == (3, shape[0], width)
    assert count <= length * width


def test_budgets_and_sizes_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="leaves nothing of 2"):
        adaptive_shape(768, 2)
    with pytest.raises(ValueError, match="at least 1, not 0"):
        AdaptivePrompt(torch.zeros(1, 2, 3), 0)
    with pytest.raises(ValueError, match=r"\[n, m', d\]"):
        AdaptivePrompt(torch.zeros(2, 3), 1)
