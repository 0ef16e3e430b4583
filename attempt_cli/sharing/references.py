"""Pins commits of the hub in the registry: where a record was pushed to, and where it was pulled from."""

from __future__ import annotations

import platform
from collections.abc import Iterable, Mapping
from typing import TYPE_CHECKING, Any

from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.session import Session
    from attempt_registry import Run


def record_push(session: Session, record: Prompt | Composition, reference: Mapping[str, Any], seconds: float) -> None:
    """Records a push as a run that used the record.

    Args:
        session: says where the registry is.
        record: what was pushed.
        reference: `repository`, `revision` (the commit) and what else is worth keeping.
        seconds: how long it took.
    """
    from importlib.metadata import version

    from attempt_cli import __version__

    kind = "composition" if isinstance(record, Composition) else "prompt"
    session.store.add_run(
        command=session.command,
        settings={},
        rows={},
        seed=None,
        budget={},
        numbers={"hub": dict(reference)},
        versions={
            "attempt": __version__,
            "huggingface_hub": version("huggingface_hub"),
            "python": platform.python_version(),
        },
        duration=seconds,
        inputs=[f"{kind}:{record.ref}"],
    )


def hub_references(settings: Mapping[str, Any], used_by: Iterable[Run]) -> list[str]:
    """Lists the places of a record on the hub, as "owner/name@commit": where it came from, then where it was pushed to.

    Args:
        settings: the record's.
        used_by: the runs that used it.
    """
    found = [settings.get("imported"), *(run.numbers.get("hub") for run in used_by)]
    return list(
        dict.fromkeys(
            f"{one['repository']}@{one['revision']}"
            for one in found
            if isinstance(one, Mapping) and "repository" in one and "revision" in one
        )
    )
