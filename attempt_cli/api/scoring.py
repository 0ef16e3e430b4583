"""What can be done with trained prompts: load, predict, evaluate, compare, rank, inspect and compose them.

Every function takes a `Session` as its last argument; without one it makes its own, with the user's registry. Nothing
is printed: a session's listener is told what is worth knowing.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.api.training import as_task
from attempt_cli.backbones.names import listed_as
from attempt_cli.changes import Changes
from attempt_cli.composing import changed_copy, checked_parts, joined
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.evaluation.comparison import RunComparison, compare_runs, paired_evaluations
from attempt_cli.evaluation.flattening import LIMIT, Flattened, flatten_composition, on_file
from attempt_cli.evaluation.inspection import (
    Inspection,
    attended_tasks,
    check_inspected,
    nearest_to_prompts,
    task_attention,
)
from attempt_cli.evaluation.models import (
    TrainedModel,
    find_model,
    model_for_task,
    note_lone_targets,
    own_tasks,
    records_of,
)
from attempt_cli.evaluation.ranking import SourceRanking, rank, ranked_sources, similarity_target
from attempt_cli.evaluation.record import EvaluationResult
from attempt_cli.evaluation.scoring import Split, check_writable, record_jobs, scoring_jobs
from attempt_cli.evaluation.serving import Prediction, check_one_task, find_served, predict_rows
from attempt_cli.evaluation.statistics import adjusted
from attempt_cli.name_lists import listed
from attempt_cli.session import Session
from attempt_cli.sources import source_prompts
from attempt_registry.records import Composition

if TYPE_CHECKING:
    from attempt_cli.data.task import Task

Row = str | Mapping[str, Any]
Rows = Row | Sequence[Row]

__all__ = [
    "Changes",
    "EvaluationResult",
    "Flattened",
    "Inspection",
    "Model",
    "Prediction",
    "RunComparison",
    "SourceRanking",
    "compare",
    "compose",
    "evaluate",
    "flatten",
    "inspect",
    "load",
    "predict",
    "rank_sources",
]


class Model(TrainedModel):
    """A prompt or a composition on its backbone, ready to predict; `load` makes one."""

    def predict(self, rows: Rows, *, task: str | None = None, max_length: int | None = None) -> list[Prediction]:
        """Predicts rows, one prediction each.

        Args:
            rows: texts where the task reads one column, else dicts from column to value; one alone is a list of one.
            task: for a composition with several targets, the task whose target prompt is used.
            max_length: the longest input in tokens; None takes what the prompt was trained with.

        Raises:
            ArgumentsError: the model serves several tasks and none is named.
            AttemptError: the task is not the model's, or a row lacks a column.

            model.predict(["Third agent today and still no answer."])
        """
        served = find_served(self.session, [self], task, None)
        check_one_task(served)
        (found,) = predict_rows(list(served.values()), _rows(rows), self.session, max_length=max_length)
        return found


def load(
    name: str, *, changes: Changes | None = None, chat_template: bool = False, session: Session | None = None
) -> Model:
    """Loads a prompt or a composition with its backbone.

    Args:
        name: of a composition or a prompt; of both, what was made last is meant. "none" is the bare backbone.
        changes: other sources or forced weights for a composition.
        chat_template: of "none": read inside the tokenizer's chat template; a prompt is used as it was trained.
        session: says where the registry and the backbone are; the backbone is the prompts' own unless it names one.

    Returns:
        A model whose `predict` takes rows.

    Raises:
        RegistryError: there is no such prompt or composition.
        ArgumentsError: `chat_template` for a prompt or composition.
        AttemptError: the changes do not fit, or the backbone cannot be loaded or is another than the prompts'.

        model = attempt.load("support-chats-attempt")
        model = attempt.load("rte-attempt", changes=attempt.Changes(drop=["sst2"]))
    """
    session = Session.of(session)
    found = find_model(session, name, chat_template=chat_template).with_changes(changes)
    model = Model(found.record, session, found.changes, chat_template)
    model.load()
    return model


def predict(
    models: str | TrainedModel | Sequence[str | TrainedModel],
    rows: Rows,
    *,
    task: str | None = None,
    changes: Changes | None = None,
    max_length: int | None = None,
    max_tokens: int | None = None,
    min_confidence: float | None = None,
    place: str = "rows",
    numbers: Sequence[int] | None = None,
    session: Session | None = None,
) -> dict[str, list[Prediction]]:
    """Predicts the same rows with several models, which read them once where prompts stand after the input.

    Args:
        models: names of prompts or compositions, or loaded models, of one backbone.
        rows: texts where the tasks read one column, else dicts from column to value; one alone is a list of one.
        task: only this task of each model.
        changes: other sources or forced weights for the compositions.
        max_length: the longest input in tokens; None takes what each prompt was trained with.
        max_tokens: the token budget of a batch; None takes 8192.
        min_confidence: abstain where the most probable label has a probability below this.
        place: where the rows come from, for error messages.
        numbers: the number of each row there, from 0, for error messages; None counts the rows.
        session: says where the registry and the backbone are; None takes that of the first loaded model.

    Returns:
        A model's name -> its predictions, one per row; "name:task" where it predicts several tasks.

    Raises:
        RegistryError: there is no such prompt or composition.
        AttemptError: a row cannot be rendered, or the models belong to several backbones.
        ArgumentsError: a model to which `min_confidence` says nothing, because it generates text.

        attempt.predict(["mood", "topic"], ["Third agent today and still no answer."])
    """
    session = _session(models, session)
    served = find_served(session, listed(models), task, changes)
    if min_confidence is not None and (free := [name for name, one in served.items() if one.task.labels is None]):
        raise ArgumentsError(
            f"'{free[0]}' writes free text, whose confidence is not known", "Leave --min-confidence out."
        )
    answers = predict_rows(
        list(served.values()),
        _rows(rows),
        session,
        max_length=max_length,
        max_tokens=max_tokens,
        place=place,
        numbers=numbers,
    )
    if min_confidence is not None:
        answers = [[prediction.unless_below(min_confidence) for prediction in of] for of in answers]
    return dict(zip(served, answers, strict=True))


def evaluate(
    models: str | TrainedModel | Sequence[str | TrainedModel] = (),
    task: str | Path | Task | Sequence[str | Path | Task] = (),
    *,
    split: str = "test",
    limit: int | None = None,
    seed: int = 0,
    changes: Changes | None = None,
    text_format: str | None = None,
    max_length: int | None = None,
    max_tokens: int | None = None,
    output: Path | str | None = None,
    session: Session | None = None,
) -> list[EvaluationResult]:
    """Scores models on the rows of tasks, and records each evaluation as a run.

    Args:
        models: names of prompts or compositions, or loaded models, of one backbone; without any, each task is served
            by what was trained for it last.
        task: one or several tasks, by name, YAML file or as tasks; without any, those that the first model was trained
            for.
        split: "train", "validation" or "test".
        limit: take a random sample of at most this many rows.
        seed: the seed of the sample.
        changes: score every composition a second time with these changes, and say what they do to its score.
        text_format: "words" or "reference"; None takes what each prompt was trained with.
        max_length: the longest input in tokens; None takes what each prompt was trained with.
        max_tokens: the token budget of a batch; None takes 8192.
        output: write every prediction to this file, as JSON lines.
        session: says where the registry, the rows and the backbone are; None takes that of the first loaded model.

    Returns:
        One result per task and model, in their order.

    Raises:
        RegistryError: there is no such prompt or composition.
        ArgumentsError: neither a task nor a model is given, or nothing can be changed.
        AttemptError: an unknown task, missing rows, a file that cannot be written, models of several backbones.

        attempt.evaluate("rte-attempt", "rte", limit=500)[0].score
    """
    session = _session(models, session)
    named = [_model(session, each) for each in listed(models)]
    pairs: list[tuple[Task, TrainedModel]] = []
    for one in [as_task(each) for each in listed(task)] or own_tasks(named):
        for model in named or [model_for_task(session, one)]:
            pairs.append((one, model))
            if changes and isinstance(model.record, Composition):
                pairs.append((one, model.with_changes(changes)))
    if changes and not any(model.changes for _, model in pairs):
        raise ArgumentsError(
            "--add, --drop, --only and --weights change compositions: name one with --composition",
            "`attempt registry list --what compositions` shows them.",
        )
    rows = Split(session, split, limit, seed)
    jobs = scoring_jobs(pairs, rows, text_format=text_format, max_length=max_length)
    file = Path(output) if output is not None else None
    if file is not None:
        check_writable(file)
    note_lone_targets([job.model for job in jobs], session.listener.note)
    results = record_jobs(jobs, rows, max_tokens=max_tokens, output=file)
    changed = adjusted([result.change for result in results])
    return [replace(result, change=change) for result, change in zip(results, changed, strict=True)]


def compare(
    first: int | str | EvaluationResult,
    second: int | str | EvaluationResult,
    *,
    task: str | None = None,
    metric: str | None = None,
    session: Session | None = None,
) -> RunComparison:
    """Tests the difference of two recorded evaluations on the same rows, row by row.

    McNemar's test where a row is right or wrong, a paired bootstrap for other metrics.

    Args:
        first, second: results of `evaluate`, numbers of their runs, or names of prompts or compositions ("none": the
            bare backbone), whose newest evaluation is taken.
        task: the task whose evaluations are compared; None takes the one that both were scored on.
        metric: one of the task's metrics; None takes the first.
        session: says where the registry is.

    Raises:
        RegistryError: there is no such run, prompt or composition.
        ArgumentsError: both were evaluated on several tasks, and none is named.
        AttemptError: a model was not evaluated, the two are on different rows, or the task has no such metric.

        attempt.compare("rte-attempt", "rte-spot").test.p
    """
    names = [_evaluation_name(one) for one in (first, second)]
    return compare_runs(*paired_evaluations(Session.of(session), names, task), metric)


def rank_sources(
    task: str | Path | Task,
    *,
    sources: str | Sequence[str] | None = None,
    target: str | None = None,
    composition: str | None = None,
    split: str = "validation",
    limit: int | None = 200,
    seed: int = 0,
    max_tokens: int | None = None,
    session: Session | None = None,
) -> SourceRanking:
    """Ranks source prompts by what they do for a task, in up to three ways, and records the ranking as a run.

    The score of each source as it is (zero-shot transfer); SPoT's cosines with a target prompt of the task; and what a
    composition's score loses when the source is left out.

    Args:
        task: the task.
        sources: names of source prompts, or "all"; None takes the composition's, else all of the backbone.
        target: the prompt of the cosines; None takes the task's newest target prompt.
        composition: its sources are left out one by one.
        split: "validation" or "train": not the test rows, because sources are chosen by them.
        limit: take a random sample of at most this many rows.
        seed: the seed of the sample.
        max_tokens: the token budget of a batch; None takes 8192.
        session: says where the registry, the rows and the backbone are.

    Returns:
        The sources, the best first.

    Raises:
        RegistryError: there is no such prompt or composition.
        AttemptError: an unknown task, missing rows, no sources, or prompts of several backbones.

        attempt.rank_sources("rte", composition="rte-attempt").sources[0].source
    """
    session = Session.of(session)
    if split == "test":
        raise ArgumentsError("test rows do not choose sources", "Rank them on the split validation or train.")
    wanted = as_task(task)
    mixture = None if composition is None else session.store.composition(composition)
    prompts = ranked_sources(session, wanted.name, sources, mixture)
    if not prompts:
        raise ArgumentsError("no source is named", "Name source prompts, or all.")
    similar = similarity_target(session.store, wanted.name, target, mixture, prompts[0])
    return rank(wanted, prompts, mixture, similar, Split(session, split, limit, seed), max_tokens)


def inspect(
    model: str | TrainedModel,
    *,
    task: str | None = None,
    split: str = "validation",
    limit: int | None = 200,
    rows: int = 8,
    seed: int = 0,
    tokens: int | None = None,
    changes: Changes | None = None,
    max_tokens: int | None = None,
    session: Session | None = None,
) -> Inspection:
    """Looks inside a model: the attention of its tasks' rows on sources, and the tokens nearest to its prompts.

    Args:
        model: a composition or a prompt, by name or loaded.
        task: only this task's rows; None takes every task that the model has a target prompt for.
        split: "train", "validation" or "test".
        limit: take a random sample of at most this many rows.
        rows: the number of rows whose own attention is kept.
        seed: the seed of the sample.
        tokens: how many of the nearest tokens to find for each prompt position; None is 3 for a prompt, else none.
        changes: other sources or forced weights for a composition.
        max_tokens: the token budget of a batch; None takes 8192.
        session: says where the registry, the rows and the backbone are.

    Raises:
        RegistryError: there is no such prompt or composition.
        ArgumentsError: the model mixes sources for any task, and none is named.
        AttemptError: there is nothing to inspect, or rows are missing.

        attempt.inspect("rte-attempt").tasks[0].attention
    """
    session = _session([model], session)
    inspected = _model(session, model).with_changes(changes)
    check_inspected(inspected, attention=task is not None, tokens=tokens is not None)
    if not inspected.sources and tokens is None:
        tokens = 3
    wanted = attended_tasks(inspected, task) if inspected.sources else []
    jobs = scoring_jobs([(one, inspected) for one in wanted], Split(session, split, limit, seed))
    backbone = session.load_backbone(records_of([inspected]))
    loaded = inspected.load(backbone)
    return Inspection(
        name=inspected.name,
        kind=inspected.kind,
        split=split,
        tasks=tuple(task_attention(loaded, job, rows, max_tokens) for job in jobs) if inspected.sources else None,
        tokens=nearest_to_prompts(inspected, backbone, tokens) if tokens is not None else None,
    )


def compose(
    name: str,
    *,
    base: str | None = None,
    sources: str | Sequence[str] = (),
    targets: str | Sequence[str] = (),
    attention: str | None = None,
    changes: Changes | None = None,
    note: str = "",
    session: Session | None = None,
) -> Composition:
    """Joins source prompts, target prompts and a trained attention under a name; nothing is trained or loaded.

    Args:
        name: the composition's name.
        base: a composition to change, instead of naming its parts.
        sources: source prompts in order, or "all" of the backbone.
        targets: target prompts, one per task; without any the sources alone are mixed, for any task.
        attention: the trained G that mixes the sources; None takes the one that was trained with the targets.
        changes: other sources or forced weights.
        note: a remark to keep with it.
        session: says where the registry is and, for "all" without targets, which backbone is meant.

    Returns:
        The record of the new composition.

    Raises:
        RegistryError: there is no such prompt, attention or composition, or the name cannot be one.
        ArgumentsError: the parts do not make a composition.
        AttemptError: parts of different lengths or backbones, two targets for one task, or no attention to mix with.

        attempt.compose("rte-without-sst2", base="rte-attempt", changes=attempt.Changes(drop=["sst2"]))
    """
    session = Session.of(session)
    registry, changes = session.store, changes or Changes()
    if base is not None:
        if sources or targets or attention is not None:
            raise ArgumentsError(
                "--from names all parts: leave --sources, --target and --attention out",
                "To change them, use --add, --drop, --only or --weights.",
            )
        draft = changed_copy(registry, base, changes)
    else:
        if not targets and (not sources or attention is None):
            raise ArgumentsError(
                "name the target prompts with --target, a composition with --from, or --sources and --attention alone",
                "`attempt registry list` shows prompts, with --what compositions and --what attentions the others.",
            )
        found = [registry.prompt(target) for target in listed(targets)]
        where = session.backbone_name or (
            listed_as(registry, found[0].backbone, found[0].fingerprint) if found else None
        )
        mixed = source_prompts(registry, sources, where, targets=[prompt.task for prompt in found])
        draft = joined(registry, name, mixed, found, attention, changes)
    parts = checked_parts(registry, draft)
    if not draft.sources:
        note_lone_targets([TrainedModel(prompt, session) for prompt in parts], session.listener.note)
    return registry.add_composition(
        name=name,
        backbone=draft.backbone,
        fingerprint=draft.fingerprint,
        sources=draft.sources,
        attention=draft.attention,
        targets=draft.targets,
        settings=draft.settings,
        note=note,
    )


def flatten(
    name: str,
    composition: str,
    *,
    task: str | Path | Task | Sequence[str | Path | Task] = (),
    rows: Path | str | None = None,
    limit: int | None = LIMIT,
    seed: int = 0,
    note: str = "",
    max_tokens: int | None = None,
    session: Session | None = None,
) -> list[Flattened]:
    """Turns a composition into one plain prompt: that of the mean attention over rows, the same for every input.

    A plain prompt can be exported everywhere. Training rows give the mean, validation rows score the composition and
    the prompt; of a file a tenth is held out for the scores. The rows of both are recorded, and the composition is the
    prompt's parent.

    Args:
        name: the prompt's name; with several tasks each prompt is NAME.TASK.
        composition: a composition that mixes sources.
        task: one or several tasks; without any, those of the composition's targets.
        rows: a file of rows, instead of the task's own.
        limit: a random sample of at most this many rows gives the mean.
        seed: the seed of the sample.
        note: a remark to keep with it.
        max_tokens: the token budget of a batch; None takes 8192.
        session: says where the registry, the rows and the backbone are.

    Returns:
        A prompt for each task, with the scores before and after.

    Raises:
        RegistryError: there is no such composition.
        ArgumentsError: it mixes sources for any task and none is named, or one file is for several tasks.
        AttemptError: it mixes nothing, or rows are missing.

        attempt.flatten("rte-plain", "rte-attempt")[0].comparison.test.difference
    """
    session = session or Session()
    record = session.store.composition(composition)
    tasks = [as_task(each) for each in listed(task)] or list(own_tasks([TrainedModel(record, session)]))
    if rows is not None:
        if len(tasks) > 1:
            raise ArgumentsError("one file of rows is for one task", "Name it with --tasks.")
        tasks = [on_file(tasks[0], rows)]
    return flatten_composition(session, record, name, tasks, limit=limit, seed=seed, note=note, max_tokens=max_tokens)


def _rows(given: Rows) -> Sequence[Row]:
    """Returns rows as a list; a single text or dict is one row, not its letters or columns."""
    return [given] if isinstance(given, str | Mapping) else given


def _evaluation_name(given: int | str | EvaluationResult) -> str:
    """Returns the number of a result's run, else the number or the name itself.

    Raises:
        AttemptError: it is none of these, or a result that was not recorded.
    """
    if isinstance(given, EvaluationResult) and given.run is not None:
        return str(given.run)
    if isinstance(given, int | str):
        return str(given)
    raise AttemptError(
        f"{type(given).__name__} is not a recorded evaluation",
        "Give one result of `evaluate`, the number of its run, or the name of a prompt or composition.",
    )


def _session(models: str | TrainedModel | Sequence[str | TrainedModel], session: Session | None) -> Session:
    """Returns the session that is given, else that of the first loaded model, else a new one."""
    loaded = (each.session for each in listed(models) if isinstance(each, TrainedModel))
    return Session.of(next(loaded, None) if session is None else session)


def _model(session: Session, given: str | TrainedModel) -> TrainedModel:
    return given if isinstance(given, TrainedModel) else find_model(session, given)
