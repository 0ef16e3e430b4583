"""The claims of docs/results/protocol.md, each decided by the runs that there are so far."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cache
from typing import Any

from scipy.optimize import brentq
from scipy.stats import f, ncf

from attempt_cli.evaluation.statistics import holm, mean_interval, paired_difference, paired_p

Scores = Mapping[tuple[str, int, int], float]  # (task, k, seed) -> score in percent
FEW = (4, 16, 32)  # k of the few-shot claims
MANY = 2000  # rows of claim 4
TITLES = {
    "none": "no prompt",
    "instruction": "instruction",
    "icl": "in-context learning",
    "probe": "probe",
    "source": "best source as it stands",
    "prompt-tuning": "prompt tuning",
    "spot": "SPoT, source by likelihood",
    "spot-t": "SPoT-t as published",
    "spot-random": "SPoT, random source",
    "attempt": "ATTEMPT",
    "attempt-words": "ATTEMPT from words",
    "attempt-random": "ATTEMPT from a random source",
    "attempt-m": "ATTEMPT, shared G",
    "attempt-states": "G reads the last token's state",
    "attempt-states-mean": "G reads the mean of the states",
    "attempt-evidence": "G starts from the rows' likelihoods",
    "attempt-top2": "G keeps the two largest weights",
    "attempt-cosine": "G compares by cosine",
    "attempt-one-norm": "sources scaled to one norm",
    "lora": "LoRA",
}


@dataclass(frozen=True)
class Comparison:
    """Holds one method against another at one k, on the tasks that both have and the seeds that both have on them all.

    Args:
        difference: first minus second, the mean over tasks and seeds, in points.
        width: half of its 95 % interval over seeds.
        won: percent of the cells (task, seed) that the first won, ties as half.
        won_width: half of its 95 % interval over seeds.
        smallest: the difference that these runs would have found four times in five, before Holm.
        tasks: the mean difference, its half width and its p on each task, over all seeds that both have there.
    """

    first: str
    second: str
    k: int
    seeds: int
    difference: float
    width: float | None
    p: float | None
    won: float
    won_width: float | None
    cells: int
    smallest: float | None
    tasks: Mapping[str, tuple[float, float | None, float | None]] = field(default_factory=dict)


def tasks_at(scores: Scores, k: int) -> set[str]:
    """Returns the tasks that have a score at k."""
    return {task for task, at, _ in scores if at == k}


def complete(scores: Scores, tasks: Iterable[str], k: int) -> set[int]:
    """Returns the seeds that have a score on every task at k; none where there is no task."""
    tasks = list(tasks)
    if not tasks:
        return set()
    return {seed for _, at, seed in scores if at == k and all((task, k, seed) in scores for task in tasks)}


def compare(scores: Mapping[str, Scores], first: str, second: str, k: int, tasks: Sequence[str]) -> Comparison | None:
    """Compares two methods at k on those of the tasks that both have; None where no seed is complete for both."""
    if first not in scores or second not in scores:
        return None
    a, b = scores[first], scores[second]
    both = tasks_at(a, k) & tasks_at(b, k)
    tasks = [task for task in tasks if task in both]
    seeds = sorted(complete(a, tasks, k) & complete(b, tasks, k))
    if not seeds or not tasks:
        return None
    means = [[sum(one[task, k, seed] for task in tasks) / len(tasks) for seed in seeds] for one in (a, b)]
    difference, width = paired_difference(*means)
    shares = [100 * sum(_won(a[task, k, seed], b[task, k, seed]) for task in tasks) / len(tasks) for seed in seeds]
    won, won_width = mean_interval(shares)
    deviation = math.sqrt(sum((x - y - difference) ** 2 for x, y in zip(*means, strict=True)) / max(len(seeds) - 1, 1))
    by_task = {}
    for task in tasks:
        own = sorted(complete(a, [task], k) & complete(b, [task], k))
        pair = [[one[task, k, seed] for seed in own] for one in (a, b)]
        by_task[task] = (*paired_difference(*pair), paired_p(*pair))
    return Comparison(
        first,
        second,
        k,
        len(seeds),
        difference,
        width,
        paired_p(*means),
        won,
        won_width,
        len(seeds) * len(tasks),
        power_factor(len(seeds)) * deviation / math.sqrt(len(seeds)) if len(seeds) > 1 else None,
        by_task,
    )


@cache
def power_factor(seeds: int) -> float:
    """Returns the difference, in standard errors, that a paired t-test at 5 % finds four times in five.

    The deviation is taken to be the one that was found.
    """
    free = seeds - 1
    bound = float(f.ppf(0.95, 1, free))  # of t², whose distribution is F
    return float(brentq(lambda shift: ncf.sf(bound, 1, free, shift**2) - 0.8, 0.1, 100))


def _won(a: float, b: float) -> float:
    """Returns 1 where the first is above, and one half for a tie: an earlier page has scores to two decimals."""
    return 0.5 if abs(a - b) < 0.01 else float(a > b)


@dataclass(frozen=True)
class Part:
    """Holds one measurement that a claim rests on: it should be at least `least`."""

    what: str
    mean: float
    width: float | None
    least: float
    unit: str = ""

    @property
    def verdict(self) -> str:
        """Whether the whole interval is on one side of what is claimed."""
        if self.width is None:
            return "open"
        if self.mean - self.width >= self.least:
            return "confirmed"
        return "refuted" if self.mean + self.width < self.least else "open"

    def __str__(self) -> str:
        sign = "" if self.unit else "+"
        width = f" ± {self.width:.1f}" if self.width else ""
        return f"{self.what}: {self.mean:{sign}.1f}{width}{self.unit} ({self.verdict})"


@dataclass(frozen=True)
class Claim:
    """Holds what a claim says, what decides it, and what was found."""

    number: int
    says: str
    verdict: str
    found: str


def together(parts: Sequence[Part], due: int) -> str:
    """Returns the verdict on a claim of several parts: one that is refuted refutes it, and all that are due confirm it.

    Args:
        parts: those that were run.
        due: how many the claim has.
    """
    verdicts = {part.verdict for part in parts}
    if not parts:
        return "not run"
    if "refuted" in verdicts:
        return "refuted"
    return "confirmed" if verdicts == {"confirmed"} and len(parts) >= due else "open"


def interval(mean: float, width: float | None) -> str:
    """Returns a difference with its interval."""
    return f"{mean:+.1f}" + ("" if width is None else f" ± {width:.1f}")


def claims(
    few: Mapping[str, Scores],
    tasks: Sequence[str],
    rows: Mapping[str, Scores],
    parameters: Mapping[str, int],
    changed: Mapping[str, Any] | None,
) -> list[Claim]:
    """Decides the claims.

    Args:
        few: each method's few-shot scores, rows: those of trainings on hundreds of rows.
        tasks: of the few-shot part.
        parameters: what each method trains.
        changed: what `benchmarks.proof_sources` wrote, or None.
    """
    ks = sorted({k for one in few.values() for _, k, _ in one})

    def against(first: str, second: str, least: float, own: Iterable[str] = tasks) -> list[Part]:
        found = (compare(few, first, second, k, sorted(own)) for k in ks)
        return [
            Part(
                f"{title(first)} − {title(second)}, k = {one.k}, {counted(one.tasks)}, {one.seeds} seeds",
                one.difference,
                one.width,
                least,
            )
            for one in found
            if one is not None
        ]

    first = against("attempt", "prompt-tuning", 5)
    for k in ks:
        one = compare(few, "attempt", "prompt-tuning", k, tasks)
        if one is not None:
            first.append(Part(f"cells won, k = {k}", one.won, one.won_width, 80, " %"))
    second = [
        *against("attempt-words", "spot", -1),
        *against("attempt-random", "spot", -1),
        *against("attempt-words", "spot-random", 0),
        *against("attempt-words", "spot-t", 0),
    ]
    fifth = against("attempt-m", "attempt", 1, {task for task, _, _ in few.get("attempt-m", {})})
    decided = [
        (1, "ATTEMPT beats prompt tuning by 5 points few-shot and in 80 % of the cells", first, 2 * len(FEW)),
        (
            2,
            "ATTEMPT that is not told the right source is within 1 point of SPoT from the best one, and beats SPoT "
            "from a random one and SPoT-t",
            second,
            4 * len(FEW),
        ),
        (4, "With 2,000 rows ATTEMPT is within 1 point of LoRA at 5 % of its parameters", _many(rows, parameters), 2),
        (5, "A shared G gains 1 point on small tasks", fifth, 1),
        (
            6,
            "Adding a useful source after training raises the score; so does dropping a harmful one",
            [
                Part(f"{name}, {one['n']} compositions", one["mean"], one["width"], 0)
                for name, one in (changed or {}).get("claims", {}).items()
            ],
            2,
        ),
    ]
    found = [
        Claim(number, says, together(parts, due), "; ".join(map(str, parts)) or "–")
        for number, says, parts, due in decided
    ]
    found.insert(2, _never_below(few, tasks, ks))
    return [*found, _where_others_win(few, tasks, ks)]


def by_title(method: str) -> tuple[int, str]:
    """Returns a method's place in tables."""
    return [*TITLES, method].index(method), method


