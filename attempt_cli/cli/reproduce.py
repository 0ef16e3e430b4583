"""`attempt reproduce`: the paper's tables and figures as resumable grids."""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    attention_rank_option,
    bank_option,
    chat_template_option,
    eval_every_option,
    max_length_option,
    names_or_all,
    numbers_by_name,
    prompt_length_option,
    rate_options,
    refuse_options,
    split_names,
    typed_command,
    where_options,
)
from attempt_cli.cli.output import JSON_VERSION
from attempt_cli.errors import AttemptError, unknown_name
from attempt_cli.experiments.methods import methods_help

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from attempt_cli.cli.main import Settings
    from attempt_cli.cli.progress import GridProgress
    from attempt_cli.experiments.cells import CellSpec
    from attempt_cli.experiments.paper import Experiment
    from attempt_cli.experiments.report_table import ReportTable


@click.command("reproduce", epilog=methods_help())
@click.argument("name", metavar="NAME")
@click.option("--tasks", help="Tasks, comma separated. [default: the paper's]")
@click.option("--methods", help="Names, see below. [default: the paper's]")
@click.option("--steps", type=click.IntRange(min=1), help="Optimiser steps, for all. [default: 500, or the preset's]")
@click.option("--epochs", type=float, help="Passes over the training rows, instead of --steps.")
@click.option("--seeds", type=click.IntRange(min=1), help="How many. [default: 3; one where no score is compared]")
@click.option(
    "--first-seed",
    type=click.IntRange(min=0),
    default=0,
    show_default=True,
    help="The lowest one: to add seeds to a run of another machine.",
)
@click.option("-k", "k", help="Numbers of training rows, drawn by seed: 4,16,32. [default: table3's; else all rows]")
@click.option("--per-class", is_flag=True, help="k rows of every class, not k in total.")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    help="Test rows, a random sample of each task. [default: all, or fewer]",
)
@click.option(
    "--train-limit",
    type=click.IntRange(min=1),
    help="Training rows, a random sample of each task. [default: likewise]",
)
@click.option("--sources", default="all", show_default=True, help="Source prompts, comma separated, or `all`.")
@click.option("--train-sources", help="Train source prompts of these tasks first; `paper` for the paper's six.")
@click.option(
    "--source-steps",
    type=click.IntRange(min=1),
    help="Steps for each source task: of source prompts, the attention prior, SPoT-g's prompt. [default: as --steps]",
)
@click.option("--init-from", help="Start of the targets. [default: the source that fits the training rows best]")
@click.option("--preset", help="Settings by task and method: `paper` has the paper's.")
@click.option(
    "--rates",
    help="Learning rates of single methods, of prompts, else of factors or weights: prompt-tuning=0.1,lora=0.0003.",
)
@click.option("--tuned", is_flag=True, help="Try three learning rates for every method; the validation rows choose.")
@prompt_length_option
@chat_template_option
@click.option("--batch-size", type=int, help="[default: 16]")
@rate_options
@attention_rank_option
@max_length_option
@bank_option
@click.option("--max-tokens", type=int, help="Positions computed at once, pads included. [default: 8192]")
@eval_every_option
@click.option("--eval-rows", type=int, help="Validation rows looked at in training. [default: 200]")
@click.option(
    "--resume", is_flag=True, help="Take finished cells from the registry, unfinished from their checkpoints."
)
@click.option("--workers", type=click.IntRange(min=1), default=1, show_default=True, help="Processes at once.")
@click.option("--ray", "on_ray", is_flag=True, help="Workers are Ray actors: RAY_ADDRESS's cluster, else this machine.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Write CSV, JSON, Markdown, PNG here.")
@click.option("--png", type=click.Path(dir_okay=False, path_type=Path), help="Write the picture to this file.")
@click.option("--columns", help="Columns of the table, comma separated.")
@where_options
@click.pass_context
def command(ctx: click.Context, /, name: str, where: BackboneOptions, **options: Any) -> None:
    """Run one of the paper's experiments (table1, 2, 3, 4, 9, fig3, 4, 5, 6, 7), or a later paper's.

    \b
      table1  GLUE and SuperGLUE          fig3  score against trained parameters
      table2  MRQA and other tasks        fig4  score against backbone size (--backbone a,b,c)
      table3  few-shot, k = 4, 16, 32     fig5  score against the number of sources
      table4  ablations                   fig6  attention of targets on sources
      table9  peak memory of training     fig7  trained parameters against backbone size
      pt-moe, peft-bench                  Li et al. 2025, Belanec et al. 2025, at a size that runs on a processor

    Each is a grid of cells: method, task, seed. All methods get the same rows and the same steps. Every cell is kept in
    the registry; after a kill, --resume repeats nothing that is done. A cell that fails is shown as failed, the others
    continue, and the exit code is 1 at the end. Published numbers stand beside ours and are marked as such.

    pt-moe and peft-bench have presets of their own; without --limit and --train-limit they take 200 and 500 test rows
    and 1,000 training rows of a task. Their sources are the registry's (`attempt registry add --starter`).

    \b
      attempt reproduce table3 --steps 100 --limit 500 --output results
      attempt reproduce table1 --tasks rte,mrpc,cola --train-sources mnli,qnli --steps 300 --workers 4 --resume
      attempt reproduce fig7 --png parameters.png
      attempt reproduce peft-bench --tuned
    """
    from attempt_cli.experiments.paper import experiments

    settings: Settings = ctx.obj
    if name not in experiments():
        raise unknown_name("experiment", name, experiments(), "attempt reproduce --help")
    experiment, folder = experiments()[name], options.pop("output")
    _refuse_unread(ctx, experiment)
    given = {**options, **_names(options)}
    picture = _picture(experiment, folder, given.pop("png"))
    table, failed = (_count if experiment.counted else _run)(settings, experiment, where, given, picture)
    if settings.output.format == "json":
        settings.output.json(table.document)
    else:
        settings.output.rows("lines", table.printed, given["columns"] or table.shown, name="method")
        for note in table.notes:
            settings.output.note(note)
    if folder is not None:
        for file in table.write(folder, JSON_VERSION):
            settings.output.note(f"Written: {file}")
    if failed:
        cells = "1 cell" if failed == 1 else f"{failed} cells"
        settings.output.note(f"{cells} failed; the same command with --resume tries again.")
        ctx.exit(1)


