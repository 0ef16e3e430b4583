"""`attempt train-target`: ATTEMPT, SPoT or prompt tuning of a target task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    backbone_name,
    backbone_options,
    chosen_sources,
    chosen_task,
    record_options,
    task_options,
    training_options,
)
from attempt_cli.cli.training import train_and_report

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("train-target")
@click.argument("task", required=False)
@task_options
@click.option(
    "--method",
    type=click.Choice(["attempt", "spot", "prompt-tuning"]),
    default="attempt",
    show_default=True,
    help="ATTEMPT mixes sources and target; SPoT starts from a source; prompt tuning uses no source.",
)
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--init-from", help="The prompt that the target starts from. [default: the first source]")
@click.option("--attention-rank", type=int, help="r, the width inside G. [default: 100, at most half the width]")
@click.option("--attention-learning-rate", type=float, help="Of G. [default: 0.01]")
@click.option(
    "--temperature", type=float, help="T of the softmax. [default: e·√d in RMS units, the paper's e·d in raw ones]"
)
@training_options
@record_options
@backbone_options
@click.pass_obj
def command(settings: Settings, /, task: str | None, method: str, **options: Any) -> None:
    """Train a target prompt for TASK, by default with ATTEMPT (equations 2 to 4 of the paper).

    Sources and backbone stay frozen. The prompt, G and the composition that joins them are kept in the registry under
    --name (TASK-METHOD without it).

    \b
      attempt train-target rte --sources mnli,qnli,sst2 --init-from mnli
      attempt train-target cb --sources all
      attempt train-target rte --method spot --init-from mnli
      attempt train-target rte --method prompt-tuning
      attempt train-target reviews --train-file reviews.csv --input "{text} sentiment:" --label stars --sources all
    """
    registry = settings.registry()
    names, start = options.pop("sources"), options.pop("init_from")
    if method == "attempt" and names is None:
        raise click.UsageError("ATTEMPT mixes source prompts: give --sources a,b,c or --sources all")
    if method == "spot" and start is None:
        raise click.UsageError("SPoT starts from a source prompt: give --init-from NAME")
    if method != "attempt" and names is not None:
        raise click.UsageError(f"--sources only goes with --method attempt, not with {method}")
    if method == "prompt-tuning" and start is not None:
        raise click.UsageError("prompt tuning from another prompt is SPoT: --method spot --init-from NAME")
    for option in ("attention_rank", "attention_learning_rate", "temperature"):
        if method != "attempt" and options[option] is not None:
            raise click.UsageError(f"--{option.replace('_', '-')} only goes with --method attempt, not with {method}")
    chosen = chosen_task(task, options)
    sources = chosen_sources(registry, names, backbone_name(options), targets=[chosen.name])
    train_and_report(
        settings,
        registry,
        chosen,
        options,
        kind="target",
        method=method,
        sources=sources,
        init_from=registry.prompt(start) if start else (sources[0] if sources else None),
        name=f"{chosen.name}-{method}",
    )
