"""Writes an experiment's results: lines of a table, CSV, JSON, Markdown."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attempt_cli.errors import AttemptError


@dataclass(frozen=True)
class ReportTable:
    """An experiment's results, ready to be printed or written.

    Args:
        name: "table1".
        title: its subject.
        command: as it was typed.
        columns: the fields of a line that the table shows, in order.
        lines: one record each, values as people read them.
        document: the numbers themselves, for programs.
        notes: what a reader has to know.
        matrix: further lines with methods down and tasks across; empty for none.
    """

    name: str
    title: str
    command: str
    columns: Sequence[str]
    lines: Sequence[Mapping[str, Any]]
    document: Mapping[str, Any]
    notes: Sequence[str] = ()
    matrix: Sequence[Mapping[str, Any]] = field(default_factory=list)

    @property
    def shown(self) -> list[str]:
        """The columns that are not empty."""
        return [column for column in self.columns if any(line.get(column) not in (None, "") for line in self.lines)]

    @property
    def printed(self) -> list[dict[str, Any]]:
        """The lines as a table prints them: counts have separators of thousands."""
        return [{name: _cell(value) for name, value in line.items()} for line in self.lines]

    def write(self, folder: Path, version: int) -> list[Path]:
        """Writes NAME.csv, NAME.json and NAME.md into a folder and returns their paths.

        Args:
            folder: made where it does not exist.
            version: the version of the JSON shapes.

        Raises:
            AttemptError: the folder cannot be written to.
        """
        document = {"version": version, **self.document}
        texts = {
            "csv": self._csv(),
            "json": json.dumps(document, indent=2, ensure_ascii=False, default=str) + "\n",
            "md": self._markdown(),
        }
        files = {folder / f"{self.name}.{ending}": text for ending, text in texts.items()}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            for file, text in files.items():
                file.write_text(text, "utf-8")
        except OSError as error:
            raise AttemptError(
                f"the report cannot be written to {folder}: {error.strerror or error}",
                "Name another folder with --output; the results are in the registry, and --resume reads them back.",
            ) from error
        return list(files)

    def _csv(self) -> str:
        columns = list(dict.fromkeys([*self.columns, *(name for line in self.lines for name in line)]))
        file = io.StringIO()
        writer = csv.DictWriter(file, columns, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self.lines)
        return file.getvalue()

    def _markdown(self) -> str:
        parts = [f"# {self.title}", f"    {self.command}"]
        if self.matrix:
            parts.append(_table(self.matrix, list(self.matrix[0])))
        parts.append(_table(self.lines, self.shown))
        parts.append("\n".join(f"- {note}" for note in self.notes))
        return "\n\n".join(part for part in parts if part) + "\n"


def _table(lines: Sequence[Mapping[str, Any]], columns: Sequence[str]) -> str:
    rows = [
        [_cell(line.get(column)).replace("|", "\\|").replace("\n", " ") or "–" for column in columns] for line in lines
    ]
    heads = [column.replace("_", " ") for column in columns]
    return "\n".join("| " + " | ".join(row) + " |" for row in [heads, ["---"] * len(columns), *rows])


def _cell(value: Any) -> str:
    if isinstance(value, int):
        return f"{value:,}"
    return "" if value is None else str(value)
