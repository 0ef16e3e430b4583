"""The mixture of source prompts and target prompt that stands before an input (equations 1, 2 and 4)."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attempt_cli.method.attention import PromptAttention
from attempt_cli.method.pooling import pool_prompts


class PromptMixture(nn.Module):
    """Gives every row its prompt; holds all that is trained.

    Without sources it is prompt tuning (equation 1): the row's target prompt as it stands. With sources it is ATTEMPT
    (equation 4): P_instance = P_target + Σ_{j=1..t+1} a_j P_j, where the target is one of the t + 1 and is added once
    more. Everything is in one unit: prompts, sources and pooled inputs alike.

    Args:
        target_prompts: initial values, one a task, [n, m, d]; trained.
        source_prompts: [t, m, d]; frozen.
        attention: G; given with the sources, and only then; trained.

    Raises:
        ValueError: shapes do not agree, or only one of sources and attention is given.
    """

    source_prompts: Tensor | None
    source_keys: Tensor | None

    def __init__(
        self,
        target_prompts: Tensor,
        source_prompts: Tensor | None = None,
        attention: PromptAttention | None = None,
    ) -> None:
        super().__init__()
        if target_prompts.dim() != 3:
            raise ValueError(f"target prompts are [n, m, d], not {list(target_prompts.shape)}")
        if (source_prompts is None) != (attention is None):
            raise ValueError("source prompts and the attention module come together")
        if source_prompts is not None and source_prompts.shape[1:] != target_prompts.shape[1:]:
            raise ValueError(
                f"sources [t, m, d] {list(source_prompts.shape)} and targets [n, m, d] {list(target_prompts.shape)} "
                "differ in length m or width d"
            )
        if attention is not None and attention.width != target_prompts.shape[2]:
            raise ValueError(
                f"the attention module is for width {attention.width}, the prompts have width {target_prompts.shape[2]}"
            )
        if attention is not None and target_prompts.shape[1] == 0:
            raise ValueError("prompts that are attended to have at least one row; these have length m = 0")
        # prompts and G stay in fp32; the mixture is cast once, where it meets X
        self.target_prompts = nn.Parameter(target_prompts.detach().clone().float())
        self.attention = attention
        frozen = None if source_prompts is None else source_prompts.detach().clone().float()
        self.register_buffer("source_prompts", frozen, persistent=False)
        # the sources never change, so neither do their keys
        self.register_buffer("source_keys", None if frozen is None else pool_prompts(frozen), persistent=False)

    @property
    def length(self) -> int:
        """m, the number of prompt tokens."""
        return self.target_prompts.shape[1]

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """The prompts of a batch whose rows may be of several tasks.

        Args:
            task_ids: which target prompt each row has, [b].
            pooled_input: x̂, [b, d]; needed with sources.

        Returns:
            P_instance, [b, m, d], and the weights a, [b, t + 1] (None without sources).
        """
        targets = self.target_prompts[task_ids]  # [b, m, d]
        if self.attention is None:
            return targets, None
        if pooled_input is None or self.source_prompts is None or self.source_keys is None:
            raise ValueError("a mixture of sources needs the pooled input")
        target_keys = pool_prompts(self.target_prompts)[task_ids]  # [b, d]
        weights = self.attention(pooled_input, self.source_keys, target_keys)  # [b, t + 1], eq. 3
        # Σ_j a_j P_j over the sources is one matrix product; a [b, t, m, d] tensor is never made
        from_sources = torch.einsum("bt,tmd->bmd", weights[:, :-1], self.source_prompts)
        return (1 + weights[:, -1, None, None]) * targets + from_sources, weights  # eq. 4
