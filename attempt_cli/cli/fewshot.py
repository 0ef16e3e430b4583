"""`attempt fewshot`: methods compared on k training rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    CacheOptions,
    bank_option,
    cache_options,
    chat_template_option,
    max_length_option,
    names_or_all,
    placement_option,
    prompt_length_option,
    rate_options,
    split_names,
    where_options,
)
from attempt_cli.cli.row_options import RowOptions, row_options_without, validation_file_option
from attempt_cli.cli.training import training_session
from attempt_cli.experiments.methods import ALONE, methods_help

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task

COLUMNS = [
    *("task", "method", "score", "against_prompt_tuning", "p", "seeds", "n", "steps"),
    *("trained_parameters", "extra_tokens", "training_seconds", "orders", "attention"),
]


@click.command("fewshot", epilog=methods_help(ALONE))
@click.option("-k", "k", type=click.IntRange(min=1), default=16, show_default=True, help="Training rows.")
@click.option("--per-class", is_flag=True, help="k rows of every class, not k in total.")
@click.option("--tasks", default=None, help="Tasks, comma separated. [default: boolq,cb,scitail]")
@row_options_without(validation_file_option)
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Draws of rows.")
@click.option(
    "--methods", default="source,prompt-tuning,spot,attempt", show_default=True, help="Comma separated, see below"
)
@click.option("--sources", default="all", show_default=True, help="Source prompts, comma separated, or `all`.")
@click.option("--init-from", help="Start of SPoT and ATTEMPT. [default: the source that fits the k rows best]")
@click.option("--steps", type=click.IntRange(min=1), default=100, show_default=True, help="Optimiser steps, for all.")
@prompt_length_option
@placement_option
@chat_template_option
@cache_options
@click.option("--batch-size", type=int, help="[default: 16]")
@rate_options
@max_length_option
@bank_option
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Test rows, a random sample of each task.",
)
@where_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    tasks: str | None,
    rows: RowOptions,
    methods: str,
    sources: str,
    cache: CacheOptions,
    where: BackboneOptions,
    **options: Any,
) -> None:
    """Compare methods on k training rows: same rows, same steps, several seeds.

    Rows are drawn class-balanced by seed, k in total or --per-class of each; every run records its rows. There is no
    validation: the last step counts. Means come with a 95 % interval over seeds, differences to
    prompt tuning are paired by seed.

    \b
      attempt fewshot -k 16
      attempt fewshot -k 4 --tasks cb --seeds 5 --methods none,source,prompt-tuning,attempt
      attempt fewshot -k 8 --per-class --train-file a.csv --test-file b.csv --input "{text}" --label mood
    """
    from attempt_cli.api.experiments import fewshot
    from attempt_cli.experiments.report import PAIRED_P, result_line

    chosen = _tasks(tasks, rows)
    with training_session(settings, where, cache) as session:
        result = fewshot(
            chosen,
            methods=split_names(methods),
            sources=names_or_all(sources) or "all",
            session=session,
            **options,
        )
    if settings.output.format == "json":
        settings.output.json(
            {
                "k": result.k,
                "per_class": result.per_class,
                "steps": result.steps,
                "methods": [asdict(row) for row in result.methods],
                "cells": [asdict(cell) for cell in result.cells],
                "rows": result.rows,
            }
        )
    else:
        tested = any(row.p is not None for row in result.methods)  # of one seed there is no test
        lines = [result_line(row) for row in result.methods]
        columns = [name for name in COLUMNS if tested or name != "p"]
        columns = [name for name in columns if name != "orders" or any(line["orders"] for line in lines)]
        settings.output.rows("methods", lines, columns, name="method")
        if tested:
            settings.output.note(PAIRED_P)


def _tasks(names: str | None, rows: RowOptions) -> list[Task]:
    """Returns the tasks of --tasks, or the one that files describe."""
    from attempt_cli.api.experiments import FEW_SHOT_TASKS

    if names is not None:
        rows.check_unnamed()
    elif rows.train_file or rows.test_file:
        return [rows.task(None)]
    return [task for name in (split_names(names) if names else FEW_SHOT_TASKS) for task in rows.tasks(name)]
