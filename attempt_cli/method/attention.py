"""The attention module G and its scores (equations 3 and 5)."""

from __future__ import annotations

import math
from typing import Literal, get_args

import torch
from torch import Tensor, nn

Reads = Literal["words", "last", "mean"]
COSINE_TEMPERATURE = 0.1  # of cosines, which lie in [-1, 1]; it is trained from there


def paper_temperature(width: int) -> float:
    """Returns T = d·e, the paper's temperature, for prompts and embeddings in the units of T5's embedding table."""
    return width * math.e


def rms_temperature(width: int) -> float:
    """Returns T = √d·e, for prompts and embeddings in units of the embedding table's root mean square.

    In these units a dot product of two pooled vectors is of order √d, not d: with T = d·e the softmax would stay flat
    whatever G learns.
    """
    return math.sqrt(width) * math.e


class PromptAttention(nn.Module):
    """G: reads a pooled input and weighs the prompts of the mixture.

    h = LayerNorm(W_up · SiLU(W_down · x̂)), a_j = softmax_j(p̂_j · h / T) over the sources and the target.
    W_down: d → r and W_up: r → d have no biases; the LayerNorm's weight and bias are trained: 2rd + 2d parameters.

    Args:
        width: d, the width of the backbone's embeddings.
        rank: r, the bottleneck's width; r < d.
        temperature: T.
        learned_temperature: trains T too, from that value; the parameter is log T, so T stays positive. Only then does
            the state have an entry `log_temperature`.
        generator: draws W_down and W_up from N(0, 0.01²); the global generator without one.
        reads: what x̂ is: the input's max-pooled word embeddings (the paper's), or the frozen model's last hidden state
            of the input's last token ("last") or their mean over tokens. G itself takes any [b, d].
        top: how many prompts have a weight: the softmax is over the largest scores alone; None: over all.
        cosine: scores are cosines of query and keys; then the temperature wants to be learned.

    Raises:
        ValueError: the rank is not between 1 and d - 1, the temperature is not positive, `top` is less than 1, or
            `reads` is none of the three.
    """

    log_temperature: nn.Parameter | None

    def __init__(
        self,
        width: int,
        rank: int,
        temperature: float,
        *,
        learned_temperature: bool = False,
        generator: torch.Generator | None = None,
        reads: Reads = "words",
        top: int | None = None,
        cosine: bool = False,
    ) -> None:
        if not 1 <= rank < width:
            raise ValueError(f"the rank of G is {rank}; it lies between 1 and the width less one ({width - 1})")
        if not temperature > 0:
            raise ValueError(f"the temperature is {temperature}; it is positive")
        if reads not in get_args(Reads) or (top is not None and top < 1):
            raise ValueError(f"G reads {', '.join(get_args(Reads))} ({reads!r}) and weighs one prompt or more ({top})")
        super().__init__()
        self.reads: Reads = reads
        self.top = top
        self.cosine = cosine
        self.width = width
        self.rank = rank
        self.down = nn.Linear(width, rank, bias=False)
        self.up = nn.Linear(rank, width, bias=False)
        self.norm = nn.LayerNorm(width, eps=1e-5)
        for linear in (self.down, self.up):
            nn.init.normal_(linear.weight, std=0.01, generator=generator)
        self._temperature = temperature
        self.log_temperature = nn.Parameter(torch.tensor(math.log(temperature))) if learned_temperature else None

    @property
    def temperature(self) -> float:
        """The current T; reading a learned one waits for the device."""
        return self._temperature if self.log_temperature is None else math.exp(self.log_temperature.item())

    @temperature.setter
    def temperature(self, value: float) -> None:
        if self.log_temperature is None:
            self._temperature = value
        else:
            nn.init.constant_(self.log_temperature, math.log(value))

    def query(self, pooled_input: Tensor) -> Tensor:
        """Returns h, [b, d], of x̂, [b, d]."""
        h: Tensor = self.norm(self.up(nn.functional.silu(self.down(pooled_input))))
        return h

    def forward(
        self, pooled_input: Tensor, source_keys: Tensor, target_keys: Tensor | None, prior: Tensor | None = None
    ) -> Tensor:
        """Returns the weights of whole prompts (equation 3) or of each of their m rows (equation 5) in the mixture.

        Args:
            pooled_input: x̂, [b, d].
            source_keys: p̂_1 .. p̂_t, [t, d], shared by all rows of the batch; for equation 5 P_1 .. P_t, [t, m, d].
            target_keys: p̂_{t+1} of each row's own target prompt, [b, d]; for equation 5 P_{t+1}, [b, m, d]; None
                leaves the target out of the softmax.
            prior: added to the scores, [b, t + 1].

        Returns:
            a, [b, t + 1], or [b, t + 1, m] for equation 5; the target is the last of the t + 1, which sum to 1.
            A target that is left out has the weight 0.
        """
        query = self.query(pooled_input)  # [b, d]
        if self.cosine:
            query, source_keys = (nn.functional.normalize(one, dim=-1) for one in (query, source_keys))
            target_keys = None if target_keys is None else nn.functional.normalize(target_keys, dim=-1)
        by_key = query @ source_keys.flatten(0, -2).T  # [b, t] or [b, t·m]
        scores = by_key.view(len(query), *source_keys.shape[:-1])  # [b, t] or [b, t, m]
        if target_keys is not None:
            target_scores = _own_scores(query, target_keys).unsqueeze(1)  # [b, 1] or [b, 1, m]
            scores = torch.cat([scores, target_scores], dim=1)  # [b, t + 1] or [b, t + 1, m]
        scores = scores / (self._temperature if self.log_temperature is None else self.log_temperature.exp())
        if prior is not None:
            own = prior[:, : scores.shape[1]]
            scores = scores + (own if scores.dim() == 2 else own.unsqueeze(2))
        if self.top is not None and self.top < scores.shape[1]:
            highest = scores.topk(self.top, dim=1).indices
            kept = torch.zeros_like(scores, dtype=torch.bool).scatter(1, highest, True)
            scores = scores.masked_fill(~kept, float("-inf"))
        weights = scores.softmax(dim=1)  # eq. 3, 5
        return weights if target_keys is not None else torch.cat([weights, torch.zeros_like(weights[:, :1])], dim=1)


def _own_scores(query: Tensor, keys: Tensor) -> Tensor:
    """Returns the dot product of each row's query, [b, d], with its own key, [b, d], or its own keys, [b, m, d]."""
    if keys.dim() == 2:
        return (query * keys).sum(dim=-1)  # [b]
    return (keys @ query.unsqueeze(2)).squeeze(2)  # [b, m]; a product of size [b, m, d] is not made
