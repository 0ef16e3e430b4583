"""Runs comparisons: methods on k rows (few-shot), and the paper's experiments as grids."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, replace
from typing import Any

from attempt_cli.backbones.names import DEFAULT_BACKBONE, find_backbone, listed_as, recorded_backbone, with_recorded
from attempt_cli.byte_sizes import total_memory
from attempt_cli.data.catalogue import load_task, task_names
from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.experiments.cell_queue import GridListener, GridResult
from attempt_cli.experiments.cells import Cell, CellResult, CellSpec, banks
from attempt_cli.experiments.instead import INSTEAD
from attempt_cli.experiments.methods import (
    ALONE,
    METHODS,
    PREPARED,
    check_methods,
    check_weight_methods,
    unknown_names,
    unread_settings,
)
from attempt_cli.experiments.paper import Experiment, paper_sources
from attempt_cli.experiments.plan import Plan, Terms, check_rows
from attempt_cli.experiments.report import Report, check_columns
from attempt_cli.experiments.runner import Runner, record_failure
from attempt_cli.experiments.sources import prepare, train_sources
from attempt_cli.experiments.summary import Row, summarise
from attempt_cli.experiments.tuning import TRIED, best_of_each, with_rates
from attempt_cli.experiments.worker_pool import WorkerPool
from attempt_cli.session import Session
from attempt_cli.sources import check_lengths, source_prompts
from attempt_cli.training.config import make_config
from attempt_cli.training.presets import settings_for
from attempt_registry import Prompt

Names = str | Sequence[str]


@dataclass(frozen=True)
class FewShotResult:
    """A comparison of methods on k training rows.

    Args:
        k: training rows, in total or of every class.
        per_class: whether k is of every class.
        steps: optimiser steps of every trained method.
        cells: one for each task, method and seed.
        rows: the numbers of the training rows, by "TASK/SEED".
    """

    k: int
    per_class: bool
    steps: int
    cells: Sequence[Cell]
    rows: Mapping[str, list[int]]

    @property
    def methods(self) -> list[Row]:
        """Means over seeds with intervals, and differences to prompt tuning that are paired by seed."""
        return summarise(self.cells)


def compare_on_few_rows(
    session: Session,
    tasks: Sequence[Task],
    *,
    k: int,
    per_class: bool,
    seeds: int,
    methods: Sequence[str],
    sources: Names,
    init_from: str | None,
    limit: int | None,
    tags: tuple[str, ...],
    bank: int,
    settings: Mapping[str, Any],
) -> FewShotResult:
    """Fills the cells of a few-shot comparison, those of prompts together; see `api.experiments.fewshot`."""
    check_methods(methods, ALONE)
    check_weight_methods(methods, session.quantize, session.device)
    for name in methods:  # what a task cannot be asked is refused before anything is trained
        for task in tasks if name in INSTEAD else ():
            INSTEAD[name].check(task)
    store = session.store
    start = store.prompt(init_from) if init_from else None
    length = settings.get("prompt_length")
    chosen, used = chosen_sources(session, tasks, methods, sources, start, length)
    training = {name: value for name, value in settings.items() if value is not None}
    if unread := unread_settings(training, methods):
        raise ArgumentsError(unread[0], "Leave it out.")
    training |= {"eval_every": 0, "prompt_length": length or (used[0].length if used else None)}
    config = make_config(None, **training)
    name = session.backbone or "the session's"
    # the k rows are drawn from all training rows: there is no validation to hold rows out for
    whole = [
        task.model_copy(update={"split_rule": "own"}) if task.files and task.split_rule == "held-out" else task
        for task in tasks
    ]
    plan = Plan(
        registry=store.folder,
        data_dir=session.rows_folder,
        tasks={task.name: task for task in whole},
        sources={(name, task): tuple(prompt.ref for prompt in prompts) for task, prompts in chosen.items()},
        init_from=init_from,
        settings={field: value for field, value in training.items() if value is not None},
        limit=limit,
        per_class=per_class,
        command=session.command,
        tags=tags,
        bank=bank,
    )
    specs = [
        CellSpec((task.name,), method, seed, name, k) for task in whole for seed in range(seeds) for method in methods
    ]
    runner = Runner(plan)
    # too few are an error at once
    rows = {f"{spec.task}/{spec.seed}": runner.choices.rows(spec)[0].train for spec in specs}
    for task in whole:
        runner.choices.test_rows(task)
    in_chat = bool(settings.get("chat_template"))
    runner.use_backbone(name, session.load_backbone(used, chat_template=in_chat))
    results: dict[CellSpec, CellResult] = {}
    for together in banks(specs, bank):
        for spec, result in zip(together, runner.run_many(together, session.listener), strict=True):
            if isinstance(result, AttemptError):
                raise result
            results[spec] = result
    cells = [cell for spec in specs for cell in results[spec].cells]
    numbers = {key: [example.row for example in drawn.examples] for key, drawn in rows.items()}
    return FewShotResult(k, per_class, config.total_steps(k), cells, numbers)


def chosen_sources(
    session: Session,
    tasks: Sequence[Task],
    methods: Sequence[str],
    sources: Names,
    start: Prompt | None,
    length: int | None,
) -> tuple[dict[str, tuple[Prompt, ...]], list[Prompt]]:
    """Returns each task's source prompts, where a method needs some, and all prompts that are used.

    Raises:
        AttemptError: there are none, or they differ in length from each other or from the length that is asked for.
    """
    needed = any(METHODS[name].needs_sources(start is not None) for name in methods)
    chosen = {  # never a source that has seen the task's own training rows
        task.name: source_prompts(session.store, sources, session.backbone_name, targets=[task.name]) if needed else ()
        for task in tasks
    }
    used = [*(prompt for prompts in chosen.values() for prompt in prompts), *([start] if start else [])]
    if any(METHODS[name].trains and METHODS[name].uses_sources for name in methods):
        check_lengths(used, length)
    return chosen, used


@dataclass(frozen=True, kw_only=True)
class GridOptions(Terms):
    """What a run of an experiment changes in it.

    Args:
        tasks, methods, columns: names; none takes the paper's.
        seeds: how many; None is the experiment's own number.
        first_seed: the lowest one.
        k: numbers of training rows that are drawn; None is the experiment's own, else all rows.
        sources: names of source prompts, or "all".
        train_sources: names of tasks whose source prompts are trained first, or "paper" for the paper's six.
        source_steps: steps for each source task.
        workers: processes at once.
        on_ray: whether workers are Ray actors.
        tuned: whether every method's learning rates are searched, with the same number of tries.
    """

    tasks: Sequence[str] = ()
    methods: Sequence[str] = ()
    columns: Sequence[str] = ()
    seeds: int | None = None
    first_seed: int = 0
    k: Sequence[int] | None = None
    sources: Names = "all"
    train_sources: Names | None = None
    source_steps: int | None = None
    workers: int = 1
    on_ray: bool = False
    tuned: bool = False


# makes what follows a grid's cells, from all of them and the number of workers
MakeGridListener = Callable[[Sequence[CellSpec], int], AbstractContextManager[GridListener]]


def run_experiment(
    session: Session,
    experiment: Experiment,
    options: GridOptions,
    backbones: Sequence[str] = (),
    progress: MakeGridListener | None = None,
) -> Report:
    """Fills an experiment's grid, after what its targets start from; see `api.experiments.reproduce`."""
    options = _at_its_size(experiment, options)
    tasks, methods = _checked(experiment, options)
    check_weight_methods(methods, session.quantize, session.device)
    if options.tuned:
        options = _tuned(session, options, tasks.values(), methods)
    backbones = backbones or ([experiment.backbone] if experiment.backbone else [])
    backbones, sources = _backbones_and_sources(session, options, list(backbones), list(tasks), methods)
    options = _like_sources(session, options, sources)
    plan = Plan(
        registry=session.store.folder,
        data_dir=session.rows_folder,
        tasks=tasks,
        source_settings={"steps": options.source_steps} if options.source_steps else {},
        device=session.device,
        dtype=session.dtype,
        quantize=session.quantize,
        input_cache=total_memory() // 4 // options.workers,
        command=session.command,
        tags=("reproduce",),
        **options.terms(),
    )
    pool = WorkerPool(options.workers, options.on_ray)
    make_listener = progress or (lambda specs, workers: nullcontext(_Notes(session)))

    def keep(spec: CellSpec, error: str, seconds: float) -> None:
        record_failure(session.store, plan.command, spec, error, seconds)

    def fill(plan: Plan, specs: Sequence[CellSpec]) -> GridResult:
        with make_listener(specs, min(pool.workers, len(specs))) as listener:
            return pool.fill(plan, specs, listener, keep, fresh=experiment.fresh)

    failures: dict[CellSpec, str] = {}
    names: list[str] = []
    if options.train_sources is not None:
        names = list(paper_sources()) if options.train_sources == "paper" else list(options.train_sources)
    kinds = [kind for kind in PREPARED if any(METHODS[method].prepared == kind for method in methods)]
    _refuse_unread(options, methods, trained=bool(names or kinds))
    own = {**{name: load_task(name) for name in names}, **_prepared_on(session, sources if kinds else {}), **tasks}
    check_rows(own.values(), plan.data_dir)
    if names:
        sources, trained = train_sources(plan, names, backbones, list(tasks), fill)
        failures |= trained.failures
    plan = replace(plan, sources=sources)
    if kinds:
        prepared, trained = prepare(plan, kinds, fill)
        plan, failures = replace(plan, prepared=prepared), failures | trained.failures
    specs = experiment.specs(
        tasks=list(tasks),
        methods=methods,
        seeds=range(options.first_seed, options.first_seed + (options.seeds or experiment.seeds)),
        backbones=backbones,
        ks=list(options.k if options.k is not None else experiment.k),
        sources=sources,
    )
    result = fill(plan, with_rates(specs) if options.tuned else specs)
    cells = best_of_each(result.cells, result.failures) if options.tuned else result.cells
    used = {cell.backbone for cell in result.cells}
    sizes = {backbone.name: backbone.parameters for backbone in session.store.backbones() if backbone.name in used}
    tried = result.cells if options.tuned else ()
    return Report(experiment, session.command, cells, failures | result.failures, sizes, tried, options.rates)


