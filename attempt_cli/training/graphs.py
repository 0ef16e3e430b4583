"""The gradient of a batch as a CUDA graph: a small model's kernels take less time than the host takes to launch them.

A graph is what a GPU was once told to compute, on tensors that stay where they are; it is launched as one. It holds
neither numbers of the host nor other shapes. So rows are padded to one of few shapes (`BatchShape.rounded`), all that
is known of them enters as one tensor of whole numbers, and with prompts after inputs their keys and values as another.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones.attention import Past
from attempt_cli.backbones.rows import BatchShape, EncodedRow
from attempt_cli.errors import first_line
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.processes import Processes

# steps from which on capturing pays (estimated: a second a shape); all of a training's: a resumed one has graphs, too
LEAST_STEPS = 200
# each keeps some memory of its own; further shapes are launched kernel by kernel
MOST_GRAPHS = 48
# how far the gradient of a first launch may be from the one that was launched kernel by kernel
NEAR = {torch.float32: 1e-3, torch.bfloat16: 0.05, torch.float16: 0.05}


def graphs_pay(model: PromptedModel, config: TrainingConfig, processes: Processes, steps: int) -> bool:
    """Says whether gradients are launched as graphs: those of prompts, in one process, where the host is slow."""
    plain = model.mixture is not None and not model.mixture.differs_in_steps and not model.reads_states
    plain = plain and not config.gradient_checkpointing and config.compile is not False
    return plain and processes.count == 1 and model.backbone.waits_for_host and steps >= LEAST_STEPS


@dataclass
class _Shape:
    """What is kept of a shape of batches.

    Args:
        numbers: a batch's packed numbers, and the tokens of its whole step behind them.
        inputs: keys and values of its inputs; None with prompts before them.
        graph: of its gradient.
        share: its part of the loss, which the graph computes.
    """

    numbers: Tensor
    inputs: Tensor | None
    graph: Any
    share: Tensor


class StepGraphs:
    """Computes gradients of batches; those of a shape that came before are one launch.

    A shape's first batch is launched kernel by kernel, which also sets up what is set up once; its second captures the
    graph, and compares its gradient with the one without. Where that differs, or cannot be captured, no graph is used.

    Args:
        model: the backbone and what is trained.
        note: is told why graphs are not used.
    """

    def __init__(self, model: PromptedModel, note: Callable[[str], None]) -> None:
        self._model, self._note = model, note
        self._trained = [tensor for tensor in model.trained.parameters() if tensor.requires_grad]
        self._gradients = [torch.zeros_like(tensor) for tensor in self._trained]
        self._shapes: dict[tuple[BatchShape, bool], _Shape | None] = {}
        self._pool: Any = None
        self._failed = False

    @property
    def count(self) -> int:
        """The number of graphs."""
        return sum(shape is not None for shape in self._shapes.values())

    def begin(self) -> None:
        """Sets gradients to zero, where the graphs add to them."""
        torch._foreach_zero_(self._gradients)
        for tensor, gradient in zip(self._trained, self._gradients, strict=True):
            tensor.grad = gradient

    def shape_of(self, rows: Sequence[EncodedRow]) -> BatchShape:
        """Returns the shape that rows are padded to."""
        room = self._model.backbone.longest_row
        return BatchShape.of(rows).rounded(None if room is None else room - self._model.prompt_length)

    def add_gradient(self, rows: Sequence[EncodedRow], tokens: int) -> Tensor:
        """Adds the gradient of these rows' part of the loss; returns that part, which the next call may overwrite.

        Args:
            tokens: target tokens of the whole step.
        """
        model, backbone = self._model, self._model.backbone
        shape, one = self.shape_of(rows), model.one_for_all(row.task for row in rows)
        numbers = backbone.on_host([*backbone.packed(rows, shape), tokens])
        after = model.placement == "after"
        inputs = backbone.keys_and_values(rows, shape.rows, shape.inputs) if after else None
        kept = self._shapes.get((shape, one))
        if kept is not None and not self._failed:
            kept.numbers.copy_(numbers, non_blocking=True)
            if kept.inputs is not None and inputs is not None:
                kept.inputs.copy_(inputs)
            kept.graph.replay()
            return kept.share
        entered = numbers.to(backbone.device, non_blocking=True)
        again = (shape, one) in self._shapes and kept is None
        self._shapes.setdefault((shape, one), None)
        if not again or self._failed or self.count >= MOST_GRAPHS:
            return self._computed(entered, inputs, shape, one)
        return self._captured(entered, inputs, shape, one)

    def _computed(self, numbers: Tensor, inputs: Tensor | None, shape: BatchShape, one: bool) -> Tensor:
        """Adds the gradient, on the device alone."""
        batch = self._model.backbone.unpacked(numbers, shape)
        past = None
        if inputs is not None:
            past = Past(inputs[:, 0].unbind(), inputs[:, 1].unbind(), batch.input_lengths, padded=True)
        share = -self._model.likelihood_of(batch, past, one).sum() / numbers[-1]
        found = torch.autograd.grad(share, self._trained, allow_unused=True)
        for gradient, new in zip(self._gradients, found, strict=True):
            if new is not None:
                gradient.add_(new)
        return share.detach()

    def _captured(self, numbers: Tensor, inputs: Tensor | None, shape: BatchShape, one: bool) -> Tensor:
        """Captures the graph of a shape and adds the gradient; uses no graphs from now on where that fails."""
        before = [gradient.clone() for gradient in self._gradients]
        share = self._computed(numbers, inputs, shape, one)
        wanted = [gradient.clone() for gradient in self._gradients]
        try:
            self._pool = self._pool or torch.cuda.graph_pool_handle()
            graph = torch.cuda.CUDAGraph()
            with torch.cuda.graph(graph, pool=self._pool):
                of_graph = self._computed(numbers, inputs, shape, one)
            torch._foreach_copy_(self._gradients, before)
            graph.replay()
            differs = self._difference([*wanted, share], [*self._gradients, of_graph])
            reason = None if differs <= NEAR.get(self._model.backbone.dtype, 0.05) else "its gradient differs"
        except RuntimeError as error:  # what a capture does not allow, or no memory
            reason = first_line(error)
        torch._foreach_copy_(self._gradients, wanted)
        if reason is None:
            self._shapes[shape, one] = _Shape(numbers, inputs, graph, of_graph)
        else:
            self._failed = True
            self._shapes.clear()
            self._note(f"Steps cannot be launched as CUDA graphs here ({reason}); the training continues without.")
        return share

    @staticmethod
    def _difference(wanted: Sequence[Tensor], found: Sequence[Tensor]) -> float:
        """Returns how far tensors are from those wanted, relative to them; infinity for what is no number."""
        off = sum((a - b).float().square().sum() for a, b in zip(wanted, found, strict=True))
        whole = sum(a.float().square().sum() for a in wanted)
        distance = float(torch.as_tensor(off / whole).sqrt())
        return distance if distance == distance else float("inf")
