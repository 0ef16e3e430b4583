"""How many parameters each method trains on backbones of every size: by formula, and by building and counting."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from attempt_cli.backbones.tuned import DROPPED, LORA_RANK, REDUCTION, adapter_parts, bias_parts
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.figures import Panel, Series, draw_panels
from attempt_cli.experiments.methods import unknown_names
from attempt_cli.experiments.published import published_parameters
from attempt_cli.experiments.sheet import Sheet
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

if TYPE_CHECKING:
    from transformers import PreTrainedModel

LENGTH, RANK = 100, 100  # m and r of the paper
SOURCES = 6
TASKS = 8  # that share a G: GLUE's
DEPT_POSITIONS = 256  # s: the paper's longest input


@dataclass(frozen=True)
class Size:
    """The shape of a backbone.

    Args:
        name: its alias.
        shape: the fields of sizes.yaml.
    """

    name: str
    shape: Mapping[str, Any]

    @property
    def width(self) -> int:
        """d."""
        return int(self.shape["d_model" if self.is_t5 else "hidden_size"])

    @property
    def layers(self) -> int:
        """Layers of a stack: of the encoder, and as many of the decoder; of a Llama."""
        return int(self.shape["num_layers" if self.is_t5 else "num_hidden_layers"])

    @property
    def is_t5(self) -> bool:
        """An encoder-decoder of the T5 family; else a Llama."""
        return bool(self.shape["type"] == "t5")

    @property
    def projections(self) -> list[tuple[str, int, int]]:
        """Name, inputs and outputs of every linear layer, layer by layer."""
        s = self.shape
        if self.is_t5:
            d, inner, ff = s["d_model"], s["d_kv"] * s["num_heads"], s["d_ff"]
            attention = [("q", d, inner), ("k", d, inner), ("v", d, inner), ("o", inner, d)]
            forward = [("wi", d, ff), ("wo", ff, d)]
            encoder, decoder = attention + forward, attention * 2 + forward
            return (encoder + decoder) * int(s["num_layers"])
        d, ff = s["hidden_size"], s["intermediate_size"]
        keys = d // s["num_attention_heads"] * s["num_key_value_heads"]
        attention = [("q_proj", d, d), ("k_proj", d, keys), ("v_proj", d, keys), ("o_proj", d, d)]
        forward = [("gate_proj", d, ff), ("up_proj", d, ff), ("down_proj", ff, d)]
        return (attention + forward) * int(s["num_hidden_layers"])

    @property
    def parameters(self) -> int:
        """All weights, by formula: the embedding table (also the output layer), the linear layers, the norms."""
        s, d = self.shape, self.width
        linear = sum(inputs * outputs for _, inputs, outputs in self.projections)
        table = s["vocab_size"] * d
        if self.is_t5:
            norms = (5 * s["num_layers"] + 2) * d  # encoder 2, decoder 3 a layer, and one at the end of each
            positions = 2 * 32 * s["num_heads"]  # relative, of the first layer of each
            return int(table + linear + norms + positions)
        return int(table + linear + (2 * s["num_hidden_layers"] + 1) * d)

    def build(self) -> PreTrainedModel:
        """The model on torch's meta device: its modules and shapes, no weights."""
        from transformers import LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

        shape = {name: value for name, value in self.shape.items() if name != "type"}
        with torch.device("meta"):
            if self.is_t5:
                return T5ForConditionalGeneration(T5Config(**shape))
            return LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))


@dataclass(frozen=True)
class Counting:
    """How a method's parameters are had.

    Args:
        formula: per task.
        build: what is trained, as modules on the meta device; their parameters that require a gradient are counted.
        tasks: how many tasks share what is built.
    """

    formula: Callable[[Size], float]
    build: Callable[[Size], nn.Module]
    tasks: int = 1

    def count(self, size: Size) -> float:
        """Trained parameters a task, counted."""
        with torch.device("meta"):
            module = self.build(size)
        return sum(p.numel() for p in module.parameters() if p.requires_grad) / self.tasks


def _prompts(size: Size, tasks: int = 1) -> torch.Tensor:
    return torch.empty(tasks, LENGTH, size.width)


def _attempt(size: Size, tasks: int = 1) -> nn.Module:
    return PromptMixture(
        _prompts(size, tasks), torch.empty(SOURCES, LENGTH, size.width), PromptAttention(size.width, RANK, 1.0)
    )


def _dept(size: Size) -> tuple[int, int, int]:
    """m', s and r of DePT with the budget of a prompt."""
    short, rank = decomposed_shape(size.width, LENGTH, DEPT_POSITIONS)
    return short, DEPT_POSITIONS, rank


def _decomposed(size: Size) -> nn.Module:
    short, positions, rank = _dept(size)
    return DecomposedPrompt(torch.empty(1, short, size.width), positions, rank)


def _adapter_formula(size: Size, dropped: int) -> int:
    """Two adapters a layer, d → d / 32 → d with biases, in all but the first layers of each stack."""
    inner = size.width // REDUCTION
    adapter = 2 * size.width * inner + inner + size.width
    return 2 * adapter * (size.layers - dropped) * (2 if size.is_t5 else 1)


