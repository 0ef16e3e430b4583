"""One training on several processes, as `accelerate launch` starts them."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

import torch
from torch import Tensor

from attempt_cli.errors import AttemptError

Item = TypeVar("Item")

# where launchers say how many processes they started; the same names as in accelerate
COUNTS = ("WORLD_SIZE", "PMI_SIZE", "OMPI_COMM_WORLD_SIZE", "MV2_COMM_WORLD_SIZE")

# settings of accelerate under which a process would hold a part of the model, and where it says that they are on
PARTS = {
    "ACCELERATE_USE_FSDP": "FSDP",
    "ACCELERATE_USE_DEEPSPEED": "DeepSpeed",
    "ACCELERATE_USE_MEGATRON_LM": "Megatron-LM",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "tensor parallelism",
}


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
        """Joins the others, where a launcher has started several.

        Raises:
            AttemptError: the launcher was asked for several, and started one; or for models in parts.
        """
        for name, what in PARTS.items():
            if os.environ.get(name, "").lower() in ("1", "true", "yes", "on"):
                raise AttemptError(
                    f"accelerate is set to {what}, which splits a model; here every process holds the whole one",
                    "Launch with `accelerate launch --multi_gpu --num_processes N -m attempt_cli …`, "
                    "or choose no such setting in `accelerate config`.",
                )
        started = next((int(os.environ[name]) for name in COUNTS if name in os.environ), None)
        # accelerate sets the meeting point of several processes even where it starts one of them (`--cpu`, one GPU):
        # a training with half the batch that was asked for would look like a success
        if started is None and "MASTER_ADDR" in os.environ and "ACCELERATE_MIXED_PRECISION" in os.environ:
            raise AttemptError(
                "accelerate was asked for several processes and started only this one",
                "Add --multi_gpu, on plain processors too (not --cpu): "
                "`accelerate launch --multi_gpu --num_processes 2 -m attempt_cli …`.",
            )
        if started in (None, 1):
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
        _add_up(flat)
        for tensor, part in zip(tensors, torch.split(flat, [tensor.numel() for tensor in tensors]), strict=True):
            tensor.copy_(part.view_as(tensor))

    def share(self, items: Sequence[Item]) -> Sequence[Item]:
        """Returns this process's part of what is done once: all of it where there is less than one for each."""
        return items[self.index :: self.count] if len(items) >= self.count else items

    def gathered(self, own: Sequence[Item], total: int) -> list[Item]:
        """Returns what all processes have made of their shares, in the order of the items that were shared out.

        Args:
            own: what this one has made of its share.
            total: the number of all items.
        """
        if self.count == 1 or total < self.count:
            return list(own)
        parts: list[Any] = [None] * self.count
        with _together():
            torch.distributed.all_gather_object(parts, list(own))
        return [parts[number % self.count][number // self.count] for number in range(total)]

    def any(self, here: bool) -> bool:
        """Says whether it is true on any process: all must leave the loop at one step."""
        if self.count == 1:
            return here
        flag = torch.tensor([float(here)], device="cuda" if torch.cuda.is_available() else "cpu")
        _add_up(flag)
        return bool(flag.item() > 0)


def _add_up(tensor: Tensor) -> None:
    with _together():
        torch.distributed.all_reduce(tensor)


@contextmanager
def _together() -> Iterator[None]:
    """Tells it as such when another process has ended."""
    try:
        yield
    except RuntimeError as error:  # torch has no narrower type for a connection that broke
        raise AttemptError(
            f"another process of this training has ended ({str(error).splitlines()[0]})",
            "Its own message says why. The same command with --resume continues from the last checkpoint.",
        ) from error
