"""Builds a task straight from files: `--train-file reviews.csv --input "{text}" --label sentiment`."""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path, PurePath, PurePosixPath

from attempt_cli.data.fields import task_from_fields
from attempt_cli.data.readers import FileRows, check_columns, file_ending, read_file, refuse_columns
from attempt_cli.data.task import ONE_LABEL, ROWS_OF, Task, check_no_leak, is_url
from attempt_cli.data.template import MissingValueError, template_columns, text_value
from attempt_cli.errors import AttemptError, shortened

# a column with more distinct values than this, most of them unique, does not hold labels
MOST_LABELS = 100
# of more distinct numbers than this a column holds scores, unless they are the numbers of classes, 0, 1, 2, …
MOST_GRADES = 10
# file names that say which rows they hold, not what the rows are about
SPLIT_NAMES = re.compile(
    r"(train|training|validation|valid|val|dev|test|testing|eval|data|dataset|rows|labels?|examples?|all|full|part)"
    r"([._-]?(\d+|\d+-of-\d+))?",
    re.IGNORECASE,
)


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
    encoding: str | None = None,
) -> Task:
    """Builds a task from CSV, TSV, JSON lines, JSON or parquet files.

    Without a validation file, part of the training rows is held out (1,000, or a tenth of fewer than 2,000).

    Args:
        train, validation, test: the files, or addresses that fsspec can open (hf://…, https://…); at least one.
        input: the template, e.g. "review: {text} sentiment:".
        label: the column of the label, for classification.
        labels: value of that column -> label word, as "0=no,1=yes" or a mapping; its order is the label order.
            Without it class numbers get the names that a parquet file of `datasets` has for them, and every other value
            is its own word, in sorted order (numbers by size).
        answers: instead of `label`, the column with the answer (or the list of accepted answers) of free text.
        name: the task's name; the first file's name otherwise, or its folder's where that is no name (train.csv).
        metrics: their names; accuracy, or SQuAD's F1 and exact match for free text, otherwise.
        max_length: the longest input in tokens.
        encoding: of the files; UTF-8 without it.

    Raises:
        AttemptError: no file, a missing column, a missing or unknown label (with file and row), one label only; labels
            that are the same but for case or spaces, or scores, unless `labels` names them; an input that names the
            column of the answer.
    """
    files = {"train": train, "validation": validation, "test": test}
    paths = {split: located(path) for split, path in files.items() if path is not None}
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
    contents = {split: read_file(path, encoding) for split, path in paths.items()}
    words = None
    if label is not None:
        given = _given_labels(labels) if labels is not None else None
        words = _label_words(contents, paths, label, given)
    held_out = "train" in paths and "validation" not in paths
    task = task_from_fields(
        {
            "name": name or _task_name(next(iter(paths.values()))),
            "description": f"{ROWS_OF}{', '.join(str(path) for path in paths.values())}",
            "files": {split: str(path) for split, path in paths.items()},
            "encoding": encoding,
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
        check_columns(task, content, str(paths[split]))
    check_no_leak(task)
    return task


def located(path: Path | str) -> Path | str:
    """Returns a path as an absolute one; an address as it is."""
    try:
        return path if is_url(path) else Path(path).resolve()
    except (ValueError, OSError, RuntimeError):  # a NUL character, a circle of links
        raise AttemptError(f"{str(path)!r} cannot be a path", "Check the path.") from None


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
    contents: Mapping[str, FileRows],
    paths: Mapping[str, Path | str],
    label: str,
    given: Mapping[str, str] | None,
) -> dict[str, str]:
    """Returns the label words in order, from the given mapping or else the first file; every file must agree."""
    values = {split: _label_values(content, str(paths[split]), label) for split, content in contents.items()}
    first = next(iter(values))
    words = dict(given) if given is not None else _own_words(contents[first], values[first], str(paths[first]), label)
    for split, found in values.items():
        for number, value in enumerate(found):
            if value not in words:
                known = shortened(f"'{word}'" for word in words)
                place = "--labels" if given is not None else PurePath(paths[first]).name
                where = _row_place(contents[split], str(paths[split]), number)
                raise AttemptError(
                    f"{where}: unknown label '{value[:60]}' in column '{label}'", f"{place} has {known}."
                )
    return words


def _own_words(content: FileRows, values: Sequence[str], path: str, label: str) -> dict[str, str]:
    """Returns the words of the labels that a file holds: the names of its class numbers, or the values themselves."""
    names = {str(number): name for number, name in enumerate(content.names.get(label, ()))}
    if not names.keys().isdisjoint(values):
        return names
    words = {value: value for value in sorted(set(values), key=_sort_key)}
    if len(words) < 2:
        raise AttemptError(
            f"{path}: column '{label}' holds only '{values[0][:60]}', and a task needs two labels",
            "Give rows with other labels, or name them all with --labels.",
        )
    if len(words) > MOST_LABELS and len(words) > len(values) / 2:
        raise AttemptError(
            f"{path}: column '{label}' holds {len(words)} different values in {len(values)} rows, these are not labels",
            "Name the column of the label with --label.",
        )
    _refuse_alike(words, path, label)
    if len(words) > MOST_GRADES and _are_scores(words):
        raise AttemptError(
            f"{path}: column '{label}' holds {len(words)} different numbers, which look like scores, not like labels",
            f"For scores give --answers {label} --metrics pearson instead of --label; for labels name each with "
            "--labels.",
        )
    return words


def _refuse_alike(words: Iterable[str], path: str, label: str) -> None:
    """Refuses labels that a reader would take for one: "Good" and "good", "1" and "1.0"."""
    alike: dict[str | float, list[str]] = {}
    for word in words:
        number = _number(word)
        folded = " ".join(unicodedata.normalize("NFKC", word).casefold().split())
        alike.setdefault(folded if number is None else number, []).append(word)
    groups = [same for same in alike.values() if len(same) > 1]
    if groups:
        shown = "; ".join(shortened(f"'{word}'" for word in same) for same in groups[:5])
        pairs = ",".join(f"{word}={word}" for word in groups[0])
        raise AttemptError(
            f"{path}: labels in column '{label}' differ only by case, spaces or the way they are written: {shown}",
            f'Write them alike in the file; if they do differ, name all labels: --labels "{pairs[:100]},…".',
        )


def _are_scores(words: Iterable[str]) -> bool:
    """Says whether labels are numbers other than those of classes, which count from 0 or 1 without a gap."""
    numbers = [_number(word) for word in words]
    found = sorted(number for number in numbers if number is not None)
    counted = [found[0] + step for step in range(len(found))] if found else []
    return len(found) == len(numbers) and not (found == counted and found[0] in (0, 1))


def _number(text: str) -> float | None:
    """Returns the number that a text is, unless it is none or not finite."""
    try:
        number = float(text)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


def _label_values(content: FileRows, path: str, label: str) -> list[str]:
    refuse_columns([label], content, path, "which --label names")
    values = []
    for number, row in enumerate(content.rows):
        cell = row.get(label)
        if isinstance(cell, (list, tuple)):
            raise AttemptError(f"{_row_place(content, path, number)}: several labels in column '{label}'", ONE_LABEL)
        try:
            value = text_value(cell, label)
        except MissingValueError:
            value = ""
        except ValueError as error:
            raise AttemptError(
                f"{_row_place(content, path, number)}: a label that does not fit ({error})",
                "Name the column of the label with --label.",
            ) from None
        if value == "":
            raise AttemptError(
                f"{_row_place(content, path, number)}: nothing in column '{label}'", "Fill it in or leave the row out."
            )
        values.append(value)
    return values


def _row_place(content: FileRows, path: str, number: int) -> str:
    line = content.lines[number] if content.lines else None
    return f"{path}, row {number + 1}" if line in (None, number + 1) else f"{path}, line {line}, row {number + 1}"


def _sort_key(value: str) -> tuple[int, float, str]:
    """Sorts numbers by size, before texts in alphabetical order."""
    number = _number(value)
    return (1, 0.0, value) if number is None else (0, number, value)


def _task_name(path: Path | str) -> str:
    """Returns the name of the file, else of the nearest folder, that says what the rows are about."""
    pure = PurePosixPath(str(path).split("://", 1)[1]) if is_url(path) else PurePath(path)
    stem = pure.name
    while file_ending(stem):
        stem = PurePath(stem).stem
    for part in (stem, *(folder.name for folder in pure.parents)):
        name = re.sub(r"[^A-Za-z0-9._-]+", "-", part).strip("-._")
        if name and not SPLIT_NAMES.fullmatch(name):
            return name
    return "own-task"
