"""Trains source prompts, target prompts and the attention prior, and records them in the registry."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.data.catalogue import load_task
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.name_lists import listed
from attempt_cli.session import Session
from attempt_cli.sources import check_lengths, source_prompts
from attempt_cli.training.methods import METHODS, find_method

if TYPE_CHECKING:
    from attempt_cli.training.request import Outcome
    from attempt_registry import Attention, Composition, Prompt

AnyTask = str | Path | Task
Names = str | Sequence[str]


def train_source(
    task: AnyTask,
    *,
    name: str | None = None,
    init_from: str | None = None,
    preset: str | None = None,
    train_limit: int | None = None,
    resume: bool = False,
    note: str = "",
    tags: Sequence[str] = (),
    session: Session | None = None,
    **settings: Any,
) -> Outcome | None:
    """Trains a source prompt (prompt tuning, equation 1 of the paper).

    Args:
        task: a task's name, its YAML file, or a `Task`.
        name: the prompt's name in the registry; the task's name without it.
        init_from: the prompt of the registry to start from; frequent words without it.
        preset: settings to start from: "paper".
        train_limit: train on a random sample of at most this many rows.
        resume: continue from the checkpoint of the same call, if there is one.
        note, tags: for the record.
        session: where the call works.
        settings: fields of `training.config.TrainingConfig`, such as `steps` or `learning_rate`; `batch_size="auto"`
            takes as many rows as fit in memory.

    Returns:
        What was trained and recorded; None on processes that only helped (`accelerate launch`).

    Raises:
        AttemptError: the task, the settings or the rows do not fit; nothing was loaded or trained then.
    """
    session = Session.of(session)
    chosen = as_task(task)
    start = session.store.prompt(init_from) if init_from else None
    return _train(
        session,
        [chosen],
        "prompt-tuning",
        name or chosen.name,
        settings,
        preset=preset,
        train_limit=train_limit,
        resume=resume,
        kind="source",
        init_from=(start,),
        note=note,
        tags=tags,
    )


def train_target(
    task: AnyTask | Sequence[AnyTask],
    *,
    method: str = "attempt",
    sources: Names | None = None,
    init_from: str | None = None,
    attention_from: str | None = None,
    composition: str | None = None,
    name: str | None = None,
    preset: str | None = None,
    train_limit: int | None = None,
    max_rows_per_task: int | None = None,
    sampling_temperature: float = 1.0,
    resume: bool = False,
    note: str = "",
    tags: Sequence[str] = (),
    session: Session | None = None,
    **settings: Any,
) -> Outcome | None:
    """Trains a target prompt, by default with ATTEMPT (equations 2 to 4), or several that share one G.

    Args:
        task: a task's name, its YAML file or a `Task`; a list of these trains several targets at once.
        method: a name in `training.methods.METHODS`.
        sources: names of source prompts in order, or "all" of the backbone.
        init_from: the prompt that targets start from; ATTEMPT takes the first source of another task without it.
        attention_from: a trained G to start from.
        composition: the targets join this composition, whose sources, G and targets stay as they are.
        name: the name in the registry; TASK-METHOD without it. Several targets are NAME.TASK.
        max_rows_per_task: of several tasks: none counts for more rows in an epoch.
        sampling_temperature: of several tasks: 1 samples them in proportion to their rows, more evens them out.
        preset, train_limit, resume, note, tags, session, settings: as in `train_source`.

    Returns:
        What was trained and recorded. Weights are no prompts and are not kept: such a model is scored on the task's
        test rows (`test`), and taken out of the backbone again.

    Raises:
        AttemptError: tasks, prompts, settings or rows do not fit; nothing was loaded or trained then.
    """
    session = Session.of(session)
    row = find_method(method)
    tasks = as_tasks(task)
    names = [one.name for one in tasks]
    if len(tasks) > 1 and not row.several:
        able = " or ".join(name for name, one in METHODS.items() if one.several)
        raise AttemptError(f"several tasks only go with --method {able}, not with {method}", "Name one task.")
    store = session.store
    start = store.prompt(init_from) if init_from else None
    onto = store.composition(composition) if composition else None
    attention: Attention | None
    if onto is not None:
        session = _session_of(session, onto)
        mixed, attention = _parts_of(session, onto, sources, attention_from)
        name = onto.name
    else:
        mixed = source_prompts(store, sources, session.backbone_name, targets=names)
        missing = row.missing({"sources": bool(mixed), "init_from": start is not None})
        if missing:
            raise AttemptError(missing, "`attempt registry list --kind source` shows the source prompts there are.")
        attention = store.attention(attention_from) if attention_from else None
    outcome = _train(
        session,
        tasks,
        method,
        name or f"{'-'.join(names)}-{method}",
        settings,
        preset=preset,
        train_limit=train_limit,
        resume=resume,
        sources=mixed,
        init_from=_starts(mixed, names, start) if start or row.first_source else (),
        attention_from=attention,
        onto=onto,
        max_rows_per_task=max_rows_per_task,
        sampling_temperature=sampling_temperature,
        note=note,
        tags=tags,
    )
    if outcome is None or outcome.prompt is not None:
        return outcome
    try:  # what is no prompt cannot be kept and evaluated later
        found = {rows.task.name: _tested(session, outcome, i) for i, rows in enumerate(outcome.request.tasks)}
        tests = {name: test for name, test in found.items() if test is not None}
        return replace(outcome, test=(tests if len(found) > 1 else next(iter(found.values()))) or None)
    finally:
        outcome.release()


def train_attention(
    sources: Names,
    *,
    tasks: AnyTask | Sequence[AnyTask] | None = None,
    name: str = "prior",
    preset: str | None = None,
    train_limit: int | None = None,
    max_rows_per_task: int | None = None,
    sampling_temperature: float = 1.0,
    resume: bool = False,
    note: str = "",
    tags: Sequence[str] = (),
    session: Session | None = None,
    **settings: Any,
) -> Outcome | None:
    """Trains the attention prior: a G on the source tasks themselves, to start targets from.

    Every task gets a fresh target prompt and G is shared by all; G is kept, the target prompts are not.

    Args:
        sources: names of source prompts in order, or "all" of the backbone.
        tasks: train on these; the tasks of the sources without it.
        name: the attention's name in the registry.
        max_rows_per_task, sampling_temperature: as in `train_target`.
        preset, train_limit, resume, note, tags, session, settings: as in `train_source`.

    Returns:
        What was trained and recorded; `attention` is its name.

    Raises:
        AttemptError: sources, tasks, settings or rows do not fit; nothing was loaded or trained then.
    """
    session = Session.of(session)
    mixed = source_prompts(session.store, sources, session.backbone_name)
    chosen = as_tasks(tasks or list(dict.fromkeys(prompt.task for prompt in mixed))) if tasks or mixed else []
    # targets start from frequent words, not from the prompt of the task itself, which would leave nothing to mix
    return _train(
        session,
        chosen,
        "attempt",
        name,
        settings,
        preset=preset,
        train_limit=train_limit,
        resume=resume,
        keep="attention",
        sources=mixed,
        max_rows_per_task=max_rows_per_task,
        sampling_temperature=sampling_temperature,
        note=note,
        tags=tags,
    )


def as_tasks(tasks: AnyTask | Sequence[AnyTask]) -> list[Task]:
    """Returns the tasks of names, YAML files or `Task`s; of a single one, a list of it.

    Raises:
        AttemptError: there is none, or one is unknown.
    """
    found = [as_task(task) for task in listed(tasks)]
    if not found:
        raise AttemptError("no task is named", "`attempt tasks list` shows the tasks.")
    return found


def as_task(task: AnyTask) -> Task:
    """Returns the task of a name or a YAML file; a `Task` as it is."""
    if not isinstance(task, str | Path | Task):
        raise AttemptError(f"{task!r} is not a task", "Give one name, the path of a YAML file, or a `Task`.")
    return task if isinstance(task, Task) else load_task(task)


def _train(
    session: Session,
    tasks: Sequence[Task],
    method: str,
    name: str,
    settings: dict[str, Any],
    *,
    preset: str | None,
    train_limit: int | None,
    resume: bool,
    tags: Sequence[str],
    **parts: Any,
) -> Outcome | None:
    """Checks everything that needs no backbone, then loads it and trains; `parts` are fields of `Request`."""
    from attempt_cli.training.config import make_config
    from attempt_cli.training.request import Request, load_task_rows

    _ = session.store  # a wrong folder is refused before the backbone is loaded
    used = [prompt for prompt in (*parts.get("sources", ()), *parts.get("init_from", ())) if prompt is not None]
    check_lengths(used, settings.get("prompt_length"))
    if settings.get("prompt_length") is None and used:
        settings = {**settings, "prompt_length": used[0].length}
    if largest := settings.get("batch_size") == "auto":
        settings = {**settings, "batch_size": None}
    config = make_config(preset, method=method, **settings)
    rows = tuple(load_task_rows(task, config, data_dir=session.rows_folder, limit=train_limit) for task in tasks)
    request = Request(rows, name, config, largest_batch=largest, tags=tuple(listed(tags)), **parts)
    request.check(session.quantize)
    from attempt_cli.training.processes import Processes  # torch, only now that nothing is refused
    from attempt_cli.training.run import train

    processes = Processes.here()
    records = [*used, *([request.attention_from] if request.attention_from else [])]
    if config.deterministic:
        from attempt_cli.training.determinism import prepare_equal_bits

        prepare_equal_bits()
    backbone = session.load_backbone(records, chat_template=bool(request.config.chat_template))
    return train(
        session.store,
        backbone,
        request,
        command=session.command,
        resume=resume,
        listener=session.listener,
        processes=processes,
    )


def _session_of(session: Session, composition: Composition) -> Session:
    """Returns the session with the composition's backbone, where none is chosen."""
    from attempt_cli.backbones.names import recorded_backbone

    if session.backbone is not None:
        return session
    return replace(session, registry=session.store, backbone=recorded_backbone(session.store, composition))


