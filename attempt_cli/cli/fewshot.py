"""`attempt fewshot`: methods compared on k training rows."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    FILE_FIELDS,
    attach_input_cache,
    backbone_name,
    backbone_options,
    check_lengths,
    chosen_backbone,
    chosen_sources,
    chosen_task,
    input_cache_options,
    rate_options,
    split_names,
    task_options,
    typed_command,
)
from attempt_cli.experiments.methods import ALONE, METHODS, check_methods, methods_help
from attempt_cli.placement import PLACEMENTS

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task


@click.command("fewshot")
@click.option("-k", "k", type=click.IntRange(min=1), default=16, show_default=True, help="Training rows.")
@click.option("--per-class", is_flag=True, help="k rows of every class, not k in total.")
@click.option("--tasks", default=None, help="Tasks, comma separated. [default: boolq,cb,scitail]")
@task_options
@click.option(
    "--seeds",
    type=click.IntRange(min=1),
    default=3,
    show_default=True,
    help="Draws of rows.",
)
@click.option(
    "--methods",
    default="source,prompt-tuning,spot,attempt",
    show_default=True,
    help=methods_help(ALONE),
)
@click.option("--sources", default="all", show_default=True, help="Source prompts, comma separated, or `all`.")
@click.option("--init-from", help="Start of SPoT and ATTEMPT. [default: the source that fits the k rows best]")
@click.option("--steps", type=click.IntRange(min=1), default=100, show_default=True, help="Optimiser steps, for all.")
@click.option("--prompt-length", type=int, help="m. [default: 20, or the sources' own]")
@click.option(
    "--placement",
    type=click.Choice(PLACEMENTS),
    help="Of prompts, before or after the input. [default: the sources' own, else the backbone's]",
)
@input_cache_options
@click.option("--batch-size", type=int, help="[default: 16]")
@rate_options
@click.option("--max-length", type=int, help="Input tokens of a row. [default: the task's]")
@click.option(
    "--limit",
    type=click.IntRange(min=1),
    default=500,
    show_default=True,
    help="Test rows, a random sample of each task.",
)
@backbone_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    k: int,
    per_class: bool,
    tasks: str | None,
    seeds: int,
    methods: str,
    sources: str,
    init_from: str | None,
    steps: int,
    limit: int,
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
    from attempt_cli.artefacts import remember_backbone
    from attempt_cli.cli.progress import TrainingProgress
    from attempt_cli.data.rows import load_examples
    from attempt_cli.experiments.cells import TaskContext, drawn_rows
    from attempt_cli.experiments.report import result_line
    from attempt_cli.experiments.summary import summarise
    from attempt_cli.training.config import make_config

    registry = settings.registry()
    names = split_names(methods)
    check_methods(names, ALONE)
    start = registry.prompt(init_from) if init_from else None
    wanted = _tasks(tasks, options)
    helped = {}  # the sources of each task: never one that has seen the task's own training rows
    for task in wanted:
        needed = [name for name in names if METHODS[name].needs_sources(start is not None)]
        helped[task.name] = (
            chosen_sources(registry, sources, backbone_name(options), targets=[task.name]) if needed else ()
        )
    used = [*(prompt for prompts in helped.values() for prompt in prompts), *([start] if start else [])]
    length = options.pop("prompt_length")
    if any(METHODS[name].trains and METHODS[name].uses_sources for name in names):
        check_lengths(used, length)
    length = length or (used[0].length if used else None)
    cache = {key: options.pop(key) for key in ("input_cache", "input_cache_dir")}
    training = {key: options.pop(key) for key in list(options) if key not in ("backbone", "device", "dtype")}
    config = make_config(None, steps=steps, prompt_length=length, eval_every=0, **training)
    draws, tests = {}, {}  # drawn before the backbone is loaded: too few rows are an error at once
    for task in wanted:
        pool = load_examples(task, "train", data_dir=settings.data_dir)
        tests[task.name] = load_examples(task, "test", data_dir=settings.data_dir, limit=limit)
        for seed in range(seeds):
            draws[task.name, seed] = drawn_rows(pool, task, k, per_class=per_class, seed=seed)
    backbone = chosen_backbone(registry, options, used, settings.output.note)
    attach_input_cache(backbone, cache)
    remember_backbone(registry, backbone)
    cells = []
    silent = settings.output.format == "quiet"
    for task in wanted:
        context = TaskContext(
            registry=registry,
            backbone=backbone,
            task=task,
            test=tests[task.name],
            config=config,
            sources=helped[task.name],
            init_from=start,
            name=f"{task.name}-{k}{'-per-class' if per_class else ''}-shot",
            command=typed_command(),
            tags=("fewshot",),
            k=k,
            note=settings.output.note,
        )
        for seed in range(seeds):
            with TrainingProgress(f"{task.name} k={k} seed {seed}", silent=silent) as progress:
                cells += context.run(names, draws[task.name, seed], seed, progress)
    results = summarise(cells)
    if settings.output.format == "json":
        settings.output.json(
            {
                "k": k,
                "per_class": per_class,
                "steps": steps,
                "methods": [asdict(row) for row in results],
                "cells": [asdict(cell) for cell in cells],
                "rows": {f"{name}/{seed}": [e.row for e in draw.examples] for (name, seed), draw in draws.items()},
            }
        )
        return
    settings.output.rows(
        "methods",
        [result_line(row) for row in results],
        ["task", "method", "score", "against_prompt_tuning", "seeds", "n", "steps", "attention"],
        name="method",
    )


def _tasks(names: str | None, options: dict[str, Any]) -> list[Task]:
    from attempt_cli.data.catalogue import load_task

    if any(options[field] is not None for field in FILE_FIELDS):
        if names is not None:
            raise click.UsageError("give --tasks or files, not both")
        task = chosen_task(None, options)
        # the k rows are drawn from all training rows: there is no validation to hold rows out for
        return [task.model_copy(update={"split_rule": "own"}) if task.split_rule == "held-out" else task]
    text_format = options.pop("text_format")
    for field in FILE_FIELDS:
        options.pop(field)
    tasks = [load_task(name) for name in split_names(names or "boolq,cb,scitail")]
    return [task.with_format(text_format) if text_format else task for task in tasks]
