"""Writes the page of the proof from the cells that `benchmarks/proof.sh` has run so far.

    python -m benchmarks.proof FOLDER docs/results
    python -m benchmarks.proof --scatter docs/results/table3.json      # before any run: what it could show

Only seeds that every method has on every task and k are compared, so that a run which was stopped compares like with
like. The page says how many these are.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from statistics import mean, variance
from typing import Any

from attempt_cli.evaluation.statistics import holm, mean_interval, paired_difference, paired_p

Scores = Mapping[tuple[str, int, int], float]  # (task, k, seed) -> score
BASE = "prompt-tuning"
POWER = 2.8  # z of a two-sided test at 5 % plus that of 80 % power
TITLES = {
    "none": "no prompt",
    "source": "best source as it stands",
    "prompt-tuning": "prompt tuning",
    "spot": "SPoT, source by likelihood",
    "spot-t": "SPoT-t as published",
    "attempt": "ATTEMPT",
    "lora": "LoRA",
    "instruction": "instruction",
    "icl": "in-context learning",
    "probe": "probe",
}


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the cells of all reports under a folder; a failed cell has no score and is left out."""
    return [cell for file in sorted(folder.glob("*/table3.json")) for cell in read_one(file)]


def by_method(cells: Iterable[Mapping[str, Any]]) -> dict[str, Scores]:
    """Returns each method's scores in percent; one that needs no rows of its own has them at every k."""
    found: dict[str, dict[tuple[str, int, int], float]] = defaultdict(dict)
    for cell in cells:
        found[cell["method"]][cell["task"], cell["k"], cell["seed"]] = 100 * cell["score"]
    return dict(sorted(found.items(), key=lambda item: [*TITLES, item[0]].index(item[0])))


def shared(scores: Mapping[str, Scores]) -> list[tuple[str, int, int]]:
    """Returns what every method has, of seeds that are complete: every task at that k."""
    common = set.intersection(*(set(one) for one in scores.values()))
    tasks = {task for one in scores.values() for task, _, _ in one}
    whole = [(k, seed) for k, seed in {(k, seed) for _, k, seed in common}]
    return sorted((task, k, seed) for k, seed in whole for task in tasks if all((t, k, seed) in common for t in tasks))


def per_seed(scores: Scores, places: Sequence[tuple[str, int, int]]) -> list[float]:
    """Returns the mean over tasks and k of each seed."""
    seeds: dict[int, list[float]] = defaultdict(list)
    for place in places:
        seeds[place[2]].append(scores[place])
    return [sum(values) / len(values) for _, values in sorted(seeds.items())]


