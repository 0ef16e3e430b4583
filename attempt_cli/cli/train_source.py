"""`attempt train-source`: prompt tuning of one source task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    backbone_options,
    chosen_backbone,
    chosen_task,
    record_options,
    task_options,
    training_options,
    typed_command,
)

if TYPE_CHECKING:
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.cli.main import Settings
    from attempt_cli.training.recipes import Outcome, Request
    from registry import Registry


@click.command("train-source")
@click.argument("task", required=False)
@task_options
@click.option("--init-from", help="Start from this prompt of the registry. [default: frequent words]")
@training_options
@record_options
@backbone_options
@click.pass_obj
def command(settings: Settings, /, task: str | None, **options: Any) -> None:
    """Train the source prompt of TASK (prompt tuning, equation 1 of the paper).

    The backbone stays frozen; the prompt is kept in the registry under the task's name. The best evaluated step is
    kept. Ctrl-C leaves a checkpoint from which the same command with --resume goes on.

    \b
      attempt train-source sst2
      attempt train-source mnli --backbone smollm2-135m --steps 2000
      attempt train-source qqp --preset paper
      attempt train-source reviews --train-file reviews.csv --input "{text} sentiment:" --label stars
    """
    from attempt_cli.training.config import make_config
    from attempt_cli.training.recipes import Request

    chosen = chosen_task(task, options)
    registry = settings.registry()
    init_from = registry.prompt(options["init_from"]) if options.pop("init_from") else None
    record = {key: options.pop(key) for key in ("name", "note", "tags", "resume")}
    train_limit = options.pop("train_limit")
    where = {key: options.pop(key) for key in ("backbone", "device", "dtype")}
    config = make_config(options.pop("preset"), method="prompt-tuning", **options)
    if init_from is not None and options["prompt_length"] is None:
        config = config.model_copy(update={"prompt_length": init_from.length})
    backbone = chosen_backbone(registry, where, [init_from] if init_from else [], settings.output.note)
    request = Request(
        task=chosen,
        kind="source",
        name=record["name"] or chosen.name,
        config=config,
        init_from=init_from,
        train_limit=train_limit,
        data_dir=settings.data_dir,
        command=typed_command(),
        note=record["note"],
        tags=record["tags"],
    )
    outcome = run_training(settings, registry, backbone, request, resume=record["resume"])
    if outcome is not None:
        report(settings, request, outcome)


def run_training(
    settings: Settings, registry: Registry, backbone: FrozenBackbone, request: Request, *, resume: bool
) -> Outcome | None:
    """Trains with a progress bar; None on a process that only helped."""
    from attempt_cli.cli.progress import TrainingProgress
    from attempt_cli.training.processes import Processes
    from attempt_cli.training.recipes import train_prompt

    processes = Processes.here()
    silent = settings.output.format == "quiet" or not processes.is_main
    with TrainingProgress(request.name, silent=silent) as progress:
        return train_prompt(registry, backbone, request, resume=resume, listener=progress, processes=processes)


def report(settings: Settings, request: Request, outcome: Outcome) -> None:
    """What was made, how good it is on validation rows, and what to type next."""
    numbers = outcome.trained.numbers
    for warning in outcome.trained.warnings:
        settings.output.note(f"Warning: {warning}")
    if outcome.truncated:
        settings.output.note(
            f"{outcome.truncated:,} of {outcome.rows:,} training inputs were longer than the limit "
            "and lost their middle; --max-length raises it."
        )
    if "validation" not in numbers:
        settings.output.note("No validation rows were looked at: the last step is kept.")
    settings.output.record(
        "training",
        {
            "name": outcome.prompt,
            "kind": request.kind,
            "method": request.config.method,
            "task": request.task.name,
            **({"composition": outcome.composition, "attention": outcome.attention} if outcome.composition else {}),
            "trained_parameters": outcome.trained_parameters,
            "training_rows": outcome.rows,
            **numbers,
            "run": outcome.run,
        },
    )
    what = f"--composition {outcome.composition}" if outcome.composition else f"--prompt {outcome.prompt}"
    task = request.task.name if not request.task.files else "--test-file … --input … --label …"
    settings.output.note(f"Next: `attempt eval {'--tasks ' if not request.task.files else ''}{task} {what}`")
