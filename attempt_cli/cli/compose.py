"""`attempt compose`: joins sources, a target and an attention under a name."""

from __future__ import annotations

from dataclasses import asdict
from typing import TYPE_CHECKING

import click

from attempt_cli.cli.models import alone_note
from attempt_cli.cli.options import backbone_name, check_lengths, chosen_sources, split_names
from attempt_cli.errors import AttemptError

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from registry import Registry


@click.command("compose")
@click.argument("name")
@click.option("--sources", help="Source prompts, comma separated and in order, or `all` of the backbone.")
@click.option("--target", "targets", required=True, help="Target prompts, comma separated, one a task.")
@click.option("--attention", help="The trained G that mixes the sources. [default: the one trained with the target]")
@click.option("--backbone", help="With `--sources all`: of this backbone.")
@click.option("--note", default="", help="A remark to keep with it.")
@click.pass_obj
def command(
    settings: Settings,
    name: str,
    sources: str | None,
    targets: str,
    attention: str | None,
    backbone: str | None,
    note: str,
) -> None:
    """Join source prompts, target prompts and a trained attention under NAME, to evaluate and to predict with.

    G scores prompts by a dot product, so their number is free: sources may be dropped or added without training.

    \b
      attempt compose rte-without-sst2 --sources mnli,qnli --target rte-attempt
      attempt compose both --sources all --target rte-attempt,cb-attempt --attention cb-attempt
    """
    registry = settings.registry()
    target_prompts = [registry.prompt(target) for target in split_names(targets)]
    tasks = [prompt.task for prompt in target_prompts]
    where = backbone_name({"backbone": backbone}) or target_prompts[0].backbone
    chosen = chosen_sources(registry, sources, where, targets=tasks)
    mixer = None
    if chosen:
        mixer = registry.attention(attention or _attention_of(registry, [prompt.ref for prompt in target_prompts]))
    elif attention is not None:
        raise click.UsageError("--attention mixes sources: give --sources too")
    for prompt in target_prompts:
        if mixer is None and prompt.method == "attempt":
            settings.output.note(alone_note(prompt))
    check_lengths([*chosen, *target_prompts])
    if len(set(tasks)) < len(tasks):
        raise AttemptError(f"two target prompts are for one task: {', '.join(tasks)}", "Name one target a task.")
    scale = mixer.settings.get("embedding_scale", 1.0) if mixer else target_prompts[0].embedding_scale
    composition = registry.add_composition(
        name=name,
        backbone=target_prompts[0].backbone,
        fingerprint=target_prompts[0].fingerprint,
        sources=[prompt.ref for prompt in chosen],
        attention=mixer.ref if mixer else None,
        targets=[prompt.ref for prompt in target_prompts],
        settings={"embedding_scale": scale},
        note=note,
    )
    settings.output.record("composition", {**asdict(composition), "name": composition.ref})
    settings.output.note(f"Next: `attempt eval --tasks {','.join(tasks)} --composition {composition.ref}`")


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
