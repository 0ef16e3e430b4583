"""Compares a run's ratios with the committed ones and says what has become worse.

    python -m benchmarks.check --out .bench

Ratios, not seconds: they hold on another machine and under another load, within a wide tolerance. The exit status is 1
where something regressed.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from benchmarks.harness import RESULTS

COMMITTED = Path(__file__).parent.parent / "docs" / "results" / "speed.json"
TOLERANCE = 0.35  # a short run on a busy machine is off by a quarter now and then


def ratios(answers: Sequence[Mapping[str, Any]]) -> Iterator[tuple[tuple[str, str, str, str], float, str]]:
    """Every ratio with its key (question, table, against, way), and whether higher or lower is better."""
    for answer in answers:
        for table in answer["tables"]:
            for entry in table["entries"]:
                if entry["name"] != table["against"]:
                    key = (answer["question"], table["title"], table["against"], entry["name"])
                    yield key, entry["ratio"], table["better"]


def regressions(
    now: Sequence[Mapping[str, Any]], committed: Sequence[Mapping[str, Any]], tolerance: float
) -> tuple[list[str], int]:
    """What is worse than it was by more than the tolerance, a line each; and how many ratios were compared.

    Args:
        now: answers of this run.
        committed: answers to compare with.
        tolerance: as a share; 0.35 lets a ratio of 10 fall to 6.5, or rise to 15.4 where lower is better.
    """
    before = {key: ratio for key, ratio, _ in ratios(committed)}
    lines: list[str] = []
    compared = 0
    for key, ratio, better in ratios(now):
        # ways of others are compared with each other for readers; what they do is not ours to guard
        if key not in before or not is_ours(key[3]):
            continue
        compared += 1
        worse = ratio < before[key] * (1 - tolerance) if better == "higher" else ratio > before[key] / (1 - tolerance)
        if worse:
            question, table, against, way = key
            lines.append(f"{question}, {table}: {way} is {ratio:.3g} × {against}; it was {before[key]:.3g}")
    return lines, compared


def is_ours(way: str) -> bool:
    """Whether an entry's name is that of one of this project's ways."""
    theirs = ("bare pass", "released arrangement", "lm-evaluation-harness", "generate", "python")
    return not way.startswith(theirs) and "PEFT" not in way


def read_answers(folder: Path) -> list[dict[str, Any]]:
    """The JSON of every script in a folder, by name."""
    return [json.loads(file.read_text("utf-8")) for file in sorted(folder.glob("*.json"))]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=RESULTS, help=f"folder of the run's JSON (default {RESULTS})")
    parser.add_argument("--committed", type=Path, default=COMMITTED, help="what to compare with")
    parser.add_argument("--tolerance", type=float, default=TOLERANCE, help=f"as a share (default {TOLERANCE})")
    options = parser.parse_args()
    now = read_answers(options.out)
    if not now:
        sys.exit(f"No results in {options.out}. Run `make bench` or one of the scripts first.")
    if not options.committed.exists():
        sys.exit(f"No {options.committed} to compare with. `python -m benchmarks.report` writes it.")
    committed = json.loads(options.committed.read_text("utf-8"))["answers"]
    here, there = now[0]["machine"]["processor"], committed[0]["machine"]["processor"]
    if here != there:
        print(f"Committed on {there}, this is {here}: ratios may differ for that alone.", file=sys.stderr)
    lines, compared = regressions(now, committed, options.tolerance)
    if not compared:
        sys.exit("No ratio of this run is among the committed ones: other tasks, lengths or backbone?")
    for line in lines:
        print(f"worse: {line}")
    print(f"{compared} ratios compared, {len(lines)} worse by more than {100 * options.tolerance:.0f} %")
    sys.exit(1 if lines else 0)


if __name__ == "__main__":
    main()
