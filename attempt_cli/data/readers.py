"""Reads rows from CSV, TSV, JSON lines, JSON and parquet files, with errors that name the line."""

from __future__ import annotations

import csv
import io
import json
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_registry.errors import nearest_names

if TYPE_CHECKING:
    import pyarrow

Row = dict[str, Any]
ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


@dataclass(frozen=True)
class FileRows:
    """The content of a file.

    Args:
        rows: column -> value, one dict for each row.
        columns: the names of all columns, in order.
        lines: the line (from 1) on which each row begins; empty for files without lines.
    """

    rows: list[Row]
    columns: tuple[str, ...]
    lines: tuple[int, ...] = ()


def read_rows(path: Path) -> list[Row]:
    """Reads the rows of a CSV, TSV, JSON lines, JSON or parquet file.

    Raises:
        AttemptError: a missing or empty file, an unknown ending, text that is not UTF-8, or a bad row (with its line).
    """
    return read_file(path).rows


def read_file(path: Path) -> FileRows:
    """Reads the rows of a file with their columns and lines; errors as in `read_rows`."""
    path = Path(path)
    ending = path.suffix.lower()
    if path.is_dir() or not path.exists():
        what = f"'{path}' is a folder" if path.is_dir() else f"no file '{path}'"
        near = nearest_names(path.name, [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise AttemptError(what, f"Did you mean {' or '.join(near)}?" if near else "Check the path.")
    if ending not in ENDINGS:
        raise AttemptError(
            f"{path}: cannot tell what '{ending or path.name}' holds", f"Known are {', '.join(ENDINGS)}."
        )
    if ending == ".parquet":
        columns, table = read_parquet_table([path])
        content = FileRows(table.to_pylist(), columns)
    else:
        readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_json_lines, ".json": _read_json}
        content = readers[ending](_text(path), path)
    if not content.rows:
        raise AttemptError(f"{path} has no rows", "Give a file with a header (CSV, TSV) and at least one row.")
    return content


def read_parquet_table(
    paths: Sequence[Path], needed: Iterable[str] | None = None
) -> tuple[tuple[str, ...], pyarrow.Table]:
    """Reads parquet files: the names of all columns, and the needed columns (all without `needed`) as one table.

    Raises:
        AttemptError: a file that is no parquet file or is damaged.
    """
    import pyarrow
    from pyarrow import parquet

    try:
        columns = tuple(parquet.read_schema(paths[0]).names)
        wanted = None if needed is None else [column for column in columns if column in set(needed)]
        # without partitioning: the folders of the hub's layout are not columns
        tables = [parquet.read_table(path, columns=wanted, partitioning=None) for path in paths]
        return columns, pyarrow.concat_tables(tables) if len(tables) > 1 else tables[0]
    except (pyarrow.ArrowException, OSError) as error:
        raise AttemptError(
            f"{paths[0]} cannot be read as parquet ({str(error).splitlines()[0]})", "Copy it again."
        ) from None


def check_columns(task: Task, columns: Sequence[str], place: str) -> None:
    """Refuses rows that lack a column of the task, and names the columns there are."""
    missing = [name for name in task.columns() if name not in columns and name.split(".")[0] not in columns]
    if missing:
        near = nearest_names(missing[0], columns)
        did_you_mean = f"Did you mean {' or '.join(near)}? " if near else ""
        raise AttemptError(
            f"{place}: no column {' or '.join(repr(name) for name in missing)}, which task '{task.name}' needs",
            f"{did_you_mean}The columns there are: {', '.join(columns)}.",
        )


def _text(path: Path) -> str:
    try:
        return path.read_bytes().decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = error.object[: error.start].count(b"\n") + 1
        raise AttemptError(f"{path}, line {line}: not UTF-8 text", "Save the file as UTF-8.") from None


def _read_csv(text: str, path: Path) -> FileRows:
    header = text.split("\n", 1)[0]
    # spreadsheets of half the world write semicolons
    delimiter = ";" if ";" in header and "," not in header else ","
    return _delimited(text, path, delimiter)


def _read_tsv(text: str, path: Path) -> FileRows:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    header = lines[0].count("\t")
    filled = [line for line in lines if line]
    if any(line.count("\t") != header for line in filled):
        return _delimited(text, path, "\t")
    # every line is a row: then a quotation mark is text unless it encloses a cell (the files of GLUE are like that)
    cells = [[_unquoted(cell) for cell in line.split("\t")] for line in filled]
    numbers = [number for number, line in enumerate(lines, start=1) if line]
    return _with_header(cells, numbers, path)


def _unquoted(cell: str) -> str:
    enclosed = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if enclosed else cell


def _delimited(text: str, path: Path, delimiter: str) -> FileRows:
    csv.field_size_limit(min(sys.maxsize, 2**31 - 1))
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, strict=True)
    cells: list[list[str]] = []
    numbers: list[int] = []
    begins = 1
    try:
        for row in reader:
            if row:
                cells.append(row)
                numbers.append(begins)
            begins = reader.line_num + 1
    except csv.Error as error:
        raise AttemptError(
            f"{path}, line {begins}: {error}", "Put cells with quotation marks into quotation marks."
        ) from None
    return _with_header(cells, numbers, path)


def _with_header(cells: list[list[str]], numbers: list[int], path: Path) -> FileRows:
    if not cells:
        return FileRows([], ())
    header = [name.strip() for name in cells[0]]
    twice = sorted({name for name in header if header.count(name) > 1})
    if twice:
        raise AttemptError(f"{path}: two columns are named '{twice[0]}'", "Rename one of them.")
    for number, row in zip(numbers[1:], cells[1:], strict=True):
        if len(row) != len(header):
            raise AttemptError(
                f"{path}, line {number}: {len(row)} cells where the header has {len(header)}",
                "Put a cell with a comma, tab or line break in it into quotation marks.",
            )
    return FileRows([dict(zip(header, row, strict=True)) for row in cells[1:]], tuple(header), tuple(numbers[1:]))


def _read_json_lines(text: str, path: Path) -> FileRows:
    rows: list[Row] = []
    numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except json.JSONDecodeError as error:
            raise AttemptError(
                f"{path}, line {number}: not JSON ({error.msg} at character {error.colno})",
                'Each line is one object, like {"text": "…"}.',
            ) from None
        rows.append(_object(row, f"{path}, line {number}"))
        numbers.append(number)
    return FileRows(rows, _columns(rows), tuple(numbers))


def _read_json(text: str, path: Path) -> FileRows:
    try:
        content = json.loads(text)
    except json.JSONDecodeError as error:
        if error.msg.startswith("Extra data") and error.lineno > 1:
            return _read_json_lines(text, path)  # JSON lines under the ending .json
        raise AttemptError(
            f"{path}, line {error.lineno}: not JSON ({error.msg})", "It should hold a list of objects."
        ) from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        content = lists[0] if len(lists) == 1 else [content]
    if not isinstance(content, list):
        raise AttemptError(f"{path} does not hold a list of objects", 'It should look like [{"text": "…"}, …].')
    rows = [_object(row, f"{path}, row {number}") for number, row in enumerate(content, start=1)]
    return FileRows(rows, _columns(rows))


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise AttemptError(
            f"{place}: not an object but {json.dumps(row)[:40]}", 'A row is an object, like {"text": "…"}.'
        )
    return row


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for row in rows for column in row))
