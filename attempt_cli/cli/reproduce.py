"""`attempt reproduce`: the paper's tables and figures, on any backbone and at any budget."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    backbone_options,
    check_lengths,
    chosen_sources,
    rate_options,
    split_names,
    typed_command,
    where_from,
)
from attempt_cli.cli.output import JSON_VERSION
from attempt_cli.errors import AttemptError, unknown_name
from attempt_cli.experiments.methods import METHODS, PREPARED, methods_help, unknown_names

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task
    from attempt_cli.experiments.cell_queue import GridResult
    from attempt_cli.experiments.grid import CellSpec, Plan
    from attempt_cli.experiments.paper import Experiment
    from attempt_cli.experiments.report_table import ReportTable
    from attempt_registry import Registry


@click.command("reproduce")
@click.argument("name", metavar="NAME")
@click.option("--tasks", help="Tasks, comma separated. [default: the paper's]")
@click.option("--methods", help=f"{methods_help()} [default: the paper's]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps, for all. [default: 500, or the preset's]")
@click.option("--epochs", type=float, help="Passes over the training rows, instead of --steps.")
@click.option("--seeds", type=click.IntRange(min=1), help="How many. [default: 3; one where no score is compared]")
@click.option("-k", "k", help="Numbers of training rows, drawn by seed: 4,16,32. [default: table3's; else all rows]")
@click.option("--per-class", is_flag=True, help="k rows of every class, not k in total.")
@click.option("--limit", type=click.IntRange(min=1), help="Test rows, a random sample of each task. [default: all]")
@click.option("--train-limit", type=click.IntRange(min=1), help="Training rows, a random sample of each task.")
@click.option("--sources", default="all", show_default=True, help="Source prompts, comma separated, or `all`.")
@click.option("--train-sources", help="Train source prompts of these tasks first; `paper` for the paper's six.")
@click.option(
    "--source-steps",
    type=click.IntRange(min=1),
    help="Steps for each source task: of source prompts, the attention prior, SPoT-g's prompt. [default: as --steps]",
)
@click.option("--init-from", help="Start of the targets. [default: the source that fits the training rows best]")
@click.option("--preset", help="Settings by task and method: `paper` has the paper's.")
@click.option("--prompt-length", type=int, help="m. [default: 20, or the sources' own]")
@click.option("--batch-size", type=int, help="[default: 16]")
@rate_options
@click.option("--max-length", type=int, help="Input tokens of a row. [default: the task's]")
@click.option("--max-tokens", type=int, help="Positions computed at once, pads included. [default: 8192]")
@click.option("--eval-every", type=int, help="Steps between evaluations, 0 for none. [default: ten in all]")
@click.option(
    "--resume", is_flag=True, help="Take finished cells from the registry, unfinished from their checkpoints."
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at once.")
@click.option("--ray", "on_ray", is_flag=True, help="Workers are Ray actors: RAY_ADDRESS's cluster, else this machine.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Write CSV, JSON, Markdown, PNG here.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture to this file.")
@click.option("--columns", help="Columns of the table, comma separated.")
@backbone_options
@click.pass_context
def command(ctx: click.Context, /, name: str, **options: Any) -> None:
    """Run one of the paper's experiments: table1, 2, 3, 4, 9 or fig3, 4, 5, 6, 7.

    \b
      table1  GLUE and SuperGLUE          fig3  score against trained parameters
      table2  MRQA and other tasks        fig4  score against backbone size (--backbone a,b,c)
      table3  few-shot, k = 4, 16, 32     fig5  score against the number of sources
      table4  ablations                   fig6  attention of targets on sources
      table9  peak memory of training     fig7  trained parameters against backbone size

    Each is a grid of cells: method, task, seed. All methods get the same rows and the same steps. Every cell is kept in
    the registry; after a kill, --resume repeats nothing that is done. A cell that fails is shown as failed, the others
    continue, and the exit code is 1 at the end. Published numbers stand beside ours and are marked as such.

    \b
      attempt reproduce table3 --steps 100 --limit 500 --output results
      attempt reproduce table1 --tasks rte,mrpc,cola --train-sources mnli,qnli --steps 300 --workers 4 --resume
      attempt reproduce fig7 --png parameters.png
    """
    from attempt_cli.experiments.paper import experiments

    settings: Settings = ctx.obj
    if name not in experiments():
        raise unknown_name("experiment", name, experiments(), "attempt reproduce --help")
    experiment = experiments()[name]
    for key in ("tasks", "methods", "columns"):
        options[key] = split_names(options[key]) if options[key] is not None else None
    table, failed = (_count if experiment.counted else _run)(settings, experiment, options)
    if settings.output.format == "json":
        settings.output.json(table.document)
    else:
        settings.output.rows("lines", table.printed, options["columns"] or table.shown, name="method")
        for note in table.notes:
            settings.output.note(note)
    if options["output"] is not None:
        for file in table.write(options["output"], JSON_VERSION):
            settings.output.note(f"Written: {file}")
    if failed:
        cells = "1 cell" if failed == 1 else f"{failed} cells"
        settings.output.note(f"{cells} failed; the same command with --resume tries again.")
        ctx.exit(1)


def _count(settings: Settings, experiment: Experiment, options: dict[str, Any]) -> tuple[ReportTable, int]:
    """Counts trained parameters (figure 7): no training, no registry."""
    from attempt_cli.backbones.shapes import backbone_shapes
    from attempt_cli.experiments.parameters import count_all, draw_parameters, parameter_table

    backbones = split_names(options["backbone"]) if options["backbone"] else list(backbone_shapes())
    counts = count_all(options["methods"] or experiment.methods, backbones)
    table = parameter_table(counts, options["columns"] or experiment.columns, experiment.title, typed_command())
    if picture := _picture(experiment, options):
        draw_parameters(picture, counts)
        settings.output.note(f"Written: {picture}")
    return table, 0


def _run(settings: Settings, experiment: Experiment, options: dict[str, Any]) -> tuple[ReportTable, int]:
    """Fills the grid and draws its picture; returns its table and the number of failed cells."""
    from dataclasses import replace

    from attempt_cli.cli.progress import GridProgress
    from attempt_cli.experiments.figures import draw_experiment
    from attempt_cli.experiments.grid import record_failure
    from attempt_cli.experiments.paper import paper_sources
    from attempt_cli.experiments.report import Report
    from attempt_cli.experiments.sources import prepare, train_sources
    from attempt_cli.experiments.worker_pool import WorkerPool

    registry = settings.registry()
    tasks, methods, ks = _checked(experiment, options)
    backbones, sources = _backbones_and_sources(registry, options, list(tasks), methods)
    plan = _plan(settings, registry, tasks, options)
    pool = WorkerPool(options["workers"], options["on_ray"])

    def keep(spec: CellSpec, error: str, seconds: float) -> None:
        record_failure(registry, plan.command, spec, error, seconds)

    def fill(plan: Plan, specs: Sequence[CellSpec]) -> GridResult:
        silent = settings.output.format == "quiet"
        with GridProgress(specs, min(pool.workers, len(specs)), silent=silent) as progress:
            return pool.fill(plan, specs, progress, keep, fresh=experiment.fresh)

    failures: dict[CellSpec, str] = {}
    if options["train_sources"] is not None:
        wanted = options["train_sources"].strip()
        names = list(paper_sources()) if wanted == "paper" else split_names(wanted)
        sources, trained = train_sources(plan, names, backbones, list(tasks), fill)
        failures |= trained.failures
    plan = replace(plan, sources=sources)
    kinds = [kind for kind in PREPARED if any(METHODS[method].prepared == kind for method in methods)]
    if kinds:
        prepared, trained = prepare(plan, kinds, fill)
        plan, failures = replace(plan, prepared=prepared), failures | trained.failures
    specs = experiment.specs(
        tasks=list(tasks),
        methods=methods,
        seeds=options["seeds"] or experiment.seeds,
        backbones=backbones,
        ks=ks,
        sources=sources,
    )
    result = fill(plan, specs)
    failures |= result.failures
    used = {cell.backbone for cell in result.cells}
    sizes = {backbone.name: backbone.parameters for backbone in registry.backbones() if backbone.name in used}
    report = Report(experiment, typed_command(), result.cells, failures, sizes)
    if picture := _picture(experiment, options):
        try:
            draw_experiment(picture, report.rows, experiment.plot, sizes)
            settings.output.note(f"Written: {picture}")
        except AttemptError as error:  # the numbers are worth more than their picture
            settings.output.note(f"No picture: {error.message}. {error.hint or ''}".strip())
    return report.table(options["columns"] or ()), len(failures)


def _checked(experiment: Experiment, options: dict[str, Any]) -> tuple[dict[str, Task], list[str], list[int]]:
    """Returns tasks, methods and numbers of rows, or raises one error with all that is wrong with the options."""
    from attempt_cli.data.catalogue import load_task
    from attempt_cli.experiments.report import check_columns
    from attempt_cli.training.config import make_config
    from attempt_cli.training.presets import settings_for

    problems = []
    tasks: dict[str, Task] = {}
    wanted = options["tasks"] or experiment.tasks
    for name in dict.fromkeys(wanted):
        try:
            task = load_task(name)
            tasks[task.name] = task
        except AttemptError as error:
            problems.append(f"{error.message}. {error.hint or ''}".strip())
    methods = list(dict.fromkeys(options["methods"] or [m for m in experiment.methods if m in METHODS]))
    problems += unknown_names("method", methods, METHODS)
    problems += check_columns(options["columns"] or [])
    ks = list(experiment.k)
    if options["k"] is not None:
        ks = []
        for number in split_names(options["k"]):
            if number.isdigit() and int(number) > 0:
                ks.append(int(number))
            else:
                problems.append(f"-k: '{number}' is not a number of rows")
    try:
        make_config(None, **_given(options))
        settings_for(options["preset"], task="", method="", kind="target", rows=0)
    except AttemptError as error:
        problems.append(error.message)
    if problems:
        raise AttemptError(
            f"{experiment.name} cannot be run:\n  " + "\n  ".join(problems),
            f"Methods: {', '.join(METHODS)}. `attempt tasks list` shows the tasks.",
        )
    return tasks, methods, ks


TRAINING = (
    "steps",
    "epochs",
    "prompt_length",
    "batch_size",
    "learning_rate",
    "attention_learning_rate",
    "weight_learning_rate",
    "temperature",
    "max_length",
    "max_tokens",
    "eval_every",
)


def _given(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the settings of a training that were typed."""
    return {name: options[name] for name in TRAINING if options[name] is not None}


