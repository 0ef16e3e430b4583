"""Changes the sources or forces the weights of a composition, without training: G scores prompts by a dot product."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING

from attempt_cli.errors import AttemptError, unknown_name
from attempt_cli.name_lists import listed
from attempt_registry.references import parse

if TYPE_CHECKING:
    from attempt_registry import Composition, Prompt, Registry

TARGET = "target"  # the target prompt's name among weights


@dataclass(frozen=True)
class Changes:
    """Edits to a composition.

    Args:
        add: prompts that become sources, after the others.
        drop: sources to remove.
        only: the sources to keep; empty keeps all.
        weights: forced weights (a of equation 4): a source's name, or "target" -> its weight; sources without one get
            0. Empty leaves the weights to the attention.
    """

    add: Sequence[str] = ()
    drop: Sequence[str] = ()
    only: Sequence[str] = ()
    weights: Mapping[str, float] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in ("add", "drop", "only"):  # a name alone is a list of one, not its letters
            object.__setattr__(self, name, tuple(listed(getattr(self, name))))

    def __bool__(self) -> bool:
        return bool(self.add or self.drop or self.only or self.weights)

    def __str__(self) -> str:
        parts = [f"{verb} {','.join(names)}" for verb in ("add", "drop", "only") if (names := getattr(self, verb))]
        if self.weights:
            parts.append("weights " + ",".join(f"{name}={weight:g}" for name, weight in self.weights.items()))
        return " ".join(parts)


def changed(registry: Registry, composition: Composition, changes: Changes) -> Composition:
    """Applies changes to a composition: returns a record for `load_composition`, which is not kept in the registry.

    Args:
        registry: the registry.
        composition: the composition; its name stays, forced weights are in its settings under "weights".
        changes: `add` is applied first, then `only` and `drop`, then `weights`.

    Raises:
        AttemptError: a name that is not among the sources or that is there already, a prompt of another backbone,
            length or placement, no source left, a weight that is negative or not a number, or a target's weight where
            the mixture has no target.
        RegistryError: `add` names an unknown prompt.
    """
    sources = list(composition.sources)
    if not sources and not changes.add:
        raise AttemptError(
            f"the composition '{composition.ref}' has no sources to change",
            "Give it some with --add, or name another composition: `attempt registry list --what compositions`.",
        )
    for name in changes.add:
        prompt = registry.prompt(name)
        if prompt.ref in sources:
            raise AttemptError(f"'{prompt.ref}' is already a source of '{composition.ref}'", "Leave it out of --add.")
        _check_fits(registry, composition, prompt)
        sources.append(prompt.ref)
    if changes.only:
        stay = [source_named(name, sources, composition.ref) for name in changes.only]
        sources = [ref for ref in sources if ref in stay]
    gone = {source_named(name, sources, composition.ref) for name in changes.drop}
    sources = [ref for ref in sources if ref not in gone]
    if not sources:
        raise AttemptError(
            f"no source of '{composition.ref}' would be left to mix",
            f"Keep one; a target prompt alone is `--prompt {composition.targets[0]}`."
            if composition.targets
            else "Keep one.",
        )
    settings = dict(composition.settings)
    if "prior" in settings and changes.add and not changes.weights:
        raise AttemptError(
            f"G of '{composition.ref}' adds to each source's score how likely it made the training rows, and "
            f"{', '.join(changes.add)} would have nothing of the kind",
            "Force all weights with --weights, or train without --evidence.",
        )
    forced = dict(settings.pop("weights", {}))
    if changes.weights:
        forced = {}
        for name, weight in changes.weights.items():
            ref = name if name == TARGET else source_named(name, sources, composition.ref)
            if ref == TARGET and weight and not (composition.targets and settings.get("with_target", True)):
                raise AttemptError(
                    f"the composition '{composition.ref}' mixes its sources alone, without a target prompt",
                    "Leave target= out of --weights.",
                )
            if not (math.isfinite(weight) and weight >= 0):
                raise AttemptError(
                    f"the weight of '{name}' is {weight:g}",
                    "A weight is a number of at least 0, as in mnli=.5,target=.5.",
                )
            if ref in forced:
                raise AttemptError(f"'{ref}' has two weights", "Name each source once in --weights.")
            forced[ref] = weight
    elif forced and changes.add:
        raise AttemptError(
            f"the weights of '{composition.ref}' are forced, and {', '.join(changes.add)} would have none",
            "Name all weights with --weights.",
        )
    if forced:
        settings["weights"] = {ref: forced.get(ref, 0.0) for ref in (*sources, TARGET)}
    elif composition.attention is None:
        raise AttemptError(
            f"the composition '{composition.ref}' has no attention to mix its sources",
            "Force their weights: `--weights a=.5,target=.5`.",
        )
    return replace(composition, sources=tuple(sources), settings=settings)


def source_named(name: str, sources: Sequence[str], composition: str) -> str:
    """Finds the full name of a source, "mnli@2" for "mnli".

    Raises:
        AttemptError: there is none of that name (with the nearest names), or there are several versions of it.
    """
    found = [ref for ref in sources if name in (ref, parse(ref).name)]
    if len(found) == 1:
        return found[0]
    if found:
        raise AttemptError(f"'{name}' is several sources of '{composition}': {', '.join(found)}", "Name the version.")
    short = [parse(ref).name for ref in sources]
    raise unknown_name(f"source of '{composition}'", name, short, f"attempt registry show composition:{composition}")


def _check_fits(registry: Registry, composition: Composition, prompt: Prompt) -> None:
    """Refuses a prompt that cannot be mixed with the composition's prompts."""
    own = registry.prompt((*composition.targets, *composition.sources)[0])
    ours = (composition.fingerprint, own.length, composition.placement, composition.chat_template)
    theirs = (prompt.fingerprint, prompt.length, prompt.placement, prompt.chat_template)
    if ours != theirs:
        texts = [
            f"{name}: {backbone} ({fingerprint}), {length} tokens, {placement} the input"
            f"{', in a chat template' if template else ''}"
            for name, backbone, (fingerprint, length, placement, template) in (
                (prompt.ref, prompt.backbone, theirs),
                (composition.ref, composition.backbone, ours),
            )
        ]
        raise AttemptError(
            f"'{prompt.ref}' does not fit the composition '{composition.ref}'; {'; '.join(texts)}",
            f"`attempt registry list --backbone {composition.backbone}` shows what there is.",
        )
