"""Exports prompts and compositions: checks everything first, then writes in one step."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.checked_files import replacing
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.exchange.folders import check_free, replacing_folder
from attempt_cli.exchange.formats import FORMATS, TARGETS, Format, find_target
from attempt_cli.late_imports import imported
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.exchange.content import Array
    from attempt_cli.session import Session
    from attempt_registry import Backbone, Registry


@dataclass(frozen=True)
class Selection:
    """What an export is made of; a format's writer gets it, checked.

    Args:
        session: says which dtype a copy of the model gets, and is told how it goes.
        registry: holds the tensors.
        records: what was named.
        prompts: of a format of plain prompts, the prompts themselves.
        backbone: that of all of them.
    """

    session: Session
    registry: Registry
    records: tuple[Prompt | Composition, ...]
    prompts: tuple[Prompt, ...]
    backbone: Backbone

    def entering(self, prompt: Prompt) -> Array:
        """Returns a prompt as it enters the model, float32 [length, width], to the bit."""
        import numpy as np

        # a float32 product, as the model's own: prompt * float64 would round twice
        entering: Array = self.registry.prompt_tensor(prompt) * np.float32(prompt.embedding_scale)
        return entering


@dataclass(frozen=True)
class Exported:
    """An export that was written.

    Args:
        format: its name.
        path: the folder or file.
        names: full names of what it holds.
        files: the names of the folder's files; of a file its own.
        bytes: their size together.
    """

    format: str
    path: str
    names: tuple[str, ...]
    files: tuple[str, ...]
    bytes: int

    def record(self) -> dict[str, Any]:
        """Returns the export as JSON holds it."""
        return {**vars(self), "name": ",".join(self.names)}


def export_records(
    session: Session,
    records: Sequence[Prompt | Composition],
    path: Path,
    to: str,
    *,
    force: bool = False,
    for_others: bool = False,
) -> Exported:
    """Writes records in a format.

    Args:
        session: says where the registry is.
        records: of one backbone.
        path: a folder that does not exist or is empty; of some formats a file.
        to: a name in `formats.TARGETS`.
        force: replace an earlier export.
        for_others: name no folder of this machine even where another tool would load the backbone from it.

    Raises:
        AttemptError: the format cannot express a record (with the way out), or something is at `path`.
    """
    row = find_target(to)
    check_free(path, force=force, file=row.file)
    selection = _selection(session, records, row)
    if for_others:
        from attempt_cli.exchange.provenance import public_source

        selection = replace(selection, backbone=replace(selection.backbone, source=public_source(selection.backbone)))
    if row.file:
        with replacing(path) as partial:
            imported(row.write)(selection, partial)
        files = [path]
    else:
        from attempt_cli.exchange import provenance

        with replacing_folder(path, force=force) as folder:
            imported(row.write)(selection, folder)
            provenance.write(folder, to, selection.prompts, selection.backbone)
        files = sorted(file for file in path.rglob("*") if file.is_file())
    names = tuple(record.ref for record in records)
    relative = tuple(str(file.relative_to(path)) if not row.file else file.name for file in files)
    return Exported(to, str(path), names, relative, sum(file.stat().st_size for file in files))


def _selection(session: Session, records: Sequence[Prompt | Composition], row: Format) -> Selection:
    """Checks what a format can express.

    Raises:
        AttemptError: it cannot, or the records are of several backbones.
    """
    registry = session.store
    for record in records:
        if record.fingerprint != records[0].fingerprint:
            raise AttemptError(
                f"'{record.ref}' belongs to {record.backbone}, '{records[0].ref}' to {records[0].backbone}",
                "Export what belongs to one backbone at a time.",
            )
        if row.plain and isinstance(record, Prompt) and record.parts:
            raise AttemptError(
                f"'{record.ref}' is more than a prompt ({record.method} keeps {', '.join(record.parts)} beside it), "
                f"which {row.title} cannot express",
                f"Export it --to {_targets(lambda other: not other.plain)}.",
            )
        if record.placement not in row.placements:
            raise AttemptError(
                f"'{record.ref}' stands {record.placement} the input, which {row.title} cannot express",
                f"Train one with --placement {row.placements[0]}, or export it --to "
                f"{_targets(lambda other, placement=record.placement: placement in other.placements)}.",
            )
    backbone = registry.backbone(records[0].fingerprint)
    if not row.plain:
        return Selection(session, registry, tuple(records), (), backbone)
    prompts = [prompt for record in records for prompt in _plain(registry, record, row)]
    if len(prompts) > 1 and not row.several:
        raise ArgumentsError(
            f"{row.title} holds one prompt, and these are {len(prompts)}: {', '.join(p.ref for p in prompts)}",
            "Export one at a time.",
        )
    for prompt in prompts:
        if prompt.method == "attempt":
            from attempt_cli.evaluation.models import lone_target_text

            session.listener.note(lone_target_text(prompt))
        if prompt.chat_template and not row.in_chat:
            raise _outside_chat(prompt, row)
    return Selection(session, registry, tuple(records), tuple(prompts), backbone)


def _targets(can: Callable[..., bool]) -> str:
    """Lists the formats that can express something, as a sentence has them."""
    *others, last = (name for name in TARGETS if can(FORMATS[name]))
    return f"{', '.join(others)} or {last}" if others else last


def _outside_chat(prompt: Prompt, row: Format) -> AttemptError:
    return AttemptError(
        f"'{prompt.ref}' stands inside a chat template's user turn, which {row.title} cannot express",
        f"Train one with --no-chat-template, or export it --to {_targets(lambda other: other.in_chat)}.",
    )


def _plain(registry: Registry, record: Prompt | Composition, row: Format) -> list[Prompt]:
    """Returns the prompts that a record is, without a mixture.

    Raises:
        AttemptError: it mixes sources.
    """
    if isinstance(record, Prompt):
        return [record]
    if record.sources:
        raise AttemptError(
            f"'{record.ref}' mixes a prompt of its own for every input, which {row.title} cannot express",
            f"Make it one plain prompt: `attempt compose NEW --flatten {record.ref} --tasks TASK`; "
            f"or export it --to {_targets(lambda other: not other.plain)}.",
        )
    return [registry.prompt(ref) for ref in record.targets]
