"""Scores of a task's predictions."""

from __future__ import annotations

from attempt_cli.data.metrics import METRICS, Examples, Predictions
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError


def score(task: Task, predictions: Predictions, examples: Examples) -> dict[str, float]:
    """Computes every metric of the task, in the task's order.

    Args:
        task: names its metrics.
        predictions: what the model wrote, one text a row.
        examples: the rows, in the same order.

    Raises:
        AttemptError: no rows, or not one prediction a row.
    """
    if not examples:
        raise AttemptError(f"no rows to score task '{task.name}' on", "Choose another split or a larger --limit.")
    if len(predictions) != len(examples):
        raise AttemptError(f"{len(predictions)} predictions for {len(examples)} rows of task '{task.name}'")
    return {name: METRICS[name](predictions, examples, task.label_words) for name in task.metrics}


def row_scores(task: Task, predictions: Predictions, examples: Examples) -> list[float] | None:
    """Computes the first metric for each row, for intervals and paired comparisons; None where it is no mean."""
    per_row = METRICS[task.metrics[0]].per_row
    return per_row(predictions, examples, task.label_words) if per_row else None
