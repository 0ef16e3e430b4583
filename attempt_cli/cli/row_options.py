"""Defines the options of rows of one's own, and turns them into a task."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import Command, option_group, split_names

if TYPE_CHECKING:
    from attempt_cli.data.task import Task


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

    @property
    def described(self) -> list[str]:
        """The fields that describe rows, as far as they are given; the text format goes with named tasks, too."""
        names = [field.name for field in dataclasses.fields(self) if field.name != "text_format"]
        return [name for name in names if getattr(self, name) is not None]

    def check_unnamed(self) -> None:
        """Refuses rows of one's own beside --tasks.

        Raises:
            UsageError: some are given.
        """
        if self.described:
            raise click.UsageError("give --tasks or files, not both")

    def task(self, name: str | None) -> Task:
        """Returns the task by its name, or from files.

        Raises:
            AttemptError: the name is unknown, or the files' options are incomplete.
        """
        from attempt_cli.data.catalogue import load_task
        from attempt_cli.data.own_files import task_from_files

        if self.train_file is None and self.validation_file is None and self.test_file is None:
            if unused := [f"--{field.removesuffix('_template')}" for field in self.described]:
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
        if self.described:
            raise click.UsageError("name several tasks by name or YAML file; file options go with one task")
        return [self._formatted(load_task(name)) for name in split_names(names)]

    def _formatted(self, task: Task) -> Task:
        return task.with_format(self.text_format) if self.text_format else task


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
