"""`attempt compose`: joins sources, a target and an attention under a name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import BackboneOptions, MixtureOptions, change_options, names_or_all, split_names

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("compose")
@click.argument("name")
@click.option("--from", "base", help="A composition to change, instead of naming its parts.")
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--target", "targets", help="Target prompts, comma separated, one per task.")
@click.option("--attention", help="The trained G that mixes the sources. [default: the one trained with the target]")
@change_options
@click.option("--backbone", help="With `--sources all`: of this backbone.")
@click.option("--note", default="", help="A remark to keep with it.")
@click.pass_obj
def command(
    settings: Settings,
    /,
    name: str,
    sources: str | None,
    targets: str | None,
    mixture: MixtureOptions,
    backbone: str | None,
    **options: Any,
) -> None:
    """Join source prompts, target prompts and a trained attention under NAME, to evaluate and to predict with.

    Without --target the sources alone are mixed: an attention prior serves a task that has no training rows.
    G scores prompts by a dot product, so their number is free: sources may be dropped or added without training, and
    weights may be forced. `attempt eval` takes the same changes, and says what they do to the score.

    \b
      attempt compose both --sources all --target rte-attempt,cb-attempt --attention cb-attempt
      attempt compose any-task --sources all --attention prior
      attempt compose rte-without-sst2 --from rte-attempt --drop sst2
      attempt compose rte-even --from rte-attempt --only mnli,qnli --weights mnli=.5,qnli=.5
    """
    from attempt_cli.api.scoring import compose

    if backbone is not None and (sources or "").strip() != "all":
        raise click.UsageError("--backbone only goes with --sources all")
    session = settings.session(BackboneOptions(backbone, None, None))
    composition = compose(
        name,
        sources=names_or_all(sources) or (),
        targets=split_names(targets) if targets is not None else (),
        changes=mixture.changes(),
        session=session,
        **options,
    )
    settings.output.record("composition", {**asdict(composition), "name": composition.ref})
    tasks = [session.store.prompt(ref).task for ref in composition.targets]
    settings.output.note(f"Next: `attempt eval --tasks {','.join(tasks) or 'TASK'} --composition {composition.ref}`")
