"""Writes the page of the proof from what `benchmarks/proof.sh` has run so far.

    python -m benchmarks.proof FOLDER docs/results [--larger FOLDER] [--readme README.md]
    python -m benchmarks.proof --scatter docs/results/table3.json      # before any run: what it could show

Two methods are compared on the tasks that both have, and the seeds that both have on all of these, so that a run which
was stopped compares like with like. The page says how many these are.

The runs in FOLDER are added to the page that is there (`proof_earlier`); delete its proof.csv to begin anew.
"""

from __future__ import annotations

import argparse
import csv
import json
import math
import re
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from statistics import mean, variance
from typing import Any

from attempt_cli.evaluation.statistics import holm, mean_interval, paired_difference
from benchmarks.proof_claims import (
    Claim,
    Comparison,
    Scores,
    by_title,
    claims,
    compare,
    complete,
    interval,
    tasks_at,
    title,
)
from benchmarks.proof_earlier import HUNDREDS, Costs, Dtypes, Earlier, earlier, merged

BASE = "prompt-tuning"
NOTHING = Earlier()
POWER = 2.8  # z of a two-sided test at 5 % plus that of 80 % power, where many differences give the deviation
NOTES = Path(__file__).with_name("proof_notes.md")  # what a person says about the runs; the numbers are made here
SMALL, LARGE = "SmolLM2-135M", "Qwen2.5-Coder-0.5B"
MARKS = ("<!-- claims: made by benchmarks/proof.py -->", "<!-- end of claims -->")


def read(folder: Path) -> list[dict[str, Any]]:
    """Returns the cells of all reports under a folder, the newest last; a failed cell has no score and is left out."""
    files = sorted(folder.glob("*/table3.json"), key=lambda file: file.stat().st_mtime)
    return [cell for file in files for cell in read_one(file)]


def read_one(file: Path) -> list[dict[str, Any]]:
    """Returns the cells of one report that have a score."""
    return [cell for cell in json.loads(file.read_text())["cells"] if cell.get("score") is not None]


def by_method(cells: Iterable[Mapping[str, Any]]) -> dict[str, Scores]:
    """Returns each method's scores in percent."""
    found: dict[str, dict[tuple[str, int, int], float]] = defaultdict(dict)
    for cell in cells:
        found[cell["method"]][cell["task"], cell["k"], cell["seed"]] = 100 * cell["score"]
    return dict(sorted(found.items(), key=lambda item: by_title(item[0])))


def dtypes_of(backbone: str, cells: Iterable[Mapping[str, Any]]) -> Dtypes:
    """Returns in what each cell was computed; reports of earlier versions do not say it."""
    places = {(backbone, cell["method"], cell["task"], cell["k"], cell["seed"]): cell for cell in cells}
    return {place: cell["dtype"] for place, cell in places.items() if cell.get("dtype")}


def table(header: Sequence[str], rows: Iterable[Sequence[str]], left: int = 1) -> list[str]:
    """Returns the lines of a Markdown table, numbers to the right."""
    lines = [f"| {' | '.join(header)} |", f"|{'|'.join(['---'] * left + ['---:'] * (len(header) - left))}|"]
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
        rows.append([title(other), f"{deviation:.1f}", *smallest])
    return table(["ATTEMPT against", "standard deviation", "3 seeds", "5 seeds", "20 seeds"], rows)


def learning_rates(folder: Path) -> list[str]:
    """Returns the table of the rates that were tried on development tasks, if there are some."""
    best: dict[str, dict[str, float]] = defaultdict(dict)
    for file in sorted(folder.glob("*/table3.json")):
        for method, one in by_method(read_one(file)).items():
            best[method][file.parent.name.partition("-")[2]] = sum(one.values()) / len(one)
    if not best:
        return []
    rates = sorted({rate for one in best.values() for rate in one}, key=float)

    def cell(one: Mapping[str, float], rate: str) -> str:
        if rate not in one:
            return "–"
        return f"**{one[rate]:.1f}**" if one[rate] == max(one.values()) else f"{one[rate]:.1f}"

    return table(
        ["method", *rates], [[title(method), *(cell(one, rate) for rate in rates)] for method, one in best.items()]
    )


