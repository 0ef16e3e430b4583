"""Writes evaluations to the registry's runs and reads them back: the only place that knows a run's evaluation keys."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.calibration import Calibration, calibration
from attempt_cli.evaluation.pairing import PerRow, per_row
from attempt_cli.evaluation.statistics import PairedTest

if TYPE_CHECKING:
    from attempt_cli.data.rows import Rows
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.evaluate import Evaluation
    from attempt_registry import Registry, Run


@dataclass(frozen=True)
class EvaluationResult:
    """The scores of a model on a task's rows.

    Args:
        task: the task's name.
        model: the full name of the prompt or composition with its changes, or "no prompt".
        kind: "none", "prompt", "composition" or "weights".
        metrics: every metric of the task, in [0, 1] (correlations in [-1, 1]); the first one is the score.
        interval: the 95 % interval of the score.
        n: the number of rows.
        rows_per_second: the speed, tokenisation included.
        truncated: the number of inputs that were longer than the limit.
        rows: where the rows come from, in words.
        attention: the mean weight of each source, and of "target"; None without a mixture.
        change: the paired difference from the unchanged composition; None where nothing was changed.
        calibration: of a classification; None for free text.
        run: the number of the run that holds it; None where the registry cannot be written.
    """

    task: str
    model: str
    kind: str
    metrics: Mapping[str, float]
    interval: tuple[float, float]
    n: int
    rows_per_second: float
    truncated: int
    rows: str
    attention: Mapping[str, float] | None = None
    change: PairedTest | None = None
    calibration: Calibration | None = None
    run: int | None = None

    @property
    def metric(self) -> str:
        """The name of the metric that is the score."""
        return next(iter(self.metrics))

    @property
    def score(self) -> float:
        """The first metric's value."""
        return self.metrics[self.metric]

    def record(self) -> dict[str, Any]:
        """Returns the result as runs and JSON hold it, rounded and without what is None."""
        found: dict[str, Any] = {
            "task": self.task,
            "model": self.model,
            "kind": self.kind,
            "metrics": {name: round(value, 6) for name, value in self.metrics.items()},
            "metric": self.metric,
            "score": round(self.score, 6),
            "interval": [round(bound, 6) for bound in self.interval],
            "n": self.n,
            "rows_per_second": round(self.rows_per_second, 2),
            "truncated": self.truncated,
            "rows": self.rows,
        }
        if self.attention is not None:
            found["attention"] = {name: round(weight, 4) for name, weight in self.attention.items()}
        if self.calibration is not None:
            found["calibration"] = self.calibration.record()
        if self.change is not None:
            found["change"] = self.change.record()
        if self.run is not None:
            found["run"] = self.run
        return found


def evaluation_result(
    task: Task, rows: Rows, result: Evaluation, model: str, kind: str, sources: Sequence[str] = ()
) -> EvaluationResult:
    """Puts an evaluation under its names.

    Args:
        task: the task, in the text format that was scored.
        rows: the rows that were scored.
        result: the evaluation.
        model: the model's full name.
        kind: "none", "prompt", "composition" or "weights".
        sources: the sources' names, in the order of the attention's weights.
    """
    weights = result.mean_attention
    return EvaluationResult(
        task=task.name,
        model=model,
        kind=kind,
        metrics=result.metrics,
        interval=result.interval,
        n=result.n,
        rows_per_second=result.rows_per_second,
        truncated=result.predictions.truncated,
        rows=rows.origin,
        attention=None if weights is None else dict(zip((*sources, "target"), weights, strict=True)),
        calibration=_calibration(task, rows, result) if task.is_classification else None,
    )


def _calibration(task: Task, rows: Rows, result: Evaluation) -> Calibration | None:
    """Computes the calibration over the rows whose label is known."""
    known = [
        (example.label, row.probabilities)
        for example, row in zip(rows.examples, result.predictions.rows, strict=True)
        if example.label is not None and row.probabilities is not None
    ]
    return calibration(task.label_words, [label for label, _ in known], [found for _, found in known])


