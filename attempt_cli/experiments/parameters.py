"""Counts the parameters that each method trains on backbones of every shape: by formula, and on built modules."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from attempt_cli.backbones.shapes import BackboneShape, backbone_shapes
from attempt_cli.backbones.tuned import LORA_RANK, REDUCTION
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.figures import Panel, Series, draw_panels
from attempt_cli.experiments.methods import unknown_names
from attempt_cli.experiments.published import published_parameters
from attempt_cli.experiments.report_table import ReportTable
from attempt_cli.late_imports import imported
from attempt_cli.method import BuildInputs
from attempt_cli.training.config import make_config
from attempt_cli.training.methods import METHODS as TRAINED

LENGTH, RANK = 100, 100  # m and r of the paper
SOURCES = 6
TASKS = 8  # that share a G: GLUE's
DEPT_POSITIONS = 256  # s: the paper's longest input


@dataclass(frozen=True)
class Counting:
    """Counts a method's trained parameters in two ways, both named by its row in the table of methods.

    Args:
        method: a name in `training.methods.METHODS`.
        tasks: how many tasks share what is trained.
    """

    method: str
    tasks: int = 1

    def formula(self, shape: BackboneShape) -> float:
        """Returns the number for a task, by formula."""
        row = TRAINED[self.method]
        if row.trains_weights:
            more = {"tasks": self.tasks} if row.several else {}
            number: float = imported(row.parameters)(shape, **more)
        else:
            number = imported(row.parameters)(self._inputs(shape))
        return number

    def count(self, shape: BackboneShape) -> float:
        """Builds what is trained on the meta device, and returns its parameters for a task.

        Raises:
            AttemptError: the method is built by a library that is not installed.
        """
        row = TRAINED[self.method]
        with torch.device("meta"):
            if row.trains_weights:
                more = {"tasks": self.tasks} if row.per_task else {}
                module: nn.Module = row.builder()(_Unloaded(shape), 0, **more)
            else:
                module = row.builder()(self._inputs(shape))
        return sum(tensor.numel() for tensor in module.parameters() if tensor.requires_grad) / self.tasks

    def _inputs(self, shape: BackboneShape) -> BuildInputs:
        """Returns what the method's prompts are made from, with the sizes of the paper and tensors without numbers."""
        config = make_config(None, method=self.method, prompt_length=LENGTH, attention_rank=RANK)
        initial = torch.empty(self.tasks, LENGTH, shape.width, device="meta")
        takes_sources = "sources" in TRAINED[self.method].takes
        sources = torch.empty(SOURCES, LENGTH, shape.width, device="meta") if takes_sources else None
        return BuildInputs(config, initial, sources, torch.Generator("cpu"), DEPT_POSITIONS)


class _Unloaded:
    """Stands for a backbone that weights are put into, but whose own are not loaded.

    Args:
        shape: the backbone's.
    """

    compiled, tuned = False, None
    fingerprint, embedding_rms = "", 1.0

    def __init__(self, shape: BackboneShape) -> None:
        self.name, self.model, self.device = shape.name, shape.build().requires_grad_(False), torch.device("meta")


# every method that has a formula, alone or, where its tasks share a prompt, on several; and ATTEMPT's shared G
COUNTINGS: dict[str, Counting] = {
    name: Counting(name, TASKS if method.factors or (method.trains_weights and method.several) else 1)
    for name, method in TRAINED.items()
    if method.parameters
} | {"attempt-m": Counting("attempt", TASKS)}


@dataclass(frozen=True)
class Count:
    """One method on one backbone.

    Args:
        parameters: the backbone's own.
        formula, counted: trained parameters for a task, both ways.
    """

    backbone: str
    parameters: int
    method: str
    formula: float
    counted: float


def count_all(methods: Sequence[str], backbones: Sequence[str]) -> list[Count]:
    """Counts every method on every backbone.

    Raises:
        AttemptError: a method or a backbone is unknown.
    """
    problems = unknown_names("method to count", methods, COUNTINGS)
    problems += unknown_names("shape of a backbone", backbones, backbone_shapes())
    if problems:
        raise AttemptError(
            "this cannot be counted:\n  " + "\n  ".join(problems),
            f"Methods: {', '.join(COUNTINGS)}. Backbones: {', '.join(backbone_shapes())}.",
        )
    counts = []
    for shape in (backbone_shapes()[name] for name in backbones):
        for method in methods:
            counting = COUNTINGS[method]
            counts.append(Count(shape.name, shape.parameters, method, counting.formula(shape), counting.count(shape)))
    return counts


def parameter_table(counts: Sequence[Count], columns: Sequence[str], title: str, command: str) -> ReportTable:
    """Returns the counts as a table, with published numbers beside them."""
    published = published_parameters()
    lines = []
    for count in counts:
        number = published.get((count.backbone, count.method))
        lines.append(
            {
                "backbone": count.backbone,
                "backbone_parameters": count.parameters,
                "method": count.method,
                "formula": round(count.formula),
                "counted": round(count.counted),
                "share": f"{100 * count.counted / count.parameters:.3g} %",
                "published": number and round(number.value),
            }
        )
    shown = [number for key, number in published.items() if key in {(c.backbone, c.method) for c in counts}]
    notes = [
        f"Trained parameters a task: m = {LENGTH}, r = {RANK}; attempt-m, mpt, hyperformer, hyperdecoder and "
        f"adapterfusion are of {TASKS} tasks; dept has "
        f"the budget of a prompt over {DEPT_POSITIONS} positions; lora has rank {LORA_RANK}, adapters d / {REDUCTION}.",
        "Counted on modules that were built on torch's meta device: shapes without weights.",
    ]
    own = {name: TRAINED[name].settings for name in dict.fromkeys(c.method for c in counts) if name in TRAINED}
    notes += [f"{name}: {key} {one.default}." for name, settings in own.items() for key, one in settings.items()]
    if shown:
        notes.append("Published: " + "; ".join(dict.fromkeys(number.source for number in shown)) + ".")
    document = {"experiment": "fig7", "title": title, "command": command, "counts": [vars(count) for count in counts]}
    return ReportTable("fig7", f"fig7: {title}", command, columns, lines, document, notes)


def draw_parameters(file: Path, counts: Sequence[Count]) -> None:
    """Draws trained parameters against the backbone's, with a panel for each family; both axes are logarithmic.

    Raises:
        AttemptError: matplotlib is not installed.
    """
    panels = []
    for family, is_t5 in (("T5", True), ("SmolLM2", False)):
        of = [count for count in counts if backbone_shapes()[count.backbone].is_t5 == is_t5]
        series = []
        for method in dict.fromkeys(count.method for count in of):
            points = sorted((count.parameters, count.counted) for count in of if count.method == method)
            series.append(Series(method, [x for x, _ in points], [y for _, y in points]))
        if series:
            panels.append(
                Panel(family, "parameters of the backbone", "trained parameters a task", series, log_x=True, log_y=True)
            )
    draw_panels(file, panels)
