"""Writes results in one place: a table for people, JSON for programs, names alone for scripts."""

from __future__ import annotations

import json
import sys
import textwrap
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice
from typing import Any

import click

from attempt_cli.errors import AttemptError

# The version of the JSON shapes; it rises when a field is renamed or removed, never when one is added.
JSON_VERSION = 1
# a table shows only the beginning of a longer list
LONG_LIST = 100
# rows that `stream` holds at a time
CHUNK = 1000


@dataclass(frozen=True)
class Output:
    """Takes a command's result: data goes to stdout, everything else to stderr."""

    format: str = "table"  # table | json | quiet

    def stream(
        self, kind: str, rows: Iterable[Mapping[str, Any]], columns: Sequence[str], *, name: str = "name"
    ) -> int:
        """Writes a list of records as `rows` does, without holding all of them; returns their number.

        A table waits for its last row, to know how wide its columns are; it holds only what it shows.
        """
        if self.format == "table":
            kept = [{column: row.get(column) for column in columns} for row in rows]
            self.rows(kind, kept, columns, name=name)
            return len(kept)
        waiting, count = iter(rows), 0
        some = list(islice(waiting, CHUNK))
        if self.format == "json" and some:
            click.echo(f'{{\n  "version": {JSON_VERSION},\n  {_compact(kind)}: [')
        elif self.format == "json":
            self.rows(kind, [], columns, name=name)
        while some:
            count += len(some)
            following = list(islice(waiting, CHUNK))
            if self.format == "json":
                click.echo(",\n".join(f"    {_compact(row)}" for row in some) + ("," if following else "\n  ]\n}"))
            else:
                self.rows(kind, some, columns, name=name)
            some = following
        return count

    def rows(self, kind: str, rows: Sequence[Mapping[str, Any]], columns: Sequence[str], *, name: str = "name") -> None:
        """Writes a list of records.

        Args:
            kind: the plural noun under which JSON holds the rows, e.g. "prompts".
            rows: the records; JSON gets every field, a table only `columns`.
            columns: the fields a table shows, in order.
            name: the field that `quiet` prints, one value per line.
        """
        if self.format == "json":
            # one row per line: indenting thousands of rows takes ten times as long, and grep finds less in the result
            lines = ",\n".join(f"    {_compact(row)}" for row in rows)
            listed = f"[\n{lines}\n  ]" if rows else "[]"
            click.echo(f'{{\n  "version": {JSON_VERSION},\n  {_compact(kind)}: {listed}\n}}')
        elif self.format == "quiet":
            if rows:
                click.echo("\n".join(str(row[name]) for row in rows))
        elif not rows:
            self.note(f"no {kind}")
        else:
            write_table([[cell_text(row.get(column)) for column in columns] for row in rows], columns)

    def record(self, kind: str, record: Mapping[str, Any], *, name: str = "name") -> None:
        """Writes one record: one field per line, or a JSON object under `kind`."""
        if self.format == "json":
            self.json({kind: dict(record)})
        elif self.format == "quiet":
            click.echo(record[name])
        else:
            width = max((len(key) for key in record), default=0)
            for key, value in record.items():
                first, *rest = cell_text(value).split("\n")
                click.echo(f"{key:<{width}}  {first}".rstrip())
                for line in rest:
                    click.echo(f"{'':<{width}}  {line}".rstrip())

    def json(self, data: Mapping[str, Any]) -> None:
        """Writes one JSON document to stdout."""
        click.echo(json.dumps({"version": JSON_VERSION, **data}, indent=2, ensure_ascii=False, default=str))

    def note(self, text: str) -> None:
        """Writes a remark for a person to stderr; silent under `quiet`."""
        if self.format != "quiet":
            click.echo(text, err=True)


def confirm_removal(question: str, notes: Sequence[str] = ()) -> bool:
    """Asks on stderr, so that stdout holds only the result.

    Raises:
        AttemptError: when standard input ends before an answer.
    """
    for note in notes:
        click.echo(note, err=True)
    try:
        agreed = click.confirm(question, err=True)
    except click.Abort:
        click.echo(err=True)
        if sys.stdin.isatty():
            raise
        raise AttemptError("nothing was removed: the question got no answer", "--yes answers it.") from None
    if not agreed:
        click.echo("Nothing was removed.", err=True)
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


def write_table(cells: Sequence[Sequence[str]], columns: Sequence[str]) -> None:
    """Writes a rich table to a terminal; to a pipe plain aligned columns: no colours, fast for thousands of rows."""
    if sys.stdout.isatty():
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text

        table = Table(box=None, header_style="bold", pad_edge=False)
        for column in columns:
            table.add_column(column, overflow="fold")
        for row in cells:
            table.add_row(*(Text(cell) for cell in row))
        Console().print(table)
        return
    flat = [[cell.replace("\n", " ") for cell in row] for row in cells]
    widths = [max(map(_width, column)) for column in zip(columns, *flat, strict=True)]
    lines = ("  ".join(map(_padded, row, widths)).rstrip() for row in [list(columns), *flat])
    click.echo("\n".join(lines))


def _width(text: str) -> int:
    """Counts the terminal cells of a text: a Chinese character or an emoji takes two."""
    if text.isascii():
        return len(text)
    from rich.cells import cell_len  # 10 ms that most tables need not pay

    return cell_len(text)


def _padded(text: str, width: int) -> str:
    return text.ljust(width) if text.isascii() else text + " " * (width - _width(text))
