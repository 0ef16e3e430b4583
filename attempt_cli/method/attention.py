"""The attention module G and its scores (equation 3)."""

from __future__ import annotations

import math

import torch
from torch import Tensor, nn


def paper_temperature(width: int) -> float:
    """T = d·e, the paper's temperature, for prompts and embeddings in the units of T5's embedding table."""
    return width * math.e


def rms_temperature(width: int) -> float:
    """T = √d·e, for prompts and embeddings in units of the embedding table's root mean square.

    There a dot product of two pooled vectors is of order √d, not d: with T = d·e the softmax would stay flat whatever
    G learns.
    """
    return math.sqrt(width) * math.e


class PromptAttention(nn.Module):
    """G: reads a pooled input, says how much of each prompt the mixture takes.

    h = LayerNorm(W_up · SiLU(W_down · x̂)), a_j = softmax_j(p̂_j · h / T) over the sources and the target.
    W_down: d → r and W_up: r → d have no biases; the LayerNorm's weight and bias are trained: 2rd + 2d parameters.

    Args:
        width: d, the width of the backbone's embeddings.
        rank: r, the bottleneck's width; r < d.
        temperature: T.
        generator: draws W_down and W_up from N(0, 0.01²); the global generator without one.

    Raises:
        ValueError: the rank is not between 1 and d - 1, or the temperature is not positive.
    """

    def __init__(self, width: int, rank: int, temperature: float, *, generator: torch.Generator | None = None) -> None:
        if not 1 <= rank < width:
            raise ValueError(f"the rank of G is {rank}; it lies between 1 and the width less one ({width - 1})")
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}; it is positive")
        super().__init__()
        self.width = width
        self.rank = rank
        self.temperature = temperature
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01, generator=generator)

    def query(self, pooled_input: Tensor) -> Tensor:
        """h, [b, d], of x̂, [b, d]."""
        h: Tensor = self.norm(self.up(nn.functional.silu(self.down(pooled_input))))
        return h

    def forward(self, pooled_input: Tensor, source_keys: Tensor, target_keys: Tensor) -> Tensor:
        """The weights of the mixture, equation 3.

        Args:
            pooled_input: x̂, [b, d].
            source_keys: p̂_1 .. p̂_t, [t, d], shared by all rows.
            target_keys: p̂_{t+1} of each row's own target prompt, [b, d].

        Returns:
            a, [b, t + 1], each row sums to 1; the target is the last.
        """
        query = self.query(pooled_input)  # [b, d]
        source_scores = query @ source_keys.T  # [b, t]
        target_scores = (query * target_keys).sum(dim=-1, keepdim=True)  # [b, 1]
        scores = torch.cat([source_scores, target_scores], dim=-1) / self.temperature  # [b, t + 1], eq. 3
        return scores.softmax(dim=-1)
