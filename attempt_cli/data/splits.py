"""Cuts splits into train, validation and test rows by the rules of this literature (Karimi Mahabadi et al., 2021).

Test labels of GLUE and SuperGLUE are not public, so the papers cut their splits from what is public, by the
permutation that torch makes from seed 42:

- halved: the official validation split is halved; its first half is validation, the second is test (small tasks).
- held-out: 1,000 training rows are validation, the rest is train; the official validation split is test (large tasks).
- own: the official splits as they are.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

SPLITS = ("train", "validation", "test")
SPLIT_SEED = 42
HELD_OUT = 1000
# below this many training rows 1,000 would be most of them: a tenth is held out instead
FEWEST_FOR_HELD_OUT = 2000


@dataclass(frozen=True)
class Part:
    """Some rows of a file: their numbers in order, and a description."""

    numbers: Sequence[int]
    words: str


def official_split(split_rule: str, splits: Mapping[str, str], split: str) -> str:
    """Returns the official split that a split's rows are cut from.

    Args:
        split_rule: halved | held-out | own.
        splits: the task's own names of official splits, e.g. {"validation": "validation_mismatched"}.
        split: train | validation | test.
    """
    if split_rule == "halved" and split == "test":
        return splits.get("validation", "validation")
    if split_rule == "held-out":
        default = {"train": "train", "validation": "train", "test": "validation"}[split]
        return splits.get("train", "train") if split != "test" else splits.get("test", default)
    return splits.get(split, split)


def split_part(split_rule: str, split: str, count: int) -> Part:
    """Returns the rows of an official split that belong to a split.

    Args:
        split_rule: halved | held-out | own.
        split: train | validation | test.
        count: the number of rows in the official split.
    """
    if split_rule == "halved" and split != "train":
        half, order = count // 2, permutation(count)
        if split == "validation":
            return Part(order[:half], f"the first half of the seed-{SPLIT_SEED} permutation of {count:,} rows")
        return Part(order[half:], f"the second half of the seed-{SPLIT_SEED} permutation of {count:,} rows")
    if split_rule == "held-out" and split != "test":
        held = HELD_OUT if count >= FEWEST_FOR_HELD_OUT else count // 10
        why = "" if held == HELD_OUT else f" (a tenth, as there are fewer than {FEWEST_FOR_HELD_OUT:,})"
        order = permutation(count)
        if split == "validation":
            return Part(order[:held], f"the first {held:,} of the seed-{SPLIT_SEED} permutation of {count:,} rows{why}")
        return Part(
            order[held:], f"the seed-{SPLIT_SEED} permutation of {count:,} rows without its first {held:,}{why}"
        )
    return Part(range(count), f"all {count:,} rows")


def permutation(count: int) -> list[int]:
    """Returns torch's permutation of 0..count-1 from seed 42, which the papers use."""
    import torch

    order: list[int] = torch.randperm(count, generator=torch.Generator().manual_seed(SPLIT_SEED)).tolist()
    return order
