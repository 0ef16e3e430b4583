"""Multitask prompt tuning (MPT; Wang et al., ICLR 2023): one prompt shared by all tasks, low-rank factors for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attempt_cli.method.speeds import trained_groups


class SharedPrompt(nn.Module):
    """Gives every row its task's prompt, P_k = P* ∘ (u_k v_k): entry by entry, P* times a matrix of rank r.

    At the start every task's product is all ones, so its prompt is P*. The first rank has ones in u and v; the others
    have drawn numbers in u and noughts in v, since equal ranks would get equal gradients and stay one.

    Args:
        shared_prompt: initial P*, [m, d]; in the unit of the prompts (the factors have none).
        tasks: n.
        rank: r.
        train_shared: whether P* is trained; False learns the factors of new tasks under a P* that is settled.
        generator: draws u of the ranks above the first from N(0, 0.1²); the global generator without one.

    Raises:
        ValueError: the shared prompt is not [m, d], there is no task, or the rank is not between 1 and min(m, d).
    """

    attention = None  # the face of a mixture: no input is read

    def __init__(
        self,
        shared_prompt: Tensor,
        tasks: int,
        *,
        rank: int = 1,
        train_shared: bool = True,
        generator: torch.Generator | None = None,
    ) -> None:
        super().__init__()
        if shared_prompt.dim() != 2:
            raise ValueError(f"a shared prompt is [m, d], not {list(shared_prompt.shape)}")
        if tasks < 1:
            raise ValueError(f"a shared prompt has at least one task, not {tasks}")
        length, width = shared_prompt.shape
        if not 1 <= rank <= min(length, width):
            raise ValueError(f"the rank of the factors is {rank}; it lies between 1 and {min(length, width)}")
        self.shared_prompt = nn.Parameter(shared_prompt.detach().clone().float(), requires_grad=train_shared)
        left = torch.empty(tasks, length, rank).normal_(std=0.1, generator=generator)
        left[:, :, 0] = 1
        right = torch.zeros(tasks, rank, width)
        right[:, 0] = 1
        self.left_factors = nn.Parameter(left)  # u, [n, m, r]
        self.right_factors = nn.Parameter(right)  # v, [n, r, d]

    @property
    def length(self) -> int:
        """m, the number of prompt tokens."""
        return self.shared_prompt.shape[0]

    @property
    def target_prompts(self) -> Tensor:
        """P_1 .. P_n, [n, m, d]: what prompt tuning would hold for the same answers."""
        return self.shared_prompt * (self.left_factors @ self.right_factors)

    def speed_groups(self) -> dict[str, list[nn.Parameter]]:
        """The trained tensors by learning rate: P* under `prompts`, the factors under `attention`."""
        return trained_groups([self.shared_prompt], [self.left_factors, self.right_factors])

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, None]:
        """The prompts of a batch whose rows may be of several tasks.

        Args:
            task_ids: which task each row is of, [b].
            pooled_input: not read; here because a mixture has it.

        Returns:
            [b, m, d], and None: nothing is mixed.
        """
        return self.shared_prompt * (self.left_factors[task_ids] @ self.right_factors[task_ids]), None
