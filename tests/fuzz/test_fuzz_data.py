"""Damaged files of tasks and rows: each is accepted, or refused with an error that says what to do."""

from __future__ import annotations

import io
import json
import random
from collections.abc import Callable
from pathlib import Path

import pyarrow
import pyarrow.parquet
import pytest

from attempt_cli.data.catalogue import load_task
from attempt_cli.data.own_files import task_from_files
from attempt_cli.data.readers import check_columns, parsed
from attempt_cli.data.task import Task
from attempt_cli.data.unlabelled import recognised
from attempt_cli.errors import AttemptError
from tests.fuzz.damage import damaged, damaged_json, inputs, tried

ROWS = [
    {"text": 'lovely, "really"', "mood": "good", "page": 3},
    {"text": "it leaks\nbadly", "mood": "bad", "page": 4},
    {"text": "ein Ä und ein \U0001f600", "mood": "good", "page": 5},
]
CSV = 'text,mood,page\n"lovely, ""really""",good,3\n"it leaks\nbadly",bad,4\nein Ä,good,5\n'
TSV = 'text\tmood\tpage\nlovely, "really"\tgood\t3\n"it leaks"\tbad\t4\nein Ä\tgood\t5\n'
YAML = """name: moods
description: &about Is a review good?
files: {train: rows.csv}
input: "review: {text} mood:"
label: mood
labels: {bad: bad, good: good}
metrics: [accuracy, f1]
max_length: 64
version: 2
"""
# what breaks parsers: deep nesting, huge numbers, aliases, tags, half characters, controls, other encodings
PIECES = [
    b"\x00",
    b"\xff\xfe",
    b"\xef\xbb\xbf",
    b"\xed\xa0\x80",
    b'"',
    b"'",
    b",",
    b";",
    b"\t",
    b"\r",
    b"\n",
    b"\\ud800",
    b"{",
    b"}",
    b"[" * 2000,
    b'{"a":' * 2000,
    b"9" * 5000,
    b"1e999",
    b"NaN",
    b"*about",
    b"&about ",
    b"!!int x",
    b"!!python/object/apply:os.system [ls]",
    b"? [a]\n: b\n",
    b"2001-99-99",
    b"<<: *about\n",
    b"\x1b[31m",
    "\u202e\u2028\x85".encode(),
    b"- " * 50,
]


def parquet() -> bytes:
    target = io.BytesIO()
    features = {"mood": {"names": ["bad", "good"], "_type": "ClassLabel"}}
    table = pyarrow.Table.from_pylist(ROWS).replace_schema_metadata(
        {"huggingface": json.dumps({"info": {"features": features}})}
    )
    pyarrow.parquet.write_table(table, target)
    return target.getvalue()


SEEDS: dict[str, Callable[[], bytes]] = {
    "csv": CSV.encode,
    "tsv": TSV.encode,
    "jsonl": "".join(json.dumps(row) + "\n" for row in ROWS).encode,
    "json": json.dumps(ROWS, indent=1).encode,
    "parquet": parquet,
    "yaml": YAML.encode,
    "pipe": CSV.encode,
}
TASK = Task(
    name="moods",
    files={"train": Path("rows.csv")},
    input="{text}",
    label="mood",
    labels={"bad": "bad", "good": "good"},
    metrics=("accuracy",),
)


def use(form: str, data: bytes, folder: Path) -> None:
    """Does with a file what commands do before they load a model."""
    if form == "yaml":
        path = folder / "task.yaml"
        path.write_bytes(data)
        load_task(path)
    elif form == "pipe":
        content = recognised(data.decode("utf-8", errors="replace"), ("text",), "standard input")
        for row in content.rows if content else ():
            TASK.render_input(row)
    else:
        path = folder / f"rows.{form}"
        path.write_bytes(data)
        task_from_files(train=path, input="{text} {page}", label="mood")
        content = parsed(data, f".{form}", "rows")
        check_columns(TASK, content, "rows")
        for row in content.rows:
            TASK.render(row)


@pytest.mark.parametrize("form", SEEDS)
def test_a_damaged_file_is_accepted_or_refused_in_plain_words(form: str, tmp_path: Path) -> None:
    seed = SEEDS[form]()
    use(form, seed, tmp_path)
    accepted = 0
    count = inputs(len(SEEDS), 60)
    for number in range(count):
        draw = random.Random(f"{form} {number}")
        is_json = form == "json" and number % 2
        data = damaged_json(seed, draw) if is_json else damaged(seed, draw, PIECES, near=len(seed))
        accepted += tried(lambda data=data: use(form, data, tmp_path), tmp_path, (AttemptError,), data)
    assert accepted < count
