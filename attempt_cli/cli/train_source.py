"""`attempt train-source`: prompt tuning of one source task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import backbone_options, chosen_task, record_options, task_options, training_options
from attempt_cli.cli.training import train_and_report

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("train-source")
@click.argument("task", required=False)
@task_options
@click.option("--init-from", help="Start from this prompt of the registry. [default: frequent words]")
@training_options
@record_options
@backbone_options
@click.pass_obj
def command(settings: Settings, /, task: str | None, init_from: str | None, **options: Any) -> None:
    """Train the source prompt of TASK (prompt tuning, equation 1 of the paper).

    The backbone stays frozen; the prompt is kept in the registry under the task's name. The best evaluated step is
    kept. Ctrl-C leaves a checkpoint from which the same command with --resume goes on.

    \b
      attempt train-source sst2
      attempt train-source mnli --backbone smollm2-135m --steps 2000
      attempt train-source qqp --preset paper
      attempt train-source reviews --train-file reviews.csv --input "{text} sentiment:" --label stars
    """
    chosen = chosen_task(task, options)
    registry = settings.registry()
    start = registry.prompt(init_from) if init_from else None
    train_and_report(
        settings, registry, chosen, options, kind="source", method="prompt-tuning", init_from=start, name=chosen.name
    )
