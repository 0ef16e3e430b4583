"""Ultra-low-dimensional prompt tuning (ULPT; Wu, Hao and Mou, arXiv 2502.04501): tokens of r dimensions."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn

from attempt_cli.method.module import BuildInputs, PromptModule


class LowDimensionalPrompt(PromptModule):
    """Gives every row its task's prompt, P_k = (e_k Z) ∘ s_k + b_k; e, s and b are trained, Z is random and frozen.

    As in the authors' code e starts from N(0, 1), not from words, s from ones and b from zeros. Z is drawn from
    N(0, 1/r), where the authors' code draws it uniformly: so the entries of a prompt start with variance 1 whatever the
    rank, which is a word's in RMS units. All tasks have the same Z. It is never stored: the state holds
    its seed, and loading a state draws Z again.

    Args:
        tasks: n.
        length: m.
        width: d.
        rank: r.
        seed: draws Z, and then e.

    Raises:
        ValueError: a size is below 1.
    """

    projection: Tensor

    def __init__(self, tasks: int, length: int, width: int, rank: int, seed: int) -> None:
        super().__init__()
        if min(tasks, length, width, rank) < 1:
            raise ValueError(f"tasks, length, width and rank are at least 1, not {tasks}, {length}, {width} and {rank}")
        generator = torch.Generator("cpu").manual_seed(seed)
        self.register_buffer("projection", _projection(rank, width, generator), persistent=False)  # Z, [r, d]
        self.embeddings = nn.Parameter(torch.empty(tasks, length, rank).normal_(generator=generator))  # e, [n, m, r]
        self.scale = nn.Parameter(torch.ones(tasks, width))  # s, [n, d]
        self.shift = nn.Parameter(torch.zeros(tasks, width))  # b, [n, d]
        self._seed = seed

    @property
    def length(self) -> int:
        """m, the number of prompt tokens."""
        return self.embeddings.shape[1]

    @property
    def target_prompts(self) -> Tensor:
        """P_1 .. P_n, [n, m, d]: the prompts with which prompt tuning would give the same answers."""
        return (self.embeddings @ self.projection) * self.scale[:, None] + self.shift[:, None]

    def get_extra_state(self) -> Tensor:
        """Returns the seed of Z, which the state holds in Z's place."""
        return torch.tensor(self._seed)

    def set_extra_state(self, state: Tensor) -> None:
        """Draws the Z of a state that is loaded."""
        self._seed = int(state)
        rank, width = self.projection.shape
        self.projection.copy_(_projection(rank, width, torch.Generator("cpu").manual_seed(self._seed)))


def _projection(rank: int, width: int, generator: torch.Generator) -> Tensor:
    return torch.empty(rank, width).normal_(std=1 / math.sqrt(rank), generator=generator)


def build(inputs: BuildInputs) -> LowDimensionalPrompt:
    """Builds a prompt a task; of the initial prompts only the sizes matter."""
    tasks, length, width = inputs.initial.shape
    return LowDimensionalPrompt(tasks, length, width, inputs.settings["rank"], inputs.config.seed)


def parameters(inputs: BuildInputs) -> int:
    """Counts m·r + 2d."""
    _, length, width = inputs.initial.shape
    rank: int = inputs.settings["rank"]
    return length * rank + 2 * width
