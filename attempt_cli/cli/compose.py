"""`attempt compose`: joins sources, a target and an attention under a name."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.changes import changed
from attempt_cli.cli.models import alone_note
from attempt_cli.cli.options import (
    backbone_name,
    check_lengths,
    chosen_changes,
    chosen_sources,
    mixture_options,
    split_names,
)
from attempt_cli.errors import AttemptError
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_registry import Registry


@click.command("compose")
@click.argument("name")
@click.option("--from", "base", help="A composition to change, instead of naming its parts.")
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--target", "targets", help="Target prompts, comma separated, one a task.")
@click.option("--attention", help="The trained G that mixes the sources. [default: the one trained with the target]")
@mixture_options
@click.option("--backbone", help="With `--sources all`: of this backbone.")
@click.option("--note", default="", help="A remark to keep with it.")
@click.pass_obj
def command(
    settings: Settings,
    /,
    name: str,
    base: str | None,
    sources: str | None,
    targets: str | None,
    attention: str | None,
    backbone: str | None,
    note: str,
    **options: Any,
) -> None:
    """Join source prompts, target prompts and a trained attention under NAME, to evaluate and to predict with.

    Without --target the sources alone are mixed: an attention prior serves a task that has no training rows.
    G scores prompts by a dot product, so their number is free: sources may be dropped or added without training, and
    weights may be forced. `attempt eval` takes the same changes, and says what they do to the score.

    \b
      attempt compose both --sources all --target rte-attempt,cb-attempt --attention cb-attempt
      attempt compose any-task --sources all --attention prior
      attempt compose rte-without-sst2 --from rte-attempt --drop sst2
      attempt compose rte-even --from rte-attempt --only mnli,qnli --weights mnli=.5,qnli=.5
    """
    changes = chosen_changes(options)
    registry = settings.registry()
    if base is not None:
        if sources is not None or targets is not None or attention is not None:
            raise click.UsageError("--from names all parts: leave --sources, --target and --attention out")
        if not changes:
            raise click.UsageError("--from wants a change: --add, --drop, --only or --weights")
        draft = registry.composition(base)
        draft = replace(draft, settings={**draft.settings, "from": draft.ref, "changes": str(changes)})
    elif targets is None and (sources is None or attention is None):
        raise click.UsageError(
            "name the target prompts with --target, a composition with --from, or --sources and --attention alone"
        )
    else:
        found = [registry.prompt(target) for target in split_names(targets)] if targets else []
        tasks = [prompt.task for prompt in found]
        where = backbone_name({"backbone": backbone}) or (found[0].backbone if found else None)
        mixed = chosen_sources(registry, sources, where, targets=tasks)
        if not mixed and not changes.add and attention is not None:
            raise click.UsageError("--attention mixes sources: give --sources too")
        if (mixed or changes.add) and attention is None and not changes.weights:
            attention = _attention_of(registry, [prompt.ref for prompt in found])
        draft = _draft(registry, name, mixed, found, attention)
    if changes:
        draft = changed(registry, draft, changes)
    parts = [registry.prompt(ref) for ref in (*draft.sources, *draft.targets)]
    check_lengths(parts)
    target_prompts = parts[len(draft.sources) :]
    for prompt in target_prompts:
        if not draft.sources and prompt.method == "attempt":
            settings.output.note(alone_note(prompt))
    tasks = [prompt.task for prompt in target_prompts]
    if len(set(tasks)) < len(tasks):
        raise AttemptError(f"two target prompts are for one task: {', '.join(tasks)}", "Name one target a task.")
    composition = registry.add_composition(
        name=name,
        backbone=draft.backbone,
        fingerprint=draft.fingerprint,
        sources=draft.sources,
        attention=draft.attention,
        targets=draft.targets,
        settings=draft.settings,
        note=note,
    )
    settings.output.record("composition", {**asdict(composition), "name": composition.ref})
    settings.output.note(f"Next: `attempt eval --tasks {','.join(tasks) or 'TASK'} --composition {composition.ref}`")


def _draft(
    registry: Registry, name: str, sources: Sequence[Prompt], targets: Sequence[Prompt], attention: str | None
) -> Composition:
    """The composition of these parts, not kept yet."""
    mixer = None if attention is None else registry.attention(attention)
    first = [*targets, *sources][0]
    scale = mixer.settings.get("embedding_scale", 1.0) if mixer else first.embedding_scale
    return Composition(
        name=name,
        version=(registry.versions(name, kind="composition") or [0])[-1] + 1,
        backbone=first.backbone,
        fingerprint=first.fingerprint,
        sources=tuple(prompt.ref for prompt in sources),
        attention=mixer.ref if mixer else None,
        targets=tuple(prompt.ref for prompt in targets),
        placement=first.placement,
        settings={"embedding_scale": scale},
        created="",
        note="",
        id=0,
    )


def _attention_of(registry: Registry, targets: list[str]) -> str:
    """The attention that was trained with the target prompts: the artefact of the same run."""
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
