"""Summarises cells of several seeds: means with intervals, and paired differences against one method."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from attempt_cli.evaluation.statistics import holm, mean_interval, paired_difference, paired_p
from attempt_cli.experiments.cells import Cell


@dataclass(frozen=True)
class Row:
    """A method's result over seeds.

    Args:
        mean, width: mean score and the half width of its 95 % interval over seeds (None for a single seed, and where
            nothing was trained: the same number several times gives no interval).
        scores: by seed.
        difference, difference_width: against prompt tuning with the same seeds; None for prompt tuning itself and
            where it has no result.
        p: of that difference, by Student's paired t-test over seeds; see `statistics.paired_p` for None.
        p_holm: p adjusted for all differences of the table.
        extra_tokens: tokens that a query is longer by, the mean over seeds.
        training_seconds: the mean over seeds.
        orders: the scores of the worst and the best order of demonstrations, means over seeds; None without any.
        moved: the mean over seeds of what `Cell` says.
        swept: the settings that were chosen for it; None where none were tried.
    """

    task: str
    method: str
    mean: float
    width: float | None
    scores: list[float]
    steps: int
    n: int
    difference: float | None = None
    difference_width: float | None = None
    attention: dict[str, float] | None = None
    backbone: str = ""
    k: int | None = None
    sources: int | None = None
    trained_parameters: int = 0
    peak_memory: int | None = None
    p: float | None = None
    p_holm: float | None = None
    extra_tokens: float = 0.0
    training_seconds: float = 0.0
    orders: tuple[float, float] | None = None
    moved: float | None = None
    swept: dict[str, Any] | None = None


def summarise(cells: Sequence[Cell], against: str = "prompt-tuning") -> list[Row]:
    """Computes means and intervals over seeds of every setting and method, and paired differences against one method.

    A setting is a backbone, a task and a number of training rows; differences are taken within it. A method with
    several numbers of sources has a row for each.
    """
    rows = []
    for setting in dict.fromkeys(_setting(cell) for cell in cells):
        of_setting = [cell for cell in cells if _setting(cell) == setting]
        base = {cell.seed: cell.score for cell in of_setting if cell.method == against}
        for method, sources in dict.fromkeys((cell.method, cell.sources) for cell in of_setting):
            group = [cell for cell in of_setting if (cell.method, cell.sources) == (method, sources)]
            rows.append(_row(group, {} if method == against else base))
    ps = iter(holm([row.p for row in rows if row.p is not None]))
    return [row if row.p is None else replace(row, p_holm=next(ps)) for row in rows]


def averages(cells: Sequence[Cell], groups: Mapping[str, Sequence[str]]) -> list[Cell]:
    """Averages over the tasks of each group that were run; each seed's mean is a cell of a task "GLUE average".

    Where tasks of a group are missing, the name says so: "GLUE average (3 of 8)". A seed counts where the method has a
    result on each task that was run. Groups with fewer than two such tasks have no mean.
    """
    made = []
    for group, tasks in groups.items():
        there = [task for task in tasks if any(cell.task == task for cell in cells)]
        if len(there) < 2:
            continue
        name = f"{group} average" + ("" if len(there) == len(tasks) else f" ({len(there)} of {len(tasks)})")
        by_seed: dict[tuple[object, ...], dict[str, Cell]] = {}
        for cell in cells:
            if cell.task in there:
                line = (cell.backbone, cell.k, cell.method, cell.seed)
                by_seed.setdefault(line, {})[cell.task] = cell
        made += [_mean_cell(name, list(parts.values())) for parts in by_seed.values() if len(parts) == len(there)]
    return made


def overall(cells: Sequence[Cell]) -> list[Row]:
    """Averages every method over all settings (tasks, and numbers of training rows), by backbone.

    Differences are paired by seed, and intervals are over seeds: the mean can show a difference that no single setting
    shows. A method that lacks a setting with some seed has no such mean; with one setting only there is none.
    """
    by_seed: dict[tuple[str, str, int], dict[object, Cell]] = {}
    for cell in cells:
        by_seed.setdefault((cell.backbone, cell.method, cell.seed), {})[cell.task, cell.k] = cell
    settings = {backbone: {_setting(cell) for cell in cells if cell.backbone == backbone} for backbone, _, _ in by_seed}
    seeds = {seed for _, _, seed in by_seed}
    made = [
        replace(_mean_cell("all", list(parts.values())), k=None)
        for (backbone, method, _), parts in by_seed.items()
        if len(settings[backbone]) > 1
        and all(len(by_seed.get((backbone, method, seed), ())) == len(settings[backbone]) for seed in seeds)
    ]
    return summarise(made)


def _mean_cell(task: str, of: Sequence[Cell]) -> Cell:
    """Averages a seed's cells into one cell with the given task name."""
    return replace(
        of[0],
        task=task,
        score=sum(cell.score for cell in of) / len(of),
        n=sum(cell.n for cell in of),
        prompt=", ".join(sorted({cell.prompt for cell in of})),
        steps=max(cell.steps for cell in of),
        attention=None,
        # each task may lack another source: the one that was trained on its own rows
        sources=max((cell.sources for cell in of if cell.sources is not None), default=None),
        peak_memory=max((cell.peak_memory for cell in of if cell.peak_memory is not None), default=None),
        extra_tokens=round(sum(cell.extra_tokens for cell in of) / len(of)),
        training_seconds=sum(cell.training_seconds for cell in of) / len(of),
        orders=None,
        moved=None,
        swept=None,
        key="",
    )


def _setting(cell: Cell) -> tuple[str, str, int | None]:
    return cell.backbone, cell.task, cell.k


def _row(group: Sequence[Cell], base: Mapping[int, float]) -> Row:
    """Makes one row; `base` holds the scores, by seed, that it is compared with."""
    first = group[0]
    mean, width = mean_interval([cell.score for cell in group])
    row = Row(
        first.task,
        first.method,
        mean,
        width if len({cell.prompt for cell in group}) > 1 else None,
        [cell.score for cell in group],
        max(cell.steps for cell in group),
        first.n,
        backbone=first.backbone,
        k=first.k,
        sources=first.sources,
        trained_parameters=max(cell.trained_parameters for cell in group),
        peak_memory=max((cell.peak_memory for cell in group if cell.peak_memory is not None), default=None),
        extra_tokens=sum(cell.extra_tokens for cell in group) / len(group),
        training_seconds=round(sum(cell.training_seconds for cell in group) / len(group), 1),
        swept=first.swept,
    )
    ways = [cell.moved for cell in group if cell.moved is not None]
    if len(ways) == len(group):
        row = replace(row, moved=sum(ways) / len(ways))
    if base and all(cell.seed in base for cell in group):
        pairs = [cell.score for cell in group], [base[cell.seed] for cell in group]
        gap, gap_width = paired_difference(*pairs)
        row = replace(row, difference=gap, difference_width=gap_width, p=paired_p(*pairs))
    ordered = [cell.orders for cell in group if cell.orders]
    if ordered:
        lowest, highest = (sum(map(end, ordered)) / len(ordered) for end in (min, max))
        row = replace(row, orders=(lowest, highest))
    mixtures = [cell.attention for cell in group if cell.attention is not None]
    if mixtures:
        names = dict.fromkeys(name for mixture in mixtures for name in mixture)
        mean_weights = {name: sum(m.get(name, 0.0) for m in mixtures) / len(mixtures) for name in names}
        row = replace(row, attention=mean_weights)
    return row
