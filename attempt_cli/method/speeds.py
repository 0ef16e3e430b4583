"""Two-speed learning: which trained tensors follow the prompts' learning rate, and which G's."""

from __future__ import annotations

from collections.abc import Iterable

from torch import nn


def trained_groups(prompts: Iterable[nn.Parameter], attention: Iterable[nn.Parameter]) -> dict[str, list[nn.Parameter]]:
    """The tensors of the two speeds that are trained; a group that holds none is left out.

    Args:
        prompts: tensors whose entries are prompt embeddings.
        attention: the others: G, or the factors that take its place.

    Returns:
        `prompts` and `attention`, each with its tensors.
    """
    groups = {"prompts": prompts, "attention": attention}
    trained = {name: [tensor for tensor in tensors if tensor.requires_grad] for name, tensors in groups.items()}
    return {name: tensors for name, tensors in trained.items() if tensors}
