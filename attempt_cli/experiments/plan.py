"""What all cells of a grid share, and the rows that they need."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import Any

from attempt_cli.data.rows import load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError

BANK = 16  # cells in one pass: more of them save little more, and a kill costs all of them their last steps


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What holds for every cell of a grid, as the user said it.

    Args:
        settings: the fields of `TrainingConfig` that were given, for all methods.
        rates: learning rates of single methods (`Comparison.rate` says of what); they come before those of `settings`.
        preset: the name of settings by task and method; those that were given come first.
        init_from: the prompt that trainings start from instead of the best source.
        limit: the most test rows of a task, a random sample.
        train_limit: the most training rows of a task, a random sample by seed.
        per_class: k rows of every class, not k in total.
        resume: take finished cells from the registry, and unfinished trainings from their checkpoints.
        bank: the most cells of prompts that are trained in one pass; 1 trains each alone.
    """

    settings: Mapping[str, Any] = field(default_factory=dict)
    rates: Mapping[str, float] = field(default_factory=dict)
    preset: str | None = None
    init_from: str | None = None
    limit: int | None = None
    train_limit: int | None = None
    per_class: bool = False
    resume: bool = False
    bank: int = BANK

    def terms(self) -> dict[str, Any]:
        """Returns them by name, for another that has them, too."""
        return {one.name: getattr(self, one.name) for one in fields(Terms)}


@dataclass(frozen=True, kw_only=True)
class Plan(Terms):
    """Holds what all cells of a grid share; it can be sent to other processes.

    Args:
        registry: the registry's folder.
        data_dir: rows in the hub's layout.
        tasks: by name.
        sources: full names of the source prompts, by backbone and task.
        prepared: full names of what was trained on the source tasks, by backbone, task and kind (a name in
            `methods.PREPARED`).
        source_settings: settings of trainings on source tasks, where they differ.
        device, dtype, quantize: of the backbones.
        input_cache: bytes of each worker for keys and values of inputs; 0 for none.
        command: as it was typed.
        tags: for what is trained.
    """

    registry: Path
    tasks: Mapping[str, Task]
    data_dir: Path | None = None
    sources: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    prepared: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    source_settings: Mapping[str, Any] = field(default_factory=dict)
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    input_cache: int = 0
    command: str = ""
    tags: tuple[str, ...] = ()


def check_rows(tasks: Iterable[Task], data_dir: Path | None) -> None:
    """Looks for the training and test rows of tasks, before the first cell is filled.

    Raises:
        AttemptError: naming every task and split whose rows cannot be found.
    """
    problems: list[AttemptError] = []
    for task in tasks:
        for split in ("train", "test"):
            try:
                load_examples(task, split, data_dir=data_dir, limit=1)
            except AttemptError as error:
                problems.append(error)
    if problems:
        texts = dict.fromkeys(error.message for error in problems)
        raise AttemptError("rows of this grid are missing:\n  " + "\n  ".join(texts), problems[0].hint)
