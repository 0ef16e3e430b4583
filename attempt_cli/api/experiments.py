"""Compares methods: on k training rows, or as one of the paper's tables and figures."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

from attempt_cli.api.training import AnyTask, Names, as_task, as_tasks
from attempt_cli.errors import ArgumentsError, unknown_name
from attempt_cli.name_lists import listed
from attempt_cli.session import Session

if TYPE_CHECKING:
    from attempt_cli.experiments.report import Report
    from attempt_cli.experiments.run import FewShotResult, MakeGridListener
    from attempt_cli.experiments.sweep import SweepResult

FEW_SHOT_TASKS = ("boolq", "cb", "scitail")
FEW_SHOT_METHODS = ("source", "prompt-tuning", "spot", "attempt")


def fewshot(
    tasks: AnyTask | Sequence[AnyTask] = FEW_SHOT_TASKS,
    *,
    k: int = 16,
    per_class: bool = False,
    seeds: int = 3,
    methods: Names = FEW_SHOT_METHODS,
    sources: Names = "all",
    init_from: str | None = None,
    limit: int | None = 500,
    steps: int = 100,
    tags: Sequence[str] = ("fewshot",),
    bank: int = 16,
    session: Session | None = None,
    **settings: Any,
) -> FewShotResult:
    """Compares methods on k training rows: the same rows and steps for each, several seeds.

    There is no validation: the last step counts.

        result = attempt.fewshot("cb", k=4, seeds=5)
        result.methods[0].mean

    Args:
        tasks: names, YAML files or `Task`s.
        k: training rows, drawn class-balanced by seed: in total, or of every class.
        per_class: k rows of every class.
        seeds: how often rows are drawn.
        methods: names in `experiments.methods.ALONE`.
        sources: names of source prompts, or "all"; never one of the task's own.
        init_from: where SPoT and ATTEMPT start; the source that fits the k rows best without it.
        limit: test rows, a random sample of each task; None takes all.
        steps: optimiser steps, for all methods.
        tags: for the records.
        bank: the most trainings of prompts in one pass through the model; 1 trains each alone.
        session: where the call works.
        settings: fields of `training.config.TrainingConfig`, for all methods.

    Returns:
        Means over seeds with intervals (`methods`), every cell, and the rows that were drawn.

    Raises:
        AttemptError: a method, task or source is unknown, or a task has too few rows; nothing was loaded then.
    """
    from attempt_cli.experiments.run import compare_on_few_rows

    for name, number in (("seeds", seeds), ("k", k), ("steps", steps), ("bank", bank), ("limit", limit)):
        _check_count(name, number, optional=name == "limit")
    return compare_on_few_rows(
        Session.of(session),
        as_tasks(tasks),
        k=k,
        per_class=per_class,
        seeds=seeds,
        methods=listed(methods),
        sources=sources,
        init_from=init_from,
        limit=limit,
        tags=tuple(listed(tags)),
        bank=bank,
        settings={"steps": steps, **settings},
    )


def sweep(
    task: AnyTask,
    *,
    methods: Names = "prompt-tuning",
    seeds: int = 3,
    sources: Names = "all",
    init_from: str | None = None,
    limit: int | None = 500,
    train_limit: int | None = None,
    name: str | None = None,
    resume: bool = False,
    tags: Sequence[str] = ("sweep",),
    bank: int = 16,
    session: Session | None = None,
    **settings: Any,
) -> SweepResult:
    """Trains one task's prompt under every combination of settings and seeds, and chooses by the validation rows.

    The trainings share their passes through the model (`bank`), and with the prompt after the input those of a seed
    read each input once. Each is recorded, tagged `sweep`.

        result = attempt.sweep("sst2", learning_rate=[0.01, 0.1, 1], steps=100)
        attempt.train_target("sst2", steps=100, **result.arguments)

    Args:
        task: a name, a YAML file or a `Task`.
        methods: names in `experiments.sweep.TRAINED`; each is tried under all settings that it reads.
        seeds: trainings of each setting; 0, 1, ….
        sources: names of source prompts for methods that use some, or "all"; never one of the task's own.
        init_from: where SPoT and ATTEMPT start; the source that fits the training rows best without it.
        limit: test rows, a random sample; None takes all.
        train_limit: a random sample of at most this many training rows, by seed.
        name: the best prompt is kept under this name, too.
        resume: take finished trainings from the registry, and unfinished ones from their checkpoints.
        tags: for the records.
        bank: the most trainings of prompts in one pass through the model; 1 trains each alone.
        session: where the call works.
        settings: fields of `training.config.TrainingConfig`; those that are lists are swept. Without any list
            learning rates are.

    Returns:
        A row for each setting (`rows`, `best`), every cell, and the arguments that train the best again.

    Raises:
        AttemptError: a setting, method, task or source is wrong, or there are no validation or test rows; nothing was
            loaded then. Or all trainings failed.
    """
    from attempt_cli.experiments.sweep import run_sweep

    for option, number in (("seeds", seeds), ("bank", bank), ("limit", limit), ("train_limit", train_limit)):
        _check_count(option, number, optional="limit" in option)
    return run_sweep(
        Session.of(session),
        as_task(task),
        methods=listed(methods),
        seeds=seeds,
        sources=sources,
        init_from=init_from,
        limit=limit,
        train_limit=train_limit,
        name=name,
        resume=resume,
        tags=tuple(listed(tags)),
        bank=bank,
        settings=settings,
    )


def reproduce(
    name: str,
    *,
    tasks: Names | None = None,
    methods: Names | None = None,
    columns: Names | None = None,
    seeds: int | None = None,
    first_seed: int = 0,
    k: int | Sequence[int] | None = None,
    per_class: bool = False,
    limit: int | None = None,
    train_limit: int | None = None,
    sources: Names = "all",
    train_sources: Names | None = None,
    source_steps: int | None = None,
    init_from: str | None = None,
    preset: str | None = None,
    rates: Mapping[str, float] | None = None,
    tuned: bool = False,
    resume: bool = False,
    workers: int = 1,
    on_ray: bool = False,
    bank: int = 16,
    backbones: Names = (),
    progress: MakeGridListener | None = None,
    session: Session | None = None,
    **settings: Any,
) -> Report:
    """Runs one of the paper's experiments, or a later paper's, as a grid of cells: method, task, seed.

    Every cell is kept in the registry. A cell that fails is noted, and the others continue.

        report = attempt.reproduce("table3", tasks=["cb"], k=[4], limit=100, session=session)
        report.rows[0].mean

    Args:
        name: "table1" to "table4", "table9", "fig3" to "fig6", "pt-moe", "peft-bench" (`attempt reproduce --help`).
        backbones: names; the session's, else the sources' own without them.
        progress: makes what follows the grid, from its cells and the number of workers; without it the session's
            listener is told a line a cell.
        session: where the call works.
        tasks, methods, columns, seeds, first_seed, k, per_class, limit, train_limit, sources, train_sources,
            source_steps, init_from, preset, rates, tuned, resume, workers, on_ray, bank: as in
            `experiments.run.GridOptions` and `plan.Terms`.
        settings: fields of `training.config.TrainingConfig`, for all methods.

    Returns:
        The results: `rows` (means over seeds), `cells`, `failures`, and `table()` with files and notes.

    Raises:
        AttemptError: the experiment or an option is unknown; every problem at once.
    """
    from attempt_cli.experiments.paper import experiments
    from attempt_cli.experiments.run import GridOptions, run_experiment

    if name not in experiments():
        raise unknown_name("experiment", name, experiments(), "attempt reproduce --help")
    numbers = {"seeds": seeds, "limit": limit, "train_limit": train_limit, "source_steps": source_steps}
    for option, number in numbers.items():
        _check_count(option, number)
    _check_count("bank", bank, optional=False)
    _check_count("first_seed", first_seed, optional=False, least=0)
    if rates is not None and not isinstance(rates, Mapping):
        raise ArgumentsError(f"rates is {rates!r}"[:200], "Give numbers by method, such as {'attempt': 0.03}.")
    session = Session.of(session)
    named = session.backbone or os.environ.get("ATTEMPT_BACKBONE")
    options = GridOptions(
        tasks=listed(tasks or ()),
        methods=listed(methods or ()),
        columns=listed(columns or ()),
        seeds=seeds,
        first_seed=first_seed,
        k=None if k is None else listed(k),
        per_class=per_class,
        limit=limit,
        train_limit=train_limit,
        sources=sources,
        train_sources=train_sources if train_sources in (None, "paper") else listed(train_sources),
        source_steps=source_steps,
        init_from=init_from,
        preset=preset,
        rates=rates or {},
        tuned=tuned,
        settings={name: value for name, value in settings.items() if value is not None},
        resume=resume,
        workers=workers,
        on_ray=on_ray,
        bank=bank,
    )
    return run_experiment(session, experiments()[name], options, listed(backbones or named or ()), progress)


def _check_count(name: str, number: object, *, optional: bool = True, least: int = 1) -> None:
    """Refuses what is not a number of something, before anything else is done."""
    if (number is None and optional) or (type(number) is int and number >= least):
        return
    raise ArgumentsError(f"{name} is {number!r}"[:200], f"Give {name} as one whole number, at least {least}.")
