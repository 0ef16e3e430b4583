"""Predictions against the rows' own answers: metrics with intervals."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.data.metrics import row_scores, score
from attempt_cli.data.task import Example, Task
from attempt_cli.evaluation.prediction import MAX_TOKENS, Predictions, PromptedTask, predict_many
from attempt_cli.evaluation.statistics import bootstrap_interval, proportion_interval


@dataclass(frozen=True)
class Evaluation:
    """A model's score on rows.

    Args:
        metrics: every metric of the task; the first is the one that counts.
        interval: the 95 % interval of the first metric.
        n: rows.
        predictions: what the model said of each.
    """

    metrics: dict[str, float]
    interval: tuple[float, float]
    n: int
    predictions: Predictions

    @property
    def score(self) -> float:
        """The first metric."""
        return next(iter(self.metrics.values()))

    @property
    def rows_per_second(self) -> float:
        return self.n / max(self.predictions.seconds, 1e-9)

    @property
    def mean_attention(self) -> tuple[float, ...] | None:
        """The mixture's weights, averaged over rows; sources first, the target last."""
        weights = [row.attention for row in self.predictions.rows if row.attention is not None]
        if not weights:
            return None
        return tuple(sum(column) / len(weights) for column in zip(*weights, strict=True))


def evaluate(
    model: PromptedModel,
    task: Task,
    examples: Sequence[Example],
    *,
    task_index: int = 0,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int], Any] | None = None,
) -> Evaluation:
    """Scores a model on rows; see `predict` for the arguments."""
    asked = [PromptedTask(model, task, task_index)]
    return evaluate_many(asked, examples, max_length=max_length, max_tokens=max_tokens, progress=progress)[0]


def evaluate_many(
    asked: Sequence[PromptedTask],
    examples: Sequence[Example],
    *,
    max_length: int | None = None,
    max_tokens: int = MAX_TOKENS,
    progress: Callable[[int], Any] | None = None,
) -> list[Evaluation]:
    """Scores several prompts on the same rows, whose inputs are read once; see `predict_many` for the arguments."""
    answers = predict_many(asked, examples, max_length=max_length, max_tokens=max_tokens, progress=progress)
    return [
        Evaluation(
            score(one.task, said.texts, examples), score_interval(one.task, said.texts, examples), len(examples), said
        )
        for one, said in zip(asked, answers, strict=True)
    ]


def score_interval(task: Task, texts: Sequence[str], examples: Sequence[Example]) -> tuple[float, float]:
    """The 95 % interval of the task's first metric: Wilson's for accuracy, else a bootstrap over rows."""
    name, n = task.metrics[0], len(examples)
    per_row = row_scores(task, texts, examples)
    if name == "accuracy" and per_row is not None:
        return proportion_interval(round(sum(per_row)), n)
    if per_row is not None:
        return bootstrap_interval(lambda rows: sum(per_row[i] for i in rows) / n, n)
    return bootstrap_interval(lambda rows: score(task, [texts[i] for i in rows], [examples[i] for i in rows])[name], n)