def compared(first: Scores, second: Scores, places: Sequence[tuple[str, int, int]]) -> dict[str, Any]:
    """Compares two methods on the same cells; the interval and p are over seeds."""
    a, b = per_seed(first, places), per_seed(second, places)
    difference, width = paired_difference(a, b)
    won = [0.5 * ((first[place] > second[place]) + (first[place] >= second[place])) for place in places]
    deviation = math.sqrt(sum((x - y - difference) ** 2 for x, y in zip(a, b, strict=True)) / max(len(a) - 1, 1))
    return {
        "difference": difference,
        "width": width,
        "p": paired_p(a, b),
        "won": sum(won) / len(won),
        "cells": len(won),
        "smallest": POWER * deviation / math.sqrt(len(a)) if len(a) > 1 else None,
    }


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> list[str]:
    """Returns the lines of a Markdown table, numbers to the right."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(['---', *['---:'] * (len(header) - 1)])}|"]
    return [*lines, *(f"| {' | '.join(row)} |" for row in rows), ""]


def scatter(cells: Sequence[Mapping[str, Any]]) -> list[str]:
    """Returns how one task's paired difference of ATTEMPT scatters over seeds, pooled over tasks and k.

    Beside it stands the smallest difference of a mean over nine tasks that a test at 5 % finds four times in five.
    """
    scores, rows = by_method(cells), []
    for other in (BASE, "spot", "source", "lora"):
        by_cell: dict[tuple[str, int], list[float]] = defaultdict(list)
        for (task, k, seed), score in scores["attempt"].items():
            if (task, k, seed) in scores[other]:
                by_cell[task, k].append(score - scores[other][task, k, seed])
        deviation = math.sqrt(mean(variance(values) for values in by_cell.values()))
        smallest = [f"{POWER * deviation / math.sqrt(9 * seeds):.1f}" for seeds in (3, 5, 20)]
        rows.append([TITLES[other], f"{deviation:.1f}", *smallest])
    return table(["ATTEMPT against", "standard deviation", "3 seeds", "5 seeds", "20 seeds"], rows)


def interval(one: Mapping[str, Any]) -> str:
    """Returns a difference with its interval."""
    return f"{one['difference']:+.1f}" + ("" if one["width"] is None else f" ± {one['width']:.1f}")


def write_picture(file: Path, against: Mapping[str, Mapping[str, Any]], name: str) -> None:
    """Draws the mean difference of each method from prompt tuning with its interval, and the cells it won."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    names = [TITLES.get(method, method) for method in against][::-1]
    values = list(against.values())[::-1]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(9, 0.5 * len(names) + 1.6), sharey=True, layout="constrained"
    )
    left.errorbar(
        [one["difference"] for one in values],
        range(len(names)),
        xerr=[one["width"] or 0 for one in values],
        fmt="o",
        capsize=3,
    )
    left.axvline(0, color="grey", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("points above prompt tuning, 95 % over seeds")
    right.barh(range(len(names)), [100 * one["won"] for one in values], height=0.5)
    right.axvline(50, color="grey", linewidth=1)
    right.set_xlim(0, 100)
    right.set_xlabel("% of cells won against prompt tuning")
    figure.suptitle(name)
    figure.savefig(file, dpi=150)


def page(cells: Sequence[Mapping[str, Any]], scores: Mapping[str, Scores], out: Path) -> list[str]:
    """Returns the tables of the few-shot part, and writes the picture and the comparisons beside them."""
    places = shared(scores)
    if not places:
        raise SystemExit("no seed is complete yet: every method needs every task")
    tasks, ks = sorted({task for task, _, _ in places}), sorted({k for _, k, _ in places})
    seeds = {k: len({seed for _, at, seed in places if at == k}) for k in ks}
    lines = ["Complete so far: " + ", ".join(f"k = {k} with {seeds[k]} seeds" for k in ks) + ".", ""]
    for k in ks:
        here = [place for place in places if place[1] == k]
        lines += [f"### k = {k}", ""]
        rows = []
        for method, one in scores.items():
            by_task = [mean_interval([one[place] for place in here if place[0] == task])[0] for task in tasks]
            mean = sum(by_task) / len(by_task)
            rows.append([TITLES.get(method, method), *(f"{value:.1f}" for value in by_task), f"**{mean:.1f}**"])
        lines += table(["method", *tasks, "mean"], rows)
    found: list[dict[str, Any]] = []
    for first in scores:
        for second in scores:
            if first != second and (second == BASE or first == "attempt"):
                found.append({"first": first, "second": second, **compared(scores[first], scores[second], places)})
    tested = [one for one in found if one["p"] is not None]
    for one, p in zip(tested, holm([one["p"] for one in tested]), strict=True):
        one["holm"] = p
    lines += ["### Compared, over all tasks and k", ""]
    lines += table(
        ["comparison", "difference", "p (Holm)", "cells won", "could have shown"],
        [
            [
                f"{TITLES.get(one['first'], one['first'])} − {TITLES.get(one['second'], one['second'])}",
                interval(one),
                f"{one['holm']:.3f}" if "holm" in one else "–",
                f"{100 * one['won']:.0f} % of {one['cells']}",
                "–" if one["smallest"] is None else f"{one['smallest']:.1f}",
            ]
            for one in found
        ],
    )
    against = {one["first"]: one for one in found if one["second"] == BASE}
    write_picture(out / "proof.png", against, f"SmolLM2-135M, {len(tasks)} test tasks, k = {', '.join(map(str, ks))}")
    costs: dict[str, list[Mapping[str, Any]]] = defaultdict(list)
    for cell in cells:
        costs[cell["method"]].append(cell)
    lines += ["### What they cost", ""]
    lines += table(
        ["method", "steps", "trained parameters", "seconds a cell"],
        [
            [
                TITLES.get(method, method),
                f"{max(cell['steps'] for cell in costs[method]):,}",
                f"{max(cell['trained_parameters'] or 0 for cell in costs[method]):,}",
                f"{sum(cell['seconds'] or 0 for cell in costs[method]) / len(costs[method]):.0f}",
            ]
            for method in scores
        ],
    )
    (out / "proof.json").write_text(json.dumps({"comparisons": found, "cells": list(cells)}, indent=1) + "\n", "utf-8")
    with (out / "proof.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["method", "task", "k", "seed", "score"])
        for method, one in scores.items():
            writer.writerows([method, *place, round(score, 2)] for place, score in sorted(one.items()))
    return lines


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--scatter", type=Path, metavar="REPORT", help="the JSON of an earlier few-shot grid")
    options = parser.parse_args()
    if options.scatter is not None:
        print("\n".join(scatter(read_one(options.scatter))))
        return
    if options.out is None:
        parser.error("name the folder of the runs, and that of the page")
    tuned = options.folder / "tune"
    lines = ["## Learning rates, on development tasks", ""]
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for file in sorted(tuned.glob("*/table3.json")):
        for method, one in by_method(read_one(file)).items():
            best[method][file.parent.name.partition("-")[2]] = sum(one.values()) / len(one)
    rates = sorted({rate for one in best.values() for rate in one}, key=float)
    lines += table(
        ["method", *rates],
        [[TITLES.get(method, method), *(_cell(one, rate) for rate in rates)] for method, one in best.items()],
    )
    cells = read(options.folder / "fewshot")
    lines += ["## Few-shot, on test tasks", "", *page(cells, by_method(cells), options.out)]
    print("\n".join(lines))


def read_one(file: Path) -> list[dict[str, Any]]:
    """Returns the cells of one report that have a score."""
    return [cell for cell in json.loads(file.read_text())["cells"] if cell.get("score") is not None]


def _cell(one: Mapping[str, float], rate: str) -> str:
    if rate not in one:
        return "–"
    return f"**{one[rate]:.1f}**" if one[rate] == max(one.values()) else f"{one[rate]:.1f}"


if __name__ == "__main__":
    main()
