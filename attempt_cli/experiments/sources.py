"""Trains what the targets of a grid start from: source prompts, the attention prior, one prompt of all sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from attempt_cli.data.catalogue import load_task
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.cell_queue import GridResult
from attempt_cli.experiments.cells import CellSpec
from attempt_cli.experiments.plan import Plan

SOURCE_SEED = 0

# full names of source prompts for a backbone (as the user named it) and a task
Sources = dict[tuple[str, str], tuple[str, ...]]


def train_sources(
    plan: Plan,
    names: Sequence[str],
    backbones: Sequence[str],
    targets: Sequence[str],
    fill: Callable[[Plan, Sequence[CellSpec]], GridResult],
) -> tuple[Sources, GridResult]:
    """Trains a source prompt of each task on each backbone.

    Args:
        plan: the grid's that needs them.
        names: the source tasks.
        backbones: as the user named them.
        targets: the tasks of the grid; a source of a target's own task is not among that target's sources, because it
            has seen the target's training rows.
        fill: fills the cells of a plan.

    Returns:
        The sources, and the result of the grid that trained them.

    Raises:
        AttemptError: a task is unknown, or there is no source for a target.
    """
    source_plan = replace(plan, tasks={name: load_task(name) for name in names})
    specs = [
        CellSpec((name,), "prompt-tuning", SOURCE_SEED, backbone, kind="source")
        for backbone in backbones
        for name in names
    ]
    result = fill(source_plan, specs)
    sources = {}
    for backbone in backbones:
        for task in targets:
            refs = tuple(
                one.artefact
                for spec, one in result.results.items()
                if spec.backbone == backbone and spec.task != task and one.artefact
            )
            if not refs:
                failed = [error for spec, error in result.failures.items() if spec.task != task]
                raise AttemptError(
                    f"there is no source prompt for {task} on {backbone}",
                    failed[0] if failed else "Name other tasks than the target with --train-sources.",
                )
            sources[backbone, task] = refs
    return sources, result


def prepare(
    plan: Plan, kinds: Sequence[str], fill: Callable[[Plan, Sequence[CellSpec]], GridResult]
) -> tuple[dict[tuple[str, str, str], str], GridResult]:
    """Trains what targets start from on the source tasks, once for every different set of sources.

    Args:
        plan: the grid's, with its sources.
        kinds: names in `methods.PREPARED`.
        fill: fills the cells of a plan.

    Returns:
        Full names for a backbone, a task and a kind, and the result of the grid that trained them.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (backbone, task), refs in plan.sources.items():
        alike.setdefault((backbone, refs), []).append(task)
    first = {
        CellSpec((tasks[0],), "", SOURCE_SEED, backbone, kind=kind): tasks
        for kind in kinds
        for (backbone, _), tasks in alike.items()
    }
    result = fill(plan, list(first))
    made = {
        (spec.backbone, task, spec.kind): one.artefact
        for spec, one in result.results.items()
        for task in first[spec]
        if one.artefact
    }
    return made, result