def _parts_of(
    session: Session, composition: Composition, sources: Names | None, attention_from: str | None
) -> tuple[tuple[Prompt, ...], Attention]:
    """Returns the sources and the G of a composition that targets join."""
    if sources is not None or attention_from is not None:
        raise AttemptError(
            f"the targets get the sources and the attention of '{composition.ref}'",
            "Leave --sources and --attention-from out.",
        )
    if composition.attention is None:
        raise AttemptError(
            f"the composition '{composition.ref}' has no attention that a task could join",
            "Name one that has: `attempt registry list --what compositions`.",
        )
    store = session.store
    return tuple(store.prompt(ref) for ref in composition.sources), store.attention(composition.attention)


def _starts(sources: Sequence[Prompt], tasks: Sequence[str], named: Prompt | None) -> tuple[Prompt | None, ...]:
    """Returns where each task's prompt starts: the named prompt, else the first source of another task."""
    if named is not None:
        return (named,) * len(tasks)
    return tuple(next((source for source in sources if source.task != task), sources[0]) for task in tasks)


def _tested(session: Session, outcome: Outcome, number: int) -> dict[str, Any] | None:
    """Scores a model that cannot be kept on the test rows of a task, where there are any, and records that."""
    from attempt_cli.data.rows import load_examples
    from attempt_cli.evaluation.evaluate import evaluate
    from attempt_cli.evaluation.record import evaluation_result, record_evaluation

    request = outcome.request
    task, config = request.tasks[number].task, request.config
    try:
        rows = load_examples(task, "test", data_dir=session.rows_folder)
    except AttemptError as error:
        session.listener.note(f"No test rows, so the trained model is not scored ({error.message})")
        return None
    session.listener.note(f"scoring {len(rows.examples):,} test rows …")
    reading: dict[str, Any] = {"max_length": config.max_length, "max_tokens": config.max_tokens}
    result = evaluate(outcome.model, task, rows.examples, task_index=request.task_index(number), **reading)
    name = f"{request.name} (run {outcome.run})"
    record = evaluation_result(task, rows, result, name, "weights").record()
    run = record_evaluation(
        session.store,
        task,
        rows,
        result,
        record,
        command=session.command,
        seed=config.seed,
        settings={"training": config.model_dump(exclude_none=True)},
        budget={"steps": outcome.trained.state.step},
    )
    return {**{name: record[name] for name in ("metrics", "interval", "n")}, "run": run}
