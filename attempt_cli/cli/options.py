"""Defines the options that several commands share."""

from __future__ import annotations

import dataclasses
import functools
import sys
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar, cast

import click

from attempt_cli.name_lists import listed
from attempt_cli.placement import PLACEMENTS

if TYPE_CHECKING:
    from attempt_cli.changes import Changes
    from attempt_cli.data.task import Task

Command = TypeVar("Command", bound=Callable[..., Any])


class RowsFile(click.Path):
    """A file that exists, or the address of one that fsspec can open (hf://…, https://…)."""

    def __init__(self) -> None:
        super().__init__(exists=True, dir_okay=False, path_type=Path)

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        return value if "://" in str(value) else super().convert(value, param, ctx)


class TextEncoding(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer releases of click
    """The name of a text encoding that Python knows."""

    name = "text"

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> str:
        try:
            "a".encode(value)
        except (LookupError, ValueError):
            self.fail(f"'{value}' is no text encoding; there are utf-8, utf-16, cp1252, latin-1, …", param, ctx)
        return str(value)


FILE = RowsFile()


def stacked(*decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Joins several options into one decorator, in the order in which help shows them."""

    def decorate(function: Command) -> Command:
        for decorator in reversed(decorators):
            function = decorator(function)
        return function

    return decorate


def option_group(keyword: str, kind: type, *decorators: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Joins several options into one value, which the command gets.

    Args:
        keyword: the command's parameter.
        kind: a dataclass with a field for each option, of the same name; a field without an option is None.
        decorators: the options, in the order in which help shows them.
    """
    names = [field.name for field in dataclasses.fields(kind)]

    def decorate(function: Command) -> Command:
        @functools.wraps(function)
        def grouped(*arguments: Any, **given: Any) -> Any:
            given[keyword] = kind(**{name: given.pop(name, None) for name in names})
            return function(*arguments, **given)

        return stacked(*decorators)(cast(Command, grouped))

    return decorate


@dataclasses.dataclass(frozen=True)
class RecordOptions:
    """What a training is kept as, and whether it continues."""

    name: str | None
    note: str
    tags: tuple[str, ...]
    resume: bool

    def arguments(self) -> dict[str, Any]:
        """Returns them as the functions of the library take them."""
        return dataclasses.asdict(self)


@dataclasses.dataclass(frozen=True)
class RowOptions:
    """Rows of one's own in files, and the text format."""

    train_file: Path | str | None
    validation_file: Path | str | None
    test_file: Path | str | None
    input_template: str | None
    label: str | None
    labels: str | None
    answers: str | None
    metrics: str | None
    encoding: str | None
    text_format: str | None

    def task(self, name: str | None) -> Task:
        """Returns the task by its name, or from files.

        Raises:
            AttemptError: the name is unknown, or the files' options are incomplete.
        """
        from attempt_cli.data.catalogue import load_task
        from attempt_cli.data.own_files import task_from_files

        if self.train_file is None and self.validation_file is None and self.test_file is None:
            unused = [
                f"--{field.removesuffix('_template')}" for field in FILE_FIELDS if getattr(self, field) is not None
            ]
            if unused:
                raise click.UsageError(
                    f"{' and '.join(unused)} only go with --train-file, --validation-file or --test-file"
                )
            if name is None:
                raise click.UsageError("name a task, or give --train-file with --input and --label")
            return self._formatted(load_task(name))
        if self.input_template is None or (self.label is None) == (self.answers is None):
            raise click.UsageError('rows from files need --input "{column} …" and --label COLUMN (or --answers COLUMN)')
        if "\\n" in self.input_template or "\\t" in self.input_template:
            click.get_current_context().obj.output.note(
                r"--input holds a backslash and a letter: the model reads these two characters, not a line break or "
                r"a tab. A shell makes one of $'\n' and $'\t'."
            )
        return self._formatted(
            task_from_files(
                train=self.train_file,
                validation=self.validation_file,
                test=self.test_file,
                input=self.input_template,
                label=self.label,
                labels=self.labels,
                answers=self.answers,
                metrics=split_names(self.metrics) if self.metrics is not None else None,
                encoding=self.encoding,
                name=name,
            )
        )

    def files(self) -> dict[str, Path | str]:
        """Returns the files that are given, by split."""
        files = {"train": self.train_file, "validation": self.validation_file, "test": self.test_file}
        return {split: path for split, path in files.items() if path is not None}

    def tasks(self, names: str | None) -> list[Task]:
        """Returns the tasks of a comma list, or the one task that the options describe.

        Raises:
            UsageError: several names and files.
        """
        from attempt_cli.data.catalogue import load_task

        if names is None or "," not in names:
            return [self.task(names)]
        if any(getattr(self, field) is not None for field in FILE_FIELDS):
            raise click.UsageError("name several tasks by name or YAML file; file options go with one task")
        return [self._formatted(load_task(name)) for name in split_names(names)]

    def _formatted(self, task: Task) -> Task:
        return task.with_format(self.text_format) if self.text_format else task


@dataclasses.dataclass(frozen=True)
class BackboneOptions:
    """Which backbone, and where it computes."""

    backbone: str | None
    device: str | None
    dtype: str | None


@dataclasses.dataclass(frozen=True)
class CacheOptions:
    """Where inputs that were read are kept, and how many."""

    input_cache: str | None
    input_cache_dir: Path | None

    def arguments(self) -> dict[str, Any]:
        """Returns them as a `Session` takes them.

        Raises:
            AttemptError: the size is no size.
        """
        from attempt_cli.byte_sizes import parse_size

        size = parse_size(self.input_cache) if self.input_cache is not None else None
        return {"input_cache": size, "input_cache_dir": self.input_cache_dir}


@dataclasses.dataclass(frozen=True)
class SamplingOptions:
    """How several tasks are mixed."""

    max_rows_per_task: int | None
    sampling_temperature: float


backbone_option_list = (
    click.option(
        "--backbone",
        help="Alias, hub id, folder or GGUF file. [default: $ATTEMPT_BACKBONE, else the prompts' own, else t5-base]",
    ),
    click.option("--device", help="cuda, mps or cpu. [default: the best there is]"),
    click.option("--dtype", help="bfloat16 or float32. [default: bfloat16 where the processor has it]"),
)
where_options = option_group("where", BackboneOptions, *backbone_option_list)

encoding_option = click.option(
    "--encoding", type=TextEncoding(), help="The encoding of rows that are text, e.g. cp1252. [default: utf-8]"
)

validation_file_option = click.option(
    "--validation-file", type=FILE, help="Rows that choose the checkpoint. [default: held-out rows]"
)
test_file_option = click.option("--test-file", type=FILE, help="Test rows, of what is scored.")
task_option_list = (
    click.option(
        "--train-file", type=FILE, help="Rows of your own: CSV, TSV, JSONL, JSON or parquet; also .gz, .zst, hf://…"
    ),
    validation_file_option,
    test_file_option,
    click.option("--input", "input_template", help='With files: the template, e.g. "review: {text} sentiment:".'),
    click.option("--label", help="With files: the column of the label."),
    click.option("--labels", help='With files: label words, e.g. "0=no,1=yes". [default: the values themselves]'),
    click.option("--answers", help="With files, for free text: the column of the accepted answer or answers."),
    click.option("--metrics", help="With files: the metrics, e.g. f1_macro,accuracy; the first chooses checkpoints."),
    encoding_option,
    click.option(
        "--text-format",
        type=click.Choice(["words", "reference"]),
        default=None,
        help="`reference`: the text format of the ATTEMPT authors' code, for prompts trained under it.",
    ),
)
row_options = option_group("rows", RowOptions, *task_option_list)


def row_options_without(*left_out: Callable[[Any], Any]) -> Callable[[Command], Command]:
    """Joins the row options but those that say nothing for a command."""
    return option_group("rows", RowOptions, *(option for option in task_option_list if option not in left_out))


input_cache_list = (
    click.option(
        "--input-cache",
        help="With prompts after the input: memory for inputs that were read, kept across epochs, e.g. 4GiB; 0 for "
        "none. [default: a quarter of the memory]",
    ),
    click.option(
        "--input-cache-dir",
        type=click.Path(file_okay=False, path_type=Path),
        help="Keep them in files here instead; later trainings on the same rows find them.",
    ),
)
cache_options = option_group("cache", CacheOptions, *input_cache_list)

# how fast a comparison's methods learn, and how sharply G chooses
rate_options = stacked(
    click.option("--learning-rate", type=float, help="Learning rate of prompts. [default: 0.03]"),
    click.option(
        "--attention-learning-rate",
        type=float,
        help="Learning rate of G, of factors, of offsets. [default: 0.01]",
    ),
    click.option(
        "--weight-learning-rate", type=float, help="Learning rate of weights (fine-tuning … ia3). [default: 3e-4]"
    ),
    click.option(
        "--temperature", type=float, help="T of G's softmax. [default: e·√d in RMS units, the paper's e·d in raw ones]"
    ),
)

chat_template_option = click.option(
    "--chat-template/--no-chat-template",
    default=None,
    help="Input and prompt inside the user's turn of the tokenizer's chat template, or not. [default: as the prompts "
    "that are used, else not]",
)

training_options = stacked(
    click.option("--steps", type=int, help="Optimiser steps. [default: 500]"),
    click.option("--epochs", type=float, help="Passes over the training rows, instead of --steps."),
    click.option("--prompt-length", type=int, help="m, the prompt's tokens. [default: 20, or the sources' own]"),
    click.option(
        "--placement",
        type=click.Choice(PLACEMENTS),
        help="The prompt before the input (the paper), or after it: then an input is read once, without gradient. "
        "[default: the sources' own, else after on decoder-only backbones, before on encoder-decoders]",
    ),
    chat_template_option,
    click.option("--batch-size", help="Rows of a batch, per process; `auto`: as many as fit. [default: 16]"),
    click.option("--accumulate", type=int, help="Batches of an optimiser step. [default: 1]"),
    click.option("--learning-rate", type=float, help="Learning rate of prompts. [default: 0.03]"),
    click.option("--weight-decay", type=float, help="[default: 1e-5]"),
    click.option("--warmup-steps", type=int, help="[default: a tenth of the steps, at most 500]"),
    click.option("--clip-norm", type=float, help="Largest norm of the gradient of all that is trained. [default: 1.0]"),
    click.option(
        "--units",
        type=click.Choice(["rms", "raw"]),
        help="Prompts in units of the backbone's embedding RMS, or as they are (the paper). [default: rms]",
    ),
    click.option("--max-length", type=int, help="Input tokens of a row. [default: the task's]"),
    click.option("--max-tokens", type=int, help="Positions computed at once, pads included. [default: 8192]"),
    click.option(
        "--gradient-checkpointing",
        is_flag=True,
        default=None,
        help="Compute layers twice rather than keep them: long inputs in little memory.",
    ),
    click.option(
        "--compile/--no-compile",
        default=None,
        help="Layers through torch.compile, or not. [default: measured in trainings of more than 20 minutes]",
    ),
    click.option("--train-limit", type=int, help="Train on a random sample of at most this many rows."),
    click.option("--eval-every", type=int, help="Steps between evaluations, 0 for none. [default: ten in all]"),
    click.option("--eval-rows", type=int, help="Validation rows looked at in training. [default: 200]"),
    click.option("--patience", type=int, help="Stop after this many evaluations without improvement."),
    click.option("--seed", type=int, help="[default: 0]"),
    click.option("--preset", help="Settings to start from: `paper`."),
)

record_options = option_group(
    "record",
    RecordOptions,
    click.option("--name", help="The name in the registry."),
    click.option("--note", default="", help="A remark to keep with it."),
    click.option("--tag", "tags", multiple=True, help="A tag; may be given several times."),
    click.option("--resume", is_flag=True, help="Continue from the checkpoint of the same command, if there is one."),
)

sampling_options = option_group(
    "sampling",
    SamplingOptions,
    click.option(
        "--max-rows-per-task",
        type=click.IntRange(min=1),
        help="Of several tasks: none counts for more rows in an epoch.",
    ),
    click.option(
        "--sampling-temperature",
        type=click.FloatRange(min=1),
        default=1.0,
        show_default=True,
        help="Of several tasks: 1 samples them in proportion to their rows, more evens them out.",
    ),
)

max_tokens_option = click.option(
    "--max-tokens",
    type=click.IntRange(min=1),
    default=8192,
    show_default=True,
    help="Positions computed at once, pads included; lower where memory is short.",
)

seed_option = click.option(
    "--seed",
    type=click.IntRange(-(2**63), 2**63 - 1),  # what a run can hold
    default=0,
    show_default=True,
    help="The seed of the sample.",
)


@dataclasses.dataclass(frozen=True)
class MixtureOptions:
    """Changes to compositions, as they are typed."""

    add: str | None
    drop: str | None
    only: str | None
    weights: str | None

    def changes(self) -> Changes:
        """Reads the changes.

        Raises:
            click.UsageError: a weight without a name or without a number.
        """
        from attempt_cli.changes import Changes

        forced: dict[str, float] = {}
        for part in split_names(self.weights) if self.weights is not None else ():
            name, _, number = (text.strip() for text in part.partition("="))
            if name in forced:
                raise click.UsageError(f"--weights: '{name}' has two weights")
            try:
                forced[name] = float(number)
            except ValueError:
                raise click.UsageError(f"--weights: '{part}' is not a name and a number, as in mnli=.5") from None
        add, drop, only = (
            tuple(split_names(text)) if text is not None else () for text in (self.add, self.drop, self.only)
        )
        return Changes(add, drop, only, forced)


change_options = option_group(
    "mixture",
    MixtureOptions,
    click.option("--add", help="Source prompts that the compositions mix as well, comma separated."),
    click.option("--drop", help="Sources to leave out of the mixture."),
    click.option("--only", help="The only sources to keep in the mixture."),
    click.option(
        "--weights",
        help="Forced weights instead of the attention's, e.g. mnli=.5,target=.5; sources without one get 0.",
    ),
)

FILE_FIELDS = (
    "train_file",
    "validation_file",
    "test_file",
    "input_template",
    "label",
    "labels",
    "answers",
    "metrics",
    "encoding",
)


def typed_options(context: click.Context, names: Iterable[str]) -> list[str]:
    """Returns the options among these that were typed, by their names in the command, as they are typed."""
    typed = [
        option
        for option in context.command.params
        if option.name in names
        and option.name is not None
        and context.get_parameter_source(option.name) is click.core.ParameterSource.COMMANDLINE
    ]
    return [option.opts[-1] for option in typed]


def refuse_options(context: click.Context, names: Iterable[str], where: str) -> None:
    """Refuses options that were typed and say nothing.

    Raises:
        UsageError: naming them.
    """
    if typed := typed_options(context, names):
        raise click.UsageError(f"{' and '.join(typed)} {'says' if len(typed) == 1 else 'say'} nothing {where}")


def split_names(text: str) -> list[str]:
    """Returns the names of a comma list."""
    names = listed(text)
    if not names:
        raise click.UsageError(f"'{text}' names nothing")
    return names


def names_or_all(text: str | None) -> str | list[str] | None:
    """Returns the names of a comma list; "all" and None as they are."""
    return text if text is None or text.strip() == "all" else split_names(text)


def typed_command() -> str:
    """Returns the command line as it was typed, for the record."""
    import shlex

    return shlex.join(["attempt", *sys.argv[1:]])
