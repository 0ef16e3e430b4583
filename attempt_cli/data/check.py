"""Checking a task: every row of every split that is there is rendered, and what is wrong is told with its row."""

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
    """What a check found in one file.

    Args:
        split: the official split's name.
        place: the file.
        rows: how many rows belong to the task.
        targets: label word -> how many rows have it (classification only).
        longest: the longest input in characters.
        problems: the rows that cannot be rendered, in words with their numbers.
    """

    split: str
    place: str
    rows: int
    targets: dict[str, int]
    longest: int
    problems: list[str] = field(default_factory=list)


def check_rows(task: Task, data_dir: Path | None) -> list[SplitCheck]:
    """Renders every row of the task's own files, or of its files in the data folder; the hub is not asked.

    Raises:
        AttemptError: a file that is named but missing or unreadable, or that lacks a column.
    """
    return [_check(task, official, found) for official, found in _local_splits(task, data_dir)]


def sample_examples(task: Task, data_dir: Path | None, count: int) -> tuple[str, list[Example]]:
    """The first rows of the first split that is there, with the file they come from; none where there are no rows.

    Raises:
        AttemptError: as in `check_rows`, and for a row that cannot be rendered.
    """
    for _, found in _local_splits(task, data_dir):
        return found.place, list(found.render(task, range(min(count, len(found.numbers)))))
    return "", []


def _local_splits(task: Task, data_dir: Path | None) -> Iterator[tuple[str, SplitRows]]:
    """The official splits whose rows are on this machine, train first."""
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
