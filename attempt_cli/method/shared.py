"""Multitask prompt tuning (MPT; Wang et al., ICLR 2023): one prompt shared by all tasks, low-rank factors for each."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from attempt_cli.method.module import PromptModule
from attempt_cli.method.param_groups import trained_param_groups


class SharedPrompt(PromptModule):
    """Gives every row its task's prompt, P_k = P* ∘ (u_k v_k): entry by entry, P* times a matrix of rank r.

    At the start every task's product is all ones, so its prompt is P*. The first rank has ones in u and v; the others
    have random numbers in u and zeros in v, because equal ranks would get equal gradients and stay equal.

    Args:
        shared_prompt: initial P*, [m, d], in the unit of the prompts (the factors have no unit).
        tasks: n.
        rank: r.
        train_shared: whether P* is trained; False trains the factors of new tasks for a fixed P*.
        generator: draws u of the ranks above the first from N(0, 0.1²); the global generator without one.

    Raises:
        ValueError: the shared prompt is not [m, d], there is no task, or the rank is not between 1 and min(m, d).
    """

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
            raise ValueError(f"a shared prompt needs at least one task, not {tasks}")
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
        """P_1 .. P_n, [n, m, d]: the prompts with which prompt tuning would give the same answers."""
        return self.shared_prompt * (self.left_factors @ self.right_factors)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: P* under `prompts`, the factors under `attention`."""
        return trained_param_groups([self.shared_prompt], [self.left_factors, self.right_factors])

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, None]:
        """Returns the prompts of the rows' tasks, [b, m, d], and None; computes no other task's prompt."""
        return self.shared_prompt * (self.left_factors[task_ids] @ self.right_factors[task_ids]), None

    def kept_prompts(self, shared: bool) -> Tensor:
        """Returns the prompts that the registry keeps, [n, m, d]; P* alone, [1, m, d], for tasks that start from it."""
        return self.shared_prompt[None] if shared else self.target_prompts
