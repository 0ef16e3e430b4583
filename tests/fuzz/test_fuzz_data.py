"""Damaged files of tasks and rows: each is accepted or refused with an `AttemptError`, in little time.

`ATTEMPT_FUZZ` is the number of inputs in all; `make fuzz` asks for 10,000.
"""

from __future__ import annotations

import io
import json
import os
import random
import time
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

INPUTS = int(os.environ.get("ATTEMPT_FUZZ", "420"))
LONGEST = 10.0  # seconds for one input

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


def mutated(data: bytes, randomness: random.Random) -> bytes:
    """Damages a file in one to four places."""
    for _ in range(randomness.randint(1, 4)):
        place = randomness.randint(0, len(data))
        other = randomness.randint(0, len(data))
        match randomness.randint(0, 5):
            case 0:  # bits
                flipped = bytes(byte ^ (1 << randomness.randint(0, 7)) for byte in data[place : place + 3])
                data = data[:place] + flipped + data[place + 3 :]
            case 1:  # cut
                data = data[:place]
            case 2:  # a part away
                data = data[: min(place, other)] + data[max(place, other) :]
            case 3:  # a part twice
                data = data[:place] + data[min(place, other) : max(place, other)] + data[place:]
            case _:  # something else in it
                data = data[:place] + randomness.choice(PIECES) + data[place:]
    return data


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
    refusals: list[AttemptError] = []
    for number in range(INPUTS // len(SEEDS)):
        data = mutated(seed, random.Random(f"{form} {number}"))
        began = time.monotonic()
        try:
            use(form, data, tmp_path)
        except AttemptError as error:
            refusals.append(error)
        except Exception as error:
            raise AssertionError(f"{form} {number}: {type(error).__name__}: {error}") from error
        assert time.monotonic() - began < LONGEST, f"{form} {number}"
    assert refusals
    assert all(error.hint for error in refusals)
    assert max(len(error.message) for error in refusals) < 5000
