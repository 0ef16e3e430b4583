"""The table of benchmarks/placement.sh: python -m benchmarks.placement_table FOLDER > table.md; JSON beside it."""

from __future__ import annotations

import json
import statistics
import sys
from pathlib import Path
from typing import Any

PLACEMENTS = ("before", "after")


def main() -> None:
    folder = Path(sys.argv[1])
    cells: list[dict[str, Any]] = []
    for file in sorted(folder.glob("*.eval.json")):
        task, placement, seed = file.name.removesuffix(".eval.json").rsplit("-", 2)
        evaluation = json.loads(file.read_text("utf-8"))["evaluations"][0]
        training = json.loads((folder / f"{task}-{placement}-{seed}.train.json").read_text("utf-8"))["training"]
        cells.append(
            {
                "task": task,
                "placement": placement,
                "seed": int(seed),
                **{name: evaluation[name] for name in ("metric", "score", "metrics", "interval", "n")},
                **{name: training[name] for name in ("steps", "last_loss", "seconds", "peak_memory")},
            }
        )
    (folder / "placement.json").write_text(json.dumps({"cells": cells}, indent=1) + "\n", "utf-8")
    print("| task | metric | n | seeds | before | after | after - before, each seed | seconds before / after |")
    print("|---|---|---:|---:|---:|---:|---|---:|")
    gaps = []
    for task in dict.fromkeys(cell["task"] for cell in cells):
        by = {p: {c["seed"]: c for c in cells if (c["task"], c["placement"]) == (task, p)} for p in PLACEMENTS}
        seeds = sorted(by["before"].keys() & by["after"].keys())
        if not seeds:
            continue
        before, after = ([100 * by[p][s]["metrics"]["accuracy"] for s in seeds] for p in PLACEMENTS)
        gaps.append(statistics.mean(a - b for a, b in zip(after, before, strict=True)))
        seconds = statistics.median(by["before"][s]["seconds"] / by["after"][s]["seconds"] for s in seeds)
        each = ", ".join(f"{a - b:+.1f}" for a, b in zip(after, before, strict=True))
        print(
            f"| {task} | accuracy | {by['before'][seeds[0]]['n']} | {len(seeds)} | {statistics.mean(before):.1f} | "
            f"{statistics.mean(after):.1f} | {each} | {seconds:.2f} |"
        )
    print(f"\nMean of after - before over {len(gaps)} tasks: {statistics.mean(gaps):+.1f} points.")


if __name__ == "__main__":
    main()