def _at_its_size(experiment: Experiment, options: GridOptions) -> GridOptions:
    """Returns the options with the experiment's own preset and numbers of rows, where none are given."""
    given = {name: getattr(options, name) for name in ("preset", "limit", "train_limit")}
    return replace(options, **{name: value or getattr(experiment, name) for name, value in given.items()})


def _tuned(session: Session, options: GridOptions, tasks: Iterable[Task], methods: Sequence[str]) -> GridOptions:
    """Returns the options with prompts in units of the embedding RMS, in which rates can be tried.

    Raises:
        ArgumentsError: there is nothing to choose by, or the rates are given.
    """
    if not any(METHODS[method].trains for method in methods):
        raise ArgumentsError("--tuned says nothing here: no method of the grid is trained", "Leave it out.")
    given = sorted(set(TRIED[0]) & set(options.settings)) + (["rates"] if options.rates else [])
    if given:
        named = " and ".join(f"--{name.replace('_', '-')}" for name in given)
        raise ArgumentsError(f"{named} does not go with --tuned, which tries rates", "Leave one of them out.")
    if options.k or options.settings.get("eval_every") == 0:
        said = "-k, which leaves no validation rows" if options.k else "--eval-every 0"
        raise ArgumentsError(
            f"--tuned chooses by validation rows, and does not go with {said}", "Leave one of them out."
        )
    for task in tasks:
        load_examples(task, "validation", data_dir=session.rows_folder, limit=1)
    return replace(options, settings={"units": "rms", **options.settings})


