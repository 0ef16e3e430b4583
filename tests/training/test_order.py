"""The order of rows: every row once an epoch, like lengths together, a function of the seed alone."""

from __future__ import annotations

import itertools
import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempt_cli.training.order import BatchOrder


@given(
    lengths=st.lists(st.integers(1, 300), min_size=1, max_size=200),
    rows=st.integers(1, 40),
    seed=st.integers(0, 5),
    epoch=st.integers(0, 3),
)
def test_every_row_comes_once_an_epoch(lengths: list[int], rows: int, seed: int, epoch: int) -> None:
    order = BatchOrder(lengths, rows, seed)
    first = epoch * order.batches_per_epoch
    batches = [order.batch(first + number) for number in range(order.batches_per_epoch)]
    assert sorted(index for batch in batches for index in batch) == list(range(len(lengths)))
    assert all(1 <= len(batch) <= rows for batch in batches)
    assert len(batches) == -(-len(lengths) // min(rows, len(lengths)))


LENGTHS = random.Random(3).choices(range(5, 500), k=1000)


def test_a_step_s_rows_depend_on_the_seed_and_on_nothing_else() -> None:
    forward = BatchOrder(LENGTHS, 8, seed=1)
    batches = [forward.batch(step) for step in range(300)]
    for step in (299, 0, 124, 125, 126):  # a run resumed anywhere meets the same rows
        assert BatchOrder(LENGTHS, 8, seed=1).batch(step) == batches[step]
    assert [BatchOrder(LENGTHS, 8, seed=2).batch(step) for step in range(300)] != batches
    assert batches[:125] != batches[125:250]  # another order in the next epoch


def test_rows_of_like_length_stand_together() -> None:
    order = BatchOrder(LENGTHS, 8, seed=0)

    def pads(batches: list[list[int]]) -> int:
        return sum(max(LENGTHS[i] for i in batch) - LENGTHS[j] for batch in batches for j in batch)

    batches = [order.batch(step) for step in range(order.batches_per_epoch)]
    shuffled = random.Random(0).sample(range(len(LENGTHS)), len(LENGTHS))
    mixed = [shuffled[i : i + 8] for i in range(0, len(LENGTHS), 8)]
    assert pads(batches) < 0.2 * pads(mixed)
    # and yet short and long batches alternate
    means = [sum(LENGTHS[i] for i in batch) / len(batch) for batch in batches]
    rises = sum(a < b for a, b in itertools.pairwise(means))
    assert 0.35 < rises / len(means) < 0.65


@pytest.mark.parametrize("rows", [1, 7, 16, 1000])
def test_fewer_rows_than_a_batch_make_one_batch(rows: int) -> None:
    order = BatchOrder([4, 9, 2], rows, seed=0)
    assert len(order.batch(0)) == min(rows, 3)
    if rows > 3:
        assert sorted(order.batch(5)) == [0, 1, 2]
