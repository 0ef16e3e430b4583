"""The base of every method that trains prompts, and what its builder is given."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attempt_cli.method.attention import PromptAttention
from attempt_cli.method.param_groups import trained_param_groups


class PromptModule(nn.Module):
    """Gives every row of a batch its prompt; holds all trained tensors.

    A method has to say what `target_prompts` are: a parameter, or a property computed from other parameters. All else
    has a default, which is prompt tuning's. Prompts are in the unit that they are trained in.
    """

    attention: PromptAttention | None  # G; None if no input is read
    changes_input = False  # whether `offsets` returns some

    if TYPE_CHECKING:  # a property here would be in the way of a parameter of that name

        @property
        def target_prompts(self) -> Tensor:
            """P_1 .. P_n, [n, m, d]: the prompts of the tasks."""

    def __init__(self) -> None:
        super().__init__()
        self.attention = None

    @property
    def length(self) -> int:
        """m, the number of prompt tokens."""
        return self.target_prompts.shape[1]

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: all under `prompts`."""
        return trained_param_groups(self.parameters(), [])

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the prompts of a batch whose rows may belong to several tasks.

        Args:
            task_ids: the task of each row, [b].
            pooled_input: x̂, [b, d], which only an attention module reads.

        Returns:
            The prompts, [b, m, d], and the weights of a mixture, [b, t + 1]; None if nothing is mixed.
        """
        return self.target_prompts[task_ids], None

    def offsets(self, task_ids: Tensor, length: int) -> Tensor | None:
        """Returns what is added to the embeddings of an input of that length, [b, l, d]; None if nothing is."""
        return None

    def kept_prompts(self, shared: bool) -> Tensor:
        """Returns the prompts that the registry keeps, [n, m, d]; the first of them is kept if all tasks share one."""
        return self.target_prompts


@dataclass(frozen=True)
class BuildInputs:
    """What a method's prompts are made from.

    Args:
        config: the settings of the training (`training.config.TrainingConfig`).
        initial: where prompts start, in their unit, one a task, [n, m, d].
        sources: the source prompts, [t, m, d]; None where there are none.
        generator: draws what starts from random numbers.
        positions: s, the longest input in tokens (DePT).
        attention: a trained G to start from; None makes a fresh one.
        prior: where the prior on the attention's scores starts, [n, t + 1]; None for none.
        source_norm: the norm that sources are scaled to; None leaves them as they are.
    """

    config: Any  # this package knows no settings
    initial: Tensor
    sources: Tensor | None
    generator: torch.Generator
    positions: int
    attention: PromptAttention | None = None
    prior: Tensor | None = None
    source_norm: float | None = None

    @property
    def settings(self) -> dict[str, Any]:
        """The numbers that the method alone has, by name."""
        return self.config.method_settings or {}
