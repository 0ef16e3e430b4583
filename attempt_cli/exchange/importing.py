"""Imports prompts from files and folders of any known format: reads all of it, checks it, then adds it in one step."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.exchange.formats import FORMATS, imported, recognised

if TYPE_CHECKING:
    from attempt_cli.exchange.content import Content, PromptDraft
    from attempt_cli.session import Session
    from attempt_registry import Attention, Backbone, Composition, Prompt, Registry


@dataclass(frozen=True)
class Options:
    """What a user says of an import that the files do not, or otherwise.

    Args:
        task: the prompts' tasks, one a prompt.
        name: the prompt's name; of several, the part before their tasks.
        kind: "source" or "target".
        note, tags: for the record.
    """

    task: tuple[str, ...] = ()
    name: str | None = None
    kind: str | None = None
    note: str = ""
    tags: tuple[str, ...] = ()

    def given(self) -> list[str]:
        """Lists the fields that say something."""
        return [name for name, value in vars(self).items() if value]


@dataclass(frozen=True)
class Imported:
    """What an import added.

    Args:
        format: what was recognised.
        prompts, attentions, compositions: the new records.
    """

    format: str
    prompts: tuple[Prompt, ...]
    attentions: tuple[Attention, ...] = ()
    compositions: tuple[Composition, ...] = ()


def import_path(session: Session, path: Path, options: Options, origin: dict[str, Any]) -> Imported:
    """Recognises what lies at a path and adds it to the registry.

    Args:
        session: says where the registry is, and whose prompts they are where the files do not.
        path: a file or folder.
        options: what the user says.
        origin: where it comes from, for the record.

    Raises:
        AttemptError: nothing known is there, it is damaged or does not fit its backbone; then nothing is added.
    """
    if not path.exists():
        raise AttemptError(f"there is nothing at {path}", "Check the path.")
    name = recognised(path)
    if name is None:
        known = ", ".join(row.title for row in FORMATS.values() if row.read)
        raise AttemptError(
            f"{path} holds nothing that can be imported",
            f"Known are: {known}. `attempt registry add` takes a matrix from a .safetensors file.",
        )
    row = FORMATS[name]
    if idle := [option for option in options.given() if option not in row.options]:
        raise ArgumentsError(f"--{' and --'.join(idle)} say nothing of {row.title}", "Leave them out.")
    content: Content = imported(row.read)(path, options)
    backbone = find_backbone(session, content)
    for draft in content.prompts:
        if draft.tensor.ndim != 2 or draft.tensor.shape[1] != backbone.width:
            raise AttemptError(
                f"{path} holds {list(draft.tensor.shape)}, but a prompt of {backbone.name} is "
                f"[length, {backbone.width}]",
                "Name the backbone that it was trained for with --backbone.",
            )
    where = {"format": name, **origin, **content.origin}
    return add_content(session.store, named(content, options, path), backbone, name, where)


def find_backbone(session: Session, content: Content) -> Backbone:
    """Finds the recorded backbone that a content belongs to.

    The one that the user names comes first; it is loaded and recorded if it is not yet. Else the files say which.

    Raises:
        AttemptError: none is known, or the files name another fingerprint.
    """
    from attempt_cli.backbones.names import aliases

    registry = session.store
    known = registry.backbones()[::-1]
    wanted = session.backbone
    if wanted is None and content.fingerprint is not None:
        found = next((one for one in known if one.fingerprint == content.fingerprint), None)
    else:
        name = wanted or content.backbone or session.backbone_name
        if name is None:
            raise AttemptError("nothing says which backbone the prompts are for", "Name it with --backbone.")
        alias = next((alias for alias, entry in aliases().items() if entry["hub"] == name), name)
        found = next((one for one in known if {name, alias} & {one.name, one.fingerprint, one.source}), None)
    if found is None and wanted is not None:
        from attempt_cli.artefacts import remember_backbone

        loaded = session.load_backbone()
        remember_backbone(registry, loaded)
        found = registry.backbone(loaded.fingerprint)
    if found is None:
        raise AttemptError(
            f"the prompts are for {content.backbone or 'a backbone'} ({content.fingerprint or 'no fingerprint'}), "
            "which is not recorded here",
            "Name it with --backbone, as an alias, a hub id or a folder.",
        )
    if content.fingerprint is not None and found.fingerprint != content.fingerprint:
        raise AttemptError(
            f"the prompts are for {content.backbone} ({content.fingerprint}), not for {found.name} "
            f"({found.fingerprint}): equal width does not make them fit",
            "Name their own with --backbone.",
        )
    return found


def named(content: Content, options: Options, path: Path) -> Content:
    """Gives every prompt a task and a name: what the user says, else what the files say.

    Raises:
        ArgumentsError: a task is missing, or there are more or fewer than prompts.
    """
    prompts = content.prompts
    if options.task and len(options.task) != len(prompts):
        raise ArgumentsError(
            f"{path} holds {len(prompts)} prompts, and --task names {len(options.task)}",
            "Name a task for each, comma separated, in their order.",
        )
    tasks = options.task or tuple(draft.task or "" for draft in prompts)
    if not all(tasks):
        raise ArgumentsError(f"nothing says what {path} was trained for", "Name its task with --task.")
    return replace(
        content,
        prompts=tuple(_named(draft, task, options, len(prompts)) for draft, task in zip(prompts, tasks, strict=True)),
    )


def _named(draft: PromptDraft, task: str, options: Options, count: int) -> PromptDraft:
    own = None if options.task else draft.name
    name = own or task if options.name is None else options.name if count == 1 else f"{options.name}.{task}"
    own_settings = draft.settings if task == draft.task else {}  # of another task they would be wrong
    return replace(
        draft,
        name=name,
        task=task,
        task_version=draft.task_version if task == draft.task else None,
        settings=own_settings,
        kind=options.kind or draft.kind or "source",
        note=options.note or draft.note,
        tags=options.tags or draft.tags,
    )


def add_content(
    registry: Registry, content: Content, backbone: Backbone, format: str, origin: dict[str, Any]
) -> Imported:
    """Adds drafts to the registry, all or none.

    Args:
        registry: where to.
        content: with names and tasks.
        backbone: theirs.
        format: what they were read from.
        origin: recorded in the settings of each, under "imported".
    """
    of = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
    with registry.transaction():
        prompts = [_add_prompt(registry, draft, of, origin) for draft in content.prompts]
    return Imported(format, tuple(prompts))


def _add_prompt(registry: Registry, draft: PromptDraft, of: dict[str, str], origin: dict[str, Any]) -> Prompt:
    return registry.add_prompt(
        draft.tensor,
        name=draft.name or "",
        kind=draft.kind or "source",
        method=draft.method,
        task=draft.task or "",
        task_version=draft.task_version,
        embedding_scale=draft.embedding_scale,
        settings={**draft.settings, "imported": origin},
        numbers=draft.numbers,
        seed=draft.seed,
        placement=draft.placement,
        note=draft.note,
        tags=draft.tags,
        **of,
    )
