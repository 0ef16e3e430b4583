"""The optimiser's parameter groups: which trained tensors follow which learning rate.

There are three learning rates: of `prompts`, of the `attention` module, and of the `weights` of a backbone. No prompt
method trains weights, so two of them are decided here.
"""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def trained_param_groups(
    prompts: Iterable[nn.Parameter], attention: Iterable[nn.Parameter]
) -> dict[str, list[nn.Parameter]]:
    """Returns the groups `prompts` and `attention` with their trained tensors, without empty groups.

    Args:
        prompts: tensors whose entries are prompt embeddings.
        attention: the others: G, or the factors that take its place.
    """
    groups = {"prompts": prompts, "attention": attention}
    trained = {name: [tensor for tensor in tensors if tensor.requires_grad] for name, tensors in groups.items()}
    return {name: tensors for name, tensors in trained.items() if tensors}
