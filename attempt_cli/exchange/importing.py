"""Imports prompts from files and folders of any known format: reads all of it, checks it, then adds it in one step."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from graphlib import CycleError, TopologicalSorter
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.changes import TARGET
from attempt_cli.composing import checked_parts
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.exchange import provenance
from attempt_cli.exchange.content import CompositionDraft
from attempt_cli.exchange.formats import FORMATS, recognised
from attempt_cli.late_imports import imported
from attempt_registry.references import parse

if TYPE_CHECKING:
    from attempt_cli.exchange.content import AttentionDraft, Content, PromptDraft
    from attempt_cli.session import Session
    from attempt_registry import Attention, Backbone, Composition, Prompt, Registry


@dataclass(frozen=True)
class Options:
    """What a user says of an import that the files do not, or otherwise.

    Args:
        task: the prompts' tasks, one a prompt.
        name: the prompt's name; of several, the part before their tasks.
        kind: "source" or "target".
        sources: of a saved run of the authors' code, the source prompts in the registry that it mixed, in its order.
        prefix: put before all names of a bundle.
        note, tags: for the record.
    """

    task: tuple[str, ...] = ()
    name: str | None = None
    kind: str | None = None
    sources: tuple[str, ...] = ()
    prefix: str = ""
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


def import_path(
    session: Session, path: Path, options: Options, origin: dict[str, Any], *, unseen: bool = False
) -> Imported:
    """Recognises what lies at a path and adds it to the registry.

    Args:
        session: says where the registry is, and whose prompts they are where the files do not.
        path: a file or folder.
        options: what the user says.
        origin: where it comes from, for the record.
        unseen: where a bundle's backbone is not recorded here, believe what the bundle says of it. Whatever loads the
            prompts compares its fingerprint with that of the real one.

    Raises:
        AttemptError: nothing known is there, it is damaged or does not fit its backbone; then nothing is added.
    """
    if not path.exists():
        raise AttemptError(f"there is nothing at {path}", "Check the path.")
    written = FORMATS.get(provenance.written_as(path) or "")
    if written is not None and not written.read:
        raise AttemptError(
            f"{path} is an export of {written.title}, which is not read back",
            "Export the prompt --to bundle for another registry, or --to npy.",
        )
    name = recognised(path)
    if name is None:
        known = ", ".join(row.title for row in FORMATS.values() if row.read)
        raise AttemptError(
            f"{path} holds nothing that can be imported",
            f"Known are: {known}. `attempt registry add` takes a matrix from a .safetensors file.",
        )
    row = FORMATS[name]
    if idle := ["tag" if option == "tags" else option for option in options.given() if option not in row.options]:
        says = "says" if len(idle) == 1 else "say"
        raise ArgumentsError(f"--{' and --'.join(idle)} {says} nothing of {row.title}", "Leave it out.")
    content: Content = named(imported(row.read)(path, options), options, path)
    backbone = content.recorded if unseen and session.backbone is None else None
    if backbone is None or any(one.fingerprint == backbone.fingerprint for one in session.store.backbones()):
        backbone = find_backbone(session, content)
    for shape in [list(draft.tensor.shape) for draft in content.prompts]:
        if len(shape) != 2 or shape[1] != backbone.width:
            raise AttemptError(
                f"{path} holds {shape}, but a prompt of {backbone.name} is [length, {backbone.width}]",
                "Name the backbone that it was trained for with --backbone.",
            )
    where = {"format": name, **origin, **content.origin}
    added = add_content(session.store, content, backbone, name, where)
    for note in content.notes:
        session.listener.note(note)
    return added


def find_backbone(session: Session, content: Content) -> Backbone:
    """Finds the recorded backbone that a content belongs to.

    The one that the user names comes first; it is loaded and recorded if it is not yet. Else the files say which.

    Raises:
        AttemptError: none is known, or the files name another fingerprint.
    """
    from attempt_cli.backbones.names import aliases

    registry = session.store
    known = registry.backbones()[::-1]
    # a name in the environment was not meant for a stranger's adapter: it counts where a fingerprint can contradict it
    chosen = session.backbone or (session.backbone_name if content.fingerprint or not content.backbone else None)
    if session.backbone is None and content.fingerprint is not None:
        found = next((one for one in known if one.fingerprint == content.fingerprint), None)
    else:
        name = session.backbone or content.backbone or chosen
        if name is None:
            raise AttemptError("nothing says which backbone the prompts are for", "Name it with --backbone.")
        alias = next((alias for alias, entry in aliases().items() if entry["hub"] == name), name)
        found = next((one for one in known if {name, alias} & {one.name, one.fingerprint, one.source}), None)
    if found is None and chosen is not None:
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
    if content.bundle:
        return content
    prompts = content.prompts
    if options.task and len(options.task) != len(prompts):
        raise ArgumentsError(
            f"{path} holds {len(prompts)} prompts, and --task names {len(options.task)}",
            "Name a task for each, comma separated, in their order.",
        )
    tasks = options.task or tuple(draft.task or "" for draft in prompts)
    if not all(tasks):
        raise ArgumentsError(f"nothing says what {path} was trained for", "Name its task with --task.")
    drafts = tuple(_named(draft, task, options, len(prompts)) for draft, task in zip(prompts, tasks, strict=True))
    name = options.name or (drafts[0].name if len(drafts) == 1 else None)
    if name is None and content.attentions:
        raise ArgumentsError(f"{path} holds several tasks under one attention", "Name it with --name.")
    return replace(
        content,
        prompts=drafts,
        attentions=tuple(replace(draft, name=name, note=options.note) for draft in content.attentions),
        compositions=tuple(replace(draft, name=name, note=options.note) for draft in content.compositions),
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
    registry: Registry, content: Content, backbone: Backbone, format: str, origin: Mapping[str, Any]
) -> Imported:
    """Adds drafts to the registry, all or none.

    Args:
        registry: where to.
        content: with names and tasks.
        backbone: theirs.
        format: what they were read from.
        origin: recorded in the settings of each, under "imported".

    Raises:
        AttemptError: a name is taken by another record, or the parts of a composition do not fit.
    """
    adding = _Adding(registry, content, backbone, origin)
    made: dict[str, list[Any]] = {"prompt": [], "attention": [], "composition": []}
    with registry.transaction():
        if not backbone.created:
            registry.remember_backbone(backbone)
        for kind, draft in _parents_first(content):
            made[kind].append(getattr(adding, kind)(draft))
        if adding.taken:
            raise AttemptError(
                f"other records have these names here: {', '.join(sorted(set(adding.taken)))}",
                "Import it under others: --prefix TEXT goes before all of them, --name changes the main one.",
            )
        for run in content.runs:
            adding.run(run)
    return Imported(format, tuple(made["prompt"]), tuple(made["attention"]), tuple(made["composition"]))


def _parents_first(content: Content) -> list[tuple[str, Any]]:
    """Returns the drafts with their kinds, each behind all that it refers to.

    Raises:
        AttemptError: some refer to each other in a circle.
    """
    drafts: dict[str, tuple[str, Any]] = {}
    needs: dict[str, list[str]] = {}
    kinds: tuple[tuple[str, Sequence[PromptDraft | AttentionDraft | CompositionDraft]], ...] = (
        ("prompt", content.prompts),
        ("attention", content.attentions),
        ("composition", content.compositions),
    )
    for kind, of in kinds:
        for number, draft in enumerate(of):
            key = f"{kind}:{draft.key or number}"
            if isinstance(draft, CompositionDraft):
                parts = [f"prompt:{part}" for part in (*draft.sources, *draft.targets)]
                parts += [f"attention:{draft.attention}"] if draft.attention is not None else []
            else:
                parts = [f"{parse(parent).kind or 'prompt'}:{parse(parent).ref}" for parent in draft.parents]
            drafts[key], needs[key] = (kind, draft), parts
    try:
        order = list(TopologicalSorter(needs).static_order())
    except CycleError:
        raise AttemptError("records are their own ancestors", "Copy the file again.") from None
    return [drafts[key] for key in order if key in drafts]


class _Adding:
    """Adds drafts one by one; remembers the full names that their keys got."""

    def __init__(self, registry: Registry, content: Content, backbone: Backbone, origin: Mapping[str, Any]) -> None:
        self.registry, self.bundle, self.origin = registry, content.bundle, origin
        self.of = {"backbone": backbone.name, "fingerprint": backbone.fingerprint}
        self.width = backbone.width
        self.refs: dict[str, str] = {}  # "prompt:KEY" -> full name
        self.new: set[str] = set()  # names with their kinds that this import adds
        self.taken: list[str] = []

    def prompt(self, draft: PromptDraft) -> Prompt:
        import numpy as np

        def add() -> Prompt:
            return self.registry.add_prompt(
                draft.tensor,
                name=draft.name or "",
                kind=draft.kind or "source",
                method=draft.method,
                task=draft.task or "",
                task_version=draft.task_version,
                embedding_scale=draft.embedding_scale,
                settings=self._settings(draft.settings, draft.key),
                numbers=draft.numbers,
                seed=draft.seed,
                placement=draft.placement,
                note=draft.note,
                tags=draft.tags,
                parents=self._parents(draft.parents),
                parts=draft.parts,
                **self.of,
            )

        def alike(other: Prompt) -> bool:
            fields = ("kind", "task", "placement", "embedding_scale")
            same = all(getattr(other, field) == getattr(draft, field) for field in fields)
            if not same or other.parts != tuple(sorted(draft.parts)):
                return False
            theirs = {"": self.registry.prompt_tensor(other), **self.registry.prompt_parts(other)}
            return all(np.array_equal(theirs[name], one) for name, one in {"": draft.tensor, **draft.parts}.items())

        kept: Prompt = self._kept("prompt", draft, alike, add)
        return kept

    def attention(self, draft: AttentionDraft) -> Attention:
        import numpy as np

        def add() -> Attention:
            check_attention(draft, self.width)
            return self.registry.add_attention(
                draft.tensors,
                name=draft.name or "",
                rank=draft.rank,
                level=draft.level,
                temperature=draft.temperature,
                width=self.width,
                placement=draft.placement,
                settings=self._settings(draft.settings, draft.key),
                seed=draft.seed,
                note=draft.note,
                parents=self._parents(draft.parents),
                **self.of,
            )

        def alike(other: Attention) -> bool:
            fields = ("rank", "level", "temperature", "placement")
            theirs = self.registry.attention_tensors(other)
            same = all(getattr(other, field) == getattr(draft, field) for field in fields)
            return (
                same
                and theirs.keys() == draft.tensors.keys()
                and all(np.array_equal(theirs[name], tensor) for name, tensor in draft.tensors.items())
            )

        kept: Attention = self._kept("attention", draft, alike, add)
        return kept

    def composition(self, draft: CompositionDraft) -> Composition:
        sources = tuple(self._ref("prompt", key) for key in draft.sources)
        targets = tuple(self._ref("prompt", key) for key in draft.targets)
        attention = None if draft.attention is None else self._ref("attention", draft.attention)
        settings = dict(draft.settings)
        if isinstance(settings.get("weights"), dict):
            settings["weights"] = self._renamed(settings["weights"])
        if isinstance(settings.get("prior"), dict):
            own = {key: self._renamed(one) for key, one in settings["prior"].items() if isinstance(one, dict)}
            settings["prior"] = self._renamed(own)

        def add() -> Composition:
            check_mixing(settings, sources, f"the composition '{draft.name}'")
            made = self.registry.add_composition(
                name=draft.name or "",
                sources=sources,
                attention=attention,
                targets=targets,
                settings=self._settings(settings, draft.key),
                note=draft.note,
                **self.of,
            )
            checked_parts(self.registry, made)
            return made

        def alike(other: Composition) -> bool:
            mixing = ({k: v for k, v in given.items() if k in MIXING} for given in (other.settings, settings))
            parts = (other.sources, other.attention, other.targets) == (sources, attention, targets)
            return parts and next(mixing) == next(mixing)

        kept: Composition = self._kept("composition", draft, alike, add)
        return kept

    def _renamed(self, by_prompt: Mapping[str, Any]) -> dict[str, Any]:
        return {self.refs.get(f"prompt:{key}", key): value for key, value in by_prompt.items()}

    def run(self, fields: Mapping[str, Any]) -> None:
        """Records a run with those of its artefacts and inputs that are here."""
        here: dict[str, Any] = {
            name: [f"{ref.partition(':')[0]}:{self.refs[ref]}" for ref in fields[name] if ref in self.refs]
            for name in ("artefacts", "inputs")
        }
        if self.new.isdisjoint(here["artefacts"]):
            return  # all that it made was here before, and so is the run
        was = {name: fields[name] for name in ("created", "artefacts", "inputs")}
        settings = {**fields["settings"], "imported": {**self.origin, **was}}
        kept = {name: fields[name] for name in ("command", "rows", "seed", "budget", "numbers", "versions", "duration")}
        self.registry.add_run(settings=settings, **kept, **here)

    def _kept(self, kind: str, draft: Any, alike: Callable[[Any], bool], add: Callable[[], Any]) -> Any:
        """Returns the record that is here already, or adds it."""
        record = self._here(kind, draft.name, alike) if self.bundle else None
        if record is None:
            record = add()
            self.new.add(f"{kind}:{record.ref}")
        self.refs[f"{kind}:{draft.key}"] = record.ref
        return record

    def _here(self, kind: str, name: str, alike: Callable[[Any], bool]) -> Any:
        """Returns a record of that name that says the same; notes a name that only others have."""
        others = [f"{name}@{version}" for version in self.registry.versions(name, kind=kind)]
        others = [ref for ref in others if f"{kind}:{ref}" not in self.new]
        for ref in others:
            record = self.registry.named(ref, kind)
            if record.fingerprint == self.of["fingerprint"] and alike(record):
                return record
        if others:
            self.taken.append(f"{kind} {name}")
        return None

    def _settings(self, settings: Mapping[str, Any], key: str) -> dict[str, Any]:
        start = settings.get("init_from")
        renamed = {"init_from": self.refs[f"prompt:{start}"]} if f"prompt:{start}" in self.refs else {}
        return {**settings, **renamed, "imported": {**self.origin, **({"ref": key} if self.bundle else {})}}

    def _parents(self, keys: Sequence[str]) -> list[str]:
        """Returns the parents that came along; a removed one's name may be another prompt's here."""
        found = [(parse(key).kind or "prompt", parse(key).ref) for key in keys]
        there = [(kind, self.refs[f"{kind}:{key}"]) for kind, key in found if f"{kind}:{key}" in self.refs]
        return [ref if kind == "prompt" else f"{kind}:{ref}" for kind, ref in there]

    def _ref(self, kind: str, key: str) -> str:
        return self.refs.get(f"{kind}:{key}", key)


MIXING = (
    "embedding_scale",
    "weights",
    "with_target",
    "prior",
    "source_norm",
)  # what a composition's settings say of how it mixes


def check_attention(draft: AttentionDraft, width: int) -> None:
    """Refuses a G whose tensors do not fit each other or the backbone.

    Raises:
        AttemptError: says which.
    """
    rank = draft.rank
    shapes = {"down.weight": (rank, width), "up.weight": (width, rank), "norm.weight": (width,), "norm.bias": (width,)}
    found = {name: tuple(tensor.shape) for name, tensor in draft.tensors.items() if name != "log_temperature"}
    learned = draft.tensors.get("log_temperature")  # the registry's files have no number without a dimension
    if found != shapes or not 1 <= rank < width or (learned is not None and learned.shape not in ((), (1,))):
        raise AttemptError(
            f"the attention '{draft.name}' has the tensors {found}, which do not make a G of rank {rank} and width "
            f"{width}",
            "Copy it again.",
        )
    if not (math.isfinite(draft.temperature) and draft.temperature > 0):
        raise AttemptError(f"the attention '{draft.name}' has the temperature {draft.temperature}", "Copy it again.")


def check_mixing(settings: Mapping[str, Any], sources: Sequence[str], what: str) -> None:
    """Refuses settings by which a composition could not be loaded.

    Raises:
        AttemptError: the scale or a weight is no positive number, or a source has no weight.
    """

    def number(value: Any) -> bool:
        return type(value) in (int, float) and math.isfinite(value) and value >= 0

    weights = settings.get("weights")
    fits = number(settings.get("embedding_scale", 1.0)) and settings.get("embedding_scale", 1.0) > 0
    fits = fits and isinstance(settings.get("with_target", True), bool)
    if weights is not None:
        names = {*sources, TARGET}
        fits = fits and isinstance(weights, dict) and weights.keys() == names and all(map(number, weights.values()))
        fits = fits and (settings.get("with_target", True) or weights[TARGET] == 0)
    priors, norm = settings.get("prior", {}), settings.get("source_norm")
    fits = fits and isinstance(priors, dict) and (norm is None or (number(norm) and norm > 0))
    for own in priors.values() if fits else ():
        fits = fits and isinstance(own, dict) and own.keys() >= {*sources, TARGET}
        fits = fits and all(type(one) in (int, float) and math.isfinite(one) for one in own.values())
    if not fits:
        raise AttemptError(f"{what} has settings that do not say how it mixes", "Copy it again.")
