"""`attempt sweep`: one task's prompt under many settings at once."""

from __future__ import annotations

import shlex
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    CacheOptions,
    bank_option,
    cache_options,
    chat_template_option,
    eval_every_option,
    max_length_option,
    names_or_all,
    placement_option,
    prompt_length_option,
    split_names,
    where_options,
)
from attempt_cli.cli.output import JSON_VERSION
from attempt_cli.cli.row_options import RowOptions, row_options
from attempt_cli.cli.training import training_session
from attempt_cli.experiments.methods import ALONE, METHODS, methods_help

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings

NOT_AGAIN = ("task", "sources", "init_from", "name", "resume", "test_file")
TRAINED = [name for name in ALONE if METHODS[name].trains]


class Values(click.ParamType):  # type: ignore[type-arg,unused-ignore]  # generic in newer releases of click
    """A comma list of numbers.

    Args:
        kind: of a number.
    """

    name = "list"

    def __init__(self, kind: type[int] | type[float]) -> None:
        self.kind = kind

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> list[int | float]:
        if isinstance(value, list):
            return value
        try:
            return [self.kind(text) for text in split_names(value)]
        except ValueError:
            what = "whole numbers" if self.kind is int else "numbers"
            self.fail(f"'{value}' is no comma list of {what}, as in {'8,16' if self.kind is int else '0.03,0.1'}")


@click.command("sweep", epilog=methods_help(TRAINED))
@click.argument("task", required=False, metavar="[TASK]")
@row_options
@click.option("--learning-rate", type=Values(float), help="Of prompts. [default: 0.01,0.03,0.1,0.3]")
@click.option("--attention-learning-rate", type=Values(float), help="Of G, of factors, of offsets.")
@click.option("--weight-learning-rate", type=Values(float), help="Of weights (fine-tuning … ia3).")
@click.option("--temperature", type=Values(float), help="T of G's softmax.")
@click.option("--batch-size", type=Values(int), help="[default: 16]")
@click.option("--methods", default="prompt-tuning", show_default=True, help="Names, see below.")
@click.option("--seeds", type=click.IntRange(min=1), default=3, show_default=True, help="Trainings of each setting.")
@click.option("--sources", default="all", show_default=True, help="Source prompts, comma separated, or `all`.")
@click.option("--init-from", help="Start of SPoT and ATTEMPT. [default: the source that fits the rows best]")
@click.option("--steps", type=int, help="Optimiser steps. [default: 500]")
@prompt_length_option
@placement_option
@chat_template_option
@cache_options
@max_length_option
@bank_option
@click.option("--train-limit", type=click.IntRange(min=1), help="A random sample of at most this many training rows.")
@eval_every_option
@click.option("--eval-rows", type=int, help="Validation rows that choose. [default: 200]")
@click.option("--patience", type=int, help="Stop after this many evaluations without improvement.")
@click.option("--limit", type=click.IntRange(min=1), default=500, show_default=True, help="Test rows, a random sample.")
@click.option("--name", help="Keep the best prompt under this name, too.")
@click.option("--resume", is_flag=True, help="Take finished trainings from the registry, others from checkpoints.")
@click.option("--output", type=click.Path(file_okay=False, path_type=Path), help="Write CSV, JSON and Markdown here.")
@where_options
@click.pass_context
def command(
    ctx: click.Context,
    /,
    task: str | None,
    rows: RowOptions,
    methods: str,
    sources: str,
    cache: CacheOptions,
    where: BackboneOptions,
    output: Path | None,
    **options: Any,
) -> None:
    """Train TASK's prompt under every combination of settings, and choose by the validation rows.

    Comma lists are swept; each combination is trained with --seeds seeds. The trainings share their passes through the
    model (--bank). The table has means with 95 % intervals over seeds on validation and test rows; the best is marked.

    \b
      attempt sweep sst2 --learning-rate 0.03,0.1,0.3,1 --steps 200
      attempt sweep rte --methods prompt-tuning,attempt --learning-rate 0.03,0.1 --seeds 5 --name rte
      attempt sweep --train-file a.csv --test-file b.csv --input "{text} mood:" --label mood --batch-size 8,16
    """
    from attempt_cli.api.experiments import sweep

    settings: Settings = ctx.obj
    with training_session(settings, where, cache) as session:
        result = sweep(
            rows.task(task),
            methods=split_names(methods),
            sources=names_or_all(sources) or "all",
            session=session,
            **options,
        )
    table = result.table()
    if settings.output.format == "json":
        settings.output.json(table.document)
    else:
        settings.output.rows("settings", table.printed, table.shown, name="method")
        for note in table.notes:
            settings.output.note(note)
    for file in table.write(output, JSON_VERSION) if output is not None else ():
        settings.output.note(f"Written: {file}")
    if result.kept is not None:
        settings.output.note(f"Kept: {result.kept}, which is {result.prompt}.")
    settings.output.note(f"Train the best again: `{_again(ctx, result.arguments)}`")


def _again(ctx: click.Context, arguments: Mapping[str, Any]) -> str:
    """Returns the command that trains the best, with what else was typed and goes with it."""
    group = ctx.find_root().command
    train_target = group.get_command(ctx, "train-target") if isinstance(group, click.Group) else None
    known = {str(option.name): option for option in train_target.params} if train_target else {}
    words = ["attempt", "train-target", *([ctx.params["task"]] if ctx.params["task"] else [])]
    for name, value in ctx.params.items():
        typed = ctx.get_parameter_source(name) is click.core.ParameterSource.COMMANDLINE
        # the sources and settings that were tried are among the arguments, as far as the best has some
        if typed and name in known and name not in (*NOT_AGAIN, *arguments) and not isinstance(value, list):
            words += _written(known[name], value)
    for name, value in arguments.items():
        words += _written(known[name], value)
    return shlex.join(words)


def _written(option: click.Parameter, value: Any) -> list[str]:
    """Returns an option with its value as it is typed."""
    if isinstance(value, bool):
        return [option.secondary_opts[-1] if option.secondary_opts and not value else option.opts[-1]]
    return [option.opts[-1], ",".join(value) if isinstance(value, list) else str(value)]
