"""Decomposed prompt tuning (DePT; Shi and Lipani, ICLR 2024): a short prompt and low-rank offsets on the input."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attempt_cli.method.module import PromptModule
from attempt_cli.method.param_groups import trained_param_groups


class DecomposedPrompt(PromptModule):
    """Gives every row its task's short prompt and the offsets of its input: [P_k ; X + A_k B_k].

    A is random and B is zero, so training starts from the unchanged input. With A from N(0, 1/r) the first step of B
    moves an offset by about the learning rate, whatever the rank.

    Args:
        target_prompts: initial short prompts, one per task, [n, m', d]; trained.
        positions: s, the number of input tokens with an offset, counted from the first.
        rank: r of the offsets.
        generator: draws A; the global generator without one.

    Raises:
        ValueError: the prompts are not [n, m', d], no position has an offset, or the rank is not between 1 and
            min(s, d).
    """

    target_prompts: nn.Parameter

    changes_input = True

    def __init__(
        self, target_prompts: Tensor, positions: int, rank: int, *, generator: torch.Generator | None = None
    ) -> None:
        super().__init__()
        if target_prompts.dim() != 3:
            raise ValueError(f"short prompts are [n, m', d], not {list(target_prompts.shape)}")
        if positions < 1:
            raise ValueError(f"at least one input position has an offset, not {positions}")
        tasks, _, width = target_prompts.shape
        if not 1 <= rank <= min(positions, width):
            raise ValueError(f"the rank of the offsets is {rank}; it lies between 1 and {min(positions, width)}")
        self.target_prompts = nn.Parameter(target_prompts.detach().clone().float())
        left = torch.empty(tasks, positions, rank).normal_(std=1 / math.sqrt(rank), generator=generator)
        self.left_factors = nn.Parameter(left)  # A, [n, s, r]
        self.right_factors = nn.Parameter(torch.zeros(tasks, rank, width))  # B, [n, r, d]

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: short prompts under `prompts`, A and B under `attention`."""
        return trained_param_groups([self.target_prompts], [self.left_factors, self.right_factors])

    def offsets(self, task_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Returns the offsets of the rows' input embeddings, in the unit of the prompts.

        Args:
            task_ids: the task of each row, [b].
            embeddings: X, [b, l, d], of which only the length matters.

        Returns:
            [b, l, d]; zeros beyond the first s positions.
        """
        length = embeddings.shape[1]
        offsets = self.left_factors[task_ids, :length] @ self.right_factors[task_ids]  # [b, min(l, s), d]
        return nn.functional.pad(offsets, (0, 0, 0, length - offsets.shape[1]))

    def kept_parts(self, number: int) -> dict[str, Tensor]:
        """Returns A and B of a task."""
        return {"left_factors": self.left_factors[number], "right_factors": self.right_factors[number]}

    @classmethod
    def from_parts(cls, prompt: Tensor, parts: Mapping[str, Tensor]) -> DecomposedPrompt:
        """Makes the module of one task from its short prompt, A and B."""
        positions, rank = parts["left_factors"].shape
        module = cls(prompt[None], positions, rank)
        module.load_state_dict({"target_prompts": prompt[None], **{name: part[None] for name, part in parts.items()}})
        return module


def decomposed_shape(width: int, length: int, positions: int, *, short_length: int | None = None) -> tuple[int, int]:
    """Spends the parameters of a plain prompt on DePT: the largest r with m'·d + (s + d)·r ≤ m·d.

    Args:
        width: d.
        length: m of the plain prompt whose m·d parameters are the budget.
        positions: s.
        short_length: m'; by default two fifths of m (the paper's 40 of 100).

    Returns:
        m' and r. (d = 768, m = 100, s = 256: 40 and 45, which use every parameter of the budget.)

    Raises:
        ValueError: the budget leaves no rank for the offsets.
    """
    if short_length is None:
        short_length = 2 * length // 5
    rank = min((length - short_length) * width // (positions + width), positions, width)
    if rank < 1:
        raise ValueError(
            f"a short prompt of {short_length} tokens leaves nothing of {length} for offsets on {positions} positions"
        )
    return short_length, rank
