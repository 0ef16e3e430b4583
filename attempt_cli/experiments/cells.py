"""A cell of a comparison: its specification, its result, and its place in the registry's runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_registry import Registry, Run


@dataclass(frozen=True)
class CellSpec:
    """Specifies a cell; a training on several tasks fills one for each.

    Args:
        tasks: the task's name; several names where the tasks are trained together.
        method: a name in METHODS.
        seed: of the training, and of the rows where they are drawn.
        backbone: as the user named it.
        k: how many training rows are drawn; None takes the task's training split.
        sources: how many source prompts are used, in their order; None uses all.
        kind: "target"; "source" for a prompt that others start from; a name in `methods.PREPARED` for what is trained
            on the source tasks of a target before it.
        swept: settings of this cell alone, by name: what a sweep tries.
    """

    tasks: tuple[str, ...]
    method: str
    seed: int
    backbone: str
    k: int | None = None
    sources: int | None = None
    kind: str = "target"
    swept: tuple[tuple[str, Any], ...] = ()

    def __str__(self) -> str:
        what = {
            "source": "source",
            "attention": "attention prior for",
            "shared": "one prompt of the sources for",
            "factored": "one prompt under factors of the sources for",
        }
        parts = [*([what[self.kind]] if self.kind in what else []), self.task]
        parts += [self.method] if self.kind == "target" else []
        parts += [f"k={self.k}"] if self.k is not None else []
        parts += [f"t={self.sources}"] if self.sources is not None else []
        parts += [f"{name}={value}" for name, value in self.swept]
        return " ".join([*parts, f"seed {self.seed}"])

    @property
    def task(self) -> str:
        """The names of the tasks, joined by "+"."""
        return "+".join(self.tasks)

    @property
    def banked(self) -> bool:
        """Whether it can be trained in one pass with others: it trains prompts."""
        return self.kind not in PREPARED and METHODS[self.method].trains_prompts

    @property
    def affinity(self) -> tuple[str, tuple[str, ...]]:
        """Backbone and tasks: cells that share them share weights and rows, so one worker fills them in a row."""
        return self.backbone, self.tasks


@dataclass(frozen=True)
class Cell:
    """Holds the result of one method with one seed on one task.

    Args:
        method: a name in METHODS.
        score: the task's first metric on the test rows.
        interval: its 95 % interval over rows.
        n: test rows.
        prompt: the full name of the evaluated prompt or composition, or "no prompt".
        steps: optimiser steps; 0 where nothing was trained.
        attention: mean weights, sources first, the target last (its own weight, before the 1 of equation 4 is added).
        backbone: the backbone's name.
        k: training rows where they were drawn (few-shot), else None.
        sources: how many source prompts could be used; None where the method uses none.
        trained_parameters: the number of trained parameters.
        peak_memory: the most bytes in use during training, where they were measured.
        seconds: the duration of training and evaluation; of cells that were trained in one pass each one's share.
        key: a hash of everything that the result depends on, up to rounding.
        bank: how many trainings went through the backbone together; then `peak_memory` is that of all.
        extra_tokens: tokens that a query is longer by: the prompt's, an instruction's, those of demonstrations.
        training_seconds: the duration of training alone; of cells that were trained in one pass each one's share.
        orders: the score with each order of demonstrations, whose mean is the score; None without any.
        validation_score: the first metric on validation rows at the step that was kept; None where none were looked at.
        validation_log_likelihood: of these rows' targets, a row; it tells equal scores apart.
        swept: the settings that a sweep, or a search for learning rates, gave this cell.
        moved: how far the prompt that was kept went from its start, over the norm of the start (of a method without a
            prompt what it trains); None where nothing was trained.
        dtype: of the backbone, with its quantisation where there is one; "" in cells of earlier versions, as `machine`.
        machine: the GPU, or the processor and its threads; and torch's version.
    """

    task: str
    method: str
    seed: int
    score: float
    interval: tuple[float, float]
    n: int
    prompt: str
    steps: int
    attention: dict[str, float] | None = None
    backbone: str = ""
    k: int | None = None
    sources: int | None = None
    trained_parameters: int = 0
    peak_memory: int | None = None
    seconds: float = 0.0
    key: str = ""
    bank: int = 1
    extra_tokens: int = 0
    training_seconds: float = 0.0
    orders: list[float] | None = None
    validation_score: float | None = None
    validation_log_likelihood: float | None = None
    swept: dict[str, Any] | None = None
    moved: float | None = None
    dtype: str = ""
    machine: str = ""


def banks(specs: Sequence[CellSpec], most: int) -> list[list[CellSpec]]:
    """Puts cells that can be trained in one pass together: prompts of one affinity, in the order of the grid.

    Args:
        specs: the cells.
        most: the largest number of cells of a bank.
    """
    found: list[list[CellSpec]] = []
    filling: dict[object, list[CellSpec]] = {}
    for spec in specs:
        key = (spec.affinity, spec.kind)
        if spec.banked and key in filling and len(filling[key]) < most:
            filling[key].append(spec)
            continue
        found.append([spec])
        if spec.banked:
            filling[key] = found[-1]
    return found


@dataclass(frozen=True)
class CellResult:
    """The outcome of a cell's specification.

    Args:
        cells: one for each task; none where something was prepared for targets.
        artefact: the full name of the source prompt, the attention or the prompt of all sources that was trained.
    """

    cells: tuple[Cell, ...] = ()
    artefact: str | None = None


def finished_cells(registry: Registry) -> dict[str, Cell]:
    """Reads the cells that the registry's runs hold, by key; of several with one key the newest."""
    return {
        run.settings["cell"]: cell
        for run in registry.runs()
        if "cell" in run.settings and (cell := cell_of(run)) is not None
    }


def prepared_artefacts(registry: Registry) -> dict[str, tuple[str, float]]:
    """Reads what was prepared for targets, by key: full name and seconds; of several with one key the newest."""
    return {
        run.settings["prepared"]: (str(run.numbers["made"]), float(run.numbers.get("seconds", 0.0)))
        for run in registry.runs()
        if "prepared" in run.settings
    }


def cell_of(run: Run) -> Cell | None:
    """Returns the cell that a run recorded; None where the run is no cell's, or the cell failed."""
    if "score" not in run.numbers:
        return None
    numbers = {name: value for name, value in run.numbers.items() if name in Cell.__dataclass_fields__}
    return Cell(**{**numbers, "interval": tuple(numbers["interval"])})
