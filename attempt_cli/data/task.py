"""A task: the data that turns a row into a text pair (input, target), and a prediction into a score."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attempt_cli.data.prepare import PREPARATIONS
from attempt_cli.data.template import (
    MissingColumnError,
    MissingValueError,
    behind_longest,
    fill,
    lookup,
    template_columns,
    text_value,
)
from attempt_cli.errors import AttemptError, unknown_name

TASKS_FOLDER = Path(__file__).parent / "tasks"
FORMATS = ("words", "reference")


@dataclass(frozen=True)
class Example:
    """One row as a text pair.

    Args:
        input: what the model reads, ending in a cue such as "sentiment:" (no space after it).
        target: what it should write next (no space before it).
        label: the index into the task's label words; None for free text.
        references: every accepted answer of free text; empty for classification.
        group: what belongs together in a metric (the question of a MultiRC answer), else None.
        row: the row's number in its file, from 0.
        tail: the end of the input, behind its longest column; a too long input is cut before it.
    """

    input: str
    target: str
    label: int | None = None
    references: tuple[str, ...] = ()
    group: str | None = None
    row: int = 0
    tail: str = ""


class RowError(AttemptError):
    """A row that cannot be rendered; `row` counts from 0, the message as people count."""

    def __init__(self, problem: str, row: int, place: str, hint: str | None = None) -> None:
        super().__init__(f"{place}, row {row + 1}: {problem}", hint)
        self.problem = problem
        self.row = row


@dataclass(frozen=True)
class HubRows:
    """Where rows lie on the Hugging Face hub, and in a data folder of the same layout.

    Args:
        path: the data set's id, "nyu-mll/glue".
        config: its configuration, "rte".
        where: keep only the rows whose columns hold these values, {"subset": "NewsQA"}.
    """

    path: str
    config: str | None = None
    where: Mapping[str, str] = field(default_factory=dict)


@dataclass(frozen=True)
class Task:
    """What a task's YAML says. Build one with `load_task` or `task_from_files`.

    Exactly one of `labels` (classification), `answers` (free text with accepted answers in a column) and `target`
    (free text from a template) is set.

    Args:
        name: how commands and records name the task.
        version: rises when a change of the task changes its examples.
        input: the template of the input.
        metrics: names in `metrics.METRICS`; the first is the one that chooses checkpoints.
        label: the column of the label.
        labels: raw value as text -> label word, in label order.
        answers: the column with the accepted answers; the first is the target.
        target: the template of the target.
        group: the template of the example's group.
        prepare: a name in `prepare.PREPARATIONS`.
        max_length: the longest input in tokens.
        split_rule: "halved", "held-out" or "own"; see `splits`.
        splits: train | validation | test -> the official split's name, where it differs.
        hub: where the rows are on the hub; None for files.
        files: train | validation | test -> a file, for rows of one's own.
        reference: the input template of the format "reference", where the target is the class index as a digit.
        format: "words" or "reference".
    """

    name: str
    version: int
    description: str
    input: str
    metrics: tuple[str, ...]
    label: str = "label"
    labels: Mapping[str, str] | None = None
    answers: str | None = None
    target: str | None = None
    group: str | None = None
    prepare: str | None = None
    max_length: int = 256
    split_rule: str = "own"
    splits: Mapping[str, str] = field(default_factory=dict)
    hub: HubRows | None = None
    files: Mapping[str, Path] = field(default_factory=dict)
    reference: str | None = None
    format: str = "words"

    @property
    def is_classification(self) -> bool:
        """Whether the target is one of the label words."""
        return self.labels is not None

    @property
    def label_words(self) -> tuple[str, ...]:
        """The label words in label order (digits under the format "reference"); empty for free text."""
        words = tuple(self.labels.values()) if self.labels else ()
        return tuple(str(index) for index in range(len(words))) if self.format == "reference" else words

    def with_format(self, name: str) -> Task:
        """The same task under another text format: "words" (natural label words) or "reference" (the authors' code).

        Raises:
            AttemptError: for an unknown format, and for "reference" of a task that has none.
        """
        if name not in FORMATS:
            raise unknown_name("text format", name, FORMATS, "attempt tasks show NAME")
        if name == "reference" and self.reference is None:
            raise AttemptError(
                f"task '{self.name}' has no text format 'reference'", "Use the format 'words', which every task has."
            )
        return dataclasses.replace(self, format=name)

    def columns(self) -> tuple[str, ...]:
        """The columns of the row that rendering reads (a dotted name stands for its first part)."""
        templates = [self._template, self.target, self.group]
        made = PREPARATIONS[self.prepare].makes if self.prepare else ()
        named = [column for template in templates if template for column in template_columns(template)]
        named += [self.label] if self.labels is not None else []
        named += [self.answers] if self.answers else []
        read = PREPARATIONS[self.prepare].reads if self.prepare else ()
        return tuple(dict.fromkeys([*(name for name in named if name not in made), *read]))

    @property
    def _template(self) -> str:
        return self.reference if self.format == "reference" and self.reference is not None else self.input

    def input_columns(self) -> tuple[str, ...]:
        """The columns that the input alone is made of: what a row to be predicted must have."""
        made = PREPARATIONS[self.prepare].makes if self.prepare else ()
        named = [column for column in template_columns(self._template) if column not in made]
        # a preparation may also read the answer (STS-B's score); only what it makes of the input counts
        used = self.prepare and any(column in made for column in template_columns(self._template))
        return tuple(dict.fromkeys([*named, *(PREPARATIONS[self.prepare].reads if self.prepare and used else ())]))

    def render_input(self, row: Mapping[str, Any], number: int = 0, *, place: str | None = None) -> Example:
        """A row to be predicted as an example without an answer; errors as in `render`."""
        unanswered = dataclasses.replace(self, labels=None, answers=None, target="", group=None)
        if self.prepare and set(self.input_columns()).isdisjoint(PREPARATIONS[self.prepare].reads):
            unanswered = dataclasses.replace(unanswered, prepare=None)
        return unanswered.render(row, number, place=place)

    def render(self, row: Mapping[str, Any], number: int = 0, *, place: str | None = None) -> Example:
        """The row as a text pair.

        Args:
            row: column -> value.
            number: the row's number in its file, from 0.
            place: where the row comes from, for messages; the task's name otherwise.

        Raises:
            RowError: a missing column or value, or a label value that the task does not know.
        """
        place = place or f"task '{self.name}'"
        try:
            values = {**row, **PREPARATIONS[self.prepare].function(row)} if self.prepare else row
            text, tail = fill(self._template, values), behind_longest(self._template, values)
            group = fill(self.group, values) if self.group else None
            if self.labels is not None:
                label = self._label_index(values, number, place)
                return Example(text, self.label_words[label], label, (), group, number, tail)
            if self.answers is not None:
                references = self._references(values)
                return Example(text, references[0], None, references, group, number, tail)
            target = fill(self.target or "", values)
            return Example(text, target, None, (target,), group, number, tail)
        except MissingValueError as error:
            raise RowError(
                f"nothing in column '{error.column}'", number, place, "Fill it in or leave the row out."
            ) from None
        except KeyError as error:
            column = error.column if isinstance(error, MissingColumnError) else error.args[0]
            raise RowError(f"no column '{column}'", number, place, _columns_hint(row)) from None
        except (AttributeError, TypeError, ValueError) as error:
            raise RowError(f"a value that does not fit ({error})", number, place, _columns_hint(row)) from None

    def _label_index(self, values: Mapping[str, Any], number: int, place: str) -> int:
        assert self.labels is not None
        raw = text_value(lookup(values, self.label), self.label)
        if raw == "":
            raise MissingValueError(self.label)
        known = list(self.labels)
        if raw not in self.labels:
            shown = ", ".join(f"'{value}'" for value in known)
            raise RowError(
                f"unknown label '{raw}' in column '{self.label}'", number, place, f"Task '{self.name}' knows {shown}."
            )
        return known.index(raw)

    def _references(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        assert self.answers is not None
        found = lookup(values, self.answers)
        texts = [text_value(item, self.answers) for item in (found if isinstance(found, (list, tuple)) else [found])]
        references = tuple(dict.fromkeys(text for text in texts if text))
        if not references:
            raise MissingValueError(self.answers)
        return references


def _columns_hint(row: Mapping[str, Any]) -> str:
    return f"The columns there are: {', '.join(row) or 'none'}."


def task_names() -> list[str]:
    """The names of the tasks that come with the package, sorted."""
    return sorted(path.name[: -len(".yaml")] for path in TASKS_FOLDER.glob("*.yaml"))


def load_task(name: str | Path) -> Task:
    """A task by its name, or from a YAML file of one's own.

    Args:
        name: a name in `task_names()`, or the path of a file that ends in .yaml or .yml.

    Raises:
        AttemptError: an unknown name (with the nearest), a missing file, or a file that does not fit the schema.
    """
    from attempt_cli.data.schema import read_task_file

    return read_task_file(task_file(name))


def task_file(name: str | Path) -> Path:
    """The YAML file that a task's name or a path stands for; errors as in `load_task`."""
    text = str(name)
    if text.endswith((".yaml", ".yml")):
        return Path(name)
    if text not in task_names():
        raise unknown_name("task", text, task_names(), "attempt tasks list")
    return TASKS_FOLDER / f"{text}.yaml"
