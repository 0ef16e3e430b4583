"""What our own layers share: Llama's (`llama`) and T5's (`t5`)."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn


def apply(function: Any, *arguments: Any) -> Any:
    """Calls an autograd function, whose `apply` has no types."""
    return function.apply(*arguments)


def joined(*modules: nn.Linear) -> Tensor:
    """Joins the weights of modules with the same input to [sum of outputs, inputs]: one product stands for several.

    Each module's own weight becomes a view of its part.
    """
    together = torch.cat([module.weight.detach() for module in modules])
    start = 0
    for module in modules:
        part = together[start : start + module.out_features]
        module.weight = nn.Parameter(part, requires_grad=False)
        start += module.out_features
    return together


def unmapped(model: Any, together: Iterable[Tensor]) -> None:
    """Copies a model's other weights out of the checkpoint's file.

    The file is mapped as a whole: one weight left in it would keep the whole file in memory beside the joined weights.
    """
    places = {weight.data_ptr() for weight in together}
    for parameter in model.parameters():
        if parameter.device.type == "cpu" and parameter.untyped_storage().data_ptr() not in places:
            parameter.data = parameter.data.clone()
