"""One training on several processes, as `accelerate launch` starts them."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class Processes:
    """This process's place among those that share a training.

    What is trained is a few kilobytes: its gradients are summed by hand after the backward, and no wrapper around the
    frozen model is needed.

    Args:
        index: this process, from 0.
        count: all of them.
    """

    index: int = 0
    count: int = 1

    @classmethod
    def here(cls) -> Processes:
        """Joins the others, where a launcher has started several."""
        if int(os.environ.get("WORLD_SIZE", "1")) == 1:
            return cls()
        from accelerate import PartialState

        state = PartialState(cpu=not torch.cuda.is_available())
        return cls(state.process_index, state.num_processes)

    @property
    def is_main(self) -> bool:
        """Whether this is the one that writes."""
        return self.index == 0

    def sum_(self, tensors: Sequence[Tensor]) -> None:
        """Adds each tensor up over all processes, in place."""
        if self.count == 1:
            return
        flat = torch.cat([tensor.reshape(-1).float() for tensor in tensors])  # one message, not one a tensor
        torch.distributed.all_reduce(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def any(self, here: bool) -> bool:
        """Whether it is true on any process: all must leave the loop at one step."""
        if self.count == 1:
            return here
        flag = torch.tensor([float(here)], device="cuda" if torch.cuda.is_available() else "cpu")
        torch.distributed.all_reduce(flag)
        return bool(flag.item() > 0)
