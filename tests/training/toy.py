"""Small files of a task that a prompt before a tiny random model can learn something of."""

from __future__ import annotations

import csv
import json
import random
from collections.abc import Sequence
from pathlib import Path

FILLERS = ("it", "is", "was", "the", "text", "one", "two", "three", "four", "five")
# how the commands are told what is in the files
READ = '--input "{text} label:" --label mood'

Row = dict[str, str]


def toy_rows(count: int, seed: int = 0) -> list[Row]:
    """Sentences of 2 to 9 words, one of them "good" (then the label is yes) or "bad" (no), as many of both."""
    randomness = random.Random(seed)
    rows = []
    for number in range(count):
        words = randomness.choices(FILLERS, k=randomness.randint(1, 8))
        words.insert(randomness.randint(0, len(words)), ("good", "bad")[number % 2])
        rows.append({"text": " ".join(words), "mood": ("yes", "no")[number % 2]})
    return rows


def write_csv(path: Path, rows: Sequence[Row]) -> Path:
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)
    return path


def write_jsonl(path: Path, rows: Sequence[Row]) -> Path:
    path.write_text("".join(json.dumps(row) + "\n" for row in rows), "utf-8")
    return path
