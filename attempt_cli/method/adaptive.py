"""Adaptive decomposed prompt tuning (ADePT; Tang, Hu and Liu, ICLR 2025): a short prompt and offsets by token."""

from __future__ import annotations

import math
from collections.abc import Mapping

import torch
from torch import Tensor, nn

from attempt_cli.method.module import BuildInputs, PromptModule
from attempt_cli.method.param_groups import trained_param_groups


class AdaptivePrompt(PromptModule):
    """Gives every row its task's short prompt and offsets of its input: [P_k ; X + f_k(X)].

    f(x) = W₂ ReLU(W₁ x + b₁) + b₂ sees one token's embedding at a time, so a token's offset is the same at every
    position (DePT's depends on the position alone). W₂ and both biases start from zero: training starts from the
    unchanged input. W₁ is drawn from N(0, 1/d), so that what ReLU sees is of order 1 for embeddings in RMS units; the
    paper leaves that open, and its code draws uniformly.

    Args:
        target_prompts: initial short prompts, one a task, [n, m', d]; trained.
        inner: r, the width between the two layers.
        generator: draws W₁; the global generator without one.

    Raises:
        ValueError: the prompts are not [n, m', d], or r is below 1.
    """

    target_prompts: nn.Parameter

    changes_input = True

    def __init__(self, target_prompts: Tensor, inner: int, *, generator: torch.Generator | None = None) -> None:
        super().__init__()
        if target_prompts.dim() != 3:
            raise ValueError(f"short prompts are [n, m', d], not {list(target_prompts.shape)}")
        if inner < 1:
            raise ValueError(f"the network's inner width is at least 1, not {inner}")
        tasks, _, width = target_prompts.shape
        self.target_prompts = nn.Parameter(target_prompts.detach().clone().float())
        down = torch.empty(tasks, width, inner).normal_(std=1 / math.sqrt(width), generator=generator)
        self.down = nn.Parameter(down)  # W₁, [n, d, r]
        self.down_bias = nn.Parameter(torch.zeros(tasks, inner))  # b₁
        self.up = nn.Parameter(torch.zeros(tasks, inner, width))  # W₂, [n, r, d]
        self.up_bias = nn.Parameter(torch.zeros(tasks, width))  # b₂

    def param_groups(self) -> dict[str, list[nn.Parameter]]:
        """Returns the trained tensors by learning rate: short prompts under `prompts`, f under `attention`."""
        return trained_param_groups([self.target_prompts], [self.down, self.down_bias, self.up, self.up_bias])

    def offsets(self, task_ids: Tensor, embeddings: Tensor) -> Tensor:
        """Returns f(X) of the rows' inputs, [b, l, d], in the unit of the prompts, as X is."""
        inner = torch.relu(embeddings @ self.down[task_ids] + self.down_bias[task_ids, None])  # [b, l, r]
        return inner @ self.up[task_ids] + self.up_bias[task_ids, None]

    def kept_parts(self, number: int) -> dict[str, Tensor]:
        """Returns f of a task."""
        return {name: getattr(self, name)[number] for name in ("down", "down_bias", "up", "up_bias")}

    @classmethod
    def from_parts(cls, prompt: Tensor, parts: Mapping[str, Tensor]) -> AdaptivePrompt:
        """Makes the module of one task from its short prompt and f."""
        module = cls(prompt[None], parts["down"].shape[1])
        module.load_state_dict({"target_prompts": prompt[None], **{name: part[None] for name, part in parts.items()}})
        return module


def adaptive_shape(width: int, length: int) -> tuple[int, int]:
    """Spends the parameters of a plain prompt on ADePT: the largest r with m'·d + 2·r·d + r + d ≤ m·d.

    m' is three fifths of m, as in the command of the authors' code (HungerPWAY/ADePT): 60 of 100 and r = 19 on T5-base.

    Args:
        width: d.
        length: m of the plain prompt whose m·d parameters are the budget.

    Returns:
        m' and r. (d = 768, m = 100: 60 and 19, 76,051 parameters.)

    Raises:
        ValueError: the budget leaves nothing for the network.
    """
    short = max(1, 3 * length // 5)
    inner = ((length - short) * width - width) // (2 * width + 1)
    if inner < 1:
        raise ValueError(f"a short prompt of {short} tokens leaves nothing of {length} for the network")
    return short, inner


def build(inputs: BuildInputs) -> AdaptivePrompt:
    """Builds ADePT's short prompts and networks, with the budget of a prompt of m tokens."""
    _, length, width = inputs.initial.shape
    short, inner = adaptive_shape(width, length)
    return AdaptivePrompt(inputs.initial[:, :short], inner, generator=inputs.generator)


def parameters(inputs: BuildInputs) -> int:
    """Counts m'·d + 2·r·d + r + d."""
    _, length, width = inputs.initial.shape
    short, inner = adaptive_shape(width, length)
    return short * width + 2 * inner * width + inner + width