def _like_sources(
    session: Session, options: GridOptions, sources: Mapping[tuple[str, str], Sequence[str]]
) -> GridOptions:
    """Returns the options with prompts of all methods as long as the sources and placed as they are, if these agree."""
    prompts = [session.store.prompt(ref) for refs in sources.values() for ref in refs]
    settings = {}
    for name, values in (
        ("prompt_length", {prompt.length for prompt in prompts}),
        ("placement", {prompt.placement for prompt in prompts}),
    ):
        if len(values) == 1:  # backbones may have sources of their own
            settings[name] = values.pop()
    return replace(options, settings={**settings, **options.settings})


def _refuse_unread(options: GridOptions, methods: Sequence[str], *, trained: bool) -> None:
    """Refuses options that say nothing to these methods.

    Args:
        trained: whether anything is trained on source tasks.

    Raises:
        ArgumentsError: naming one.
    """
    using = [name for name, method in METHODS.items() if method.uses_sources]
    if options.source_steps is not None and not trained:
        prepared = [name for name, method in METHODS.items() if method.prepared]
        raise ArgumentsError(
            "--source-steps says nothing here: no source is trained",
            f"It goes with --train-sources, or with --methods {' or '.join(prepared)}.",
        )
    if options.sources != "all" and not set(methods) & set(using):
        raise ArgumentsError(
            "--sources says nothing here: no method of the grid uses sources", f"Methods that do: {', '.join(using)}."
        )


def _prepared_on(session: Session, sources: Mapping[tuple[str, str], Sequence[str]]) -> dict[str, Task]:
    """Returns the tasks of source prompts, as far as they are known by name."""
    names = {session.store.prompt(ref).task for refs in sources.values() for ref in refs}
    return {name: load_task(name) for name in sorted(names & set(task_names()))}