def title(method: str) -> str:
    """Returns a method's name for people."""
    return TITLES.get(method, method)


def counted(tasks: Collection[str]) -> str:
    """Returns how many tasks there are, in words."""
    return f"{len(tasks)} task" + ("" if len(tasks) == 1 else "s")


def _many(rows: Mapping[str, Scores], parameters: Mapping[str, int]) -> list[Part]:
    parts = []
    one = compare(rows, "attempt", "lora", MANY, sorted(tasks_at(rows.get("attempt", {}), MANY)))
    if one is not None:
        what = f"ATTEMPT − LoRA, {MANY:,} rows, {counted(one.tasks)}, {one.seeds} seeds"
        parts.append(Part(what, one.difference, one.width, -1))
    if parts and "lora" in parameters:
        times = parameters["lora"] / parameters["attempt"]
        parts.append(Part("LoRA trains", times, 0, 20, " times as much as ATTEMPT"))
    return parts


def _never_below(few: Mapping[str, Scores], tasks: Sequence[str], ks: Sequence[int]) -> Claim:
    says = "ATTEMPT never falls more than its interval below the best source left alone"
    found = [one for k in ks if (one := compare(few, "attempt", "source", k, tasks)) is not None and one.seeds > 1]
    places = [(task, one.k, *values) for one in found for task, values in one.tasks.items()]
    if not places:
        return Claim(3, says, "not run", "–")
    # where all differences are the same, nothing tells how much of them is chance
    adjusted = holm([1.0 if p is None else p for *_, p in places])
    below = [
        (f"{task} (k = {k}) {interval(mean, width)}", p < 0.05)
        for (task, k, mean, width, _), p in zip(places, adjusted, strict=True)
        if mean + (width or 0) < 0
    ]
    # a few seeds show no task's loss, and would confirm anything: the mean has to be near the source's, too
    near = len(found) >= len(FEW) and all(one.difference - (one.width or 0) >= -1 for one in found)
    verdict = "refuted" if any(sure for _, sure in below) else "confirmed" if near and not below else "open"
    means = ", ".join(f"k = {one.k}, {one.seeds} seeds: {interval(one.difference, one.width)}" for one in found)
    places_below = ", ".join(f"{place}{'' if sure else ' (not after Holm)'}" for place, sure in below)
    return Claim(3, says, verdict, f"mean over tasks, {means}; below it: {places_below or 'nowhere'}")