def _adapters(size: Size, *, drop: bool) -> nn.Module:
    return nn.ModuleList(adapter_parts(size.build(), torch.Generator("cpu"), drop=drop).values())


def _by_library(size: Size, kind: str) -> nn.Module:
    """The model with peft's modules in it, which alone are trained.

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
    model = size.build().requires_grad_(False)
    inject_adapter_in_model(LoraConfig(r=LORA_RANK) if kind == "lora" else IA3Config(), model, low_cpu_mem_usage=True)
    return model


COUNTINGS: dict[str, Counting] = {
    "fine-tuning": Counting(lambda size: size.parameters, Size.build),
    "prompt-tuning": Counting(
        lambda size: prompt_tuning_parameters(size.width, LENGTH), lambda size: PromptMixture(_prompts(size))
    ),
    "attempt": Counting(lambda size: attempt_parameters(size.width, LENGTH, RANK), _attempt),
    "attempt-m": Counting(
        lambda size: attempt_parameters(size.width, LENGTH, RANK, TASKS), lambda size: _attempt(size, TASKS), TASKS
    ),
    "mpt": Counting(
        lambda size: mpt_parameters(size.width, LENGTH, tasks=TASKS),
        lambda size: SharedPrompt(_prompts(size)[0], TASKS),
        TASKS,
    ),
    "dept": Counting(lambda size: dept_parameters(size.width, *_dept(size)), _decomposed),
    "lora": Counting(
        lambda size: sum(
            LORA_RANK * (inputs + outputs)
            for name, inputs, outputs in size.projections
            if name in ("q", "v", "q_proj", "v_proj")
        ),
        lambda size: _by_library(size, "lora"),
    ),
    "ia3": Counting(
        lambda size: sum(
            inputs if name in ("wo", "down_proj") else outputs  # the feed-forward's scale stands before its last layer
            for name, inputs, outputs in size.projections
            if name in ("k", "v", "k_proj", "v_proj", "wo", "down_proj")
        ),
        lambda size: _by_library(size, "ia3"),
    ),
    "adapter": Counting(lambda size: _adapter_formula(size, 0), lambda size: _adapters(size, drop=False)),
    "adapterdrop": Counting(
        lambda size: _adapter_formula(size, round(DROPPED[0] * size.layers / DROPPED[1])),
        lambda size: _adapters(size, drop=True),
    ),
    "bitfit": Counting(
        lambda size: sum(outputs for _, _, outputs in size.projections),
        lambda size: nn.ModuleList(bias_parts(size.build()).values()),
    ),
}


@cache
def sizes() -> dict[str, Size]:
    """The backbones whose shape is known, by name."""
    import yaml

    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("sizes.yaml").read_text("utf-8"))
    return {name: Size(name, shape) for name, shape in table.items()}


def check_counted(methods: Sequence[str], backbones: Sequence[str]) -> list[str]:
    """What is wrong with the names of methods and backbones."""
    return unknown_names("method to count", methods, COUNTINGS) + unknown_names(
        "shape of a backbone", backbones, sizes()
    )


@dataclass(frozen=True)
class Count:
    """One method on one backbone.

    Args:
        parameters: the backbone's own.
        formula, counted: trained parameters a task, both ways.
    """

    backbone: str
    parameters: int
    method: str
    formula: float
    counted: float


def count_all(methods: Sequence[str], backbones: Sequence[str]) -> list[Count]:
    """Every method on every backbone.

    Raises:
        AttemptError: a method or a backbone is not among those that can be counted.
    """
    problems = check_counted(methods, backbones)
    if problems:
        raise AttemptError(
            "this cannot be counted:\n  " + "\n  ".join(problems),
            f"Methods: {', '.join(COUNTINGS)}. Backbones: {', '.join(sizes())}.",
        )
    return [
        Count(name, sizes()[name].parameters, method, COUNTINGS[method].formula(size), COUNTINGS[method].count(size))
        for name in backbones
        for method in methods
        for size in [sizes()[name]]
    ]


def parameter_sheet(counts: Sequence[Count], columns: Sequence[str], title: str, command: str) -> Sheet:
    """The counts as a sheet, published numbers beside them."""
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
    return Sheet("fig7", f"fig7: {title}", command, columns, lines, document, notes)


def draw_parameters(file: Path, counts: Sequence[Count]) -> None:
    """Draws trained parameters against the backbone's, one panel a family, both axes logarithmic.

    Raises:
        AttemptError: matplotlib is not installed.
    """
    panels = []
    for family, is_t5 in (("T5", True), ("SmolLM2", False)):
        of = [count for count in counts if sizes()[count.backbone].is_t5 == is_t5]
        series = []
        for method in dict.fromkeys(count.method for count in of):
            points = sorted((count.parameters, count.counted) for count in of if count.method == method)
            series.append(Series(method, [x for x, _ in points], [y for _, y in points]))
        if series:
            panels.append(
                Panel(family, "parameters of the backbone", "trained parameters a task", series, log_x=True, log_y=True)
            )
    draw_panels(file, panels)
