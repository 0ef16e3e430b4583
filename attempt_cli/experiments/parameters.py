"""Counts the parameters that each method trains on backbones of every shape: by formula, and on built modules."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from attempt_cli.backbones.shapes import BackboneShape, backbone_shapes
from attempt_cli.backbones.tuned import DROPPED, LORA_RANK, REDUCTION, adapter_parts, bias_parts
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.figures import Panel, Series, draw_panels
from attempt_cli.experiments.methods import unknown_names
from attempt_cli.experiments.published import published_parameters
from attempt_cli.experiments.report_table import ReportTable
from attempt_cli.method import (
    DecomposedPrompt,
    PromptAttention,
    PromptMixture,
    SharedPrompt,
    attempt_parameters,
    decomposed_shape,
    dept_parameters,
    mpt_parameters,
    prompt_tuning_parameters,
)

LENGTH, RANK = 100, 100  # m and r of the paper
SOURCES = 6
TASKS = 8  # that share a G: GLUE's
DEPT_POSITIONS = 256  # s: the paper's longest input


@dataclass(frozen=True)
class Counting:
    """Two ways to count a method's trained parameters.

    Args:
        formula: their number for a task.
        build: makes the trained modules on the meta device; parameters that require a gradient are counted.
        tasks: how many tasks share the modules.
    """

    formula: Callable[[BackboneShape], float]
    build: Callable[[BackboneShape], nn.Module]
    tasks: int = 1

    def count(self, shape: BackboneShape) -> float:
        """Builds the modules and returns their trained parameters for a task."""
        with torch.device("meta"):
            module = self.build(shape)
        return sum(p.numel() for p in module.parameters() if p.requires_grad) / self.tasks


def _prompts(shape: BackboneShape, tasks: int = 1) -> torch.Tensor:
    return torch.empty(tasks, LENGTH, shape.width)


def _attempt(shape: BackboneShape, tasks: int = 1) -> nn.Module:
    return PromptMixture(
        _prompts(shape, tasks), torch.empty(SOURCES, LENGTH, shape.width), PromptAttention(shape.width, RANK, 1.0)
    )


def _dept(shape: BackboneShape) -> tuple[int, int, int]:
    """Returns m', s and r of a DePT that has the budget of a prompt."""
    short, rank = decomposed_shape(shape.width, LENGTH, DEPT_POSITIONS)
    return short, DEPT_POSITIONS, rank


def _decomposed(shape: BackboneShape) -> nn.Module:
    short, positions, rank = _dept(shape)
    return DecomposedPrompt(torch.empty(1, short, shape.width), positions, rank)


def _adapter_formula(shape: BackboneShape, dropped: int) -> int:
    """Counts two adapters a layer, d → d / 32 → d with biases, in all but the first layers of each stack."""
    inner = shape.width // REDUCTION
    adapter = 2 * shape.width * inner + inner + shape.width
    return 2 * adapter * (shape.layers - dropped) * (2 if shape.is_t5 else 1)


def _adapters(shape: BackboneShape, *, drop: bool) -> nn.Module:
    return nn.ModuleList(adapter_parts(shape.build(), torch.Generator("cpu"), drop=drop).values())


def _by_library(shape: BackboneShape, kind: str) -> nn.Module:
    """Builds the model with peft's modules in it; only these are trained.

    Raises:
        AttemptError: peft is not installed.
    """
    try:
        from peft import IA3Config, LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise AttemptError(
            f"{kind} is counted on the modules of the peft library, which is not installed",
            "Install it: `pip install 'attempt-cli[peft]'`, or name other methods with --methods.",
        ) from error
    model = shape.build().requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=LORA_RANK) if kind == "lora" else IA3Config(), model, low_cpu_mem_usage=True)
    return model


COUNTINGS: dict[str, Counting] = {
    "fine-tuning": Counting(lambda shape: shape.parameters, BackboneShape.build),
    "prompt-tuning": Counting(
        lambda shape: prompt_tuning_parameters(shape.width, LENGTH), lambda shape: PromptMixture(_prompts(shape))
    ),
    "attempt": Counting(lambda shape: attempt_parameters(shape.width, LENGTH, RANK), _attempt),
    "attempt-m": Counting(
        lambda shape: attempt_parameters(shape.width, LENGTH, RANK, TASKS), lambda shape: _attempt(shape, TASKS), TASKS
    ),
    "mpt": Counting(
        lambda shape: mpt_parameters(shape.width, LENGTH, tasks=TASKS),
        lambda shape: SharedPrompt(_prompts(shape)[0], TASKS),
        TASKS,
    ),
    "dept": Counting(lambda shape: dept_parameters(shape.width, *_dept(shape)), _decomposed),
    "lora": Counting(
        lambda shape: sum(
            LORA_RANK * (inputs + outputs)
            for name, inputs, outputs in shape.projections
            if name in ("q", "v", "q_proj", "v_proj")
        ),
        lambda shape: _by_library(shape, "lora"),
    ),
    "ia3": Counting(
        lambda shape: sum(
            inputs if name in ("wo", "down_proj") else outputs  # the feed-forward's scale stands before its last layer
            for name, inputs, outputs in shape.projections
            if name in ("k", "v", "k_proj", "v_proj", "wo", "down_proj")
        ),
        lambda shape: _by_library(shape, "ia3"),
    ),
    "adapter": Counting(lambda shape: _adapter_formula(shape, 0), lambda shape: _adapters(shape, drop=False)),
    "adapterdrop": Counting(
        lambda shape: _adapter_formula(shape, round(DROPPED[0] * shape.layers / DROPPED[1])),
        lambda shape: _adapters(shape, drop=True),
    ),
    "bitfit": Counting(
        lambda shape: sum(outputs for _, _, outputs in shape.projections),
        lambda shape: nn.ModuleList(bias_parts(shape.build()).values()),
    ),
}


def check_counted(methods: Sequence[str], backbones: Sequence[str]) -> list[str]:
    """Returns a message for each unknown name of a method or a backbone."""
    return unknown_names("method to count", methods, COUNTINGS) + unknown_names(
        "shape of a backbone", backbones, backbone_shapes()
    )


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
    problems = check_counted(methods, backbones)
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
        f"Trained parameters a task: m = {LENGTH}, r = {RANK}; attempt-m and mpt are shared by {TASKS} tasks; dept has "
        f"the budget of a prompt over {DEPT_POSITIONS} positions; lora has rank {LORA_RANK}, adapters d / {REDUCTION}.",
        "Counted on modules that were built on torch's meta device: shapes without weights.",
    ]
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