def variants(file: Path) -> list[str]:
    """Returns the tables of the variants of G, if they were run."""
    if not file.exists():
        return []
    scores = by_method(read_one(file))
    tasks = sorted({task for one in scores.values() for task, _, _ in one})
    return [*scores_at(scores, 16, tasks), *compared(comparisons(scores, tasks, [16]))]


def scores_at(scores: Mapping[str, Scores], k: int, tasks: Sequence[str]) -> list[str]:
    """Returns the table of means at k, each method over the seeds that it has on all of its tasks.

    A method that has not all tasks has no mean: it would not be one of the same tasks.
    """
    rows = []
    for method, one in scores.items():
        own = [task for task in tasks if task in tasks_at(one, k)]
        seeds = complete(one, own, k)
        if not own or not seeds:
            continue
        means = {task: f"{mean(one[task, k, seed] for seed in seeds):.1f}" for task in own}
        average, width = mean_interval([mean(one[task, k, seed] for task in own) for seed in seeds])
        shown = f"**{average:.1f}**" + ("" if width is None else f" ± {width:.1f}")
        rows.append(
            [
                title(method),
                str(len(seeds)),
                *(means.get(task, "–") for task in tasks),
                shown if len(own) == len(tasks) else "–",
            ]
        )
    return table(["method", "seeds", *tasks, "mean"], rows)


def comparisons(scores: Mapping[str, Scores], tasks: Sequence[str], ks: Sequence[int]) -> list[Comparison]:
    """Compares every method with prompt tuning, and ATTEMPT with every method, at each k."""
    pairs = [(one, BASE) for one in scores if one != BASE]
    pairs += [("attempt", other) for other in scores if other not in ("attempt", BASE)]
    pairs += [("attempt-words", other) for other in ("spot", "spot-random", "spot-t")]
    pairs += [("attempt-random", "spot")]
    found = (compare(scores, *pair, k, tasks) for k in ks for pair in dict.fromkeys(pairs))
    return [one for one in found if one is not None]


def compared(found: Sequence[Comparison]) -> list[str]:
    """Returns the table of comparisons, if there are some; p is adjusted over all of it."""
    if not found:
        return []
    tested = [one for one in found if one.p is not None]
    adjusted = dict(zip(map(id, tested), holm([one.p for one in tested if one.p is not None]), strict=True))
    return table(
        ["comparison", "k", "tasks", "seeds", "difference", "p (Holm)", "cells won", "could have shown"],
        [
            [
                f"{title(one.first)} − {title(one.second)}",
                str(one.k),
                str(len(one.tasks)),
                str(one.seeds),
                interval(one.difference, one.width),
                f"{adjusted[id(one)]:.3f}" if id(one) in adjusted else "–",
                f"{one.won:.0f} % of {one.cells}",
                "–" if one.smallest is None else f"{one.smallest:.1f}",
            ]
            for one in found
        ],
    )


def costs(cells: Sequence[Mapping[str, Any]]) -> Costs:
    """Returns what each method takes: steps, trained parameters, tokens added to a query, seconds of training."""
    found: dict[str, dict[str, float]] = {}
    for method in sorted({cell["method"] for cell in cells}, key=by_title):
        own = [cell for cell in cells if cell["method"] == method]
        found[method] = {
            "steps": max(cell["steps"] or 0 for cell in own),
            "parameters": max(cell["trained_parameters"] or 0 for cell in own),
            "tokens": mean(cell["extra_tokens"] or 0 for cell in own),
            "seconds": mean(cell["training_seconds"] or 0 for cell in own),
        }
    return found


