"""Writes results in one place: a table for people, JSON for programs, names alone for scripts."""

from __future__ import annotations

import json
import os
import re
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import IO, Any

import click

from attempt_cli.errors import AttemptError

# The version of the JSON shapes; it rises when a field is renamed or removed, never when one is added.
JSON_VERSION = 1
# a table shows only the beginning of a longer list
LONG_LIST = 100
# rows that are held at a time
CHUNK = 1000
# the fewest characters that a column of texts is folded to on a narrow terminal
FOLDED_WIDTH = 24

# what would steer a terminal or turn its text around: all control characters but tab and line feed, marks of direction,
# invisible marks of byte order, and halves of characters, which no encoding can write
_STEERING = re.compile("[\x00-\x08\x0b-\x1f\x7f-\x9f\u061c\u200e\u200f\u2028-\u202e\u2066-\u2069\ufeff\ud800-\udfff]")


def printable(text: str) -> str:
    r"""Writes characters that would steer a terminal as escapes: "\x1b[31m" becomes "\\x1b[31m"."""
    return _STEERING.sub(lambda found: found[0].encode("unicode_escape").decode("ascii"), text)


def say(text: str, *, err: bool = False) -> None:
    """Prints a text for people, with nothing in it that would steer their terminal.

    Args:
        text: may hold names and rows of strangers.
        err: to stderr. A reader of it that went away ends no work.
    """
    try:
        click.echo(printable(text), err=err)
    except BrokenPipeError:
        if not err:
            raise
        leave(sys.stderr)


def leave(stream: IO[str]) -> None:
    """Lets nothing more be written to a stream whose reader went away, so that Python's own flush does not complain."""
    os.dup2(os.open(os.devnull, os.O_WRONLY), stream.fileno())


@dataclass(frozen=True)
class Output:
    """Takes a command's result: data goes to stdout, everything else to stderr."""

    format: str = "table"  # table | json | quiet

    def rows(self, kind: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, name: str = "name") -> int:
        """Writes a list of records, without holding all of them; returns their number.

        A table waits for its last row, to know how wide its columns are; it holds only what it shows.

        Args:
            kind: the plural noun under which JSON holds the rows, e.g. "prompts".
            rows: the records; JSON gets every field, a table only `columns`.
            columns: the fields a table shows, in order.
            name: the field that `quiet` prints, one value per line.
        """
        if self.format == "table":
            cells = [[cell_text(row.get(column)) for column in columns] for row in rows]
            if cells:
                write_table(cells, columns)
            else:
                self.note(f"no {kind}")
            return len(cells)
        waiting, count = iter(rows), 0
        some = list(islice(waiting, CHUNK))
        if self.format == "json":
            write_json(f'{{\n  "version": {JSON_VERSION},\n  {_compact(kind)}: [{"" if some else "]"}')
        while some:
            count += len(some)
            following = list(islice(waiting, CHUNK))
            if self.format == "json":
                # one row per line: indenting thousands of rows takes ten times as long, and grep finds less in it
                write_json(",\n".join(f"    {_compact(row)}" for row in some) + ("," if following else "\n  ]"))
            else:
                say("\n".join(str(row[name]) for row in some))
            some = following
        if self.format == "json":
            write_json("}")
        return count

    def record(self, kind: str, record: Mapping[str, Any], *, name: str = "name") -> None:
        """Writes one record: one field per line, or a JSON object under `kind`."""
        if self.format == "json":
            self.json({kind: dict(record)})
        elif self.format == "quiet":
            say(str(record[name]))
        else:
            width = max((len(key) for key in record), default=0)
            for key, value in record.items():
                first, *rest = cell_text(value).split("\n")
                say(f"{key:<{width}}  {first}".rstrip())
                for line in rest:
                    say(f"{'':<{width}}  {line}".rstrip())

    def json(self, data: Mapping[str, Any]) -> None:
        """Writes one JSON document to stdout."""
        write_json(json.dumps({"version": JSON_VERSION, **data}, indent=2, ensure_ascii=False, default=str))

    def note(self, text: str) -> None:
        """Writes a remark for a person to stderr; silent under `quiet`."""
        if self.format != "quiet":
            say(text, err=True)


