"""`attempt push`: a prompt or a composition to the Hugging Face hub, with a model card."""

from __future__ import annotations

from typing import TYPE_CHECKING

import click

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings

CARD_LINES = 40  # of the card that a dry run shows


@click.command("push")
@click.argument("name")
@click.argument("repository", metavar="OWNER/REPO[@BRANCH]")
@click.option("--public", is_flag=True, help="Let others see it.  [default: private]")
@click.option("--license", "--licence", "license_", help="Of the prompt, from the hub's list, e.g. apache-2.0.")
@click.option("--data-licence", "--data-license", help="Of the training rows.  [default: what the task says]")
@click.option("--message", "-m", help="Of the commit.")
@click.option("--dry-run", is_flag=True, help="Only show what would be pushed; nothing is sent, no token is needed.")
@click.pass_obj
def command(
    settings: Settings,
    name: str,
    repository: str,
    public: bool,
    license_: str | None,
    data_licence: str | None,
    message: str | None,
    dry_run: bool,
) -> None:
    """Push a prompt or a composition to the Hugging Face hub.

    The repository gets everything that `attempt pull` needs to restore the record, an adapter that PEFT loads where
    the prompt can be one, a model card, and the results of `attempt eval`. It is private unless --public is given. The
    commit is recorded here. A token comes from `hf auth login` or HF_TOKEN.

    \b
      attempt push reviews me/reviews-prompt --dry-run
      attempt push rte-attempt me/rte-attempt --public --license apache-2.0 --data-licence "CC-BY 4.0"
      attempt push rte@2 me/rte-prompt@trial
    """
    from attempt_cli.api.sharing import push

    pushed = push(
        name,
        repository,
        public=public,
        license=license_,
        data_licence=data_licence,
        message=message,
        dry_run=dry_run,
        session=settings.session(),
    )
    if settings.output.format == "json":
        settings.output.json({"push": pushed.record()})
        return
    row = {key: value for key, value in pushed.record().items() if key not in ("card", "files")}
    row["files"] = [f"{file} ({size:,} bytes)" for file, size in pushed.files.items()]
    settings.output.record("push", row, name="url")
    if dry_run:
        lines = pushed.card.splitlines()
        more = ["…"] if len(lines) > CARD_LINES else []
        settings.output.note("\n".join(["", *lines[:CARD_LINES], *more, "", "Nothing was sent."]))
