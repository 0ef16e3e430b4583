"""Compares two recorded evaluations: finds their runs, checks that their rows are the same, tests the difference."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.evaluation.models import find_model, trained_task
from attempt_cli.evaluation.record import RecordedEvaluation, evaluation_of_run, newest_evaluations
from attempt_cli.evaluation.statistics import PairedTest

if TYPE_CHECKING:
    from attempt_cli.session import Session


@dataclass(frozen=True)
class RunScore:
    """A recorded score.

    Args:
        run: the run's number.
        model: the model's full name.
        score: its score by the compared metric.
    """

    run: int
    model: str
    score: float


@dataclass(frozen=True)
class RunComparison:
    """Two recorded evaluations on the same rows.

    Args:
        task: the task's name.
        metric: the metric that is compared.
        first, second: the two scores.
        test: the difference (first minus second) with its interval and p-value.
        counts: rows by the better model; see `evaluation.pairing.Comparison`.
        n: the number of rows.
        split: the rows' split.
        rows: where the rows come from, in words.
    """

    task: str
    metric: str
    first: RunScore
    second: RunScore
    test: PairedTest
    counts: Mapping[str, int]
    n: int
    split: str
    rows: str

    def record(self) -> dict[str, Any]:
        """Returns the comparison as JSON holds it."""
        first, second = ({**vars(one), "score": round(one.score, 6)} for one in (self.first, self.second))
        return {
            "task": self.task,
            "metric": self.metric,
            "first": first,
            "second": second,
            **self.test.record(),
            "counts": dict(self.counts),
            "n": self.n,
            "split": self.split,
            "rows": self.rows,
        }


def compare_runs(first: RecordedEvaluation, second: RecordedEvaluation, metric: str | None = None) -> RunComparison:
    """Tests the difference of two recorded evaluations.

    Args:
        first, second: the evaluations.
        metric: one of the task's metrics; None takes the first.

    Raises:
        AttemptError: the two are on different rows, or the task has no such metric.
    """
    from attempt_cli.evaluation.pairing import compare

    _check_same_rows([first, second])
    task = trained_task(first.settings, first.task)
    found = compare(task, first.per_row, second.per_row, metric)
    scores = [RunScore(one.run, one.model, score) for one, score in zip((first, second), found.scores, strict=True)]
    return RunComparison(
        task=task.name,
        metric=found.metric,
        first=scores[0],
        second=scores[1],
        test=found.test,
        counts=found.counts,
        n=found.n,
        split=first.split,
        rows=first.rows["origin"],
    )


def paired_evaluations(
    session: Session, names: Sequence[str], task: str | None
) -> tuple[RecordedEvaluation, RecordedEvaluation]:
    """Finds the two evaluations that are meant.

    Args:
        session: says where the registry is.
        names: two numbers of runs, or names of models.
        task: the task; None takes the one that both were evaluated on.

    Raises:
        RegistryError: there is no such run, prompt or composition.
        ArgumentsError: both were evaluated on several tasks, and none is named.
        AttemptError: a run is no evaluation, a model was not evaluated, or they were on different tasks.
    """
    found = [_evaluations(session, name) for name in names]
    tasks = [", ".join(sorted(of)) for of in found]
    shared = sorted(set(found[0]) & set(found[1]))
    if task is None and not shared:
        raise AttemptError(
            f"'{names[0]}' was evaluated on {tasks[0]}, '{names[1]}' on {tasks[1]}",
            "Evaluate both on one task: `attempt eval --tasks TASK --prompt … --composition …`.",
        )
    if task is None and len(shared) > 1:
        raise ArgumentsError(
            f"both were evaluated on {', '.join(shared)}: choose one with --task", f"For example --task {shared[0]}."
        )
    task = task or shared[0]
    for name, of, there in zip(names, found, tasks, strict=True):
        if task not in of:
            raise AttemptError(
                f"'{name}' was not evaluated on the task '{task}', but on {there}",
                f"Evaluate it: `attempt eval --tasks {task} …`; `attempt registry list --what runs` shows what was.",
            )
    return found[0][task], found[1][task]


def _evaluations(session: Session, name: str) -> dict[str, RecordedEvaluation]:
    """Finds the evaluation of a run's number, or a model's newest evaluation on each task, by the task's name."""
    if name.isdecimal() and name.isascii():
        evaluation = evaluation_of_run(session.store, int(name))
        return {evaluation.task: evaluation}
    model = find_model(session, name)
    found = newest_evaluations(session.store, model.kind, model.name)
    if not found:
        option = f"--{model.kind} {name}" if model.record is not None else "--prompt none"
        raise AttemptError(
            f"there is no evaluation of '{name}' that kept its rows' scores", f"Make one: `attempt eval {option} …`."
        )
    return found


def _check_same_rows(evaluations: Sequence[RecordedEvaluation]) -> None:
    """Refuses evaluations on different rows."""
    if len({one.rows["sha256"] for one in evaluations}) == 1:
        return
    text = "; ".join(
        f"run {one.run} on {one.task}, {one.split}, {one.rows['n']:,} rows of {one.rows['origin']} "
        f"(sha256 {one.rows['sha256'][:12]})"
        for one in evaluations
    )
    raise AttemptError(
        f"the two evaluations are on different rows: {text}",
        "Evaluate both in one command: `attempt eval --tasks TASK --prompt … --composition …`.",
    )
