"""A bundle: prompts, attentions, compositions, ancestors and runs in one file, for another registry.

It is a safetensors file: numbers and one text, neither paths nor code, so that nothing can be unpacked to a wrong place
or run. The text is JSON of the records; each tensor's name begins with the SHA-256 that its record has. Equal records
give equal bytes.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from attempt_cli.exchange.content import AttentionDraft, CompositionDraft, Content, PromptDraft
from attempt_cli.exchange.provenance import (
    backbone_of_fields,
    checked_fields,
    portable_settings,
    portable_texts,
    prompt_fields,
    public_source,
)
from attempt_registry.objects import decode, safetensors_entries, to_safetensors
from attempt_registry.references import check_name, parse

if TYPE_CHECKING:
    from attempt_cli.exchange.content import Array
    from attempt_cli.exchange.exporting import Selection
    from attempt_cli.exchange.importing import Options
    from attempt_registry import Attention, Composition, Prompt, Registry, Run

KEY = "attempt_bundle"  # the name of the text among the file's metadata
VERSION = 1
LARGEST = 1 << 30  # bytes of a file
LARGEST_HEADER = 64 << 20
KINDS = ("prompts", "attentions", "compositions", "runs")


def write(selection: Selection, path: Path) -> None:
    """Writes records, all that they are made of, their ancestors and the runs that made them."""
    from safetensors.numpy import save

    from attempt_cli import __version__

    registry = selection.registry
    prompts, attentions, compositions, removed = _family(registry, selection.records)
    runs = _runs(registry, [("prompt", one) for one in prompts] + [("attention", one) for one in attentions])
    tensors: dict[str, Array] = {}
    for prompt in prompts:
        tensors[f"{prompt.sha256}.prompt"] = registry.prompt_tensor(prompt)
        tensors |= {f"{prompt.sha256}.{name}": part for name, part in registry.prompt_parts(prompt).items()}
    for attention in attentions:
        for name, tensor in registry.attention_tensors(attention).items():
            tensors[f"{attention.sha256}.{name}"] = tensor
    manifest = {
        "version": VERSION,
        "made_by": f"attempt {__version__}",
        "main": [record.ref for record in selection.records],
        "backbone": asdict(replace(selection.backbone, source=public_source(selection.backbone))),
        "prompts": [prompt_fields(prompt) for prompt in prompts],
        "attentions": [_fields(attention) for attention in attentions],
        "compositions": [_fields(composition) for composition in compositions],
        "runs": [_run_fields(run) for run in runs],
        "removed_ancestors": removed,
    }
    text = json.dumps({"manifest": manifest, "sha256": _digest(manifest)}, ensure_ascii=False)
    # one text alone: safetensors writes several in an order that varies
    path.write_bytes(save(dict(sorted(tensors.items())), {KEY: text}))


def _family(
    registry: Registry, records: Sequence[Prompt | Composition]
) -> tuple[list[Prompt], list[Attention], list[Composition], list[str]]:
    """Returns records with all that they are made of, and their ancestors: each kind with its parents first."""
    wanted: dict[str, None] = {}
    removed: dict[str, None] = {}
    for record in records:
        kind = "composition" if hasattr(record, "sources") else "prompt"
        lineage = registry.lineage(record.ref, kind=kind)
        wanted[f"{kind}:{record.ref}"] = None
        removed |= dict.fromkeys(lineage.removed)
        for ref in lineage.parents:
            if ref not in lineage.removed:
                found = parse(ref)
                wanted[f"{found.kind or 'prompt'}:{found.ref}"] = None
    by_kind: dict[str, list[Any]] = {"prompt": [], "attention": [], "composition": []}
    for full in wanted:
        kind, _, ref = full.partition(":")
        by_kind[kind].append(registry.named(ref, kind))
    # parents were added before their children
    prompts, attentions, compositions = (sorted(found, key=lambda one: one.id) for found in by_kind.values())
    return prompts, attentions, compositions, list(removed)


def _runs(registry: Registry, records: Sequence[tuple[str, Any]]) -> list[Run]:
    """Returns the runs that made records, oldest first."""
    found = {run.id: run for kind, one in records for run in registry.lineage(one.ref, kind=kind).made_by}
    return [found[number] for number in sorted(found)]


def _fields(record: Attention | Composition) -> dict[str, Any]:
    fields = {"ref": record.ref, **asdict(record)}
    del fields["id"]
    return fields


def _run_fields(run: Run) -> dict[str, Any]:
    fields = asdict(run)
    del fields["id"]
    return {**portable_texts(fields), "settings": portable_settings(run.settings)}


def recognises(path: Path) -> bool:
    """Tells from a file's first bytes whether it is a bundle."""
    if not path.is_file():
        return False
    with path.open("rb") as file:
        return f'"{KEY}"'.encode() in file.read(200)


