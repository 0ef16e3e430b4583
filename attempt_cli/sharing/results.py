"""Writes evaluations as the hub reads them: `.eval_results/NAME.yaml`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from attempt_cli.sharing.card import hub_dataset

if TYPE_CHECKING:
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.record import RecordedEvaluation

FOLDER = ".eval_results"


def results_yaml(evaluations: Sequence[RecordedEvaluation], tasks: Sequence[Task]) -> str | None:
    """Returns the file's text; None where no rows of an evaluation are from a data set of the hub.

    The hub files a result under a data set: scores on one's own rows have no place there, and are on the card alone.

    Args:
        evaluations: of one prompt or composition.
        tasks: the tasks that may be among them.
    """
    from huggingface_hub import EvalResultEntry, eval_result_entries_to_yaml

    known = {task.name: task for task in tasks}
    entries = []
    for evaluation in evaluations:
        task = known.get(evaluation.task)
        dataset = hub_dataset(task) if task is not None else None
        if task is None or task.hub is None or dataset is None or not evaluation.metrics:
            continue
        metric, score = next(iter(evaluation.metrics.items()))
        entries.append(
            EvalResultEntry(
                dataset_id=dataset,
                task_id=task.hub.config or "default",
                value=score,
                date=evaluation.created,
                notes=_notes(evaluation, metric, task),
            )
        )
    if not entries:
        return None
    import yaml

    text: str = yaml.safe_dump(eval_result_entries_to_yaml(entries), sort_keys=False, allow_unicode=True)
    return text


def _notes(evaluation: RecordedEvaluation, metric: str, task: Task) -> str:
    """Says what a number alone does not: the metric, its interval, and which rows of the data set they were."""
    parts = [metric]
    if evaluation.interval is not None:
        parts.append("95 % interval {:.3f} to {:.3f}".format(*evaluation.interval))
    parts.append(f"{evaluation.rows.get('n', '?')} rows of the split {evaluation.split} by the rule {task.split_rule}")
    return "; ".join(parts)
