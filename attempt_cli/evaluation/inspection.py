"""Inspects a model: the attention of its tasks' rows on sources, and the tokens nearest to its prompts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from attempt_cli.changes import TARGET
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.evaluation.serving import named, rounded
from attempt_registry.records import Composition

if TYPE_CHECKING:
    from attempt_cli.artefacts import Loaded
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.inside import NearToken
    from attempt_cli.evaluation.models import TrainedModel
    from attempt_cli.evaluation.scoring import ScoringJob


@dataclass(frozen=True)
class RowAttention:
    """The attention of one row.

    Args:
        row: its number in the rows' file.
        input: its input.
        attention: source -> weight, and "target" -> its own weight.
    """

    row: int
    input: str
    attention: Mapping[str, float]


@dataclass(frozen=True)
class TaskAttention:
    """The attention of a task's rows.

    Args:
        task: the task's name.
        n: the number of rows.
        rows: where the rows come from, in words.
        attention: the mean weight of each source, and of "target".
        deviation: the weights' standard deviation over rows.
        per_row: the first rows' own attention.
    """

    task: str
    n: int
    rows: str
    attention: Mapping[str, float]
    deviation: Mapping[str, float]
    per_row: tuple[RowAttention, ...]

    def record(self) -> dict[str, Any]:
        """Returns the attention as JSON holds it."""
        return {
            **vars(self),
            "attention": rounded(self.attention),
            "deviation": rounded(self.deviation),
            "per_row": [{**vars(row), "attention": rounded(row.attention)} for row in self.per_row],
        }


@dataclass(frozen=True)
class NearestTokens:
    """The tokens nearest to one position of a prompt.

    Args:
        prompt: the prompt's full name.
        position: the position in the prompt, from 0.
        nearest: the tokens, nearest first.
    """

    prompt: str
    position: int
    nearest: tuple[NearToken, ...]

    def record(self) -> dict[str, Any]:
        """Returns the tokens as JSON holds them."""
        near = [{"token": t.token, "cosine": round(t.cosine, 5), "l2": round(t.l2, 5)} for t in self.nearest]
        return {**vars(self), "nearest": near}


@dataclass(frozen=True)
class Inspection:
    """A look inside a model.

    Args:
        name: the model's full name.
        kind: "prompt" or "composition".
        split: the split whose rows attend.
        tasks: the attention of each task; None where the model has no sources.
        tokens: the nearest tokens of each prompt position; None where they were not asked for.
    """

    name: str
    kind: str
    split: str
    tasks: tuple[TaskAttention, ...] | None = None
    tokens: tuple[NearestTokens, ...] | None = None

    def record(self) -> dict[str, Any]:
        """Returns the inspection as JSON holds it."""
        found: dict[str, Any] = {"name": self.name, "kind": self.kind}
        if self.tasks is not None:
            found |= {"split": self.split, "tasks": [task.record() for task in self.tasks]}
        if self.tokens is not None:
            found["tokens"] = [line.record() for line in self.tokens]
        return found


def check_inspected(model: TrainedModel, *, attention: bool, tokens: bool) -> None:
    """Refuses an inspection that has nothing to show.

    Args:
        model: the model.
        attention: attention is wanted.
        tokens: the nearest tokens are wanted.

    Raises:
        AttemptError: the model has no sources that anything could attend to.
    """
    if model.sources or (not attention and (tokens or model.kind == "prompt")):
        return
    raise AttemptError(
        f"'{model.name}' has no sources, so nothing attends to anything",
        f"`attempt inspect {model.name} --tokens 3` shows the words nearest to its prompts; "
        "`attempt registry list --what compositions` shows what has sources.",
    )


def attended_tasks(model: TrainedModel, task: str | None) -> list[Task]:
    """Lists the tasks whose rows a mixture is inspected on: its targets' own, or the one that is named.

    Raises:
        ArgumentsError: the model mixes sources for any task, and none is named.
        AttemptError: no task has that name, or the model has several target prompts and none is the task's.
    """
    from attempt_cli.data.catalogue import load_task

    if not model.targets and task is None:
        raise ArgumentsError(
            f"'{model.name}' mixes sources for any task: name one with --task", "`attempt tasks list` shows them."
        )
    own = [one for prompt, one in zip(model.targets, model.tasks, strict=True) if task in (None, prompt.task)]
    if own or task is None:
        return own
    model.target_for(task)
    return [load_task(task)]


def task_attention(loaded: Loaded, job: ScoringJob, shown: int, max_tokens: int | None) -> TaskAttention:
    """Computes the attention of a job's rows; that of the first `shown` is kept row by row."""
    from attempt_cli.evaluation.inside import row_attention
    from attempt_cli.evaluation.prediction import MAX_TOKENS

    examples = job.rows.examples
    weights = row_attention(
        loaded.model,
        job.task,
        examples,
        task_index=loaded.task_index(job.task.name),
        max_length=job.max_length,
        max_tokens=max_tokens or MAX_TOKENS,
    )
    names = (*loaded.sources, TARGET)
    return TaskAttention(
        task=job.task.name,
        n=len(examples),
        rows=job.rows.origin,
        attention=named(names, weights.mean(dim=0).tolist()),
        deviation=named(names, weights.std(dim=0, correction=0).tolist()),
        per_row=tuple(
            RowAttention(example.row, example.input, named(names, own))
            for example, own in zip(examples[:shown], weights[:shown].tolist(), strict=True)
        ),
    )


def nearest_to_prompts(model: TrainedModel, backbone: FrozenBackbone, count: int) -> tuple[NearestTokens, ...]:
    """Finds the tokens nearest to every position of a prompt, or of all prompts of a composition."""
    from attempt_cli.artefacts import prompt_in_units
    from attempt_cli.evaluation.inside import nearest_tokens

    registry, record = model.session.store, model.record
    refs = (*record.targets, *record.sources) if isinstance(record, Composition) else (model.name,)
    return tuple(
        NearestTokens(ref, position, tuple(tokens))
        for ref in refs
        for position, tokens in enumerate(
            nearest_tokens(backbone, prompt_in_units(registry, backbone, registry.prompt(ref), 1.0), count)
        )
    )