def _refuse_unread(ctx: click.Context, experiment: Experiment) -> None:
    """Refuses options that say nothing to an experiment, or beside another option."""
    options = ctx.params
    if experiment.counted:
        read = {"name", "methods", "columns", "backbone", "png", "output"}
        refuse_options(ctx, set(options) - read, f"to {experiment.name}: it counts parameters and trains nothing")
    if options["train_sources"] is not None:
        refuse_options(ctx, ["sources"], "with --train-sources: targets mix what it trains")
    if not (options["k"] or experiment.k):
        refuse_options(ctx, ["per_class"], "without -k: all rows are trained on")


def _names(options: Mapping[str, Any]) -> dict[str, Any]:
    """Returns the comma lists among the options as lists."""
    lists = {key: split_names(options[key]) if options[key] else None for key in ("tasks", "methods", "columns", "k")}
    train_sources = options["train_sources"]
    return {
        **lists,
        # what is no number is refused with everything else that is wrong
        "k": lists["k"] and [int(text) if text.isdecimal() and len(text) < 19 else text for text in lists["k"]],
        "sources": names_or_all(options["sources"]),
        "train_sources": train_sources if train_sources in (None, "paper") else split_names(train_sources),
        "rates": numbers_by_name("--rates", options["rates"], "attempt=0.03") if options["rates"] is not None else None,
    }


def _count(
    settings: Settings, experiment: Experiment, where: BackboneOptions, options: Mapping[str, Any], picture: Path | None
) -> tuple[ReportTable, int]:
    """Counts trained parameters (figure 7): no training, no registry."""
    from attempt_cli.backbones.shapes import backbone_shapes
    from attempt_cli.experiments.parameters import count_all, draw_parameters, parameter_table

    backbones = split_names(where.backbone) if where.backbone else list(backbone_shapes())
    counts = count_all(options["methods"] or experiment.methods, backbones)
    table = parameter_table(counts, options["columns"] or experiment.columns, experiment.title, typed_command())
    if picture:
        draw_parameters(picture, counts)
        settings.output.note(f"Written: {picture}")
    return table, 0


def _run(
    settings: Settings, experiment: Experiment, where: BackboneOptions, options: Mapping[str, Any], picture: Path | None
) -> tuple[ReportTable, int]:
    """Runs the experiment and draws its picture; returns its table and the number of failed cells."""
    from attempt_cli.api.experiments import reproduce
    from attempt_cli.cli.progress import GridProgress
    from attempt_cli.experiments.figures import draw_experiment

    def progress(specs: Sequence[CellSpec], workers: int) -> GridProgress:
        return GridProgress(specs, workers, silent=settings.output.format == "quiet")

    session = settings.session(where)
    named = session.backbone or os.environ.get("ATTEMPT_BACKBONE")
    backbones = split_names(named) if named else []
    report = reproduce(experiment.name, backbones=backbones, progress=progress, session=session, **options)
    if picture:
        try:
            draw_experiment(picture, report.rows, experiment.plot, report.backbone_parameters)
            settings.output.note(f"Written: {picture}")
        except AttemptError as error:  # the numbers are worth more than their picture
            settings.output.note(f"No picture: {error.message}. {error.hint or ''}".strip())
    return report.table(options["columns"] or ()), len(report.failures)


def _picture(experiment: Experiment, folder: Path | None, file: Path | None) -> Path | None:
    """Returns the picture's file, or None; makes the folder of --output."""
    if file is None and folder is not None:
        folder.mkdir(parents=True, exist_ok=True)
        file = folder / f"{experiment.name}.png"
    return file