def _where_others_win(few: Mapping[str, Scores], tasks: Sequence[str], ks: Sequence[int]) -> Claim:
    says = "Where do a probe, in-context learning and LoRA win against ATTEMPT?"
    others = ("probe", "icl", "lora")
    found = [one for other in others for k in ks if (one := compare(few, other, "attempt", k, tasks)) is not None]
    places = [(one, task, *values) for one in found for task, values in one.tasks.items()]
    adjusted = holm([1.0 if p is None else p for *_, p in places])
    won: dict[int, list[str]] = defaultdict(list)
    for (one, task, mean, width, _), p in zip(places, adjusted, strict=True):
        if width is not None and mean - width > 0:
            won[id(one)].append(f"{task} {interval(mean, width)}{'' if p < 0.05 else ' (not after Holm)'}")
    texts = []
    for one in found:
        what = f"{title(one.first)}, k = {one.k}, {counted(one.tasks)}, {one.seeds} seeds"
        where = f"above on {', '.join(won[id(one)])}" if won[id(one)] else "above on no task"
        texts.append(f"{what}: {interval(one.difference, one.width)} in the mean, {where}")
    ran = {one.first for one in found}
    verdict = "not run" if not ran else "answered" if len(ran) == len(others) else "answered in part"
    return Claim(7, says, verdict, "; ".join(texts) or "–")
