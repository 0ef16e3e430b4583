"""Exports what was trained in the formats of other tools, and imports what others trained."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from attempt_cli.errors import ArgumentsError
from attempt_cli.evaluation.models import named_record
from attempt_cli.exchange.exporting import Exported, export_records
from attempt_cli.exchange.importing import Imported, Options, import_path
from attempt_cli.exchange.starter import add_starters
from attempt_cli.name_lists import listed
from attempt_cli.session import Session

__all__ = ["Exported", "Imported", "add_starters", "export", "import_from"]


def export(
    names: str | Sequence[str],
    path: Path | str,
    *,
    to: str,
    force: bool = False,
    session: Session | None = None,
) -> Exported:
    """Writes prompts or a composition in the format of another tool; "vocabulary" alone loads the backbone.

    Args:
        names: of a prompt or composition; of some formats several, of one backbone.
        path: a folder that does not exist or is empty; of some formats a file.
        to: the format: "peft", "npy", "bundle", "vocabulary", "vocabulary-delta" or "vllm".
        force: replace an earlier export.
        session: says where the registry is; its dtype, else float32, is that of a copy of the model.

    Returns:
        What was written.

    Raises:
        RegistryError: there is no such prompt or composition.
        AttemptError: the format cannot express it (the hint says the way out), or something is at `path`.

        attempt.export("reviews", "adapter", to="peft")
    """
    session = session or Session()
    records = [named_record(session.store, name) for name in listed(names)]
    if not records:
        raise ArgumentsError("nothing is named", "Name a prompt or a composition: `attempt registry list` shows them.")
    return export_records(session, records, Path(path), to, force=force)


def import_from(
    path: Path | str,
    *,
    task: str | Sequence[str] = (),
    name: str | None = None,
    kind: str | None = None,
    sources: str | Sequence[str] = (),
    prefix: str = "",
    note: str = "",
    tags: Sequence[str] = (),
    session: Session | None = None,
) -> Imported:
    """Adds prompts that another tool or registry wrote; what they are is recognised, and no code in them is run.

    Args:
        path: a file or folder, or an address "hf://OWNER/REPO@REVISION/FOLDER" of the hub.
        task: what they were trained for, one task a prompt, where the files do not say.
        name: the prompt's name in the registry; of several the part before their tasks. None takes the files' own, else
            the task's.
        kind: "source" or "target"; None takes what the files say, else "source".
        sources: of a saved run of the ATTEMPT authors' code, the source prompts here that it mixed, in its order.
        prefix: put before all names of a bundle.
        note, tags: for the record.
        session: says where the registry is; its backbone, where it names one, is the prompts'.

    Returns:
        What was added.

    Raises:
        ArgumentsError: a task is missing.
        AttemptError: nothing known is there, it is damaged, or it belongs to another backbone; then nothing is added.

        attempt.import_from("adapter", task="rte", session=attempt.Session(backbone="t5-base"))
    """
    options = Options(tuple(listed(task)), name, kind, tuple(listed(sources)), prefix, note, tuple(listed(tags)))
    if str(path).startswith("hf://"):
        from attempt_cli.exchange.hub_files import downloaded

        place, origin = downloaded(str(path))
    else:
        place, origin = Path(path), {"path": Path(path).name}
    return import_path(session or Session(), place, options, origin)
