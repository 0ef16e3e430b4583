"""Choosing k rows: balanced, seeded, in order, and refused when there are too few."""

from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from attempt_cli.data.example import Example
from attempt_cli.data.fewshot import few_shot
from attempt_cli.errors import AttemptError


def made(*labels: int | None) -> list[Example]:
    return [Example(f"row {row}", f"word{label}", label, row=row) for row, label in enumerate(labels)]


ROWS = made(*[n % 3 for n in range(60)])


@given(k=st.integers(1, 20), per_class=st.booleans(), seed=st.integers(0, 10**6))
def test_as_even_as_can_be_and_in_order(k: int, per_class: bool, seed: int) -> None:
    chosen = few_shot(ROWS, k, per_class=per_class, label_count=3, seed=seed)
    counts = Counter(example.label for example in chosen)
    assert len(chosen) == (3 * k if per_class else k)
    assert [example.row for example in chosen] == sorted({example.row for example in chosen})
    if per_class:
        assert set(counts.values()) == {k}
    else:
        assert max(counts.values()) - min(counts[label] for label in range(3)) <= 1


def test_the_seed_chooses_rows_and_who_gets_the_odd_one() -> None:
    chosen = {seed: few_shot(ROWS, 16, per_class=False, label_count=3, seed=seed) for seed in range(20)}
    assert chosen[3] == few_shot(ROWS, 16, per_class=False, label_count=3, seed=3)
    assert len({tuple(rows) for rows in chosen.values()}) == 20
    odd = {Counter(example.label for example in rows).most_common(1)[0][0] for rows in chosen.values()}
    assert odd == {0, 1, 2}


def test_more_rows_hold_the_fewer() -> None:
    few = few_shot(ROWS, 4, per_class=True, label_count=3, seed=5)
    more = few_shot(ROWS, 8, per_class=True, label_count=3, seed=5)
    assert set(few) < set(more)


def test_free_text_is_not_balanced() -> None:
    rows = made(*[None] * 30)
    chosen = few_shot(rows, 7, per_class=False, label_count=0, seed=0)
    assert len(chosen) == 7
    assert [example.row for example in chosen] == sorted(example.row for example in chosen)


@pytest.mark.parametrize(
    ("rows", "k", "per_class", "label_count", "message", "hint"),
    [
        (made(0, 0, 0, 1), 4, False, 2, "class 'word1' has 1 rows, 2 are wanted", "at most 2 in total"),
        (made(0, 0, 0, 1), 2, True, 2, "class 'word1' has 1 rows, 2 are wanted", "at most 1 per class"),
        (made(0, 0), 2, True, 2, "class number 2 of 2 has 0 rows", ""),
        (made(None, None), 3, False, 0, "k is 3, but there are 2 rows", "at most 2"),
        (made(0, 1), 0, False, 2, "k is 0", "at least 1"),
        (made(0, None), 1, False, 2, "row 2 has no label", ""),
    ],
)
def test_too_few_rows(rows: list[Example], k: int, per_class: bool, label_count: int, message: str, hint: str) -> None:
    with pytest.raises(AttemptError) as failure:
        few_shot(rows, k, per_class=per_class, label_count=label_count, seed=0)
    assert message in failure.value.message
    assert hint in str(failure.value.hint)
