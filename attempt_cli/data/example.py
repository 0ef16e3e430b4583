"""A row as a text pair, and the error of a row that cannot become one."""

from __future__ import annotations

from dataclasses import dataclass

from attempt_cli.errors import AttemptError


@dataclass(frozen=True)
class Example:
    """One row as a text pair.

    Args:
        input: what the model reads, ending in a cue such as "sentiment:" (no space after it).
        target: what it should write next (no space before it).
        label: the index into the task's label words; None for free text.
        references: every accepted answer of free text; empty for classification.
        group: names the rows that belong together in a metric (the question of a MultiRC answer); None without groups.
        row: the row's number in its file, from 0.
        tail: the end of the input, after its longest column; an input that is too long is cut before it.
    """

    input: str
    target: str
    label: int | None = None
    references: tuple[str, ...] = ()
    group: str | None = None
    row: int = 0
    tail: str = ""


class RowError(AttemptError):
    """A row that cannot be rendered; `row` counts from 0, the message from 1."""

    def __init__(self, problem: str, row: int, place: str, hint: str | None = None) -> None:
        super().__init__(f"{place}, row {row + 1}: {problem}", hint)
        self.problem = problem
        self.row = row
