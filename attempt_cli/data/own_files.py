"""Builds a task straight from files: `--train-file reviews.csv --input "{text}" --label sentiment`."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from attempt_cli.data.fields import task_from_fields
from attempt_cli.data.readers import FileRows, check_columns, read_file
from attempt_cli.data.task import Task
from attempt_cli.data.template import MissingValueError, template_columns, text_value
from attempt_cli.errors import AttemptError

# a column with more distinct values than this, most of them unique, does not hold labels
MOST_LABELS = 100


def task_from_files(
    *,
    train: Path | str | None = None,
    validation: Path | str | None = None,
    test: Path | str | None = None,
    input: str,
    label: str | None = None,
    labels: str | Mapping[str, str] | None = None,
    answers: str | None = None,
    name: str | None = None,
    metrics: Sequence[str] | None = None,
    max_length: int = 256,
) -> Task:
    """Builds a task from CSV, TSV, JSON lines, JSON or parquet files.

    Without a validation file, part of the training rows is held out (1,000, or a tenth of fewer than 2,000).

    Args:
        train, validation, test: the files; at least one.
        input: the template, e.g. "review: {text} sentiment:".
        label: the column of the label, for classification.
        labels: value of that column -> label word, as "0=no,1=yes" or a mapping; its order is the label order.
            Without it every value is its own word, in sorted order (numbers by size).
        answers: instead of `label`, the column with the answer (or the list of accepted answers) of free text.
        name: the task's name; the first file's name otherwise.
        metrics: their names; accuracy, or SQuAD's F1 and exact match for free text, otherwise.
        max_length: the longest input in tokens.

    Raises:
        AttemptError: no file, a missing column, a missing or unknown label (with file and row), one label only.
    """
    files = {"train": train, "validation": validation, "test": test}
    paths = {split: Path(path).resolve() for split, path in files.items() if path is not None}
    if not paths:
        raise AttemptError("no file for the task's rows", "Give --train-file, --validation-file or --test-file.")
    if (label is None) == (answers is None):
        raise AttemptError(
            "a task from files needs the column of its label"
            if label is None
            else "label and answers exclude each other",
            "Give --label COLUMN.",
        )
    if not template_columns(input):
        raise AttemptError(f"the input '{input}' names no column", 'Write one in braces, like --input "{text}".')
    contents = {split: read_file(path) for split, path in paths.items()}
    words = None
    if label is not None:
        given = _given_labels(labels) if labels is not None else None
        words = _label_words(contents, paths, label, given)
    held_out = "train" in paths and "validation" not in paths
    task = task_from_fields(
        {
            "name": name or _task_name(next(iter(paths.values()))),
            "description": f"Rows of {', '.join(str(path) for path in paths.values())}",
            "files": {split: str(path) for split, path in paths.items()},
            "split_rule": "held-out" if held_out else "own",
            "splits": {"test": "test"} if held_out else {},
            "input": input,
            "label": label or "label",
            "labels": words,
            "answers": answers,
            "metrics": list(metrics or (("squad_f1", "squad_em") if label is None else ("accuracy",))),
            "max_length": max_length,
        },
        "the task from files",
        Path.cwd(),
    )
    for split, content in contents.items():
        check_columns(task, content.columns, str(paths[split]))
    return task


def _given_labels(labels: str | Mapping[str, str]) -> dict[str, str]:
    """Parses "0=no,1=yes"."""
    if isinstance(labels, Mapping):
        return {text_value(value, "labels"): word for value, word in labels.items()}
    pairs = [pair.partition("=") for pair in labels.split(",")]
    wrong = [value for value, equals, word in pairs if not (value.strip() and equals and word.strip())]
    if wrong:
        raise AttemptError(f"cannot read the labels '{labels}'", 'Write them as --labels "0=no,1=yes".')
    given = {value.strip(): word.strip() for value, _, word in pairs}
    if len(given) < len(pairs):
        raise AttemptError(f"the labels '{labels}' name a value twice", "Give each value one word.")
    return given


def _label_words(
    contents: Mapping[str, FileRows], paths: Mapping[str, Path], label: str, given: Mapping[str, str] | None
) -> dict[str, str]:
    """Returns the label words in order, from the given mapping or else the first file; every file must agree."""
    values = {split: _label_values(content, paths[split], label) for split, content in contents.items()}
    first = next(iter(values))
    words = dict(given) if given is not None else {value: value for value in sorted(set(values[first]), key=_sort_key)}
    if given is None:
        _refuse_no_labels(words, values[first], paths[first], label)
    for split, found in values.items():
        for number, value in enumerate(found):
            if value not in words:
                known = ", ".join(f"'{word}'" for word in words)
                place = "--labels" if given is not None else paths[first].name
                raise AttemptError(
                    f"{_row_place(contents[split], paths[split], number)}: unknown label '{value}' in column '{label}'",
                    f"{place} has {known}.",
                )
    return words


def _refuse_no_labels(words: Mapping[str, str], values: Sequence[str], path: Path, label: str) -> None:
    if len(words) < 2:
        raise AttemptError(
            f"{path}: column '{label}' holds only '{next(iter(words))}', and a task needs two labels",
            "Give rows with other labels, or name them all with --labels.",
        )
    if len(words) > MOST_LABELS and len(words) > len(values) / 2:
        raise AttemptError(
            f"{path}: column '{label}' holds {len(words)} different values in {len(values)} rows, these are not labels",
            "Name the column of the label with --label.",
        )


def _label_values(content: FileRows, path: Path, label: str) -> list[str]:
    if label not in content.columns:
        raise AttemptError(f"{path}: no column '{label}'", f"The columns there are: {', '.join(content.columns)}.")
    values = []
    for number, row in enumerate(content.rows):
        try:
            value = text_value(row.get(label), label)
        except MissingValueError:
            value = ""
        if value == "":
            raise AttemptError(
                f"{_row_place(content, path, number)}: nothing in column '{label}'", "Fill it in or leave the row out."
            )
        values.append(value)
    return values


def _row_place(content: FileRows, path: Path, number: int) -> str:
    line = content.lines[number] if content.lines else None
    return f"{path}, row {number + 1}" if line in (None, number + 1) else f"{path}, line {line}, row {number + 1}"


def _sort_key(value: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before texts in alphabetical order."""
    try:
        return (0, float(value), value)
    except ValueError:
        return (1, 0.0, value)


def _task_name(path: Path) -> str:
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", path.stem).strip("-._")
    return name or "own-task"
