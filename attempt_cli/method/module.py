"""The base of every method that trains prompts, and what its builder is given."""

from __future__ import annotations

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from attempt_cli.method.attention import PromptAttention
from attempt_cli.method.param_groups import trained_param_groups
from attempt_cli.method.pooling import pool_input


class PromptModule(nn.Module):
    """Gives every row of a batch its prompt; holds all trained tensors.

    A method has to say what `target_prompts` are: a parameter, or a property computed from other parameters. All else
    has a default, which is prompt tuning's. Prompts are in the unit that they are trained in.
    """

    attention: PromptAttention | None  # G; None if no input is read
    changes_input = False  # whether `offsets` returns some
    differs_in_steps = False  # whether `in_step` or `penalty` makes a step's gradient another function each time

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

    @property
    def reads_input(self) -> bool:
        """Whether a row's prompt depends on its input."""
        return self.attention is not None

    def pool(self, embeddings: Tensor, mask: Tensor) -> Tensor:
        """Returns what is read of inputs, [b, d]: the maximum over their real tokens, of each dimension.

        Args:
            embeddings: X, [b, l, d].
            mask: True at the tokens that are read, [b, l].
        """
        return pool_input(embeddings, mask)

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: all under `prompts`."""
        return trained_param_groups(self.parameters(), [])

    def forward(self, task_ids: Tensor, pooled_input: Tensor | None = None) -> tuple[Tensor, Tensor | None]:
        """Returns the prompts of a batch whose rows may belong to several tasks.

        Args:
            task_ids: the task of each row, [b].
            pooled_input: x̂, [b, d] (see `pool`), which only a method that reads inputs looks at.

        Returns:
            The prompts, [b, m, d], and the weights of a mixture, [b, t + 1]; None if nothing is mixed.
        """
        return self.target_prompts[task_ids], None

    def offsets(self, task_ids: Tensor, embeddings: Tensor) -> Tensor | None:
        """Returns what is added to inputs' embeddings X, [b, l, d], in the unit of the prompts; None for nothing."""
        return None

    def in_step(self, step: int, total: int) -> AbstractContextManager[None]:
        """Surrounds the gradient of an optimiser step: what differs in training from use (noise, a phase) is on inside.

        Args:
            step: counts from 0.
            total: the steps of the training.
        """
        return nullcontext()

    def schedule(self, step: int, total: int) -> tuple[int, int]:
        """Returns the place of a step, and the steps in all, that its learning rate is computed for."""
        return step, total

    def penalty(self) -> Tensor | None:
        """Returns what the rows of the last pass add to the loss, as a mean over them; None for nothing."""
        return None

    def kept_prompts(self, shared: bool) -> Tensor:
        """Returns the prompts that the registry keeps, [n, m, d]; the first of them is kept if all tasks share one."""
        return self.target_prompts

    def kept_parts(self, number: int) -> dict[str, Tensor]:
        """Returns what the registry keeps beside a task's prompt, by name; empty where the prompt is all there is."""
        return {}

    @classmethod
    def from_parts(cls, prompt: Tensor, parts: Mapping[str, Tensor]) -> PromptModule:
        """Makes the module of one task from its prompt, [m, d], and its `kept_parts`."""
        raise NotImplementedError(f"{cls.__name__} keeps nothing beside its prompts")


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
