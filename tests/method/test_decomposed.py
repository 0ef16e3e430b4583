"""Decomposed prompt tuning: a short prompt, and offsets A_k B_k on the first input positions."""

from __future__ import annotations

import pytest
import torch

from attempt_cli.method import DecomposedPrompt, decomposed_shape, dept_parameters

SHORT = torch.tensor([[[1.0, 2.0, 3.0]], [[4.0, 5.0, 6.0]]])  # two tasks, m' = 1, d = 3


def test_the_input_starts_as_it_is() -> None:
    module = DecomposedPrompt(SHORT, positions=2, rank=1)
    assert module.length == 1
    assert module.attention is None
    prompts, weights = module(torch.tensor([1, 0]), torch.randn(2, 3))
    assert prompts.tolist() == [SHORT[1].tolist(), SHORT[0].tolist()]
    assert weights is None
    assert torch.equal(module.offsets(torch.tensor([1, 0]), torch.zeros(2, 4, 3)), torch.zeros(2, 4, 3))


@pytest.mark.parametrize("length", [0, 1, 2, 3, 5])
def test_offsets_by_hand(length: int) -> None:
    module = DecomposedPrompt(SHORT, positions=2, rank=1)
    with torch.no_grad():
        module.left_factors.copy_(torch.tensor([[[1.0], [2.0]], [[3.0], [-1.0]]]))
        module.right_factors.copy_(torch.tensor([[[1.0, 0.0, 5.0]], [[0.0, 2.0, 1.0]]]))
    first = [[1.0, 0.0, 5.0], [2.0, 0.0, 10.0]]
    second = [[0.0, 6.0, 3.0], [0.0, -2.0, -1.0]]
    beyond = [[0.0, 0.0, 0.0]] * 3
    expected = [[*rows, *beyond][:length] for rows in (second, first, second)]
    assert module.offsets(torch.tensor([1, 0, 1]), torch.zeros(3, length, 3)).tolist() == expected


def test_everything_learns_from_its_own_rows() -> None:
    module = DecomposedPrompt(torch.randn(3, 2, 4), positions=3, rank=2)
    torch.nn.init.normal_(module.right_factors)
    task_ids = torch.tensor([0, 2])
    loss = module(task_ids)[0].square().sum() + module.offsets(task_ids, torch.zeros(2, 2, 4)).square().sum()
    loss.backward()
    for parameter in module.parameters():
        assert [bool(gradient.any()) for gradient in parameter.grad] == [True, False, True]
    assert not module.left_factors.grad[:, 2:].any()  # the batch had two positions


@pytest.mark.parametrize("rank", [1, 16, 64])
def test_a_first_step_moves_an_offset_by_about_the_learning_rate(rank: int) -> None:
    module = DecomposedPrompt(
        torch.zeros(1, 1, 64), positions=200, rank=rank, generator=torch.Generator().manual_seed(0)
    )
    towards = torch.randn(1, 200, 64, generator=torch.Generator().manual_seed(1))
    optimizer = torch.optim.Adam(module.param_groups()["attention"], lr=0.01)
    (module.offsets(torch.tensor([0]), torch.zeros(1, 200, 64)) * towards).sum().backward()
    assert not module.left_factors.grad.any()  # B is zero: B moves first
    optimizer.step()
    moved = module.offsets(torch.tensor([0]), torch.zeros(1, 200, 64)).square().mean().sqrt()
    assert moved.item() == pytest.approx(0.01, rel=0.3)


def test_the_generator_decides() -> None:
    one, two, three = (DecomposedPrompt(SHORT, 2, 1, generator=torch.Generator().manual_seed(s)) for s in (1, 1, 2))
    assert torch.equal(one.left_factors, two.left_factors)
    assert not torch.equal(one.left_factors, three.left_factors)


def test_param_groups() -> None:
    module = DecomposedPrompt(SHORT, 2, 1)
    groups = module.param_groups()
    assert [id(p) for p in groups["prompts"]] == [id(module.target_prompts)]
    assert [id(p) for p in groups["attention"]] == [id(module.left_factors), id(module.right_factors)]
    assert len(list(module.parameters())) == 3
    assert module.requires_grad_(False).param_groups() == {}


def test_the_papers_budget() -> None:
    # T5-base, m = 100, s = 256: a prompt of 40 and rank 45 spend 76,800 parameters exactly
    assert decomposed_shape(768, 100, 256) == (40, 45)
    assert dept_parameters(768, 40, 256, 45) == 100 * 768
    assert decomposed_shape(768, 100, 256, short_length=60) == (60, 30)


@pytest.mark.parametrize(("width", "length", "positions"), [(576, 20, 256), (64, 8, 30), (2048, 100, 256), (8, 100, 4)])
def test_the_shape_spends_the_budget_and_no_more(width: int, length: int, positions: int) -> None:
    short_length, rank = decomposed_shape(width, length, positions)
    module = DecomposedPrompt(torch.zeros(1, short_length, width), positions, rank)
    trained = sum(p.numel() for p in module.parameters())
    assert trained == dept_parameters(width, short_length, positions, rank) <= length * width
    one_more = dept_parameters(width, short_length, positions, rank + 1)
    assert one_more > length * width or rank == min(positions, width)


def test_a_budget_that_is_too_small() -> None:
    with pytest.raises(
        ValueError, match="a short prompt of 9 tokens leaves nothing of 10 for offsets on 256 positions"
    ):
        decomposed_shape(768, 10, 256, short_length=9)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"target_prompts": SHORT[0]}, r"short prompts are \[n, m', d\], not \[1, 3\]"),
        ({"positions": 0}, "at least one input position has an offset, not 0"),
        ({"rank": 0}, "rank of the offsets is 0; it lies between 1 and 2"),
        ({"rank": 3}, "rank of the offsets is 3; it lies between 1 and 2"),
    ],
)
def test_shapes_that_cannot_be_meant(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        DecomposedPrompt(**{"target_prompts": SHORT, "positions": 2, "rank": 1, **arguments})
