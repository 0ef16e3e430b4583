"""Multitask prompt tuning: P_k = P* ∘ (u_k v_k)."""

from __future__ import annotations

import pytest
import torch

from attempt_cli.method import SharedPrompt, mpt_parameters

PROMPT = torch.tensor([[1.0, 2.0, 3.0], [4.0, 5.0, 6.0]])


@pytest.mark.parametrize("rank", [1, 2])
def test_every_task_starts_from_the_shared_prompt(rank: int) -> None:
    module = SharedPrompt(PROMPT, 3, rank=rank)
    assert module.length == 2
    assert torch.equal(module.target_prompts, PROMPT.expand(3, -1, -1))
    prompts, weights = module(torch.tensor([2, 0]))
    assert torch.equal(prompts, PROMPT.expand(2, -1, -1))
    assert weights is None
    assert module.attention is None


def test_by_hand() -> None:
    module = SharedPrompt(PROMPT, 2)
    with torch.no_grad():
        module.left_factors[1] = torch.tensor([[2.0], [-1.0]])
        module.right_factors[1] = torch.tensor([[1.0, 0.0, 10.0]])
    # u v = ((2, 0, 20), (-1, 0, -10)), times P* entry by entry
    task_1 = [[2.0, 0.0, 60.0], [-4.0, 0.0, -60.0]]
    assert module.target_prompts.tolist() == [PROMPT.tolist(), task_1]
    prompts, _ = module(torch.tensor([1, 0, 1]), torch.randn(3, 3))
    assert prompts.tolist() == [task_1, PROMPT.tolist(), task_1]


def test_ranks_are_sums_of_products() -> None:
    module = SharedPrompt(PROMPT, 1, rank=2)
    u, v = torch.randn(2, 2), torch.randn(2, 3)
    with torch.no_grad():
        module.left_factors[0], module.right_factors[0] = u, v
    expected = [[float(PROMPT[i, k] * sum(u[i, q] * v[q, k] for q in range(2))) for k in range(3)] for i in range(2)]
    torch.testing.assert_close(module.target_prompts[0], torch.tensor(expected))


def test_factors_learn_from_their_own_rows_and_the_shared_prompt_from_all() -> None:
    module = SharedPrompt(PROMPT, 3, generator=torch.Generator().manual_seed(0))
    towards = torch.randn(3, 2, 3)
    task_ids = torch.tensor([0, 2, 2])
    (module(task_ids)[0] * towards).sum().backward()
    for factors in (module.left_factors, module.right_factors):
        assert [bool(gradient.any()) for gradient in factors.grad] == [True, False, True]
    torch.testing.assert_close(module.shared_prompt.grad, towards.sum(dim=0))  # the products are still ones


def test_ranks_do_not_stay_equal() -> None:
    module = SharedPrompt(PROMPT, 1, rank=2, generator=torch.Generator().manual_seed(0))
    optimizer = torch.optim.SGD(module.parameters(), lr=0.01)
    for _ in range(3):
        optimizer.zero_grad()
        (module(torch.tensor([0]))[0] - torch.tensor([[1.0, 0.0, 2.0], [0.0, 3.0, 1.0]])).square().sum().backward()
        optimizer.step()
    product = (module.left_factors @ module.right_factors)[0].detach()
    assert torch.linalg.matrix_rank(product, rtol=1e-4) == 2


def test_the_generator_decides() -> None:
    one, two, three = (SharedPrompt(PROMPT, 2, rank=2, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one.left_factors, two.left_factors)
    assert not torch.equal(one.left_factors, three.left_factors)


def test_speeds_and_the_frozen_shared_prompt() -> None:
    module = SharedPrompt(PROMPT, 2)
    groups = module.param_groups()
    assert [id(p) for p in groups["prompts"]] == [id(module.shared_prompt)]
    assert [id(p) for p in groups["attention"]] == [id(module.left_factors), id(module.right_factors)]
    assert len(list(module.parameters())) == 3
    frozen = SharedPrompt(PROMPT, 2, train_shared=False)
    assert list(frozen.param_groups()) == ["attention"]
    frozen(torch.tensor([0]))[0].sum().backward()
    assert frozen.shared_prompt.grad is None
    assert set(frozen.state_dict()) == {"shared_prompt", "left_factors", "right_factors"}


@pytest.mark.parametrize(("tasks", "rank", "train_shared"), [(1, 1, True), (8, 1, True), (8, 3, True), (4, 2, False)])
def test_the_formula_counts_its_parameters(tasks: int, rank: int, train_shared: bool) -> None:
    module = SharedPrompt(torch.zeros(100, 768), tasks, rank=rank, train_shared=train_shared)
    trained = sum(p.numel() for p in module.parameters() if p.requires_grad)
    assert trained / tasks == mpt_parameters(768, 100, rank, tasks, train_shared=train_shared)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"shared_prompt": PROMPT[None]}, r"a shared prompt is \[m, d\], not \[1, 2, 3\]"),
        ({"tasks": 0}, "at least one task, not 0"),
        ({"rank": 0}, "rank of the factors is 0; it lies between 1 and 2"),
        ({"rank": 3}, "rank of the factors is 3; it lies between 1 and 2"),
    ],
)
def test_shapes_that_cannot_be_meant(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        SharedPrompt(**{"shared_prompt": PROMPT, "tasks": 2, **arguments})