def write_pictures(out: Path, runs: Runs, found: Sequence[Comparison], end: str) -> None:
    """Draws each method against prompt tuning, and the mean score against what a method costs."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    k, scores = runs.most, runs.scores
    tasks = runs.at(k)
    whole = [one for one in found if one.second == BASE and one.k == k and len(one.tasks) == len(tasks)]
    against = sorted(whole, key=lambda one: one.difference)
    names = [title(one.first) for one in against]
    figure, (left, right) = pyplot.subplots(
        1, 2, figsize=(9, 0.4 * len(names) + 1.6), sharey=True, layout="constrained"
    )
    left.errorbar(
        [one.difference for one in against],
        range(len(names)),
        xerr=[one.width or 0 for one in against],
        fmt="o",
        capsize=3,
    )
    left.axvline(0, color="grey", linewidth=1)
    left.set_yticks(range(len(names)), names)
    left.set_xlabel("points above prompt tuning, 95 %")
    right.barh(range(len(names)), [one.won for one in against], height=0.5)
    right.axvline(50, color="grey", linewidth=1)
    right.set_xlim(0, 100)
    right.set_xlabel("% of cells won against prompt tuning")
    figure.suptitle(f"{runs.backbone}, {len(tasks)} test tasks, k = {k}")
    figure.savefig(out / f"proof{end}.png", dpi=150)
    pyplot.close(figure)

    figure, axes = pyplot.subplots(1, 2, figsize=(11, 4.5), sharey=True, layout="constrained")
    for axis, of, label in (
        (axes[0], "parameters", "trained parameters"),
        (axes[1], "tokens", "tokens added to a query"),
    ):
        averages = {
            method: mean(one[task, k, seed] for task in tasks for seed in seeds)
            for method, one in scores.items()
            if (seeds := complete(one, tasks, k))
        }
        apart = (max(averages.values()) - min(averages.values())) / 30
        free: dict[float, float] = {}  # where the next label above a place has room
        for method, average in sorted(averages.items(), key=lambda item: item[1]):
            place = runs.costs[method][of]
            axis.plot([place], [average], "o")
            height = max(average, free.get(place, average))
            free[place] = height + apart
            text = {"textcoords": ("offset points", "data"), "xytext": (7, height), "va": "center", "fontsize": 7}
            axis.annotate(title(method), (place, average), **text)
        linear = 1000 if of == "parameters" else 10  # below it zero has a place
        axis.set_xscale("symlog", linthresh=linear)
        left, right = axis.get_xlim()
        right *= 60 if of == "parameters" else 6
        axis.set_xlim(min(left, -0.2 * linear), right)
        axis.set_xticks([0, *(10.0**power for power in range(12) if linear <= 10**power <= right)])
        axis.set_xlabel(label)
    axes[0].set_ylabel(f"mean over {len(tasks)} tasks, k = {k}")
    figure.savefig(out / f"proof{end}-cost.png", dpi=150)
    pyplot.close(figure)


def draw_by_k(out: Path, runs: Runs, end: str) -> None:
    """Draws each method's mean score by k, over the tasks that all k have."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot

    scores, common = runs.scores, runs.common
    figure, axis = pyplot.subplots(figsize=(7.5, 4), layout="constrained")
    shown = 0
    for method, one in scores.items():
        seeds_of = {k: seeds for k in runs.ks if (seeds := complete(one, common, k))}
        if len(seeds_of) < 2:
            continue
        means = [mean_interval([mean(one[task, k, seed] for task in common) for seed in seeds_of[k]]) for k in seeds_of]
        axis.errorbar(
            [k * 1.015**shown for k in seeds_of],  # beside each other
            [average for average, _ in means],
            yerr=[width or 0 for _, width in means],
            marker="o",
            capsize=3,
            label=title(method),
        )
        shown += 1
    axis.set_xscale("log", base=2)
    axis.set_xticks(runs.ks, [str(k) for k in runs.ks])
    axis.set_xlabel("training rows (k)")
    axis.set_ylabel(f"mean over {', '.join(common)}", fontsize=8)
    figure.legend(fontsize=7, loc="outside right upper")
    figure.suptitle(f"{runs.backbone}, 95 % over seeds")
    figure.savefig(out / f"proof{end}-k.png", dpi=150)
    pyplot.close(figure)


@dataclass(frozen=True)
class Runs:
    """Holds the few-shot runs of one backbone: a task counts where ATTEMPT and prompt tuning have a seed of it."""

    backbone: str
    costs: Costs
    scores: Mapping[str, Scores]
    tasks: Sequence[str]
    ks: Sequence[int]

    def at(self, k: int) -> list[str]:
        """Returns the tasks that count at k."""
        return sorted(set.intersection(*(tasks_at(self.scores.get(name, {}), k) for name in ("attempt", BASE))))

    @property
    def common(self) -> list[str]:
        """The tasks that count at every k; none where there is one k alone."""
        return sorted(set.intersection(*(set(self.at(k)) for k in self.ks))) if len(self.ks) > 1 else []

    @property
    def most(self) -> int:
        """The k at which most was run."""
        return max(
            self.ks, key=lambda k: (len(self.at(k)), sum(at == k for one in self.scores.values() for _, at, _ in one))
        )


