"""Scores predictions against the rows' own answers: metrics with intervals."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from attempt_cli.data.example import Example
from attempt_cli.data.scoring import row_scores, score
from attempt_cli.data.task import Task
from attempt_cli.evaluation.prediction import Predictions, PromptedTask, Reading, predict_many
from attempt_cli.evaluation.statistics import bootstrap_interval, proportion_interval
from attempt_cli.prompted import PromptedModel

if TYPE_CHECKING:
    from typing_extensions import Unpack


@dataclass(frozen=True)
class Evaluation:
    """A model's score on rows.

    Args:
        metrics: every metric of the task; the first one is the score.
        interval: the 95 % interval of the first metric.
        n: the number of rows.
        predictions: one per row.
    """

    metrics: dict[str, float]
    interval: tuple[float, float]
    n: int
    predictions: Predictions

    @property
    def score(self) -> float:
        """The first metric's value."""
        return next(iter(self.metrics.values()))

    @property
    def rows_per_second(self) -> float:
        """Rows per second, tokenisation included."""
        return self.n / max(self.predictions.seconds, 1e-9)

    @property
    def mean_attention(self) -> tuple[float, ...] | None:
        """The mixture's weights, averaged over rows; sources first, the target last."""
        weights = [row.attention for row in self.predictions.rows if row.attention is not None]
        if not weights:
            return None
        return tuple(sum(column) / len(weights) for column in zip(*weights, strict=True))


def evaluate(
    model: PromptedModel, task: Task, examples: Sequence[Example], *, task_index: int = 0, **reading: Unpack[Reading]
) -> Evaluation:
    """Scores a model on rows; see `predict` for the arguments."""
    return evaluate_many([PromptedTask(model, task, task_index)], examples, **reading)[0]


def evaluate_many(
    prompted: Sequence[PromptedTask], examples: Sequence[Example], **reading: Unpack[Reading]
) -> list[Evaluation]:
    """Scores several prompts on one reading of the same rows; see `predict_many` for the arguments."""
    return [
        Evaluation(
            score(one.task, found.texts, examples),
            score_interval(one.task, found.texts, examples),
            len(examples),
            found,
        )
        for one, found in zip(prompted, predict_many(prompted, examples, **reading), strict=True)
    ]


def score_interval(task: Task, texts: Sequence[str], examples: Sequence[Example]) -> tuple[float, float]:
    """Computes the 95 % interval of the task's first metric: Wilson's for accuracy, else a bootstrap over rows."""
    name, n = task.metrics[0], len(examples)
    per_row = row_scores(task, texts, examples)
    if name == "accuracy" and per_row is not None:
        return proportion_interval(round(sum(per_row)), n)
    if per_row is not None:
        return bootstrap_interval(lambda rows: sum(per_row[i] for i in rows) / n, n)
    return bootstrap_interval(lambda rows: score(task, [texts[i] for i in rows], [examples[i] for i in rows])[name], n)
