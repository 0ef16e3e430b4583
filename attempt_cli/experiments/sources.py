"""What a grid needs before its targets: source prompts, the attention prior, one prompt of all sources."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import replace

from attempt_cli.data.catalogue import load_task
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.grid import Ask, Plan
from attempt_cli.experiments.workers import Filled

SOURCE_SEED = 0

# full names of source prompts for a backbone (as the user named it) and a task
Sources = dict[tuple[str, str], tuple[str, ...]]


def train_sources(
    plan: Plan,
    names: Sequence[str],
    backbones: Sequence[str],
    targets: Sequence[str],
    fill: Callable[[Plan, Sequence[Ask]], Filled],
) -> tuple[Sources, Filled]:
    """Trains a source prompt of each task on each backbone.

    Args:
        plan: of the grid that needs them.
        names: the source tasks.
        backbones: as the user named them.
        targets: the tasks of the grid; a source of a target's own task is not among that target's sources, because it
            has seen its training rows.
        fill: fills the cells of a plan.

    Returns:
        The sources, and what came of their cells.

    Raises:
        AttemptError: a task is unknown, or there is no source for a target.
    """
    source_plan = replace(plan, tasks={name: load_task(name) for name in names})
    asks = [
        Ask((name,), "prompt-tuning", SOURCE_SEED, backbone, kind="source") for backbone in backbones for name in names
    ]
    filled = fill(source_plan, asks)
    sources = {}
    for backbone in backbones:
        for task in targets:
            refs = tuple(
                result.made
                for ask, result in filled.results.items()
                if ask.backbone == backbone and ask.task != task and result.made
            )
            if not refs:
                failed = [error for ask, error in filled.failures.items() if ask.task != task]
                raise AttemptError(
                    f"there is no source prompt for {task} on {backbone}",
                    failed[0] if failed else "Name other tasks than the target with --train-sources.",
                )
            sources[backbone, task] = refs
    return sources, filled


def prepare(
    plan: Plan, kinds: Sequence[str], fill: Callable[[Plan, Sequence[Ask]], Filled]
) -> tuple[dict[tuple[str, str, str], str], Filled]:
    """Trains what targets start from on the source tasks, once for every different set of sources.

    Args:
        plan: of the grid, with its sources.
        kinds: names in `methods.PREPARED`.
        fill: fills the cells of a plan.

    Returns:
        Full names for a backbone, a task and a kind, and what came of it.
    """
    alike: dict[tuple[str, tuple[str, ...]], list[str]] = {}
    for (backbone, task), refs in plan.sources.items():
        alike.setdefault((backbone, refs), []).append(task)
    first = {
        Ask((tasks[0],), "", SOURCE_SEED, backbone, kind=kind): tasks
        for kind in kinds
        for (backbone, _), tasks in alike.items()
    }
    filled = fill(plan, list(first))
    made = {
        (ask.backbone, task, ask.kind): result.made
        for ask, result in filled.results.items()
        for task in first[ask]
        if result.made
    }
    return made, filled
