"""A task: everything that turns a row into a text pair (input, target), as its YAML file describes it."""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Mapping
from functools import cached_property
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

from pydantic import (
    AfterValidator,
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    GetPydanticSchema,
    PlainSerializer,
    ValidationInfo,
    field_validator,
    model_validator,
)
from pydantic_core import PydanticKnownError, core_schema

from attempt_cli.data.example import Example, RowError
from attempt_cli.data.metrics import METRICS
from attempt_cli.data.prepare import PREPARATIONS
from attempt_cli.data.splits import SPLITS
from attempt_cli.data.template import (
    MissingColumnError,
    MissingValueError,
    after_longest,
    fill,
    is_empty,
    lookup,
    template_columns,
    template_problems,
    text_value,
)
from attempt_cli.errors import AttemptError, shortened, unknown_name
from attempt_registry.errors import nearest_names

Format = Literal["words", "reference"]
# what a list of labels gets, wherever it is met
ONE_LABEL = "A row has one label: split the task into one for each label, or keep one label a row."
ROWS_OF = "Rows of "  # what the description of a task without a YAML begins with: its files, not what it asks
RENDERING_ERRORS = (AttributeError, KeyError, TypeError, ValueError)  # of templates and preparations


def _as_texts(labels: Mapping[Any, Any]) -> dict[str, str]:
    """Turns the values and words of a YAML (no, 1, 1.0) into the texts that rows are compared with."""
    texts = {text_value(value, "labels"): text_value(word, "labels") for value, word in labels.items()}
    if len(texts) < len(labels):
        raise ValueError("two values are the same text")
    return texts


def is_url(path: Path | str) -> bool:
    """Says whether a text is an address such as hf://… or https://…, rather than a path."""
    return isinstance(path, str) and "://" in path


def _in_folder(path: Any, info: ValidationInfo) -> Path | str:
    """Resolves a path of a YAML file against that file's folder; a path of Python and an address are left alone."""
    if isinstance(path, Path):
        return path
    if isinstance(path, str) and is_url(path):
        return path
    if not isinstance(path, str):
        raise PydanticKnownError("string_type")
    folder: Path = (info.context or {}).get("folder", Path())
    try:
        return (folder / path).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL character, a name that is too long, a circle of links
        raise ValueError("this cannot be a path") from None


def _text_encoding(name: str) -> str:
    """Refuses the name of no text encoding."""
    try:
        "a".encode(name)
    except (LookupError, ValueError):  # of no codec, of one that is not for text, with a NUL character
        raise ValueError(f"no text encoding '{name[:60]}' (there are utf-8, utf-16, cp1252, latin-1, …)") from None
    return name


def _read_as(kind: Any, convert: Callable[[Any], Any]) -> GetPydanticSchema:
    """Validates a field as another type, the one that a YAML file has, and converts it."""
    return GetPydanticSchema(lambda _, schema: core_schema.no_info_after_validator_function(convert, schema(kind)))


Scalar = str | int | float | bool
Template = Annotated[str, Field(min_length=1), AfterValidator(str.strip)]
Split = Annotated[str, GetPydanticSchema(lambda *_: core_schema.literal_schema(list(SPLITS)))]
Labels = Annotated[dict[str, str], _read_as(dict[Scalar, Scalar], _as_texts)]
Metrics = Annotated[
    tuple[str, ...],
    _read_as(Annotated[list[str], Field(strict=False, min_length=1)], tuple),
    PlainSerializer(list),
]


class _Fields(BaseModel):
    model_config = ConfigDict(extra="forbid", strict=True, frozen=True)


class HubDataset(_Fields):
    """A data set on the Hugging Face hub, or in a data folder of the same layout."""

    path: str = Field(description='The data set\'s id, "nyu-mll/glue".')
    config: str | None = Field(default=None, description='Its configuration, "rte".')
    where: dict[str, str] = Field(
        default_factory=dict, description='Keep only the rows whose columns hold these values, {"subset": "NewsQA"}.'
    )


class ReferenceFormat(_Fields):
    """The text format "reference", that of the authors' code, where the target is the class index as a digit."""

    input: Template = Field(description="The template of the input.")