def runs_of(backbone: str, folder: Path | None, before: Earlier = NOTHING) -> Runs:
    """Reads the few-shot runs in a folder, and those that were there before.

    Raises:
        SystemExit: no seed is complete yet.
    """
    cells = read(folder / "fewshot") if folder else []
    scores = merged(before.few(backbone), by_method(cells))
    whole = Runs(backbone, before.cost_of(backbone, costs(cells)), scores, [], [])
    tasks_of = {k: own for k in sorted({k for one in scores.values() for _, k, _ in one}) if (own := whole.at(k))}
    ks = [k for k, own in tasks_of.items() if complete(scores["attempt"], own, k) & complete(scores[BASE], own, k)]
    if not ks:
        raise SystemExit(f"{folder or backbone}: ATTEMPT and prompt tuning have no seed on all of their tasks yet")
    return replace(whole, tasks=sorted({task for k in ks for task in tasks_of[k]}), ks=ks)


def each_source(runs: Runs, folder: Path) -> list[str]:
    """Returns the table of every source as it stands; below, what a user gets who guesses, who chooses, who knows."""
    found: dict[str, dict[str, float]] = defaultdict(dict)
    for file in sorted(folder.glob("*.json")):
        for one in json.loads(file.read_text())["evaluations"]:
            found[one["model"]][one["task"]] = 100 * one["score"]
    tasks = [task for task in runs.tasks if found and all(task in one for one in found.values())]
    if not tasks:
        return []
    known = {name: one for name, one in found.items() if name != "no prompt"}
    chosen = {
        task: mean(own)
        for task in tasks
        if (own := [one for place, one in runs.scores.get("source", {}).items() if place[:2] == (task, runs.most)])
    }
    rows = [("no prompt", found["no prompt"])] if "no prompt" in found else []
    rows += sorted(known.items())
    rows.append(("mean of the sources", {task: mean(one[task] for one in known.values()) for task in tasks}))
    if len(chosen) == len(tasks):
        rows.append(("chosen by the training rows", chosen))
    rows.append(("the best on the test rows", {task: max(one[task] for one in known.values()) for task in tasks}))
    return table(
        ["source", *tasks, "mean"],
        [
            [
                name.removeprefix("starter-").partition("@")[0],
                *(f"{one[task]:.1f}" for task in tasks),
                f"**{mean(one[task] for task in tasks):.1f}**",
            ]
            for name, one in rows
        ],
    )


def knowledge(runs: Runs, folder: Path) -> list[str]:
    """Returns the table of what prompts know apart from how often they give an answer (`proof_balance`)."""
    found: dict[str, dict[str, list[Mapping[str, Any]]]] = {}
    for file in sorted(folder.glob("*.json")):
        found[file.stem] = defaultdict(list)
        for cell in json.loads(file.read_text()):
            found[file.stem][cell["method"]].append(cell)
    methods = [name for name in runs.scores if found and all(name in one for one in found.values())]
    if not methods:
        return []

    def by_seed(method: str, of: str) -> dict[int, float]:
        """Returns the means over tasks, of the seeds that all tasks have."""
        values = [{cell["seed"]: cell[of] for cell in one[method]} for one in found.values()]
        seeds = set.intersection(*map(set, values))
        return {seed: 100 * mean(one[seed] for one in values) for seed in sorted(seeds)}

    def against_base(method: str) -> str:
        own, base = by_seed(method, "auc"), by_seed(BASE, "auc") if BASE in methods else {}
        both = [seed for seed in own if seed in base]
        if method == BASE or not both:
            return ""
        return shown(*paired_difference([own[seed] for seed in both], [base[seed] for seed in both]), "+")

    def shown(average: float, width: float | None, sign: str = "") -> str:
        return f"{average:{sign}.1f}" + (f" ± {width:.1f}" if width else "")

    rows = []
    for method in methods:
        by_task = (f"{100 * mean(cell['auc'] for cell in one[method]):.1f}" for one in found.values())
        means = [shown(*mean_interval([*by_seed(method, of).values()])) for of in ("auc", "score", "balanced")]
        rows.append([title(method), *by_task, means[0], against_base(method), *means[1:]])
    larger = mean(100 * cells[methods[0]][0]["larger"] for cells in found.values())
    rows.append(["the larger class", *["50.0"] * (len(found) + 1), "", f"{larger:.1f}", ""])
    return table(["AUC", *found, "mean", "− prompt tuning", "mean score", "with the right balance"], rows)


