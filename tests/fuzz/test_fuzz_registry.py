"""Damaged databases of a registry: every command works, or ends in an error that says what to do."""

from __future__ import annotations

import contextlib
import io
import json
import random
import shutil
import sqlite3
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from attempt_cli.cli.main import main
from attempt_registry import Backbone, Registry
from tests.fuzz.damage import VALUES, damaged, damaged_document, inputs, tried
from tests.torture.registry_kills import FINGERPRINT, add

COMMANDS = (
    "list",
    "list --what compositions",
    "list --what attentions",
    "list --task t --sort created",
    "show p3",
    "show c --what compositions",
    "search p1",
    "verify",
    "tag p4 --add b",
    "remove p5 --yes",
    "gc --yes",
)


def prepared(folder: Path) -> Path:
    """Makes a registry of every kind of record; returns its database."""
    with Registry.open(folder) as registry:
        registry.remember_backbone(Backbone("tiny", FINGERPRINT, "decoder-only", 3, 0.1, 1000, "made in the test"))
        for number in range(6):
            add(registry, f"p{number}", number)
        registry.tag("p1", add=["a", "é"])
        attention = {"down": np.ones((2, 3), np.float32), "up": np.ones((3, 2), np.float32)}
        registry.add_attention(
            attention,
            name="g",
            backbone="tiny",
            fingerprint=FINGERPRINT,
            rank=2,
            level="instance",
            temperature=4.7,
            width=3,
            settings={},
            seed=0,
            parents=["p1"],
        )
        registry.add_composition(
            name="c", backbone="tiny", fingerprint=FINGERPRINT, sources=["p1"], attention="g", targets=["p2"]
        )
        registry.add_run(
            command="train-source",
            settings={},
            rows={},
            seed=0,
            budget={"steps": 3},
            numbers={},
            versions={},
            duration=1.0,
            artefacts=["p3"],
            inputs=["p1"],
        )
    return folder / "registry.db"


def cells(file: Path, draw: random.Random) -> None:
    """Changes one to five cells as another program would: without the triggers, to any value of any type."""
    connection = sqlite3.connect(file)
    for (trigger,) in connection.execute("SELECT name FROM sqlite_master WHERE type = 'trigger'").fetchall():
        connection.execute(f"DROP TRIGGER {trigger}")
    tables = ("prompts", "attentions", "compositions", "runs", "backbones", "names", "links", "_sqlite_migrations")
    for table in draw.sample(tables, draw.choice((1, 1, 2, 5))):  # no cell twice: a damaged one is JSON no more
        columns = [row[1] for row in connection.execute(f"PRAGMA table_info({table})")]
        rows = connection.execute(f"SELECT * FROM {table}").fetchall()
        row, column = draw.choice(rows), draw.randrange(len(columns))
        value = row[column]
        if isinstance(value, str) and value.startswith(("[", "{")) and draw.random() < 1 / 2:
            value = json.dumps(damaged_document(json.loads(value), draw))
        elif isinstance(value, str) and draw.random() < 1 / 2:
            value = damaged(value.encode(), draw)
            value = value.decode(errors="replace") if draw.random() < 1 / 2 else value
        else:
            value = draw.choice(VALUES)
            value = json.dumps(value) if isinstance(value, list | dict) else value
        # what SQLite cannot keep, or the table's own conditions refuse, damages nothing
        with contextlib.suppress(sqlite3.Error, OverflowError, UnicodeError):
            where = f"{columns[0]} IS ? AND {columns[1]} IS ?"
            connection.execute(f"UPDATE {table} SET {columns[column]} = ? WHERE {where}", (value, *row[:2]))
    connection.commit()
    connection.close()


def pages(file: Path, draw: random.Random) -> None:
    """Changes bytes: of the whole file, or of texts, names of tables and columns among them."""
    data = file.read_bytes()
    if draw.random() < 1 / 2:
        file.write_bytes(damaged(data, draw, more=0.2))
        return
    text = draw.choice([b"p1@1", b"tiny", b'{"', b"ffff", b"source", b"prompts", "é".encode(), b"CREATE"])
    places = [at for at in range(len(data)) if data.startswith(text, at)]
    at = draw.choice(places) + draw.randrange(len(text))
    file.write_bytes(data[:at] + draw.randbytes(1) + data[at + 1 :])


@pytest.mark.parametrize("damage", [cells, pages], ids=lambda damage: damage.__name__)
def test_a_damaged_database_is_in_the_way_of_no_command(
    damage: Callable[[Path, random.Random], None], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    start, folder = prepared(tmp_path / "start").parent, tmp_path / "damaged"
    codes = set()

    def run(command: str, form: str) -> None:
        out, err = (io.TextIOWrapper(io.BytesIO(), "utf-8") for _ in range(2))
        arguments = ["attempt", "--registry", str(folder), "--format", form, "registry", *command.split()]
        monkeypatch.setattr(sys, "argv", arguments)
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err), contextlib.suppress(SystemExit):
            main()
        for stream in (out, err):
            stream.flush()
        said = err.buffer.getvalue().decode()  # type: ignore[attr-defined]
        assert "defect" not in said, said
        assert "Traceback" not in said, said
        codes.add("Error" in said)
        if form == "json" and "Error" not in said:
            printed = out.buffer.getvalue()  # type: ignore[attr-defined]
            try:
                json.loads(printed)
            except ValueError as error:
                raise AssertionError(f"{command}: no JSON: {printed[:500]!r}, {said[:500]}") from error

    def all_commands(form: str) -> None:
        for command in COMMANDS:
            run(command, form)

    for number in range(inputs(2, 12)):
        draw = random.Random(f"{damage.__name__} {number}")
        shutil.rmtree(folder, ignore_errors=True)
        shutil.copytree(start, folder)
        damage(folder / "registry.db", draw)
        form = draw.choice(("table", "json"))
        tried(lambda form=form: all_commands(form), tmp_path, (), f"{damage.__name__} {number}")
    assert codes == {True, False}
