"""Predicts rows that have no answer, with one model or with several that share one reading of the rows."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import ArgumentsError, AttemptError, StoppedError
from attempt_cli.evaluation.models import (
    TrainedModel,
    find_model,
    note_lone_targets,
    records_of,
    trained_length,
    trained_task,
)

if TYPE_CHECKING:
    from attempt_cli.changes import Changes
    from attempt_cli.data.example import Example
    from attempt_cli.data.task import Task
    from attempt_cli.evaluation.prediction import RowPrediction
    from attempt_cli.session import Session


@dataclass(frozen=True)
class Prediction:
    """A model's prediction for a row.

    Args:
        text: the predicted label word, or the generated text.
        label: the value of the label column that the word stands for; None for free text.
        probabilities: label word -> probability, summing to 1; None for free text.
        attention: source -> weight, and "target" -> its own weight; None without a mixture.
        abstains: whether no label was probable enough: then there is no text and no label.
    """

    text: str
    label: str | None = None
    probabilities: Mapping[str, float] | None = None
    attention: Mapping[str, float] | None = None
    abstains: bool = False

    def unless_below(self, confidence: float) -> Prediction:
        """Returns the prediction, or an abstention where the most probable label has a lower probability."""
        if self.probabilities is None or max(self.probabilities.values()) >= confidence:
            return self
        return replace(self, text="", label=None, abstains=True)

    def record(self) -> dict[str, Any]:
        """Returns the prediction as JSON holds it; of an abstention label and word are null."""
        found: dict[str, Any] = {"text": self.text} if self.label is None else {"label": self.label, "word": self.text}
        if self.abstains:
            found = {"label": None, "word": None}
        if self.probabilities is not None:
            found["probabilities"] = rounded(self.probabilities)
        if self.attention is not None:
            found["attention"] = rounded(self.attention)
        return found


def rounded(numbers: Mapping[str, float]) -> dict[str, float]:
    """Rounds numbers to five digits."""
    return {name: round(value, 5) for name, value in numbers.items()}


def named(names: Iterable[str], values: Iterable[float]) -> dict[str, float]:
    """Puts numbers under their names."""
    return dict(zip(names, values, strict=True))


def prediction_of(task: Task, row: RowPrediction, sources: Sequence[str]) -> Prediction:
    """Puts a row's prediction under the names of labels and sources."""
    label = list(task.labels)[task.label_words.index(row.text)] if task.labels is not None else None
    return Prediction(
        row.text,
        label,
        None if row.probabilities is None else named(task.label_words, row.probabilities),
        None if row.attention is None else named((*sources, "target"), row.attention),
    )


@dataclass(frozen=True)
class ServedTask:
    """One task of a model.

    Args:
        model: the model.
        task: one that it has a target prompt for; any task where it mixes sources alone.
        max_length: the longest input that its target prompt was trained with.
    """

    model: TrainedModel
    task: Task
    max_length: int | None


def served_tasks(model: TrainedModel, task: str | None = None) -> list[ServedTask]:
    """Lists what a model can predict: one task for each of its target prompts.

    Args:
        model: the model.
        task: only this task; required where the model has no target prompt.

    Raises:
        AttemptError: no target prompt is for the task, or there is no target prompt and no task is named.
    """
    if not model.targets:
        if task is None:
            raise AttemptError(
                f"'{model.name}' has no target prompt, so its task is not known", "Name one with --task."
            )
        return [ServedTask(model, trained_task(None, task), None)]
    chosen = [prompt for prompt in model.targets if task in (None, prompt.task)]
    if not chosen:
        raise AttemptError(f"'{model.name}' has no target prompt for the task '{task}'", "Leave --task out.")
    return [ServedTask(model, trained_task(p.settings, p.task), trained_length(p)) for p in chosen]


def find_served(
    session: Session, models: Sequence[str | TrainedModel], task: str | None, changes: Changes | None
) -> dict[str, ServedTask]:
    """Finds what models can predict: their names as given -> a task, "name:task" where one predicts several.

    Args:
        session: says where the registry is.
        models: names of prompts or compositions, or loaded models.
        task: only this task of each model.
        changes: other sources or forced weights for the compositions.

    Raises:
        RegistryError, AttemptError: as in `find_model`, `TrainedModel.with_changes` and `served_tasks`.
    """
    found: dict[str, ServedTask] = {}
    for each in models:
        model = find_model(session, each) if isinstance(each, str) else each
        served = served_tasks(model.with_changes(changes), task)
        name = each if isinstance(each, str) else model.name
        found |= {name if len(served) == 1 else f"{name}:{one.task.name}": one for one in served}
    return found