def few_shot(
    runs: Runs, folder: Path | None, out: Path, end: str = "", before: Earlier = NOTHING
) -> tuple[list[str], list[Comparison]]:
    """Returns the tables of one backbone and its comparisons; draws its pictures."""
    scores, k, name = runs.scores, runs.most, runs.backbone
    found = comparisons(scores, runs.tasks, runs.ks)
    write_pictures(out, runs, found, end)
    lines = []
    for one in runs.ks:
        lines += [f"## {runs.backbone}, k = {one}", "", *scores_at(scores, one, runs.at(one))]
    lines += [f"![{runs.backbone}: each method against prompt tuning at k = {k}](proof{end}.png)", ""]
    if runs.common:
        draw_by_k(out, runs, end)
        lines += [f"![{runs.backbone}: scores by k](proof{end}-k.png)", ""]
    lines += before.section(
        f"### Each source as it stands: {name}", each_source(runs, folder / "each") if folder else []
    )
    balance = knowledge(runs, folder / "balance") if folder else []
    lines += before.section(f"### Knowledge and balance: {name}, k = 16", balance)
    lines += [f"### Compared: {runs.backbone}", "", *compared(found)]
    lines += [f"### What they cost: {runs.backbone}", "", f"![score against cost at k = {k}](proof{end}-cost.png)", ""]
    lines += table(
        ["method", "steps", "trained parameters", "tokens added to a query", "seconds of training"],
        [
            [title(method), *(f"{one[of]:,.0f}" for of in ("steps", "parameters", "tokens", "seconds"))]
            for method, one in runs.costs.items()
            if method in scores
        ],
    )
    return [*lines, "Prompts that are trained in one bank share its seconds equally.", ""], found


def hundreds(scores: Mapping[str, Scores]) -> list[str]:
    """Returns the tables of trainings on hundreds of rows: scores and comparisons for each number of rows."""
    lines = []
    for size in sorted({k for one in scores.values() for _, k, _ in one}):
        tasks = sorted(tasks_at(scores.get("attempt", {}), size))
        lines += [f"{size:,} training rows:", "", *scores_at(scores, size, tasks)]
        lines += compared(comparisons(scores, tasks, [size]))
    return lines


def from_few_to_many(out: Path, runs: Runs, rows: Mapping[str, Scores]) -> list[str]:
    """Draws the scores from few to hundreds of rows, over the tasks that all have; returns the picture's line."""
    both = replace(runs, scores=merged(runs.scores, rows))
    ks = sorted({k for one in both.scores.values() for _, k, _ in one})
    both = replace(both, ks=[k for k in ks if len(both.at(k)) > 1])  # a task alone would be the only one that all have
    if not both.common or max(both.ks) < HUNDREDS:
        return []
    draw_by_k(out, both, "-rows")
    return [f"![{runs.backbone}: scores from few to hundreds of rows](proof-rows-k.png)", ""]


