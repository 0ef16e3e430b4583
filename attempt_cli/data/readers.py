"""Reads rows from CSV, TSV, JSON lines, JSON and parquet files, with errors that name the line."""

from __future__ import annotations

import bz2
import csv
import gzip
import io
import json
import lzma
import sys
import zlib
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path, PurePath
from typing import TYPE_CHECKING, Any

from attempt_cli.data.task import Task, is_url
from attempt_cli.errors import AttemptError, first_line, shortened
from attempt_registry.errors import did_you_mean, nearest_names

if TYPE_CHECKING:
    import pyarrow

csv.field_size_limit(min(sys.maxsize, 2**31 - 1))  # the module's own limit is 131,072 characters
Row = dict[str, Any]
ENDINGS = (".csv", ".tsv", ".jsonl", ".json", ".parquet")


def _unpacked_zstd(data: bytes) -> bytes:
    import pyarrow  # Python has a reader of its own from 3.14 on

    unpacked: bytes = pyarrow.CompressedInputStream(pyarrow.BufferReader(data), "zstd").read()
    return unpacked


COMPRESSED: dict[str, Callable[[bytes], bytes]] = {
    ".gz": gzip.decompress,
    ".bz2": bz2.decompress,
    ".xz": lzma.decompress,
    ".zst": _unpacked_zstd,
}


@dataclass(frozen=True)
class FileRows:
    """The content of a file.

    Args:
        rows: column -> value, one dict for each row.
        columns: the names of all columns, in order, without those of `repeated`.
        lines: the line (from 1) on which each row begins; empty for files without lines.
        repeated: names that several columns have; their values are in no row.
        names: the label names of a column of class numbers, where the file itself holds them.
    """

    rows: list[Row]
    columns: tuple[str, ...]
    lines: tuple[int, ...] = ()
    repeated: tuple[str, ...] = ()
    names: Mapping[str, Sequence[str]] = field(default_factory=dict)


def read_rows(path: Path | str, encoding: str | None = None) -> list[Row]:
    """Reads the rows of a file; arguments and errors as in `read_file`."""
    return read_file(path, encoding).rows


def read_file(path: Path | str, encoding: str | None = None) -> FileRows:
    """Reads the rows of a file with their columns and lines.

    Args:
        path: a CSV, TSV, JSON lines, JSON or parquet file, which may be compressed (`.csv.gz`); or the address of one
            that fsspec can open, such as "hf://datasets/someone/reviews/train.csv".
        encoding: of a text file; UTF-8 without it.

    Raises:
        AttemptError: a missing or empty file, an unknown ending, text in another encoding, a bad row (with its line).
    """
    ending = file_ending(path)
    if ending not in ENDINGS:
        _refuse_missing(path)
        raise AttemptError(
            f"{path}: cannot tell what '{ending or PurePath(path).name}' holds",
            f"Known are {', '.join(ENDINGS)}, each also with {', '.join(COMPRESSED)} behind it.",
        )
    content = parsed(read_bytes(path), ending, str(path), encoding)
    if not content.rows:
        raise AttemptError(f"{path} has no rows", "Give a file with a header (CSV, TSV) and at least one row.")
    return content


def file_ending(path: Path | str) -> str:
    """Returns the ending that says what a file holds: ".csv" of "rows.csv.gz"."""
    suffixes = [suffix.lower() for suffix in PurePath(path).suffixes]
    if suffixes and suffixes[-1] in COMPRESSED:
        suffixes.pop()
    return suffixes[-1] if suffixes else ""


def read_bytes(path: Path | str) -> bytes:
    """Reads a file or an address, decompressed where its ending says that it is compressed.

    Raises:
        AttemptError: it is missing, a folder, unreadable or damaged.
    """
    try:
        if is_url(path):
            import fsspec

            with fsspec.open(str(path), "rb") as file:
                data: bytes = file.read()
        else:
            _refuse_missing(path)
            data = Path(path).read_bytes()
    except AttemptError:
        raise
    except OSError as error:
        raise AttemptError(f"{path} cannot be read ({first_line(error)})", "Check the path and the network.") from None
    except Exception as error:  # of fsspec, or of the library that it opens the address with
        raise AttemptError(
            f"{path} cannot be read ({first_line(error)})", "Check the address, or download the file and name that."
        ) from None
    unpack = COMPRESSED.get(PurePath(path).suffix.lower())
    if unpack is None:
        return data
    try:
        return unpack(data)
    except (OSError, EOFError, zlib.error, lzma.LZMAError, ValueError) as error:
        raise AttemptError(f"{path} cannot be decompressed ({first_line(error)})", "Copy it again.") from None


def _refuse_missing(path: Path | str) -> None:
    path = Path(path)
    if path.is_dir() or not path.exists():
        what = f"'{path}' is a folder" if path.is_dir() else f"no file '{path}'"
        near = nearest_names(path.name, [entry.name for entry in path.parent.glob("*")] if path.parent.is_dir() else [])
        raise AttemptError(what, f"Did you mean {' or '.join(near)}?" if near else "Check the path.")


