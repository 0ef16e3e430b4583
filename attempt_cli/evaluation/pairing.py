"""Compares two evaluations on the same rows: what a run keeps of every row, and the paired test of two runs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from attempt_cli.data.example import Example
from attempt_cli.data.metrics import METRICS
from attempt_cli.data.task import Task
from attempt_cli.errors import unknown_name
from attempt_cli.evaluation.statistics import PairedTest, mcnemar, paired_bootstrap


@dataclass(frozen=True)
class PerRow:
    """An evaluation's result on each row, as far as a paired test needs it.

    Args:
        scores: for every metric that is a mean over rows, each row's value.
        texts, targets: predictions and answers, where a metric is no mean (F1, correlations); else empty.
        groups: the group of each row, where the task has groups; else empty.
    """

    scores: Mapping[str, Sequence[float]]
    texts: Sequence[str] = ()
    targets: Sequence[str] = ()
    groups: Sequence[str | None] = ()

    def record(self) -> dict[str, Any]:
        """Returns what a run keeps; `PerRow(**record)` reads it back."""
        scores = {
            name: [int(v) if v in (0, 1) else round(v, 6) for v in values] for name, values in self.scores.items()
        }
        others = {"texts": self.texts, "targets": self.targets, "groups": self.groups}
        return {"scores": scores, **{name: list(values) for name, values in others.items() if values}}


def per_row(task: Task, texts: Sequence[str], examples: Sequence[Example]) -> PerRow:
    """Returns what to keep of an evaluation, so that it can be compared later without the model and the rows.

    Args:
        task: names the metrics.
        texts: the predictions, one text per row.
        examples: the rows, in the same order.
    """
    metrics = {name: METRICS[name].per_row for name in task.metrics}
    scores = {name: rows(texts, examples, task.label_words) for name, rows in metrics.items() if rows is not None}
    if len(scores) == len(metrics):
        return PerRow(scores)
    groups = [example.group for example in examples]
    targets = [example.target for example in examples]
    return PerRow(scores, [text.strip() for text in texts], targets, groups if any(groups) else ())


@dataclass(frozen=True)
class Comparison:
    """Two models on the same rows.

    Args:
        metric: the metric that is compared.
        scores: the first's and the second's.
        n: the number of rows.
        test: the difference (first minus second) with its interval and p-value.
        counts: rows by the better model: `first`, `second`, `both`, `neither` where a row is right or wrong, `first`,
            `second` and `equal` for other row scores, `different` and `equal` predictions where rows have no score.
    """

    metric: str
    scores: tuple[float, float]
    n: int
    test: PairedTest
    counts: dict[str, int]


def compare(task: Task, first: PerRow, second: PerRow, metric: str | None = None) -> Comparison:
    """Tests the paired difference of two evaluations of a task on the same rows, in the same order.

    McNemar's test where a row is right or wrong, a paired bootstrap for everything else. Rows of one group are drawn
    together: they are not independent.

    Args:
        task: names the metrics and the label words.
        first, second: the rows' results.
        metric: one of the task's metrics; None takes the first.

    Raises:
        AttemptError: the task has no such metric.
    """
    metric = metric or task.metrics[0]
    if metric not in task.metrics:
        raise unknown_name(f"metric of the task '{task.name}'", metric, task.metrics, f"attempt tasks show {task.name}")
    if metric in first.scores:
        return _by_row_scores(metric, first.scores[metric], second.scores[metric], first.groups)
    return _by_texts(task, metric, first, second)


def _by_row_scores(
    metric: str, first: Sequence[float], second: Sequence[float], groups: Sequence[str | None]
) -> Comparison:
    pairs = list(zip(first, second, strict=True))
    n = len(pairs)
    counts = {"first": sum(a > b for a, b in pairs), "second": sum(a < b for a, b in pairs)}
    if set(first) | set(second) <= {0, 1}:
        counts |= {"both": sum(a == b == 1 for a, b in pairs), "neither": sum(a == b == 0 for a, b in pairs)}
    else:
        counts["equal"] = n - sum(counts.values())
    if "both" in counts and not groups:
        test = mcnemar(counts["first"], counts["second"], n)
    else:
        gaps = [a - b for a, b in pairs]
        test = _bootstrapped(lambda rows: sum(gaps[row] for row in rows) / len(rows), groups, n)
    return Comparison(metric, (sum(first) / n, sum(second) / n), n, test, counts)


def _by_texts(task: Task, metric: str, first: PerRow, second: PerRow) -> Comparison:
    groups = first.groups or [None] * len(first.targets)
    examples = [Example("", target, group=group) for target, group in zip(first.targets, groups, strict=True)]
    n = len(examples)

    def score(texts: Sequence[str], rows: Sequence[int]) -> float:
        return METRICS[metric]([texts[row] for row in rows], [examples[row] for row in rows], task.label_words)

    different = sum(a != b for a, b in zip(first.texts, second.texts, strict=True))
    return Comparison(
        metric,
        (score(first.texts, range(n)), score(second.texts, range(n))),
        n,
        _bootstrapped(lambda rows: score(first.texts, rows) - score(second.texts, rows), first.groups, n),
        {"different": different, "equal": n - different},
    )


def _bootstrapped(gap: Callable[[list[int]], float], groups: Sequence[str | None], n: int) -> PairedTest:
    """Runs the paired bootstrap of a difference over rows; those of a group are drawn together."""
    units: dict[object, list[int]] = {}
    for row in range(n):
        units.setdefault(groups[row] if groups else row, []).append(row)
    drawable = list(units.values())
    return paired_bootstrap(lambda drawn: gap([row for unit in drawn for row in drawable[unit]]), len(drawable))
