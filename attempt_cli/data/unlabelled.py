"""Reads rows that are to be predicted: from a file by its ending, else (a pipe, a .txt file) by what it holds."""

from __future__ import annotations

import csv
import difflib
import json
import re
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from attempt_cli.data.readers import (
    ENDINGS,
    FileRows,
    Row,
    decoded,
    file_ending,
    parsed,
    parsed_text,
    read_bytes,
    read_delimited,
    read_file,
    refuse_columns,
)
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError, shortened
from attempt_registry.errors import nearest_names

STANDARD_INPUT = "-"
DELIMITERS = {"\t": "tabs", ",": "commas", ";": "semicolons"}
# so many lines are looked at to see whether a text is a table
LINES_OF_A_TABLE = 50
_NAMES = re.compile(r"\w+(?:[,;\t]\w+)+")


@dataclass(frozen=True)
class UnlabelledRows:
    """Rows to be predicted.

    Args:
        rows: column -> value for each row; None for a blank line between plain lines, which has nothing to predict.
        place: where they come from, for messages.
        notes: what a person should know about how they were read.
    """

    rows: list[Row | None]
    place: str
    notes: tuple[str, ...] = ()


def read_unlabelled(file: str, task: Task, encoding: str | None = None) -> UnlabelledRows:
    """Reads the rows of a file, of an address or of standard input ("-").

    What has no ending that says its form is recognised: JSON (lines, or a list), parquet, or a table whose header
    names the task's columns; all else is plain lines, where the task reads a single column.

    Args:
        file: the file.
        task: whose input is made of the rows.
        encoding: of text; UTF-8 without it.

    Raises:
        AttemptError: there are no rows, a row is damaged, a column is missing, or a table lacks the task's column.
    """
    piped = file == STANDARD_INPUT
    place = "standard input" if piped else file
    columns, why = task.input_columns(), f"which task '{task.name}' reads"
    if not piped and file_ending(file) in ENDINGS:
        content: FileRows | None = read_file(Path(file) if "://" not in file else file, encoding)
    else:
        data = _standard_input() if piped else read_bytes(Path(file) if "://" not in file else file)
        if data.startswith(b"PAR1"):
            content = parsed(data, ".parquet", place)
        else:
            text = decoded(data, place, encoding)
            content = recognised(text, columns, place)
            if content is None:
                return _plain_lines(text, task, place)
    assert content is not None
    if not content.rows:
        raise AttemptError(f"no rows in {place}", "Give at least one row.")
    refuse_columns(columns, content, place, why)
    return UnlabelledRows(list(content.rows), place)


def _standard_input() -> bytes:
    if sys.stdin is None:
        raise AttemptError("standard input is closed", "Name a file of rows, or pipe rows in.")
    return sys.stdin.buffer.read()


def recognised(text: str, columns: Sequence[str], place: str) -> FileRows | None:
    """Reads a text that is JSON lines, JSON, or a table with these columns; returns None for any other text.

    Raises:
        AttemptError: a damaged row, or a table whose header has these columns misspelt.
    """
    first = next((line for line in text.split("\n") if line.strip()), "")
    if first.lstrip().startswith("{"):
        lines = _is_json(first) or not _is_json(text)
        return parsed_text(text, ".jsonl" if lines else ".json", place)
    if re.match(r"\s*\[\s*[{\]]", text) or (first.lstrip().startswith("[") and _is_json(text)):
        return parsed_text(text, ".json", place)
    for delimiter in DELIMITERS:
        if set(columns) <= set(_cells(first, delimiter)):
            return read_delimited(text, place, delimiter)
    return None


def _plain_lines(text: str, task: Task, place: str) -> UnlabelledRows:
    """Takes each line as one text."""
    # not splitlines(): a text may hold a form feed or a line separator, and is one row all the same
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    while lines and not lines[-1].strip():
        lines.pop()
    if not lines:
        raise AttemptError(f"no rows in {place}", "Give one row per line.")
    columns = task.input_columns()
    looks_like = _table_note(lines, columns, task, place)
    if len(columns) != 1:
        raise AttemptError(
            f"the task '{task.name}' reads the columns {', '.join(columns)}, plain lines have only one",
            "Give JSONL or CSV with these columns.",
        )
    rows: list[Row | None] = [{columns[0]: line} if line.strip() else None for line in lines]
    notes = [looks_like] if looks_like else []
    if blank := rows.count(None):
        notes.append(f"Note: lines without text have null for a prediction; there are {blank:,}.")
    return UnlabelledRows(rows, place, tuple(notes))


def _table_note(lines: Sequence[str], columns: Sequence[str], task: Task, place: str) -> str | None:
    """Says that plain lines look like a table.

    Raises:
        AttemptError: they almost certainly are one: a column's name is misspelt, or tabs part every line.
    """
    some = [line for line in lines[:LINES_OF_A_TABLE] if line.strip()]
    what = f"{place} looks like a table without a column '{columns[0]}', which task '{task.name}' reads"
    if len(columns) == 1 and some[0].strip() != columns[0] and some[0].strip().casefold() == columns[0].casefold():
        raise AttemptError(what, f"Its first line is '{some[0].strip()}': did you mean {columns[0]}?")
    for delimiter, named in DELIMITERS.items():
        header = _cells(some[0], delimiter)
        even = all(len(_cells(line, delimiter)) == len(header) for line in some)
        near = [name for column in columns for name in nearest_names(column, header)]
        if not even:  # a header all the same, where a name is all but the column's
            near = [name for name in near if _alike(name, columns) and _NAMES.fullmatch(some[0].strip())]
        if len(some) < 2 or len(header) < 2 or not (even or near):
            continue
        if near or delimiter == "\t":
            did_you_mean = f"Did you mean {' or '.join(dict.fromkeys(near))}? " if near else ""
            raise AttemptError(
                what,
                f"{did_you_mean}The first line has: {shortened(header)}. Name the column in it; texts that are no "
                "table go in as JSONL.",
            )
        return f"Note: every line of {place} has {len(header)} cells between {named}; each line is taken as one text."
    return None


def _alike(name: str, columns: Sequence[str]) -> bool:
    return any(difflib.SequenceMatcher(None, name.casefold(), column.casefold()).ratio() > 0.8 for column in columns)


def _cells(line: str, delimiter: str) -> list[str]:
    """Returns the cells of a line, as far as it has any."""
    try:
        return [cell.strip() for cell in next(csv.reader([line], delimiter=delimiter), [])]
    except csv.Error:
        return []


def _is_json(text: str) -> bool:
    try:
        json.loads(text)
    except (ValueError, RecursionError):
        return False
    return True