class _Notes:
    """Follows a grid by its remarks alone."""

    def __init__(self, session: Session) -> None:
        self._note = session.listener.note

    def began(self, spec: CellSpec) -> None: ...

    def step(self, spec: CellSpec, step: int, total: int, loss: float) -> None: ...

    def note(self, text: str) -> None:
        self._note(text)

    def done(self, spec: CellSpec, cells: tuple[Cell, ...], seconds: float) -> None:
        self._note(f"{spec}: {', '.join(f'{100 * cell.score:.1f}' for cell in cells) or 'done'}")

    def failed(self, spec: CellSpec, error: str, seconds: float) -> None:
        self._note(f"{spec}: failed: {error}")


def _checked(experiment: Experiment, options: GridOptions) -> tuple[dict[str, Task], list[str]]:
    """Returns the tasks and methods, or raises one error with all that is wrong with the options."""
    problems = []
    tasks: dict[str, Task] = {}
    for name in dict.fromkeys(options.tasks or experiment.tasks):
        try:
            task = load_task(name)
            tasks[task.name] = task
        except AttemptError as error:
            problems.append(f"{error.message}. {error.hint or ''}".strip())
    methods = list(dict.fromkeys(options.methods or [m for m in experiment.methods if m in METHODS]))
    problems += unknown_names("method", methods, METHODS)
    problems += check_columns(options.columns)
    problems += _wrong_rates(options.rates, methods)
    if not unknown_names("method", methods, METHODS):
        problems += unread_settings(options.settings, methods)
    wrong = [number for number in options.k or () if not isinstance(number, int) or number < 1]
    problems += [f"-k: '{number}' is not a number of rows" for number in wrong]
    try:
        make_config(None, **options.settings)
        settings_for(options.preset, task="", method="", kind="target", rows=0)
    except AttemptError as error:
        problems.append(error.message)
    if problems:
        raise AttemptError(
            f"{experiment.name} cannot be run:\n  " + "\n  ".join(problems),
            f"Methods: {', '.join(METHODS)}. `attempt tasks list` shows the tasks.",
        )
    return tasks, methods


def _wrong_rates(rates: Mapping[str, float], methods: Sequence[str]) -> list[str]:
    """Says which rates cannot be used: of a method that the grid does not train, or not above 0."""
    problems = []
    for method, rate in rates.items():
        if method not in methods or method not in METHODS:
            problems.append(f"--rates: the grid has no method '{method}'")
        elif type(rate) not in (int, float):
            problems.append(f"--rates, {method}: {rate!r} is not a number"[:200])
        elif not METHODS[method].trains:
            problems.append(f"--rates: {method} trains nothing")
        else:
            try:
                make_config(None, **{METHODS[method].rate: rate})
            except AttemptError as error:
                problems.append(f"--rates, {method}: {error.message}")
    return problems


def _backbones_and_sources(
    session: Session, options: GridOptions, backbones: list[str], tasks: Sequence[str], methods: Sequence[str]
) -> tuple[list[str], dict[tuple[str, str], tuple[str, ...]]]:
    """Returns the backbones, as they will be loaded, and the source prompts of each for each task."""
    store = session.store
    start = store.prompt(options.init_from) if options.init_from else None
    backbones = [with_recorded(store, backbone) for backbone in backbones]
    names = [find_backbone(backbone).name for backbone in backbones]
    if twice := next((name for name in names if names.count(name) > 1), None):
        raise ArgumentsError(
            f"two backbones have the name '{twice}', and a report tells backbones apart by their names",
            "Rename one of the folders, or name each backbone once.",
        )
    needed = any(METHODS[method].needs_sources(start is not None) for method in methods)
    if not needed or options.train_sources is not None:
        return backbones or [recorded_backbone(store, start) if start else DEFAULT_BACKBONE], {}
    kept_as = {backbone: replace(session, registry=store, backbone=backbone).backbone_name for backbone in backbones}
    if not backbones:
        first = source_prompts(store, options.sources, None)[0]
        backbones = [recorded_backbone(store, first)]
        kept_as = {backbones[0]: listed_as(store, first.backbone, first.fingerprint)}
    sources = {}
    for backbone in backbones:
        for task in tasks:
            chosen = source_prompts(store, options.sources, kept_as[backbone], targets=[task])
            check_lengths([*chosen, *([start] if start else [])], options.settings.get("prompt_length"))
            sources[backbone, task] = tuple(prompt.ref for prompt in chosen)
    return backbones, sources
