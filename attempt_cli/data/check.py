"""Checks a task: renders every row that is on this machine and reports the rows that fail."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path

from attempt_cli.data.example import Example, RowError
from attempt_cli.data.rows import SplitRows, local_split
from attempt_cli.data.splits import SPLITS, official_split
from attempt_cli.data.task import Task


@dataclass(frozen=True)
class SplitCheck:
    """The result of checking one file.

    Args:
        split: the official split's name.
        place: the file.
        rows: the number of rows that belong to the task.
        targets: label word -> number of rows (classification only).
        longest: the longest input in characters.
        problems: a message for each row that cannot be rendered.
    """

    split: str
    place: str
    rows: int
    targets: dict[str, int]
    longest: int
    problems: list[str] = field(default_factory=list)


def check_rows(task: Task, data_dir: Path | None) -> list[SplitCheck]:
    """Renders every row of the task's own files, or of its files in the data folder; never asks the hub.

    Raises:
        AttemptError: a file that is named but missing or unreadable, or that lacks a column.
    """
    return [_check(task, official, found) for official, found in _local_splits(task, data_dir)]


def sample_examples(task: Task, data_dir: Path | None, count: int) -> tuple[str, list[Example]]:
    """Renders the first rows of the first split on this machine; returns them with their file, or nothing without rows.

    Raises:
        AttemptError: as in `check_rows`, and for a row that cannot be rendered.
    """
    for _, found in _local_splits(task, data_dir):
        return found.place, list(found.render(task, range(min(count, len(found.numbers)))))
    return "", []


def _local_splits(task: Task, data_dir: Path | None) -> Iterator[tuple[str, SplitRows]]:
    """Yields the official splits whose rows are on this machine, train first."""
    officials = task.files if task.hub is None else (official_split(task.split_rule, task.splits, s) for s in SPLITS)
    for official in dict.fromkeys(officials):
        found = local_split(task, official, data_dir)
        if found is not None and found.numbers:
            yield official, found


def _check(task: Task, official: str, found: SplitRows) -> SplitCheck:
    problems: list[str] = []
    targets = dict.fromkeys(task.label_words, 0)
    longest = 0
    for number, row in found.values(range(len(found.numbers))):
        try:
            example = task.render(row, number, place=found.place_of(number))
        except RowError as error:
            problems.append(error.message)
            continue
        longest = max(longest, len(example.input))
        if task.is_classification:
            targets[example.target] += 1
    return SplitCheck(official, found.place, len(found.numbers), targets, longest, problems)
