"""Writes the rows of the proof that no hub has as they are: Yelp with test rows of its own, and a task of two domains.

    python -m benchmarks.proof_rows FOLDER        (ATTEMPT_DATA names the folder with rows in the hub's layout)

Yelp's official test rows are a download of their own, so 400 of the training rows are test rows here. The task of two
domains has reviews and questions, half each, under one input column. Its label follows a rule that depends on the
domain, from the data's own labels: "yes" is a positive review, or a sentence that answers its question. The questions
are validation rows of QNLI: a source prompt of QNLI was not trained on them.
"""

from __future__ import annotations

import argparse
import json
import os
import random
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq

TASK = """\
name: {name}
version: 1
description: {description}
files: {{train: {name}-train.jsonl, validation: {name}-validation.jsonl, test: {name}-test.jsonl}}
input: |-
  {input}
labels: {labels}
metrics: [accuracy]
max_length: 256
"""


def rows_of(*path: str) -> list[dict[str, Any]]:
    """Returns all rows of a file in the hub's layout, in an order drawn by a fixed seed."""
    rows: list[dict[str, Any]] = pq.read_table(Path(os.environ["ATTEMPT_DATA"], *path)).to_pylist()
    random.Random(0).shuffle(rows)
    return rows


def write(folder: Path, name: str, rows: list[dict[str, Any]], test: int, **fields: str) -> None:
    """Writes a task: its first rows are the test's, then 100 for validation, the others for training."""
    for split, part in (("test", rows[:test]), ("validation", rows[test : test + 100]), ("train", rows[test + 100 :])):
        lines = [json.dumps(row, ensure_ascii=False) for row in part]
        (folder / f"{name}-{split}.jsonl").write_text("\n".join(lines) + "\n", "utf-8")
    (folder / f"{name}.yaml").write_text(TASK.format(name=name, **fields), "utf-8")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path)
    folder = parser.parse_args().folder
    folder.mkdir(parents=True, exist_ok=True)
    yelp = rows_of("fancyzhx", "yelp_polarity", "plain_text", "train.parquet")
    write(
        folder,
        "yelp",
        [{"text": row["text"], "label": row["label"]} for row in yelp],
        400,
        description="Is a review negative or positive? (Yelp polarity; training rows only, parted by a fixed seed)",
        input="review: {text}\n  sentiment:",
        labels='{0: "negative", 1: "positive"}',
    )
    questions = rows_of("nyu-mll", "glue", "qnli", "validation.parquet")[: len(yelp)]
    mixed = [{"text": f"review: {row['text']}", "label": int(row["label"] == 1)} for row in yelp]
    mixed += [
        {"text": f"question: {row['question']}\nsentence: {row['sentence']}", "label": int(row["label"] == 0)}
        for row in questions
    ]
    random.Random(1).shuffle(mixed)
    write(
        folder,
        "two-domains",
        mixed,
        400,
        description="Is a review positive; does a sentence answer a question? (Yelp polarity and QNLI validation rows)",
        input="{text}\n  answer:",
        labels='{0: "no", 1: "yes"}',
    )


if __name__ == "__main__":
    main()
