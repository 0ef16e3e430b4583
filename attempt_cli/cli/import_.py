"""`attempt import`: adds what other tools and other registries wrote."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from attempt_cli.cli.options import BackboneOptions, split_names

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("import")
@click.argument("path")
@click.option("--backbone", help="The backbone it was trained for. [default: what the files say]")
@click.option("--task", help="The task it was trained for; of several prompts one each, comma separated.")
@click.option("--name", help="Its name in the registry. [default: the files' own, else the task's]")
@click.option("--kind", type=click.Choice(["source", "target"]), help="[default: what the files say, else source]")
@click.option(
    "--sources",
    help="Of a saved run of the authors' code: the sources here that it mixed, comma separated, in its order.",
)
@click.option("--prefix", default="", help="Of a bundle: goes before all of its names.")
@click.option("--note", default="", help="A remark to keep with it.")
@click.option("--tag", "tags", multiple=True, help="A tag; may be repeated.")
@click.pass_obj
def command(
    settings: Settings,
    /,
    path: str,
    backbone: str | None,
    task: str | None,
    name: str | None,
    kind: str | None,
    sources: str | None,
    prefix: str,
    note: str,
    tags: tuple[str, ...],
) -> None:
    """Add the prompts at PATH to the registry; what they are is recognised.

    PATH is a folder or file, or hf://OWNER/REPO@REVISION/FOLDER on the hub: an adapter of PEFT (prompt tuning,
    P-tuning, multitask prompt tuning), a .npy matrix as Google's prompt-tuning writes it, the .pt files of the ATTEMPT
    authors' code, or a bundle of another registry. No code in it is run.

    \b
      attempt import reviews-adapter --backbone smollm2-135m --task reviews
      attempt import prompt.npy --backbone t5-base --task rte --name rte-google
      attempt import both.attempt --prefix their-
      attempt import hf://someone/reviews-adapter --backbone t5-base --task reviews
    """
    from attempt_cli.api.exchange import import_from

    added = import_from(
        path,
        task=split_names(task) if task is not None else (),
        name=name,
        kind=kind,
        sources=split_names(sources) if sources is not None else (),
        prefix=prefix,
        note=note,
        tags=tags,
        session=settings.session(BackboneOptions(backbone, None, None)),
    )
    rows = [
        {"what": what, "ref": record.ref, **asdict(record)}
        for what, records in (
            ("prompt", added.prompts),
            ("attention", added.attentions),
            ("composition", added.compositions),
        )
        for record in records
    ]
    settings.output.rows("imported", rows, ("what", "ref", "task", "backbone", "length", "placement"), name="ref")