class Task(_Fields):
    """A task. Build one with `load_task`, `task_from_files` or `task_from_fields`.

    Raises:
        pydantic.ValidationError: naming every problem of the fields.
    """

    name: str = Field(
        pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", description="The name that commands and records use for the task."
    )
    version: int = Field(default=1, ge=1, lt=2**31, description="Rises when a change of the task changes its examples.")
    description: Annotated[str, AfterValidator(lambda text: " ".join(text.split()))] = Field(
        default="", description="A sentence for people, with the paper that the task comes from."
    )
    instruction: Annotated[str, AfterValidator(str.strip)] = Field(
        default="", description="What a model is told to do, in its own words; without it the description."
    )
    licence: Annotated[str, AfterValidator(lambda text: " ".join(text.split()))] | None = Field(
        default=None, description="The licence of the rows, as whoever gives them states it."
    )
    hub: HubDataset | None = Field(default=None, description="Where the rows are on the hub; None for files.")
    files: dict[Split, Annotated[Path | str, BeforeValidator(_in_folder)]] = Field(
        default_factory=dict, description="train | validation | test -> a file, or its address, for rows of one's own."
    )
    encoding: Annotated[str, AfterValidator(_text_encoding)] | None = Field(
        default=None, description="The encoding of the files; None is UTF-8."
    )
    split_rule: Literal["halved", "held-out", "own"] = Field(
        default="own", description="How train, validation and test are cut from the official splits; see `splits.py`."
    )
    splits: dict[Split, str] = Field(
        default_factory=dict, description="train | validation | test -> the official split's name, where it differs."
    )
    prepare: str | None = Field(default=None, description="A name in `prepare.PREPARATIONS`.")
    input: Template = Field(description="The template of the input.")
    label: str = Field(default="label", description="The column of the label.")
    labels: Labels | None = Field(default=None, description="Raw value as text -> label word, in label order.")
    answers: str | None = Field(
        default=None, description="The column with the accepted answers of free text; the first is the target."
    )
    target: Template | None = Field(default=None, description="The template of the target of free text.")
    group: str | None = Field(default=None, description="The template of the example's group, for some metrics.")
    metrics: Metrics = Field(description="Names in `metrics.METRICS`; the first is the one that chooses checkpoints.")
    max_length: int = Field(default=256, ge=8, lt=2**31, description="The longest input in tokens.")
    reference: ReferenceFormat | None = Field(default=None, description='The text format "reference".')
    format: Format = Field(
        default="words", exclude=True, description="The text format in use; commands choose it, files do not."
    )

    @field_validator("format", mode="before")
    @classmethod
    def _not_in_a_file(cls, name: Any, info: ValidationInfo) -> Any:
        if info.context is not None:
            raise PydanticKnownError("extra_forbidden")
        return name

    @model_validator(mode="after")
    def _fields_fit_together(self) -> Task:
        """Refuses what a single field cannot show: bad templates, unknown functions, fields that exclude each other."""
        templates = {"input": self.input, "target": self.target, "group": self.group}
        templates["reference.input"] = self.reference.input if self.reference else None
        problems = [f"{name}: {found}" for name, text in templates.items() for found in template_problems(text or "")]
        targets = [name for name in ("labels", "answers", "target") if getattr(self, name) is not None]
        if len(targets) != 1:
            found = " and ".join(targets) or "none of them"
            problems.append(f"labels, answers, target: exactly one says what the model should write; there is {found}")
        if (self.hub is None) == (not self.files):
            problems.append("hub, files: exactly one says where the rows are")
        if self.encoding is not None and not self.files:
            problems.append("encoding: it is for files, and there are none")
        if self.labels is not None:
            problems += _label_problems(list(self.labels.values()))
        if self.prepare is not None and self.prepare not in PREPARATIONS:
            problems.append(f"prepare: no function '{self.prepare}' (there are {', '.join(PREPARATIONS)})")
        problems += [problem for name in self.metrics for problem in self._metric_problems(name)]
        if problems:
            raise ValueError("\n".join(problems))
        return self

    def _metric_problems(self, name: str) -> list[str]:
        if name not in METRICS:
            near = nearest_names(name, METRICS)
            did_you_mean = f"did you mean {' or '.join(near)}? " if near else ""
            return [f"metrics: no metric '{name}' ({did_you_mean}there are {', '.join(METRICS)})"]
        needs = METRICS[name].needs
        if needs in ("labels", "two labels") and self.labels is None:
            return [f"metrics: {name} needs labels"]
        if needs == "two labels" and self.labels is not None and len(self.labels) != 2:
            return [f"metrics: {name} needs exactly two labels, there are {len(self.labels)}"]
        if needs == "text" and self.labels is not None:
            return [f"metrics: {name} is for free text, this task has labels"]
        if name.startswith("multirc") and self.group is None:
            return [f"metrics: {name} needs group"]
        return []

    def model_copy(self, *, update: Mapping[str, Any] | None = None, deep: bool = False) -> Task:
        """Returns a copy with other fields, checked like any task: pydantic's own takes every name and value.

        Raises:
            pydantic.ValidationError: as for a new task.
        """
        return Task.model_validate({**dict(self), **(update or {})})

    @property
    def is_classification(self) -> bool:
        """Says whether the target is one of the label words."""
        return self.labels is not None

    @property
    def label_words(self) -> tuple[str, ...]:
        """Returns the label words in label order (digits under the format "reference"); empty for free text."""
        return self._words

    @cached_property
    def _words(self) -> tuple[str, ...]:
        words = tuple(self.labels.values()) if self.labels else ()
        return tuple(str(index) for index in range(len(words))) if self.format == "reference" else words

    @property
    def instructions(self) -> str:
        """What a model without a prompt is told to do: its instruction, else the description and the label words.

        Raises:
            AttemptError: the task says nothing of the kind.
        """
        if self.instruction:
            return self.instruction
        own = "" if self.files and self.description.startswith(ROWS_OF) else self.description
        said = re.sub(r"\s*\([^()]*\)$", "", own)  # without the source, which is for people
        if self.label_words:
            words = [f'"{word}"' for word in self.label_words]
            said = f"{said} Answer with {', '.join(words[:-1])} or {words[-1]}.".strip()
        if not said:
            raise AttemptError(
                f"the task '{self.name}' has neither an instruction nor a description to tell a model what to do",
                "Give its YAML an `instruction`.",
            )
        return said

    def with_format(self, name: str) -> Task:
        """Returns the task under another text format: "words" (natural label words) or "reference" (the authors' code).

        Raises:
            AttemptError: for an unknown format, and for "reference" of a task that has none.
        """
        if name not in get_args(Format):
            raise unknown_name("text format", name, get_args(Format), "attempt tasks show NAME")
        if name == "reference" and self.reference is None:
            raise AttemptError(
                f"task '{self.name}' has no text format 'reference'", "Use the format 'words', which every task has."
            )
        return self.model_copy(update={"format": name})

    def columns(self) -> tuple[str, ...]:
        """Lists the columns that rendering reads; a dotted name is one field of a column."""
        templates = [self._template, self.target, self.group]
        made = PREPARATIONS[self.prepare].makes if self.prepare else ()
        named = [column for template in templates if template for column in template_columns(template)]
        named += [self.label] if self.labels is not None else []
        named += [self.answers] if self.answers else []
        read = PREPARATIONS[self.prepare].reads if self.prepare else ()
        return tuple(dict.fromkeys([*(name for name in named if name not in made), *read]))

    @property
    def _template(self) -> str:
        return self.reference.input if self.format == "reference" and self.reference is not None else self.input

    def input_columns(self) -> tuple[str, ...]:
        """Lists the columns that the input alone is made of: those that a row to be predicted must have."""
        made = PREPARATIONS[self.prepare].makes if self.prepare else ()
        named = [column for column in template_columns(self._template) if column not in made]
        # a preparation may also read the answer (STS-B's score); only what it makes of the input counts
        used = self.prepare and any(column in made for column in template_columns(self._template))
        return tuple(dict.fromkeys([*named, *(PREPARATIONS[self.prepare].reads if self.prepare and used else ())]))

    def render_input(self, row: Mapping[str, Any], number: int = 0, *, place: str | None = None) -> Example:
        """Renders a row to be predicted, as an example without an answer; errors as in `render`."""
        prepared = not set(self.input_columns()).isdisjoint(PREPARATIONS[self.prepare].reads) if self.prepare else False
        try:
            values = self._prepared(row) if prepared else row
            return Example(fill(self._template, values), "", row=number, tail=after_longest(self._template, values))
        except RENDERING_ERRORS as error:
            raise _row_error(error, row, number, place or f"task '{self.name}'") from None

    def render(self, row: Mapping[str, Any], number: int = 0, *, place: str | None = None) -> Example:
        """Renders a row as a text pair.

        Args:
            row: column -> value.
            number: the row's number in its file, from 0.
            place: where the row comes from, for messages; the task's name otherwise.

        Raises:
            RowError: a missing column or value, or a label value that the task does not know.
        """
        place = place or f"task '{self.name}'"
        try:
            values = self._prepared(row)
            text, tail = fill(self._template, values), after_longest(self._template, values)
            group = fill(self.group, values) if self.group else None
            if self.labels is not None:
                label = self._label_index(values, number, place)
                return Example(text, self._words[label], label, (), group, number, tail)
            references = self._references(values) if self.answers is not None else (fill(self.target or "", values),)
            return Example(text, references[0], None, references, group, number, tail)
        except RENDERING_ERRORS as error:
            raise _row_error(error, row, number, place) from None

    def _prepared(self, row: Mapping[str, Any]) -> Mapping[str, Any]:
        return {**row, **PREPARATIONS[self.prepare].function(row)} if self.prepare else row

    @cached_property
    def _label_numbers(self) -> dict[str, int]:
        return {value: number for number, value in enumerate(self.labels or ())}

    def _label_index(self, values: Mapping[str, Any], number: int, place: str) -> int:
        value = lookup(values, self.label)
        if isinstance(value, (list, tuple)):
            raise RowError(f"several labels in column '{self.label}'", number, place, ONE_LABEL)
        raw = text_value(value, self.label)
        if raw == "":
            raise MissingValueError(self.label)
        if raw not in self._label_numbers:
            shown = shortened(f"'{known}'" for known in self._label_numbers)
            message = f"unknown label '{raw[:60]}' in column '{self.label}'"
            raise RowError(message, number, place, f"Task '{self.name}' knows {shown}.")
        return self._label_numbers[raw]

    def _references(self, values: Mapping[str, Any]) -> tuple[str, ...]:
        assert self.answers is not None
        found = lookup(values, self.answers)
        items = found if isinstance(found, (list, tuple)) else [found]
        texts = [text_value(item, self.answers) for item in items if not is_empty(item)]
        references = tuple(dict.fromkeys(text for text in texts if text))
        if not references:
            raise MissingValueError(self.answers)
        return references


