"""AdapterFusion (Pfeiffer et al., EACL 2021): adapters of single tasks, frozen, and an attention that fuses them."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import Batch
from attempt_cli.backbones.shapes import BackboneShape
from attempt_cli.backbones.tuned import REDUCTION, TunedWeights, layer_outputs

VALUE_PENALTY = 0.01  # of the squares of V - 1, so that values stay near the adapters' outputs (the authors' code)


class FusedAdapters(TunedWeights):
    """Adapters of n tasks behind each layer's feed-forward, and for each task an attention over all of them.

    An adapter gives z_i = U_i · GELU(D_i x + b) + b'. A row of task τ gets x + Σ_i a_i V_τ z_i with
    a = softmax_i(Q_τ x · K_τ z_i): the paper's equations, which have no biases.

    Both stages are one training: in the first half of the steps a row gets x + z_τ of its own task, and adapters alone
    learn, each from its own rows (so they are single-task adapters); in the second half they are frozen and the
    attentions learn. Each half has warm-up and decay of its own. Outside of steps the adapters are fused, so that every
    evaluation is of a fusion. The paper trains the stages apart, for as long as each of them pays.

    V starts from 1 with a penalty for leaving it, as in the authors' code; Q and K start from N(0, 0.02²), adapters as
    `Adapter`'s, of the same bottleneck.

    Args:
        backbone: the backbone.
        tasks: n.
        generator: draws the start.
    """

    def __init__(self, backbone: FrozenBackbone, tasks: int, generator: torch.Generator) -> None:
        super().__init__(backbone)
        places = {name: place for name, place in layer_outputs(backbone.model).items() if place.feed_forward}
        self.adapters, self.fusions = nn.ModuleDict(), nn.ModuleDict()
        for name, place in places.items():
            self.adapters[name.replace(".", "/")] = TaskAdapters(tasks, place.width, generator)
            self.fusions[name.replace(".", "/")] = TaskFusions(tasks, place.width, generator)
        self.to(backbone.device)
        self._tasks: Tensor | None = None
        self._groups: list[tuple[int, Tensor]] = []  # the tasks of a pass, and the rows of each
        self._single = self._fusing = False  # the stage of the step that is being computed; neither out of steps
        layers = dict(backbone.model.named_modules())
        self._hooks = [layers[name].register_forward_hook(self._hook(name.replace(".", "/"))) for name in places]
        backbone.tuned = self

    def refresh(self, batch: Batch | None = None) -> None:
        """Takes over which task each row of the pass is of."""
        if batch is None:
            return
        self._tasks = batch.task_ids
        # a row's own matrices, d by d, would be copied for every row: rows of a task are computed together instead.
        numbers = batch.task_ids.tolist() if batch.tasks is None else batch.tasks
        rows = {task: [row for row, own in enumerate(numbers) if own == task] for task in dict.fromkeys(numbers)}
        self._groups = [(task, self._backbone.on_device(own)) for task, own in rows.items()]

    def _hook(self, name: str) -> Any:
        adapters, fusions = self.adapters[name], self.fusions[name]
        assert isinstance(adapters, TaskAdapters)
        assert isinstance(fusions, TaskFusions)

        def behind(_layer: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
            if self._tasks is None:
                return output
            x = output.reshape(len(self._tasks), -1, output.shape[-1])  # rows that follow each other are one
            if self._single:
                changed = adapters.own(x, self._tasks)
            else:
                z, groups = adapters(x), self._groups
                if len(groups) == 1:
                    changed = fusions(x, z, groups[0][0])
                else:
                    parts = [fusions(x[rows], z[rows], task) for task, rows in groups]
                    changed = torch.cat(parts)[torch.cat([rows for _, rows in groups]).argsort()]
            return output + changed.view(output.shape)

        return behind

    @contextmanager
    def in_step(self, step: int, total: int) -> Iterator[None]:
        """Trains adapters alone in the first half of the steps, and fusions alone in the second."""
        self._single = step < total // 2
        self._fusing = not self._single
        frozen = self.fusions if self._single else self.adapters
        frozen.requires_grad_(False)
        try:
            yield
        finally:
            frozen.requires_grad_(True)
            self._single = self._fusing = False

    def schedule(self, step: int, total: int) -> tuple[int, int]:
        """Returns a step's place in its stage."""
        half = total // 2
        return (step, half) if step < half else (step - half, total - half)

    def penalty(self) -> Tensor | None:
        """Returns what keeps V near 1, while V is trained."""
        if not self._fusing:
            return None
        parts = [fusion.distance() for fusion in self.fusions.values() if isinstance(fusion, TaskFusions)]
        return VALUE_PENALTY * torch.stack(parts).sum()

    def _take_out(self) -> None:
        for hook in self._hooks:
            hook.remove()


