"""`attempt compose`: joins sources, a target and an attention under a name."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    BackboneOptions,
    MixtureOptions,
    change_options,
    names_or_all,
    refuse_options,
    split_names,
)
from attempt_cli.cli.row_options import FILE
from attempt_cli.cli.scores import difference_text, percent, weights_text

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings

# what --flatten takes the place of
PARTS = ("base", "sources", "targets", "attention", "add", "drop", "only", "weights")


@click.command("compose")
@click.argument("name")
@click.option("--from", "base", help="A composition to change, instead of naming its parts.")
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--target", "targets", help="Target prompts, comma separated, one per task.")
@click.option("--attention", help="The trained G that mixes the sources. [default: the one trained with the target]")
@change_options
@click.option(
    "--flatten", help="A composition to turn into one plain prompt NAME: that of its mean attention over rows."
)
@click.option("--tasks", help="With --flatten: tasks whose rows give the mean. [default: those of its targets]")
@click.option(
    "--rows", type=FILE, help="With --flatten: a file of rows of one's own; a tenth is held out for the scores."
)
@click.option("--backbone", help="With `--sources all`: of this backbone; with --flatten: where its backbone is.")
@click.option("--note", default="", help="A remark to keep with it.")
@click.pass_obj
def command(
    settings: Settings,
    /,
    name: str,
    sources: str | None,
    targets: str | None,
    mixture: MixtureOptions,
    flatten: str | None,
    tasks: str | None,
    rows: Path | str | None,
    backbone: str | None,
    **options: Any,
) -> None:
    """Join source prompts, target prompts and a trained attention under NAME, to evaluate and to predict with.

    Without --target the sources alone are mixed: an attention prior serves a task that has no training rows.
    G scores prompts by a dot product, so their number is free: sources may be dropped or added without training, and
    weights may be forced. `attempt eval` takes the same changes, and says what they do to the score.

    With --flatten a composition becomes one plain prompt, the same for every input, which can be exported everywhere.
    Training rows give the mean attention; validation rows, or a tenth of --rows, score it before and after.

    \b
      attempt compose both --sources all --target rte-attempt,cb-attempt --attention cb-attempt
      attempt compose any-task --sources all --attention prior
      attempt compose rte-without-sst2 --from rte-attempt --drop sst2
      attempt compose rte-even --from rte-attempt --only mnli,qnli --weights mnli=.5,qnli=.5
      attempt compose rte-plain --flatten rte-attempt
    """
    from attempt_cli.api.scoring import compose

    if flatten is not None:
        refuse_options(click.get_current_context(), PARTS, "with --flatten")
        return _flatten(settings, name, flatten, tasks, rows, backbone, options["note"])
    refuse_options(click.get_current_context(), ("tasks", "rows"), "without --flatten")
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
    own = [session.store.prompt(ref).task for ref in composition.targets]
    settings.output.note(f"Next: `attempt eval --tasks {','.join(own) or 'TASK'} --composition {composition.ref}`")


def _flatten(
    settings: Settings,
    name: str,
    composition: str,
    tasks: str | None,
    rows: Path | str | None,
    backbone: str | None,
    note: str,
) -> None:
    """Makes plain prompts and writes them with their scores."""
    from attempt_cli.api.scoring import flatten
    from attempt_cli.cli.progress import RowProgress

    with RowProgress(settings.output) as progress:
        session = settings.session(BackboneOptions(backbone, None, None), input_cache=0, listener=progress)
        named = split_names(tasks) if tasks is not None else ()
        made = flatten(name, composition, task=named, rows=rows, note=note, session=session)
    if settings.output.format == "json":
        settings.output.json({"flattened": [one.record() for one in made]})
        return
    table = [
        {
            "name": one.prompt.ref,
            "task": one.prompt.task,
            "metric": one.comparison.metric,
            "before": percent(one.comparison.first.score),
            "after": percent(one.comparison.second.score),
            "before - after": difference_text(one.comparison.test),
            "n": one.comparison.n,
            "attention": weights_text(one.attention),
        }
        for one in made
    ]
    settings.output.rows("flattened", table, tuple(table[0]), name="name")
    settings.output.note(f"Next: `attempt export {made[0].prompt.ref} DIR --to peft`")