def confirm_removal(question: str, notes: Sequence[str] = ()) -> bool:
    """Asks on stderr, so that stdout holds only the result.

    Raises:
        AttemptError: when standard input ends before an answer.
    """
    for note in notes:
        say(note, err=True)
    try:
        agreed = click.confirm(printable(question), err=True)
    except UnicodeDecodeError:
        raise AttemptError("nothing was removed: the answer is not UTF-8 text", "--yes answers it.") from None
    except click.Abort:
        click.echo(err=True)
        if sys.stdin.isatty():
            raise
        raise AttemptError("nothing was removed: the question got no answer", "--yes answers it.") from None
    if not agreed:
        say("Nothing was removed.", err=True)
    return agreed


_compact = json.JSONEncoder(ensure_ascii=False, default=str).encode


def cell_text(value: Any) -> str:
    """Formats a value for people: short numbers, comma-separated lists, a dash for an empty value."""
    if isinstance(value, str):
        return value or "-"
    if value is None or value in ([], {}, ()):
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, float):
        return f"{value:.4g}"
    if isinstance(value, Mapping):
        lines = []
        for key, item in value.items():
            text = cell_text(item)
            nested = (isinstance(item, Mapping) and item) or "\n" in text
            lines.append(f"{key}:\n" + textwrap.indent(text, "  ") if nested else f"{key}: {text}")
        return "\n".join(lines)
    if isinstance(value, Iterable):
        items = list(value)
        if len(items) > LONG_LIST:  # a run's rows: thousands of numbers; JSON has all of them
            return ", ".join(cell_text(item) for item in items[:10]) + f", … ({len(items):,} in all)"
        return ", ".join(cell_text(item) for item in items)
    return str(value)


def write_json(text: str) -> None:
    """Writes JSON to stdout as it is; what the stream's encoding cannot write becomes JSON's own escapes."""
    try:
        text.encode(sys.stdout.encoding)
    except UnicodeEncodeError:
        # outside strings JSON is ASCII: every other character stands in one
        text = re.sub(r"[^\x00-\x7f]", lambda found: json.dumps(found[0])[1:-1], text)
    click.echo(text)


def write_text(text: str) -> None:
    """Writes a file's text to stdout: as it is, but printable on a terminal."""
    click.echo(printable(text) if sys.stdout.isatty() else text)


def write_table(cells: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Writes a rich table to a terminal; to a pipe plain aligned columns: no colours, fast for thousands of rows."""
    cells, columns = [[printable(cell) for cell in row] for row in cells], [printable(column) for column in columns]
    if sys.stdout.isatty():
        _write_rich_table(cells, columns)
        return
    flat = [[cell.replace("\n", " ") for cell in row] for row in cells]
    widths = [max(map(_width, column)) for column in zip(columns, *flat, strict=True)]
    lines = ("  ".join(map(_padded, row, widths)).rstrip() for row in [list(columns), *flat])
    click.echo("\n".join(lines))


def _write_rich_table(cells: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Writes a table that fits the terminal: texts are folded between words, then the last columns are left out.

    A name or a number stays on one line, so that it can be copied.
    """
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    by_column = [[column, *(row[number] for row in cells)] for number, column in enumerate(columns)]
    folds = [any(" " in cell.strip() for cell in column[1:]) for column in by_column]
    words = [
        [word for cell in column for word in (cell.split() if fold else cell.split("\n"))]
        for column, fold in zip(by_column, folds, strict=True)
    ]
    longest = [max(map(_width, of), default=0) for of in words]
    least = [min(width, FOLDED_WIDTH) if fold else width for width, fold in zip(longest, folds, strict=True)]
    console = Console()
    shown = len(columns)
    while shown > 1 and sum(least[:shown]) + 2 * (shown - 1) > console.width:
        shown -= 1
    table = Table(box=None, header_style="bold", pad_edge=False)
    for number, column in enumerate(columns[:shown]):
        table.add_column(column, overflow="fold", no_wrap=not folds[number], min_width=least[number])
    for row in cells:
        table.add_row(*(Text(cell) for cell in row[:shown]))
    console.width = max(console.width, least[0])  # a name that is longer than a line is the terminal's to break
    console.print(table)
    if shown < len(columns):
        say(f"Not shown: {', '.join(columns[shown:])}. A wider window or `--format json` shows all.", err=True)


def _width(text: str) -> int:
    """Counts the terminal cells of a text: a Chinese character or an emoji takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # 10 ms that most tables need not pay

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    return text.ljust(width) if text.isascii() else text + " " * (width - _width(text))