def _row_error(error: Exception, row: Mapping[str, Any], number: int, place: str) -> RowError:
    """Turns an error of rendering into one that names the row and its columns."""
    if isinstance(error, MissingValueError):
        return RowError(f"nothing in column '{error.column}'", number, place, "Fill it in or leave the row out.")
    if isinstance(error, KeyError):
        column = error.column if isinstance(error, MissingColumnError) else error.args[0]
        return RowError(f"no column '{column}'", number, place, _columns_hint(row))
    return RowError(f"a value that does not fit ({error})", number, place, _columns_hint(row))


def check_no_leak(task: Task) -> None:
    """Refuses an input that gives the answer away: its template names the column of the label or of the answers.

    Raises:
        AttemptError: naming the column.
    """
    answer = task.label if task.is_classification else task.answers
    templates = {"input": task.input, "reference.input": task.reference.input if task.reference else ""}
    for field, template in templates.items():
        for column in template_columns(template):
            if answer is not None and (column == answer or column.startswith(f"{answer}.")):
                raise AttemptError(
                    f"task '{task.name}': {field} names {{{column}}}, the column of the answer, which gives it away",
                    "Take it out of the template: rows to be predicted do not have it.",
                )


def _columns_hint(row: Mapping[str, Any]) -> str:
    return f"The columns there are: {shortened(row) or 'none'}."


def _label_problems(words: list[str]) -> list[str]:
    problems = []
    if len(words) < 2:
        problems.append("labels: a task needs at least two")
    if any(not word for word in words):
        problems.append("labels: a label word is empty")
    twice = sorted(word for word, count in Counter(words).items() if count > 1)
    if twice:
        problems.append(f"labels: two values have the word {shortened(map(repr, twice))}")
    return problems
