"""Source prompts that come with the package: trained once on public tasks, so that the first target can transfer."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

from attempt_cli.errors import AttemptError

if TYPE_CHECKING:
    from attempt_cli.exchange.importing import Imported
    from attempt_cli.session import Session

FOLDER = Path(__file__).with_name("starters")
PREFIX = "starter-"  # in front of a task's name: a prompt that the user trains on the task has the plain one


def starter_backbones() -> list[str]:
    """Lists the backbones that have starter sources."""
    return sorted(file.stem for file in FOLDER.glob("*.attempt"))


def add_starters(*, session: Session | None = None) -> Imported:
    """Adds the starter sources of a backbone; those that are in the registry already stay as they are.

    No backbone is loaded: its fingerprint is compared when a prompt is used.

    Args:
        session: says where the registry is, and the backbone: by default the one that has starter sources.

    Raises:
        AttemptError: there are none for the backbone.
    """
    from dataclasses import replace

    from attempt_cli.exchange.importing import Options, import_path
    from attempt_cli.session import Session

    session = Session.of(session)
    known = starter_backbones()
    name = session.backbone_name or known[0]
    if name not in known:
        raise AttemptError(
            f"there are no starter sources for {name}",
            f"There are some for {', '.join(known)}: --backbone {known[0]}.",
        )
    file = FOLDER / f"{name}.attempt"
    unnamed = replace(session, registry=session.store, backbone=None)
    return import_path(unnamed, file, Options(prefix=PREFIX), {"path": file.name}, unseen=True)
