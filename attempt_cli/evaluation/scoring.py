"""Scores models on tasks' rows: the jobs, in groups that share rows, each row of a table one job."""

from __future__ import annotations

import contextlib
import functools
import itertools
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.models import TrainedModel, as_trained, records_of
from attempt_cli.evaluation.record import EvaluationResult, evaluation_result, record_evaluation
from attempt_cli.evaluation.serving import counted, note_truncated, prediction_of, rounded
from attempt_registry.errors import RegistryError

if TYPE_CHECKING:
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.data.rows import Rows
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.evaluate import Evaluation
    from attempt_cli.session import Session


@dataclass
class Split:
    """The rows of a split of any task, loaded once for each of a task's text formats.

    Args:
        session: says where rows are.
        name: train | validation | test.
        limit: take a random sample of at most this many rows.
        seed: the seed of the sample.
    """

    session: Session
    name: str
    limit: int | None = None
    seed: int = 0
    _loaded: dict[tuple[str, str], Rows] = field(default_factory=dict)

    def rows(self, task: Task) -> Rows:
        """Loads a task's rows; errors as in `data.rows.load_examples`."""
        from attempt_cli.data.rows import load_examples

        key = (task.name, task.format)
        if key not in self._loaded:
            self._loaded[key] = load_examples(
                task, self.name, data_dir=self.session.rows_folder, limit=self.limit, seed=self.seed
            )
        return self._loaded[key]


@dataclass(frozen=True)
class ScoringJob:
    """A model on a task's rows, in the text format that its prompt was trained with."""

    model: TrainedModel
    task: Task
    rows: Rows
    max_length: int | None


def scoring_jobs(
    pairs: Sequence[tuple[Task, TrainedModel]],
    split: Split,
    *,
    text_format: str | None = None,
    max_length: int | None = None,
) -> list[ScoringJob]:
    """Loads the rows of tasks for models; no backbone is needed.

    Args:
        pairs: tasks with the models that are scored on them.
        split: loads the rows.
        text_format: "words" or "reference"; None takes what each prompt was trained with.
        max_length: the longest input in tokens; None takes what each prompt was trained with.

    Raises:
        AttemptError: rows that are missing or wrong, or a model without a target prompt for its task.
    """
    note = functools.cache(split.session.listener.note)  # each remark once: a composition may be scored many times
    jobs = []
    for task, model in pairs:
        own, length = as_trained(task, model.target_for(task.name), text_format, note)
        jobs.append(ScoringJob(model, own, split.rows(own), max_length or length))
    return jobs


def load_jobs(jobs: Sequence[ScoringJob], session: Session) -> FrozenBackbone:
    """Loads the backbone and all models, before the first one is scored: one that does not fit is found at once.

    Raises:
        AttemptError: the models belong to several backbones, or to another than the session's.
    """
    backbone = session.load_backbone(records_of([job.model for job in jobs]))
    for job in jobs:
        job.model.load(backbone)
    return backbone


def score_jobs(
    jobs: Sequence[ScoringJob], backbone: FrozenBackbone, session: Session, max_tokens: int | None = None
) -> Iterator[tuple[ScoringJob, Evaluation]]:
    """Scores each job; neighbours with the same rows share one reading of their inputs."""
    from attempt_cli.evaluation.evaluate import evaluate_many
    from attempt_cli.evaluation.prediction import MAX_TOKENS, PromptedTask

    def read(job: ScoringJob) -> tuple[object, ...]:
        return id(job.rows), job.max_length, job.model.load(backbone).model.around

    groups = [list(group) for _, group in itertools.groupby(jobs, read)]
    progress = counted(session, sum(len(group[0].rows.examples) for group in groups))
    for group in groups:
        prompted = []
        for job in group:
            loaded = job.model.load(backbone)
            prompted.append(PromptedTask(loaded.model, job.task, loaded.task_index(job.task.name)))
        results = evaluate_many(
            prompted,
            group[0].rows.examples,
            max_length=group[0].max_length,
            max_tokens=max_tokens or MAX_TOKENS,
            progress=progress,
        )
        yield from zip(group, results, strict=True)


def record_jobs(
    jobs: Sequence[ScoringJob], split: Split, *, max_tokens: int | None = None, output: Path | None = None
) -> list[EvaluationResult]:
    """Scores jobs and records each as a run; a changed composition is compared with the job before it.

    Args:
        jobs: the jobs.
        split: the split that their rows are of.
        max_tokens: the token budget of a batch; None takes 8192.
        output: write every prediction to this file.
    """
    from attempt_cli.artefacts import remember_backbone
    from attempt_cli.evaluation.pairing import PerRow, compare, per_row

    session = split.session
    backbone = load_jobs(jobs, session)
    results: list[EvaluationResult] = []
    unchanged: PerRow | None = None
    with contextlib.nullcontext() if output is None else output.open("w", encoding="utf-8") as file:
        for job, evaluation in score_jobs(jobs, backbone, session, max_tokens):
            model = job.model
            result = evaluation_result(job.task, job.rows, evaluation, model.name, model.kind, model.sources)
            kept = per_row(job.task, evaluation.predictions.texts, job.rows.examples)
            if model.changes and unchanged is not None:
                result = replace(result, change=compare(job.task, kept, unchanged).test)
            else:
                unchanged = kept
            try:  # each as it ends: a later failure loses nothing
                remember_backbone(session.store, backbone)
                run = record_evaluation(
                    session.store,
                    job.task,
                    job.rows,
                    evaluation,
                    result.record(),
                    command=session.command,
                    split=split.name,
                    seed=split.seed,
                    settings={
                        "limit": split.limit,
                        "dtype": backbone.precision,
                        "max_length": job.max_length,
                        "changes": str(model.changes) or None,
                        **({"chat_template": True} if model.chat_template else {}),
                    },
                    inputs=model.load(backbone).inputs,
                )
                result = replace(result, run=run)
            except RegistryError as error:  # someone else's registry may be evaluated, too
                session.listener.note(f"This evaluation is not recorded: {error.message}")
            results.append(result)
            if file is not None:
                write_predictions(file, job, evaluation)
    note_truncated(sum(result.truncated for result in results), session)
    return results


def check_writable(file: Path) -> None:
    """Refuses a file that cannot be written, before any work is done; keeps what it holds.

    Raises:
        AttemptError: the file cannot be opened for writing.
    """
    try:
        new = not file.exists()
        file.open("a").close()
        if new:
            file.unlink()
    except OSError as error:
        raise AttemptError(
            f"{file} cannot be written ({error.strerror or error})", "Name another file, or make its folder."
        ) from None


def write_predictions(file: IO[str], job: ScoringJob, result: Evaluation) -> None:
    """Writes one JSON object per row: its number, the answer, the prediction, and the attention."""
    for example, row in zip(job.rows.examples, result.predictions.rows, strict=True):
        prediction = prediction_of(job.task, row, job.model.sources)
        line: dict[str, Any] = {
            "task": job.task.name,
            "model": job.model.name,
            "row": example.row,
            "input": example.input,
            "target": example.target,
            "prediction": prediction.text,
        }
        for name in ("probabilities", "attention"):
            numbers = getattr(prediction, name)
            if numbers is not None:
                line[name] = rounded(numbers)
        file.write(json.dumps(line, ensure_ascii=False) + "\n")