def parsed(data: bytes, ending: str, place: str, encoding: str | None = None) -> FileRows:
    """Reads the rows of a file's bytes.

    Args:
        data: what the file holds.
        ending: one of `ENDINGS`, which says how to read it.
        place: the file, for messages.
        encoding: as in `read_file`.
    """
    if ending == ".parquet":
        return _read_parquet(data, place)
    return parsed_text(decoded(data, place, encoding), ending, place)


def parsed_text(text: str, ending: str, place: str) -> FileRows:
    """Reads the rows of a text; arguments as in `parsed`."""
    readers = {".csv": _read_csv, ".tsv": _read_tsv, ".jsonl": _read_json_lines, ".json": _read_json}
    return readers[ending](text, place)


def decoded(data: bytes, place: str, encoding: str | None = None) -> str:
    """Decodes a text, without the byte-order mark that it may begin with.

    Raises:
        AttemptError: the text is in another encoding; the hint names the one it may be.
    """
    codec = encoding or "utf-8"
    try:
        return data.decode(codec).removeprefix("\ufeff")
    except LookupError:
        raise AttemptError(f"no text encoding '{codec}'", "There are utf-8, utf-16, cp1252, latin-1, …") from None
    except UnicodeError as error:
        line = data[: error.start].count(b"\n") + 1 if isinstance(error, UnicodeDecodeError) else 1
        wide = data[:2] in (b"\xff\xfe", b"\xfe\xff")
        hint = f"Name its encoding, like --encoding {'utf-16' if wide else 'cp1252'}, or save it as UTF-8."
        raise AttemptError(f"{place}, line {line}: not {codec.upper()} text", hint) from None


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
    except (pyarrow.ArrowException, OSError, ValueError) as error:
        raise _bad_parquet(str(paths[0]), error) from None


def python_rows(table: pyarrow.Table, place: str) -> list[Row]:
    """Turns a table into rows of Python values.

    Raises:
        AttemptError: a value has no Python value, like a text that is not UTF-8 or a date in the year 300,000.
    """
    import pyarrow

    try:
        rows: list[Row] = table.to_pylist()
        return rows
    except (pyarrow.ArrowException, ValueError, OverflowError, KeyError, TypeError) as error:
        raise _bad_parquet(place, error) from None


def _bad_parquet(place: str, error: Exception) -> AttemptError:
    return AttemptError(f"{place} cannot be read as parquet ({first_line(error)})", "Copy it again.")


def _read_parquet(data: bytes, place: str) -> FileRows:
    import pyarrow
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(pyarrow.BufferReader(data))
        names = file.schema_arrow.names
        repeated = _repeated(names)
        table = file.read()
        table = table.select([number for number, name in enumerate(names) if name not in repeated])
    except (pyarrow.ArrowException, OSError, ValueError, OverflowError) as error:
        raise _bad_parquet(place, error) from None
    metadata = (table.schema.metadata or {}).get(b"huggingface", b"")
    return FileRows(
        python_rows(table, place), tuple(table.column_names), repeated=repeated, names=_label_names(metadata)
    )


def _label_names(metadata: bytes) -> dict[str, tuple[str, ...]]:
    """Finds the names of class numbers in what `datasets` writes into a parquet file; damaged metadata has none."""
    try:
        features = json.loads(metadata)["info"]["features"]
        return {
            column: tuple(str(name).strip() for name in feature["names"])
            for column, feature in features.items()
            if isinstance(feature, dict) and feature.get("_type") == "ClassLabel"
        }
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError):
        return {}


def check_columns(task: Task, content: FileRows, place: str) -> None:
    """Refuses rows that lack a column of the task, or have two of its name; names the columns there are."""
    refuse_columns(task.columns(), content, place, f"which task '{task.name}' needs")


def refuse_columns(needed: Iterable[str], content: FileRows, place: str, why: str) -> None:
    """Refuses rows that lack one of the needed columns, or have two of its name.

    Args:
        needed: names of columns; a dotted name is a field of one.
        content: the rows.
        place: where they are, for messages.
        why: who needs them, for messages.
    """
    columns = content.columns
    missing = [name for name in needed if name not in columns and name.split(".")[0] not in columns]
    twice = [name for name in missing if name in content.repeated]
    if twice:
        raise AttemptError(f"{place}: two columns are named '{twice[0]}', {why}", "Rename one of them.")
    if missing:
        raise AttemptError(
            f"{place}: no column {' or '.join(repr(name) for name in missing)}, {why}",
            f"{did_you_mean(missing[0], columns)}The columns there are: {shortened(columns)}.",
        )


def _repeated(names: Sequence[str]) -> tuple[str, ...]:
    return tuple(name for name, count in Counter(names).items() if count > 1)


