"""`attempt pull`: a prompt or a composition from the Hugging Face hub."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

from attempt_cli.cli.options import BackboneOptions, split_names

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("pull")
@click.argument("repository", metavar="OWNER/REPO[@REVISION]")
@click.option("--name", help="Its name in the registry.  [default: its own]")
@click.option("--prefix", default="", help="Goes before the names of all that push wrote, ancestors included.")
@click.option("--task", help="What it was trained for, where the repository does not say.")
@click.option("--backbone", help="Whose prompt it is.  [default: what the repository says]")
@click.option("--note", default="", help="A remark to keep with an adapter of PEFT.")
@click.option("--tag", "tags", multiple=True, help="A tag for an adapter of PEFT; may be repeated.")
@click.pass_obj
def command(
    settings: Settings,
    repository: str,
    name: str | None,
    prefix: str,
    task: str | None,
    backbone: str | None,
    note: str,
    tags: tuple[str, ...],
) -> None:
    """Add a prompt or a composition from the Hugging Face hub to the registry.

    What `attempt push` wrote is restored with its task, settings and lineage; a prompt-tuning adapter that PEFT wrote
    is taken as it is. Only such files are fetched, never pickles or code. The commit is recorded.

    \b
      attempt pull me/reviews-prompt
      attempt pull me/rte-attempt@v2 --name rte-theirs
      attempt pull someone/peft-adapter --task rte --backbone t5-base
    """
    from attempt_cli.api.sharing import pull

    pulled = pull(
        repository,
        name=name,
        prefix=prefix,
        task=split_names(task) if task is not None else (),
        note=note,
        tags=tags,
        session=settings.session(BackboneOptions(backbone, None, None)),
    )
    if settings.output.format == "json":
        settings.output.json({"pull": pulled.record()})
        return
    added = [record.ref for record in (*pulled.prompts, *pulled.compositions)]
    row = {"name": pulled.name, "repository": pulled.repository, "commit": pulled.commit, "format": pulled.format}
    settings.output.record("pull", {**row, "added": added}, name="name")
    settings.output.note(f"Next: `attempt registry show {pulled.name}` shows where it comes from.")
