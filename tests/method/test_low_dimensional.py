"""Ultra-low-dimensional prompt tuning: P_k = (e_k Z) ∘ s_k + b_k."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from attempt_cli.method import BuildInputs
from attempt_cli.method.low_dimensional import LowDimensionalPrompt, build, parameters
from attempt_cli.training.config import make_config


def test_values_and_gradients_are_those_of_the_equation() -> None:
    """Against float64 numpy, written from the equation: three tasks, one of them in two rows and one in none."""
    module = LowDimensionalPrompt(3, 5, 7, 2, seed=4).double()
    generator = torch.Generator().manual_seed(0)
    for tensor in module.parameters():
        torch.nn.init.normal_(tensor, generator=generator)
    tasks, towards = [2, 0, 2], torch.randn(3, 5, 7, generator=generator, dtype=torch.float64)
    prompts, weights = module(torch.tensor(tasks))
    (prompts * towards).sum().backward()

    e, z, s, b, w = (
        tensor.detach().numpy()
        for tensor in (module.embeddings, module.projection, module.scale, module.shift, towards)
    )
    de, ds, db = np.zeros_like(e), np.zeros_like(s), np.zeros_like(b)
    for row, k in enumerate(tasks):
        for i in range(5):
            for j in range(7):
                projected = sum(e[k, i, q] * z[q, j] for q in range(2))
                assert prompts[row, i, j].item() == pytest.approx(projected * s[k, j] + b[k, j], rel=1e-12)
                ds[k, j] += w[row, i, j] * projected
                db[k, j] += w[row, i, j]
                for q in range(2):
                    de[k, i, q] += w[row, i, j] * s[k, j] * z[q, j]
    assert weights is None
    for tensor, gradient in ((module.embeddings, de), (module.scale, ds), (module.shift, db)):
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-12, atol=1e-14)


@pytest.mark.parametrize("rank", [1, 2, 64])
def test_it_starts_from_random_prompts_of_variance_one(rank: int) -> None:
    module = LowDimensionalPrompt(2, 200, 2000, rank, seed=0)
    assert module.projection.var().item() == pytest.approx(1 / rank, rel=0.1)
    assert module.target_prompts.var().item() == pytest.approx(1, rel=0.2)
    assert torch.equal(module.target_prompts, module.embeddings @ module.projection)
    assert not torch.equal(module.embeddings[0], module.embeddings[1])


def test_the_state_holds_the_seed_in_place_of_z() -> None:
    one, other = LowDimensionalPrompt(2, 3, 6, 2, seed=1), LowDimensionalPrompt(2, 3, 6, 2, seed=2)
    assert not torch.equal(one.projection, other.projection)
    state = one.state_dict()
    assert {name: tuple(tensor.shape) for name, tensor in state.items()} == {
        "embeddings": (2, 3, 2),
        "scale": (2, 6),
        "shift": (2, 6),
        "_extra_state": (),
    }
    other.load_state_dict(state)
    assert torch.equal(other.target_prompts, one.target_prompts)
    assert other.state_dict()["_extra_state"].item() == 1


@pytest.mark.parametrize(("length", "width", "rank", "count"), [(100, 768, 2, 1736), (20, 576, 16, 1472)])
def test_the_formula_counts_its_parameters(length: int, width: int, rank: int, count: int) -> None:
    config = make_config(None, method="ulpt", method_settings={"rank": rank})
    inputs = BuildInputs(config, torch.zeros(3, length, width), None, torch.Generator(), positions=8)
    module = build(inputs)
    assert parameters(inputs) == count == sum(tensor.numel() for tensor in module.parameters()) / 3
    assert {name: len(tensors) for name, tensors in module.param_groups().items()} == {"prompts": 3}
    assert (module.length, module.target_prompts.shape) == (length, (3, length, width))


def test_sizes_that_cannot_be_meant() -> None:
    with pytest.raises(ValueError, match="at least 1, not 1, 5, 8 and 0"):
        LowDimensionalPrompt(1, 5, 8, 0, seed=0)