def read(path: Path, options: Options) -> Content:
    """Reads a bundle and checks every hash in it.

    Raises:
        AttemptError: it is damaged or of another version, a record does not fit its tensors, or a name cannot be one.
    """
    hint = "Copy the file again."
    if path.stat().st_size > LARGEST:
        raise AttemptError(f"{path} has more than {LARGEST} bytes", "Export fewer records at once.")
    data = path.read_bytes()
    try:
        length = int.from_bytes(data[:8], "little")
        if length > LARGEST_HEADER:
            raise ValueError("its header is too long")
        document = json.loads(json.loads(data[8 : 8 + length])["__metadata__"][KEY])
        manifest = document["manifest"]
        if manifest["version"] != VERSION:
            raise AttemptError(f"{path} is of another version ({str(manifest['version'])[:20]})", "Update attempt.")
        if document["sha256"] != _digest(manifest):
            raise ValueError("its checksum is wrong")
        for name in (*KINDS, "main"):
            if not isinstance(manifest[name], list):
                raise ValueError(f"its '{name}' is no list")
        name, fingerprint = manifest["backbone"]["name"], manifest["backbone"]["fingerprint"]
        if not isinstance(name, str) or not isinstance(fingerprint, str):
            raise ValueError("it names no backbone")
        main = [parse(ref).name for ref in manifest["main"]]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise AttemptError(f"{path} is no whole bundle ({error})"[:400], hint) from None
    entries = safetensors_entries(data, path)
    tensors: dict[str, dict[str, Array]] = {}
    for full, entry in entries.items():
        sha256, _, tensor = full.partition(".")
        tensors.setdefault(sha256, {})[tensor] = decode(entry, full)
    return _Reading(path, manifest, tensors, main, options).content(name, fingerprint)


class _Reading:
    """Makes drafts of a manifest."""

    def __init__(
        self,
        path: Path,
        manifest: Mapping[str, Any],
        tensors: Mapping[str, Mapping[str, Array]],
        main: Sequence[str],
        options: Options,
    ) -> None:
        self.path, self.manifest, self.tensors, self.main, self.options = path, manifest, tensors, main, options

    def content(self, backbone: str, fingerprint: str) -> Content:
        """Returns all drafts."""
        prompts, attentions, compositions = (
            tuple(self._drafts(kind, make))
            for kind, make in (
                ("prompts", self._prompt),
                ("attentions", self._attention),
                ("compositions", self._composition),
            )
        )
        keys = {
            *(f"prompt:{draft.key}" for draft in prompts),
            *(f"attention:{draft.key}" for draft in attentions),
            *(f"composition:{draft.key}" for draft in compositions),
        }
        if len(keys) < len(prompts) + len(attentions) + len(compositions):
            raise self._damaged("two records have one name")
        for draft in compositions:
            parts = [f"prompt:{key}" for key in (*draft.sources, *draft.targets)]
            parts += [f"attention:{draft.attention}"] if draft.attention else []
            if missing := [part for part in parts if part not in keys]:
                raise self._damaged(f"it lacks {missing[0][:80]!r}, a part of '{draft.key}'")
        runs = tuple(checked_fields(fields, str(self.path), "run") for fields in self.manifest["runs"])
        origin: dict[str, Any] = {"bundle_sha256": _digest(self.manifest)}
        if self.manifest.get("removed_ancestors"):
            origin["removed_ancestors"] = self.manifest["removed_ancestors"]
        return Content(
            prompts,
            attentions,
            compositions,
            runs,
            origin=origin,
            backbone=backbone,
            fingerprint=fingerprint,
            bundle=True,
            recorded=backbone_of_fields(self.manifest["backbone"], str(self.path)),
        )

    def _drafts(self, kind: str, make: Any) -> list[Any]:
        single = kind.removesuffix("s")
        drafts = []
        for fields in self.manifest[kind]:
            checked = checked_fields(fields, str(self.path), single)
            version = fields.get("version")
            if type(version) is not int or fields.get("fingerprint") != self.manifest["backbone"]["fingerprint"]:
                raise self._damaged(f"its {single} '{checked['name'][:80]}' is of another backbone, or of no version")
            check_name(checked["name"])
            key = f"{checked.pop('name')}@{version}"
            drafts.append(make(checked, key, self._renamed(key)))
        return drafts

    def _prompt(self, fields: dict[str, Any], key: str, name: str) -> PromptDraft:
        parts = dict(self._tensors(fields.pop("sha256"), key))
        tensor, said = parts.pop("prompt", None), fields["settings"].get("parts", [])
        if tensor is None or sorted(parts) != said:
            raise self._damaged(f"'{key}' is no prompt")
        tags, parents = tuple(fields.pop("tags")), tuple(fields.pop("parents"))
        return PromptDraft(tensor, name=name, key=key, tags=tags, parents=parents, parts=parts, **fields)

    def _attention(self, fields: dict[str, Any], key: str, name: str) -> AttentionDraft:
        tensors = self._tensors(fields.pop("sha256"), key)
        return AttentionDraft(tensors, name=name, key=key, parents=tuple(fields.pop("parents")), **fields)

    def _composition(self, fields: dict[str, Any], key: str, name: str) -> CompositionDraft:
        sources, targets = tuple(fields.pop("sources")), tuple(fields.pop("targets"))
        return CompositionDraft(name, sources, targets=targets, key=key, **fields)

    def _tensors(self, sha256: str, key: str) -> Mapping[str, Array]:
        """Returns the tensors of a record, whose hash they have."""
        tensors = self.tensors.get(sha256)
        if tensors is None or to_safetensors(tensors)[1] != sha256:
            raise self._damaged(f"the tensors of '{key}' are not those that were written")
        return tensors

    def _renamed(self, key: str) -> str:
        """Returns the name that a record gets here."""
        name, options = parse(key).name, self.options
        if options.name is not None:
            if len(set(self.main)) != 1:
                raise AttemptError(f"{self.path} holds {len(self.main)} records", "Rename all with --prefix TEXT.")
            (main,) = set(self.main)
            if name == main or name.startswith(f"{main}."):  # with several targets prompts are NAME.TASK
                name = options.name + name.removeprefix(main)
        return options.prefix + name

    def _damaged(self, why: str) -> AttemptError:
        return AttemptError(f"{self.path} is no whole bundle: {why}", "Copy the file again.")


def _digest(manifest: Any) -> str:
    text = json.dumps(manifest, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()  # halves of characters have no encoding, and are refused by it
