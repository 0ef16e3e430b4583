"""A cell of a comparison: one method, one task, one seed, and its place in the registry's runs."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

from attempt_cli.artefacts import load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.fewshot import few_shot
from attempt_cli.data.rows import Rows, examples_sha256
from attempt_cli.data.task import Task
from attempt_cli.evaluation.evaluate import evaluate
from attempt_cli.evaluation.prediction import predict
from attempt_registry import Prompt, Registry, Run

ROWS_FOR_CHOICE = 200  # training rows that the best source is chosen by, at most


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
        seconds: the duration of training and evaluation.
        key: a hash of everything that the result depends on.
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


def finished_cells(registry: Registry) -> dict[str, Cell]:
    """Reads the cells that the registry's runs hold, by key; of several with one key the newest."""
    return {
        run.settings["cell"]: cell
        for run in registry.runs()
        if "cell" in run.settings and (cell := cell_of(run)) is not None
    }


def cell_of(run: Run) -> Cell | None:
    """Returns the cell that a run recorded; None where the run is no cell's, or the cell failed."""
    if "score" not in run.numbers:
        return None
    numbers = {name: value for name, value in run.numbers.items() if name in Cell.__dataclass_fields__}
    return Cell(**{**numbers, "interval": tuple(numbers["interval"])})


def drawn_rows(pool: Rows, task: Task, k: int, *, per_class: bool, seed: int) -> Rows:
    """Draws k of a task's rows, balanced over its classes.

    Raises:
        AttemptError: there are fewer.
    """
    rows = few_shot(pool.examples, k, per_class=per_class, label_count=len(task.label_words), seed=seed)
    balanced = ", class-balanced" if task.is_classification else ""
    return Rows(rows, f"{pool.origin}, {len(rows)} of these by seed {seed}{balanced}", examples_sha256(rows))


def best_source(
    registry: Registry,
    backbone: FrozenBackbone,
    task: Task,
    rows: Rows,
    sources: Sequence[Prompt],
    max_length: int | None = None,
) -> Prompt:
    """Returns the source that, untrained, gives these rows' targets the highest likelihood (free text: best score).

    Args:
        registry, backbone: where the sources are kept, and what they are for.
        task: the rows' task.
        rows: training rows, never the test's; of many a sample decides.
        sources: the prompts to choose from.
        max_length: input tokens of a row; the task's own limit without it.
    """
    if len(sources) == 1:
        return sources[0]
    examples = rows.examples
    if len(examples) > ROWS_FOR_CHOICE:
        examples = random.Random(0).sample(examples, ROWS_FOR_CHOICE)

    def fit(prompt: Prompt) -> float:
        model = load_prompt(registry, backbone, prompt).model
        predictions = predict(model, task, examples, max_length=max_length)
        likelihoods = [row.log_likelihood for row in predictions.rows if row.log_likelihood is not None]
        if likelihoods:
            return sum(likelihoods) / len(likelihoods)
        return evaluate(model, task, examples, max_length=max_length).score

    return max(sources, key=fit)
