"""`attempt export`: writes prompts and compositions in the formats of other tools."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import click

from attempt_cli.cli.options import split_names
from attempt_cli.exchange.formats import FORMATS, TARGETS, target_help

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings


@click.command("export")
@click.argument("name")
@click.argument("path", type=click.Path(path_type=Path))
@click.option("--to", type=click.Choice(TARGETS), required=True, help=target_help())
@click.option("--dtype", help="Of a copy of the model: bfloat16 or float32. [default: float32]")
@click.option("--force", is_flag=True, help="Replace an earlier export.")
@click.pass_obj
def command(settings: Settings, /, name: str, path: Path, to: str, dtype: str | None, force: bool) -> None:
    """Write a prompt or composition NAME (of some formats several: a,b,c) at PATH, in the format of another tool.

    PATH is a new folder; of a bundle, a new file, which may hold several records (NAME,NAME). Beside the format's own
    files stands attempt.json: task, placement, backbone and settings, which `attempt import` reads again. What a format
    cannot express is refused, with the way out.

    \b
      attempt export reviews reviews-adapter --to peft
      attempt export reviews@1 reviews-matrix --to npy
      attempt export rte-attempt,cb-attempt both.attempt --to bundle
      attempt export reviews,topics model-with-prompts --to vocabulary
    """
    from attempt_cli.api.exchange import export

    if dtype and not FORMATS[to].loads:
        raise click.UsageError(f"--dtype says nothing of --to {to}, which holds no model")
    session = settings.session(dtype=dtype)
    exported = export(split_names(name), path, to=to, force=force, session=session)
    settings.output.record("export", exported.record())
