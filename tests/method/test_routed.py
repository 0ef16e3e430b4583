"""Mixtures of prompts with a router: w = softmax(W x̄ + b) where it is largest, P = w_i P_i, or w_i A_i B."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import torch

from attempt_cli.method import BuildInputs
from attempt_cli.method.routed import RoutedPrompts, build_pt_moe, build_smop, pt_moe_parameters, smop_parameters
from attempt_cli.training.config import make_config

TASKS, COUNT, LENGTH, WIDTH, RANK = 2, 3, 4, 5, 2


def drawn(*shape: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def module_of(factored: bool, **settings: Any) -> RoutedPrompts:
    experts = drawn(TASKS, COUNT, LENGTH, RANK if factored else WIDTH, seed=1)
    shared = drawn(TASKS, RANK, WIDTH, seed=2) if factored else None
    module = RoutedPrompts(experts, shared, bias=factored, **settings).double()
    for seed, tensor in enumerate(module.parameters()):
        tensor.data = drawn(*tensor.shape, seed=10 + seed)
    return module


def inputs(method: str, length: int, width: int, tasks: int = 1, **settings: Any) -> BuildInputs:
    config = make_config(None, method=method, method_settings=settings)
    generator = torch.Generator().manual_seed(0)
    return BuildInputs(config, torch.randn(tasks, length, width, generator=generator), None, generator, positions=8)


@pytest.mark.parametrize("factored", [False, True], ids=["SMoP", "PT-MoE"])
@pytest.mark.parametrize("noise", [0.0, 0.7])
def test_values_and_gradients_are_those_of_the_equations(factored: bool, noise: float) -> None:
    """Against float64 numpy, written from the equations: four rows of two tasks, with the gradient by hand."""
    module = module_of(factored, noise=noise, seed=5)
    tasks, pooled, towards = [1, 0, 1, 0], drawn(4, WIDTH, seed=3), drawn(4, LENGTH, WIDTH, seed=4)
    with module.in_step(9, 100):
        prompts, weights = module(torch.tensor(tasks), pooled)
        (prompts * towards).sum().backward()
    assert weights is None
    drawn_noise = torch.randn(4, COUNT, generator=torch.Generator().manual_seed(5 * 1_000_003 + 9)).double().numpy()
    experts, router, x, t = (tensor.detach().numpy() for tensor in (module.experts, module.router, pooled, towards))
    shared = module.shared.detach().numpy() if module.shared is not None else None
    bias = module.router_bias.detach().numpy() if module.router_bias is not None else np.zeros((TASKS, COUNT))
    d_experts, d_router, d_bias = np.zeros_like(experts), np.zeros_like(router), np.zeros_like(bias)
    d_shared = np.zeros_like(shared) if shared is not None else None
    for row, k in enumerate(tasks):
        factor = 1 + noise * drawn_noise[row]
        scores = [
            (sum(router[k, i, j] * x[row, j] for j in range(WIDTH)) + bias[k, i]) * factor[i] for i in range(COUNT)
        ]
        total = sum(math.exp(score) for score in scores)
        w = [math.exp(score) / total for score in scores]
        i = max(range(COUNT), key=w.__getitem__)
        whole = experts[k, i] if shared is None else experts[k, i] @ shared[k]
        np.testing.assert_allclose(prompts[row].detach().numpy(), w[i] * whole, rtol=1e-12)
        slope = (t[row] * whole).sum()  # of the loss in w_i
        if shared is None:
            d_experts[k, i] += w[i] * t[row]
        else:
            assert d_shared is not None
            d_experts[k, i] += w[i] * t[row] @ shared[k].T
            d_shared[k] += w[i] * experts[k, i].T @ t[row]
        for j in range(COUNT):
            d_score = slope * w[i] * ((i == j) - w[j]) * factor[j]
            d_router[k, j] += d_score * x[row]
            d_bias[k, j] += d_score
    pairs: list[tuple[torch.Tensor | None, Any]] = [(module.experts, d_experts), (module.router, d_router)]
    pairs += [(module.shared, d_shared), (module.router_bias, d_bias)] if factored else []
    for tensor, gradient in pairs:
        assert tensor is not None
        assert tensor.grad is not None
        np.testing.assert_allclose(tensor.grad.numpy(), gradient, rtol=1e-10, atol=1e-12)


def test_smop_is_pt_moe_with_whole_prompts() -> None:
    """With B = 1 the factors are the prompts."""
    whole = module_of(False)
    factored = RoutedPrompts(whole.experts, torch.eye(WIDTH, dtype=torch.float64).repeat(TASKS, 1, 1)).double()
    factored.load_state_dict({**factored.state_dict(), "experts": whole.experts, "router": whole.router})
    rows, pooled = torch.tensor([0, 1, 1]), drawn(3, WIDTH)
    torch.testing.assert_close(factored(rows, pooled)[0], whole(rows, pooled)[0])


def test_noise_is_the_step_s_and_only_in_training() -> None:
    module, rows = module_of(False, noise=1.0, seed=3), torch.tensor([0, 1])
    pooled = drawn(2, WIDTH)
    quiet = module(rows, pooled)[0]
    noisy = []
    for step in (4, 5, 4):
        with module.in_step(step, 10):
            noisy.append(module(rows, pooled)[0])
    assert torch.equal(noisy[0], noisy[2])
    assert not torch.equal(noisy[0], noisy[1])
    assert not torch.equal(noisy[0], quiet)
    assert torch.equal(module(rows, pooled)[0], quiet)


def test_the_balance_loss_is_least_where_all_are_picked_alike() -> None:
    """α·k·Σ f_i p̄_i, by hand, and none of it without α or out of training."""
    module = module_of(False, balance=0.5)
    rows, pooled = torch.tensor([0, 0, 0, 0]), drawn(4, WIDTH)
    assert module(rows, pooled) is not None
    assert module.penalty() is None
    with module.in_step(0, 1):
        module(rows, pooled)
        penalty = module.penalty()
        assert penalty is not None
        penalty.backward()
    probabilities = (pooled @ module.router[0].T).softmax(dim=1)
    picked = probabilities.argmax(dim=1).tolist()
    expected = sum(picked.count(i) / 4 * probabilities[:, i].mean().item() for i in range(COUNT)) * 0.5 * COUNT
    assert penalty.item() == pytest.approx(expected)
    assert module.router.grad is not None
    assert module.router.grad[0].any()
    assert module.penalty() is None
    even = RoutedPrompts(torch.zeros(1, 2, 1, 2), balance=1.0)
    even.router.data = torch.tensor([[[1.0, 0.0], [-1.0, 0.0]]])
    with even.in_step(0, 1):
        even(torch.tensor([0, 0]), torch.tensor([[3.0, 0.0], [-3.0, 0.0]]))
        assert _value(even) == pytest.approx(1.0)
        even(torch.tensor([0, 0]), torch.tensor([[3.0, 0.0], [3.0, 0.0]]))
        assert _value(even) > 1.9


def _value(module: RoutedPrompts) -> float:
    penalty = module.penalty()
    assert penalty is not None
    return penalty.item()


def test_what_is_read_is_the_mean_of_real_tokens() -> None:
    module = module_of(False)
    embeddings = torch.arange(12.0).view(2, 3, 2)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    assert module.pool(embeddings, mask).tolist() == [[1.0, 2.0], [6.0, 7.0]]


@pytest.mark.parametrize("factored", [False, True])
def test_a_task_s_parts_make_its_module_again(factored: bool) -> None:
    module, pooled = module_of(factored), drawn(2, WIDTH)
    again = RoutedPrompts.from_parts(module.target_prompts[1], module.kept_parts(1))  # in float32, as it is kept
    found, expected = again(torch.tensor([0, 0]), pooled.float())[0], module(torch.tensor([1, 1]), pooled)[0]
    torch.testing.assert_close(found, expected.float())


def test_smop_s_prompts_start_from_words_of_their_own() -> None:
    of = inputs("smop", 20, 7, tasks=2)
    module = build_smop(of)
    assert module.experts.shape == (2, 4, 5, 7)
    assert torch.equal(module.experts.flatten(1, 2), of.initial)
    assert {name: len(tensors) for name, tensors in module.param_groups().items()} == {"prompts": 1, "attention": 1}
    assert (module.noise, module.balance, module.length) == (1.0, 0.0, 5)


def test_pt_moe_starts_from_the_words_as_far_as_its_rank_allows() -> None:
    of = inputs("pt-moe", 10, 30, rank=10)
    module = build_pt_moe(of)
    assert module.shared is not None
    for number in range(2):
        torch.testing.assert_close(module.experts[0, number] @ module.shared[0], of.initial[0])
    assert {name: len(tensors) for name, tensors in module.param_groups().items()} == {"attention": 4}
    assert build_pt_moe(inputs("pt-moe", 10, 30)).experts.shape == (1, 2, 10, 9)


@pytest.mark.parametrize(
    ("method", "length", "width", "count"),
    [
        ("smop", 20, 768, 18_432),  # four prompts of five tokens on T5-base
        ("pt-moe", 40, 2048, 80_706),  # N = 2 and R = 36 on Llama-3.2-1B: 80k in the authors' table
    ],
)
def test_the_formulas_count_the_parameters(method: str, length: int, width: int, count: int) -> None:
    of = inputs(method, length, width)
    build, formula = {"smop": (build_smop, smop_parameters), "pt-moe": (build_pt_moe, pt_moe_parameters)}[method]
    assert sum(tensor.numel() for tensor in build(of).parameters()) == formula(of) == count


def test_pt_moe_has_a_quarter_fewer_parameters_than_lora() -> None:
    """The abstract's 25 %: LoRA of rank 1 on queries and values of Llama-3.2-1B, 16 layers, keys a quarter as wide."""
    lora = 16 * ((2048 + 2048) + (2048 + 512))
    assert 1 - pt_moe_parameters(inputs("pt-moe", 40, 2048)) / lora == pytest.approx(0.25, abs=0.01)


def test_sizes_that_do_not_fit() -> None:
    with pytest.raises(ValueError, match="prompts are"):
        RoutedPrompts(torch.zeros(2, 3, 4))
    with pytest.raises(ValueError, match="do not fit"):
        RoutedPrompts(torch.zeros(1, 2, 3, 4), torch.zeros(1, 5, 6))
    with pytest.raises(ValueError, match="needs the pooled input"):
        module_of(False)(torch.tensor([0]))