def check_one_task(served: Mapping[str, ServedTask]) -> None:
    """Refuses a model that serves several tasks.

    Raises:
        ArgumentsError: naming the tasks.
    """
    if len(served) > 1:
        model, tasks = next(iter(served.values())).model, [one.task.name for one in served.values()]
        raise ArgumentsError(
            f"'{model.name}' serves several tasks: choose one with --task ({', '.join(tasks)})",
            f"For example --task {tasks[0]}.",
        )


def predict_rows(
    served: Sequence[ServedTask],
    rows: Sequence[str | Mapping[str, Any]],
    session: Session,
    *,
    max_length: int | None = None,
    max_tokens: int | None = None,
    place: str = "rows",
    numbers: Sequence[int] | None = None,
) -> list[list[Prediction]]:
    """Predicts the same rows for several tasks of models of one backbone.

    Inputs that several tasks render alike are read once for all prompts that stand after them.

    Args:
        served: the models with their tasks.
        rows: texts where the tasks read one column, else dicts from column to value.
        session: gives the backbone.
        max_length: the longest input in tokens; None takes what each prompt was trained with.
        max_tokens: the token budget of a batch; None takes 8192.
        place: where the rows come from, for error messages.
        numbers: the number of each row there, from 0, for error messages; None counts the rows.

    Returns:
        The predictions for each task.

    Raises:
        AttemptError: a row cannot be rendered, or the models belong to several backbones.
    """
    from attempt_cli.evaluation.prediction import MAX_TOKENS, PromptedTask, predict_many

    numbered = list(zip(range(len(rows)) if numbers is None else numbers, rows, strict=True))
    examples = [[rendered(one.task, row, number, place) for number, row in numbered] for one in served]
    lengths = [max_length or one.max_length for one in served]
    models = [one.model for one in served]
    note_lone_targets(models, session.listener.note)
    backbone = session.load_backbone(records_of(models))
    loaded = [model.load(backbone) for model in models]
    groups = _alike(examples, [(length, one.model.around) for length, one in zip(lengths, loaded, strict=True)])
    found: list[list[Prediction]] = [[] for _ in served]
    truncated = 0
    progress = counted(session, len(rows) * len(groups))
    for group in groups:
        prompted = [
            PromptedTask(loaded[i].model, served[i].task, loaded[i].task_index(served[i].task.name)) for i in group
        ]
        answers = predict_many(
            prompted,
            examples[group[0]],
            max_length=lengths[group[0]],
            max_tokens=max_tokens or MAX_TOKENS,
            progress=progress,
        )
        for number, predictions in zip(group, answers, strict=True):
            one = served[number]
            found[number] = [prediction_of(one.task, row, one.model.sources) for row in predictions.rows]
            truncated = max(truncated, predictions.truncated)
    note_truncated(truncated, session)
    return found


def counted(session: Session, total: int) -> Callable[[int], None]:
    """Returns a function that adds up rows and tells the session's listener how many of `total` are done.

    It raises a `StoppedError` where the listener wants to stop and rows are left.
    """
    done = 0

    def progress(count: int) -> None:
        nonlocal done
        done += count
        session.listener.rows(done, total)
        if session.listener.stopped and done < total:
            raise StoppedError(
                f"stopped after {done:,} of {total:,} rows",
                "Evaluations that had ended are recorded; the same call scores the others.",
            )

    return progress


def note_truncated(count: int, session: Session) -> None:
    """Remarks on inputs that were longer than the limit."""
    if count:
        session.listener.note(f"{count:,} inputs were longer than the limit and lost their middle.")


def rendered(task: Task, row: str | Mapping[str, Any], number: int, place: str) -> Example:
    """Renders a row to be predicted; a text where the task reads a single column.

    Args:
        task: the task.
        row: a text, or a dict from column to value.
        number: the row's number, from 0, for error messages.
        place: where it comes from, for error messages.

    Raises:
        AttemptError: the row lacks a column, or is none.
    """
    if isinstance(row, str):
        columns = task.input_columns()
        if len(columns) != 1:
            raise AttemptError(
                f"the task '{task.name}' reads the columns {', '.join(columns)}, a text has only one",
                "Give rows as dicts with these columns.",
            )
        row = {columns[0]: row}
    if not isinstance(row, Mapping):
        raise AttemptError(
            f"{place}, row {number + 1}: {row!r} is not a row", "Give texts, or dicts from column to value."
        )
    return task.render_input(row, number, place=place)


def _alike(examples: Sequence[Sequence[Example]], ways: Sequence[object]) -> list[list[int]]:
    """Groups the tasks whose inputs are the same texts, read in the same way: under one limit, in one template."""
    groups: dict[tuple[Any, ...], list[int]] = {}
    for number, (own, way) in enumerate(zip(examples, ways, strict=True)):
        groups.setdefault((way, *(example.input for example in own)), []).append(number)
    return list(groups.values())