def record_evaluation(
    registry: Registry,
    task: Task,
    rows: Rows,
    result: Evaluation,
    numbers: Mapping[str, Any],
    *,
    split: str = "test",
    settings: Mapping[str, Any] | None = None,
    other_rows: Mapping[str, Any] | None = None,
    **run: Any,
) -> int:
    """Adds an evaluation as a run, with everything that `attempt compare` needs.

    Args:
        registry: the registry.
        task: the task, in the text format that was scored.
        rows: the rows that were scored.
        result: the evaluation: its predictions give the rows' scores and the time.
        numbers: `EvaluationResult.record()`, or a cell's fields with `task` and `model` among them.
        split: the rows' split.
        settings: further settings, such as `training`.
        other_rows: split -> record of other rows, such as those that were trained on.
        run: the run's command, seed, budget and inputs; see `Registry.add_run`.

    Returns:
        The run's number.

    Raises:
        RegistryError: the registry cannot be written.
    """
    from attempt_cli.artefacts import versions
    from attempt_cli.data.fields import task_fields

    return registry.add_run(
        settings={"split": split, **(settings or {}), "task": task_fields(task), "format": task.format},
        rows={**(other_rows or {}), split: rows_record(rows)},
        numbers={**numbers, "per_row": per_row(task, result.predictions.texts, rows.examples).record()},
        versions=versions(),
        duration=result.predictions.seconds,
        **run,
    ).id


def rows_record(rows: Rows, *, numbers: bool = True) -> dict[str, Any]:
    """Returns what a run keeps of its rows: their place, their digest, their count and their numbers in the file.

    Args:
        numbers: False leaves the numbers out, of rows that the place alone tells.
    """
    record: dict[str, Any] = {"origin": rows.origin, "sha256": rows.sha256, "n": len(rows.examples)}
    return record | ({"rows": [example.row for example in rows.examples]} if numbers else {})


@dataclass(frozen=True)
class RecordedEvaluation:
    """An evaluation that was read back from its run.

    Args:
        run: the run's number.
        model: the model's full name.
        kind: of the model; None for a cell of a comparison.
        task: the task's name.
        settings: the run's settings, which hold the task's fields.
        split: the split that was scored.
        rows: what the run kept of its rows; see `rows_record`.
        per_row: the rows' results.
        metrics: every metric's value, the score first; empty in old runs.
        interval: the 95 % interval of the score, where one was computed.
        created: the time of the run (UTC, ISO 8601).
    """

    run: int
    model: str
    kind: str | None
    task: str
    settings: Mapping[str, Any]
    split: str
    rows: Mapping[str, Any]
    per_row: PerRow
    metrics: Mapping[str, float]
    interval: tuple[float, float] | None
    created: str


def read_evaluation(run: Run) -> RecordedEvaluation | None:
    """Reads an evaluation from its run; None for other runs, and for old ones that kept no rows."""
    if "per_row" not in run.numbers:
        return None
    split = run.settings.get("split", "test")
    return RecordedEvaluation(
        run=run.id,
        model=run.numbers["model"],
        kind=run.numbers.get("kind"),
        task=run.numbers["task"],
        settings=run.settings,
        split=split,
        rows=run.rows[split],
        per_row=PerRow(**run.numbers["per_row"]),
        metrics=run.numbers.get("metrics", {}),
        interval=tuple(run.numbers["interval"]) if run.numbers.get("interval") else None,
        created=run.created,
    )


def evaluation_of_run(registry: Registry, number: int) -> RecordedEvaluation:
    """Reads the evaluation of a run by its number.

    Raises:
        RegistryError: there is no such run.
        AttemptError: it is no evaluation, or an old one.
    """
    run = registry.run(number)
    found = read_evaluation(run)
    if found is None:
        raise AttemptError(
            f"run {number} is no evaluation that kept its rows' scores: {run.command}",
            "`attempt eval` keeps them; name one of its runs, or score the prompt again.",
        )
    return found


def newest_evaluations(registry: Registry, kind: str, model: str) -> dict[str, RecordedEvaluation]:
    """Finds a model's newest evaluation on each task.

    Args:
        registry: the registry.
        kind: "none", "prompt" or "composition".
        model: the model's full name; "no prompt" for the bare backbone.

    Returns:
        The task's name -> the evaluation; empty where the model was never evaluated.
    """
    found: dict[str, RecordedEvaluation] = {}
    for evaluation in evaluations(registry, kind, model):
        found.setdefault(evaluation.task, evaluation)
    return found


def evaluations(registry: Registry, kind: str, model: str) -> Iterator[RecordedEvaluation]:
    """Yields a model's evaluations, the newest first; arguments as in `newest_evaluations`."""
    uses = None if kind == "none" else f"{kind}:{model}"
    for run in registry.runs(uses=uses, reverse=True):
        evaluation = read_evaluation(run)
        if evaluation is not None and (evaluation.kind, evaluation.model) == (kind, model):
            yield evaluation