def read_delimited(text: str, place: str, delimiter: str) -> FileRows:
    """Reads a table with a header from a text; a table with tabs may have quotation marks that are text."""
    return _read_tsv(text, place) if delimiter == "\t" else _delimited(text, place, delimiter)


def _read_csv(text: str, place: str) -> FileRows:
    header = text.split("\n", 1)[0]
    # spreadsheets of half the world write semicolons
    delimiter = ";" if ";" in header and "," not in header else ","
    return _delimited(text, place, delimiter)


def _read_tsv(text: str, place: str) -> FileRows:
    lines = [line.removesuffix("\r") for line in text.split("\n")]
    header = lines[0].count("\t")
    filled = [line for line in lines if line]
    if any(line.count("\t") != header for line in filled):
        return _delimited(text, place, "\t")
    # every line is a row: then a quotation mark is text unless it encloses a cell (the files of GLUE are like that)
    cells = [[_unquoted(cell) for cell in line.split("\t")] for line in filled]
    numbers = [number for number, line in enumerate(lines, start=1) if line]
    return _with_header(cells, numbers, place)


def _unquoted(cell: str) -> str:
    enclosed = len(cell) > 1 and cell[0] == cell[-1] == '"' and '"' not in cell[1:-1].replace('""', "")
    return cell[1:-1].replace('""', '"') if enclosed else cell


def _delimited(text: str, place: str, delimiter: str) -> FileRows:
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
            f"{place}, line {begins}: {error}", "Put cells with quotation marks into quotation marks."
        ) from None
    return _with_header(cells, numbers, place)


def _with_header(cells: list[list[str]], numbers: list[int], place: str) -> FileRows:
    if not cells:
        return FileRows([], ())
    header = [name.strip() for name in cells[0]]
    width = len(header)
    while header and not header[-1]:  # spreadsheets leave empty columns at the end
        header.pop()
    repeated = _repeated([name for name in header if name])
    kept = [number for number, name in enumerate(header) if name and name not in repeated]
    names = [header[number] for number in kept]
    rows = []
    for number, row in zip(numbers[1:], cells[1:], strict=True):
        if len(row) < len(header) or any(row[width:]):
            raise AttemptError(
                f"{place}, line {number}: {len(row)} cells where the header has {len(header)}",
                "Put a cell with a comma, tab or line break in it into quotation marks.",
            )
        rows.append({name: row[cell] for name, cell in zip(names, kept, strict=True)})
    return FileRows(rows, tuple(names), tuple(numbers[1:]), repeated)


def _read_json_lines(text: str, place: str) -> FileRows:
    rows: list[Row] = []
    numbers: list[int] = []
    for number, line in enumerate(text.split("\n"), start=1):
        if not line.strip():
            continue
        try:
            row = json.loads(line)
        except (ValueError, RecursionError) as error:
            raise AttemptError(
                f"{place}, line {number}: not JSON ({_json_problem(error)})",
                'Each line is one object, like {"text": "…"}.',
            ) from None
        rows.append(_object(row, f"{place}, line {number}"))
        numbers.append(number)
    return FileRows(rows, _columns(rows), tuple(numbers))


def _read_json(text: str, place: str) -> FileRows:
    try:
        content = json.loads(text)
    except (ValueError, RecursionError) as error:
        line = error.lineno if isinstance(error, json.JSONDecodeError) else 1
        if line > 1 and str(error).startswith("Extra data"):
            return _read_json_lines(text, place)  # JSON lines under the ending .json
        raise AttemptError(
            f"{place}, line {line}: not JSON ({_json_problem(error)})", "It should hold a list of objects."
        ) from None
    if isinstance(content, dict):
        lists = [value for value in content.values() if isinstance(value, list)]
        # an object with one list of objects holds the rows; any other is itself a row
        holds_rows = len(lists) == 1 and all(isinstance(row, dict) for row in lists[0])
        content = lists[0] if holds_rows else [content]
    if not isinstance(content, list):
        raise AttemptError(f"{place} does not hold a list of objects", 'It should look like [{"text": "…"}, …].')
    rows = [_object(row, f"{place}, row {number}") for number, row in enumerate(content, start=1)]
    return FileRows(rows, _columns(rows))


def _json_problem(error: Exception) -> str:
    if isinstance(error, json.JSONDecodeError):
        return f"{error.msg} at character {error.colno}"
    return "it is nested too deeply" if isinstance(error, RecursionError) else "a number has too many digits"


def _object(row: Any, place: str) -> Row:
    if not isinstance(row, dict):
        raise AttemptError(
            f"{place}: not an object but {json.dumps(row)[:40]}", 'A row is an object, like {"text": "…"}.'
        )
    return row


def _columns(rows: Iterable[Row]) -> tuple[str, ...]:
    return tuple(dict.fromkeys(column for row in rows for column in row))
