"""`attempt train-source`: prompt tuning of one source task."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import BackboneOptions, CacheOptions, training_options
from attempt_cli.cli.row_options import RowOptions, row_options_without, test_file_option
from attempt_cli.cli.training import report, training_session

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("train-source")
@click.argument("task", required=False)
@row_options_without(test_file_option)
@click.option("--init-from", help="Start from this prompt of the registry. [default: frequent words]")
@training_options
@click.pass_obj
def command(
    settings: Settings,
    /,
    task: str | None,
    init_from: str | None,
    rows: RowOptions,
    cache: CacheOptions,
    where: BackboneOptions,
    **training: Any,
) -> None:
    """Train the source prompt of TASK (prompt tuning, equation 1 of the paper).

    The backbone stays frozen; the prompt is kept in the registry under the task's name. The best evaluated step is
    kept. Ctrl-C leaves a checkpoint from which the same command with --resume continues.

    \b
      attempt train-source sst2
      attempt train-source mnli --backbone smollm2-135m --steps 2000
      attempt train-source qqp --preset paper
      attempt train-source reviews --train-file reviews.csv --input "{text} sentiment:" --label stars
    """
    from attempt_cli.api.training import train_source

    chosen = rows.task(task)
    with training_session(settings, where, cache) as session:
        outcome = train_source(chosen, init_from=init_from, session=session, **training)
    report(settings, outcome)
