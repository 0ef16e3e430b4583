"""Joins source prompts, target prompts and an attention into a composition; no tensor is loaded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

from attempt_cli.changes import Changes, changed
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.sources import check_lengths
from attempt_registry.add import of_chat_template
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_registry import Registry


def changed_copy(registry: Registry, base: str, changes: Changes) -> Composition:
    """Returns the draft of a changed composition; its settings say what it was made from.

    Raises:
        ArgumentsError: nothing is changed.
        AttemptError: see `changes.changed`.
    """
    if not changes:
        raise ArgumentsError(
            "--from wants a change: --add, --drop, --only or --weights",
            "`attempt compose --help` shows examples.",
        )
    composition = registry.composition(base)
    settings = {**composition.settings, "from": composition.ref, "changes": str(changes)}
    return changed(registry, replace(composition, settings=settings), changes)


def joined(
    registry: Registry,
    name: str,
    sources: Sequence[Prompt],
    targets: Sequence[Prompt],
    attention: str | None,
    changes: Changes,
) -> Composition:
    """Returns the draft of a composition of these parts.

    Args:
        registry: the registry.
        name: the composition's name.
        sources: source prompts, in order.
        targets: target prompts, one per task.
        attention: the attention's name; None takes the one that was trained with the targets, where there are sources
            without forced weights.
        changes: applied to the parts.

    Raises:
        ArgumentsError: an attention without sources.
        AttemptError: no attention, or several, were trained with the targets; see also `changes.changed`.
    """
    mixes = bool(sources or changes.add)
    if attention is not None and not mixes:
        raise ArgumentsError(
            "--attention mixes sources: give --sources too", "`attempt registry list --kind source` shows them."
        )
    if mixes and attention is None and not changes.weights:
        attention = attention_of(registry, [prompt.ref for prompt in targets])
    mixer = None if attention is None else registry.attention(attention)
    if mixer is not None and mixer.settings.get("evidence"):
        raise AttemptError(
            f"'{mixer.ref}' was trained beside a prior on its sources, which its composition alone has",
            f"Change that one: `attempt compose {name} --from COMPOSITION --drop …`.",
        )
    first = [*targets, *sources][0]
    draft = Composition(
        name=name,
        version=(registry.versions(name, kind="composition") or [0])[-1] + 1,
        backbone=first.backbone,
        fingerprint=first.fingerprint,
        sources=tuple(prompt.ref for prompt in sources),
        attention=mixer.ref if mixer else None,
        targets=tuple(prompt.ref for prompt in targets),
        placement=first.placement,
        settings={
            "embedding_scale": mixer.settings.get("embedding_scale", 1.0) if mixer else first.embedding_scale,
            **of_chat_template(first),
        },
        created="",
        note="",
        id=0,
    )
    return changed(registry, draft, changes) if changes else draft


def attention_of(registry: Registry, targets: Sequence[str]) -> str:
    """Finds the attention that was trained with target prompts: the artefact of the same run.

    Raises:
        AttemptError: there is none, or there are several.
    """
    found = {
        artefact.removeprefix("attention:")
        for target in targets
        for run in registry.lineage(target).made_by
        for artefact in run.artefacts
        if artefact.startswith("attention:")
    }
    if len(found) != 1:
        raise AttemptError(
            f"{'no attention was' if not found else 'several attentions were'} trained with {', '.join(targets)}"
            + (f": {', '.join(sorted(found))}" if found else ""),
            "Name one with --attention; `attempt registry list --what attentions` shows them.",
        )
    return found.pop()


def checked_parts(registry: Registry, draft: Composition) -> list[Prompt]:
    """Returns the target prompts of a draft.

    Raises:
        AttemptError: its prompts differ in length, or two targets are for one task.
    """
    sources = [registry.prompt(ref) for ref in draft.sources]
    targets = [registry.prompt(ref) for ref in draft.targets]
    check_lengths([*sources, *targets])
    tasks = [prompt.task for prompt in targets]
    if len(set(tasks)) < len(tasks):
        raise AttemptError(f"two target prompts are for one task: {', '.join(tasks)}", "Name one target per task.")
    return targets