class TaskAdapters(nn.Module):
    """The adapters of n tasks in one place: z = U · GELU(D x + b) + b'."""

    def __init__(self, tasks: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        inner = max(1, width // REDUCTION)
        self.down = nn.Parameter(torch.empty(tasks, inner, width).normal_(std=0.01, generator=generator))
        self.down_bias = nn.Parameter(torch.zeros(tasks, inner))
        self.up = nn.Parameter(torch.empty(tasks, width, inner).normal_(std=0.01, generator=generator))
        self.up_bias = nn.Parameter(torch.zeros(tasks, width))

    def forward(self, x: Tensor) -> Tensor:
        """Returns every adapter's output, [b, n, l, d], of x, [b, l, d]."""
        dtype = x.dtype
        inner = torch.einsum("bld,nrd->bnlr", x, self.down.to(dtype)) + self.down_bias.to(dtype)[:, None]
        inner = nn.functional.gelu(inner)
        return torch.einsum("bnlr,ndr->bnld", inner, self.up.to(dtype)) + self.up_bias.to(dtype)[:, None]

    def own(self, x: Tensor, tasks: Tensor) -> Tensor:
        """Returns the output of each row's own adapter, [b, l, d]."""
        dtype = x.dtype
        down, up = self.down[tasks].to(dtype), self.up[tasks].to(dtype)
        inner = nn.functional.gelu(x @ down.transpose(1, 2) + self.down_bias[tasks].to(dtype)[:, None])
        return inner @ up.transpose(1, 2) + self.up_bias[tasks].to(dtype)[:, None]


class TaskFusions(nn.Module):
    """The attentions of n tasks in one place."""

    def __init__(self, tasks: int, width: int, generator: torch.Generator) -> None:
        super().__init__()
        self.query = nn.Parameter(torch.empty(tasks, width, width).normal_(std=0.02, generator=generator))
        self.key = nn.Parameter(torch.empty(tasks, width, width).normal_(std=0.02, generator=generator))
        self.value = nn.Parameter(torch.eye(width).repeat(tasks, 1, 1))

    def forward(self, x: Tensor, z: Tensor, task: int) -> Tensor:
        """Returns Σ_i a_i V z_i of rows of one task, [b, l, d].

        Args:
            x: [b, l, d].
            z: the adapters' outputs, [b, n, l, d].
            task: the rows' task.
        """
        query, key, value = (one[task].to(x.dtype) for one in (self.query, self.key, self.value))
        asked = x @ query.T @ key  # K' Q x, [b, l, d]: its products with z need no key of each adapter
        weights = torch.einsum("bld,bnld->bln", asked, z).softmax(dim=-1)
        return torch.einsum("bln,bnld->bld", weights, z) @ value.T  # V of the sum, not of each

    def distance(self) -> Tensor:
        """Returns the sum of squares of V - 1 over all tasks."""
        return (self.value - torch.eye(self.value.shape[-1], device=self.value.device)).square().sum()


def adapterfusion(backbone: FrozenBackbone, seed: int, tasks: int = 1) -> TunedWeights:
    """Puts the tasks' adapters and the attentions over them into the backbone."""
    return FusedAdapters(backbone, tasks, torch.Generator("cpu").manual_seed(seed))


def adapterfusion_parameters(shape: BackboneShape, tasks: int = 1) -> float:
    """Counts a task's adapters and attentions, behind the feed-forward of every layer: 2·d·r + r + d and 3·d²."""
    d, inner = shape.width, shape.width // REDUCTION
    return (2 * d * inner + inner + d + 3 * d * d) * shape.layers * (2 if shape.is_t5 else 1)
