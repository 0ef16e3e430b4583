"""Reads the evaluations of first_light.sh and prints the table of docs/results/first-light.md.

Usage: python benchmarks/first_light_table.py FOLDER [RESULTS.json]
"""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from attempt_cli.evaluation.statistics import mean_interval, paired_difference

TRAINED = ("prompt-tuning", "spot", "attempt")
NAMES = {"none": "no prompt", "prompt-tuning": "prompt tuning", "spot": "SPoT", "attempt": "ATTEMPT"}


def read(folder: Path) -> dict[str, dict[str, list[dict[str, Any]]]]:
    """task -> way -> evaluations, by seed."""
    found: dict[str, dict[str, list[dict[str, Any]]]] = {}
    for path in sorted(folder.glob("*.json")):
        task, name = path.stem.split(".", 1)
        way = name.rsplit("-s", 1)[0] if name.startswith(TRAINED) else name
        evaluation = json.loads(path.read_text("utf-8"))["evaluations"][0]
        del evaluation["rows"]  # a path on the machine that ran it
        found.setdefault(task, {}).setdefault(way, []).append(evaluation)
    return found


def main() -> None:
    results = read(Path(sys.argv[1]))
    if len(sys.argv) > 2:
        Path(sys.argv[2]).write_text(json.dumps(results, indent=1) + "\n", "utf-8")
    print(
        "| target | way | score | interval | n | against prompt tuning | attention |\n|---|---|---:|---|---:|---:|---|"
    )
    for task, ways in results.items():
        base = [evaluation["score"] for evaluation in ways.get("prompt-tuning", [])]
        order = ["none", *sorted(way for way in ways if way.startswith("source-")), *TRAINED]
        for way in (way for way in order if way in ways):
            evaluations = ways[way]
            scores = [evaluation["score"] for evaluation in evaluations]
            mean, width = mean_interval(scores)
            low, high = evaluations[0]["interval"]
            interval = (
                f"{100 * low:.1f}-{100 * high:.1f} over rows" if width is None else f"± {100 * width:.1f} over seeds"
            )
            gap = ""
            if way in ("spot", "attempt") and len(base) == len(scores):
                difference, around = paired_difference(scores, base)
                gap = f"{100 * difference:+.1f}" + (f" ± {100 * around:.1f}" if around is not None else "")
            weights = [evaluation["attention"] for evaluation in evaluations if "attention" in evaluation]
            mixed = ", ".join(
                f"{key} {sum(w[key] for w in weights) / len(weights):.2f}" for key in (weights or [{}])[0]
            )
            name = NAMES.get(way, f"{way.removeprefix('source-')} prompt as it stands")
            print(f"| {task} | {name} | {100 * mean:.1f} | {interval} | {evaluations[0]['n']} | {gap} | {mixed} |")


main()
