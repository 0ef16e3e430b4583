"""The source prompts of a grid, trained as cells of a grid of their own where they are asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from attempt_cli.data.task import load_task
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.grid import Ask, Plan
from attempt_cli.experiments.workers import Filled

SOURCE_SEED = 0

# full names of source prompts for a backbone (as the user named it) and a task
Sources = dict[tuple[str, str], tuple[str, ...]]


def train_sources(
    plan: Plan,
    names: Sequence[str],
    settings: Mapping[str, Any],
    backbones: Sequence[str],
    targets: Sequence[str],
    fill: Callable[[Plan, Sequence[Ask]], Filled],
) -> tuple[Sources, Filled]:
    """Trains a source prompt of each task on each backbone.

    Args:
        plan: of the grid that needs them.
        names: the source tasks.
        settings: of their training, besides those of the plan.
        backbones: as the user named them.
        targets: the tasks of the grid; a source of a target's own task is not among that target's sources, because it
            has seen its training rows.
        fill: fills the cells of a plan.

    Returns:
        The sources, and what came of their cells.

    Raises:
        AttemptError: a task is unknown, or there is no source for a target.
    """
    source_plan = replace(
        plan, tasks={name: load_task(name) for name in names}, settings={**plan.settings, **settings}, init_from=None
    )
    asks = [
        Ask(name, "prompt-tuning", SOURCE_SEED, backbone, kind="source") for backbone in backbones for name in names
    ]
    filled = fill(source_plan, asks)
    made = dict(zip([ask for ask in asks if ask not in filled.failures], filled.cells, strict=True))
    sources = {}
    for backbone in backbones:
        for task in targets:
            refs = tuple(cell.prompt for ask, cell in made.items() if ask.backbone == backbone and ask.task != task)
            if not refs:
                failed = [error for ask, error in filled.failures.items() if ask.task != task]
                raise AttemptError(
                    f"there is no source prompt for {task} on {backbone}",
                    failed[0] if failed else "Name other tasks than the target with --train-sources.",
                )
            sources[backbone, task] = refs
    return sources, filled