def page(folder: Path, out: Path, larger: Path | None = None) -> tuple[list[str], list[Claim], list[Claim]]:
    """Returns the page's lines and the claims of both backbones; writes pictures, JSON and CSV beside it.

    Args:
        folder: of the runs on the small backbone.
        out: of the page.
        larger: of those on the larger one, if there are some.
    """
    before = earlier(out)
    runs = runs_of(SMALL, folder, before)
    many, more_rows = read(folder / "rows"), by_method(read(folder / "rows-development"))
    rows, file = merged(before.many(SMALL), by_method(many)), folder / "sources.json"
    new = json.loads(file.read_text()) if file.exists() else {"claims": None, "table": []}
    changed, cost = before.changed_by(new["claims"]), {**costs(many), **runs.costs}
    lines = before.section("## Learning rates, on development tasks", learning_rates(folder / "tune"))
    lines += before.section("## Variants of G, on development tasks", variants(folder / "variants" / "table3.json"))
    more, found = few_shot(runs, folder, out, before=before)
    lines += more
    decided = claims(
        runs.scores,
        runs.tasks,
        rows,
        {method: int(one["parameters"]) for method, one in cost.items()},
        {"claims": changed} if changed else None,
    )
    lines += before.section("## Hundreds of rows", [*hundreds(rows), *from_few_to_many(out, runs, rows)])
    lines += before.section("## The same on development tasks", hundreds(more_rows))
    lines += before.section("## Sources changed after training", new["table"])
    parts = [(SMALL, runs.scores), (SMALL, rows)]
    dtypes = {**before.dtypes, **dtypes_of(SMALL, read(folder / "fewshot")), **dtypes_of(SMALL, many)}
    report: dict[str, Any] = {
        "claims": [asdict(one) for one in decided],
        "comparisons": [asdict(one) for one in found],
        "costs": {SMALL: cost},
        "changed": changed,
    }
    decided_larger: list[Claim] = []
    if larger is not None or before.few(LARGE):
        second = runs_of(LARGE, larger, before)
        more, found = few_shot(second, larger, out, "-larger", before)
        lines += more
        report["costs"][LARGE] = second.costs
        decided_larger = claims(second.scores, second.tasks, {}, {}, None)
        parts.append((LARGE, second.scores))
        dtypes |= dtypes_of(LARGE, read(larger / "fewshot")) if larger else {}
        report["larger"] = {
            "claims": [asdict(one) for one in decided_larger],
            "comparisons": [asdict(one) for one in found],
        }
    with (out / "proof.csv").open("w", newline="", encoding="utf-8") as file:
        writer = csv.writer(file)
        writer.writerow(["backbone", "method", "task", "k", "seed", "score", "dtype"])
        for backbone, part in parts:
            for method, own_scores in part.items():
                writer.writerows(
                    [backbone, method, *place, round(score, 4), dtypes.get((backbone, method, *place), "")]
                    for place, score in sorted(own_scores.items())
                )
    (out / "proof.json").write_text(json.dumps(report, indent=1) + "\n", "utf-8")
    return lines, decided, decided_larger


def short_table(decided: Sequence[Claim], larger: Sequence[Claim]) -> list[str]:
    """Returns the claims with the verdict on each backbone."""
    verdicts = {one.number: one.verdict for one in larger}
    header = ["", "claim", SMALL, *([LARGE] if larger else [])]
    rows = []
    for one in decided:
        more = [f"**{verdicts[one.number]}**"] if larger else []
        rows.append([str(one.number), one.says, f"**{one.verdict}**", *more])
    return table(header, rows, len(header))


def long_table(decided: Sequence[Claim], larger: Sequence[Claim]) -> list[str]:
    """Returns the claims with what was found on each backbone."""
    found = {one.number: one for one in larger}
    rows = []
    for one in decided:
        rows.append([str(one.number), one.says, SMALL, f"**{one.verdict}**", one.found])
        other = found.get(one.number)
        if other is not None and other.verdict != "not run":
            rows.append(["", "", LARGE, f"**{other.verdict}**", other.found])
    header = ["", "claim", "backbone", "verdict", "found (points; ± half of the 95 % interval over seeds)"]
    return table(header, rows, len(header))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("folder", type=Path, nargs="?")
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--larger", type=Path, metavar="FOLDER", help=f"of the runs on {LARGE}")
    parser.add_argument("--readme", type=Path, help="put the claims between its marks, too")
    parser.add_argument("--scatter", type=Path, metavar="REPORT", help="the JSON of an earlier few-shot grid")
    options = parser.parse_args()
    if options.scatter is not None:
        print("\n".join(scatter(read_one(options.scatter))))
        return
    if options.out is None:
        parser.error("name the folder of the runs, and that of the page")
    for folder in (options.folder, options.out, *([options.larger] if options.larger else [])):
        if not folder.is_dir():
            parser.error(f"there is no folder {folder}")
    lines, decided, larger = page(options.folder, options.out, options.larger)
    short, long = short_table(decided, larger), long_table(decided, larger)
    head, _, notes = NOTES.read_text("utf-8").partition("<!-- tables -->\n")
    text = "\n".join([head.rstrip(), "", *long, notes.strip(), "", *lines])
    (options.out / "proof.md").write_text(text.rstrip() + "\n", "utf-8")
    if options.readme is not None:
        readme = options.readme.read_text("utf-8")
        start, end = map(re.escape, MARKS)
        new = "\n".join([MARKS[0], *short[:-1], MARKS[1]])
        options.readme.write_text(re.sub(f"{start}.*{end}", lambda _: new, readme, flags=re.DOTALL), "utf-8")


if __name__ == "__main__":
    main()