def _plan(settings: Settings, registry: Registry, tasks: Mapping[str, Task], options: Mapping[str, Any]) -> Plan:
    from attempt_cli.byte_sizes import total_memory
    from attempt_cli.experiments.grid import Plan

    return Plan(
        registry=registry.folder,
        data_dir=settings.data_dir,
        tasks=tasks,
        source_settings={"steps": options["source_steps"]} if options["source_steps"] else {},
        init_from=options["init_from"],
        settings=_given(options),
        preset=options["preset"],
        limit=options["limit"],
        train_limit=options["train_limit"],
        per_class=options["per_class"],
        device=options["device"],
        dtype=options["dtype"],
        input_cache=total_memory() // 4 // options["workers"],
        command=typed_command(),
        tags=("reproduce",),
        resume=options["resume"],
    )


def _backbones_and_sources(
    registry: Registry, options: Mapping[str, Any], tasks: Sequence[str], methods: Sequence[str]
) -> tuple[list[str], dict[tuple[str, str], tuple[str, ...]]]:
    """Returns the backbones, as they will be loaded, and the source prompts of each for each task."""
    from attempt_cli.backbones.names import DEFAULT_BACKBONE, find_backbone

    start = registry.prompt(options["init_from"]) if options["init_from"] else None
    named = options["backbone"] or os.environ.get("ATTEMPT_BACKBONE")
    backbones = split_names(named) if named else []
    needed = any(METHODS[method].needs_sources(start is not None) for method in methods)
    if not needed or options["train_sources"] is not None:
        return backbones or [where_from(registry, start) if start else DEFAULT_BACKBONE], {}
    kept_as = {backbone: find_backbone(backbone).name for backbone in backbones}
    if not backbones:
        first = chosen_sources(registry, options["sources"], None)[0]
        backbones = [where_from(registry, first)]
        kept_as = {backbones[0]: first.backbone}
    sources = {}
    for backbone in backbones:
        for task in tasks:
            chosen = chosen_sources(registry, options["sources"], kept_as[backbone], targets=[task])
            check_lengths([*chosen, *([start] if start else [])], options["prompt_length"])
            sources[backbone, task] = tuple(prompt.ref for prompt in chosen)
    return backbones, sources


def _picture(experiment: Experiment, options: Mapping[str, Any]) -> Path | None:
    """Returns the picture's file, or None; makes the folder of --output."""
    file: Path | None = options["png"]
    if file is None and options["output"] is not None:
        options["output"].mkdir(parents=True, exist_ok=True)
        file = options["output"] / f"{experiment.name}.png"
    return file
