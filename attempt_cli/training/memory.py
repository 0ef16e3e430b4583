"""Measures the memory of a training, and finds the largest batch that fits."""

from __future__ import annotations

import contextlib
import math
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attempt_cli.backbones.machine import free_memory
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel

# the share of the free memory that a batch may take: other programs and the allocator's own gaps take the rest
SHARE = 0.6
LARGEST_BATCH = 256


class PeakMemory:
    """The largest memory in use since this object was made: of the GPUs, or without one of this process."""

    def __init__(self, devices: Sequence[torch.device]) -> None:
        self._gpus = [device for device in devices if device.type == "cuda"]
        if self._gpus:
            for gpu in self._gpus:
                torch.cuda.reset_peak_memory_stats(gpu)
        else:
            with contextlib.suppress(OSError):  # Linux resets its count; elsewhere the peak is of the whole process
                Path("/proc/self/clear_refs").write_text("5", "ascii")

    def bytes(self) -> int:
        """Returns the peak so far."""
        if self._gpus:
            return sum(int(torch.cuda.max_memory_allocated(gpu)) for gpu in self._gpus)
        try:
            for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        if sys.platform == "win32":
            import psutil

            return int(psutil.Process().memory_info().peak_wset)
        import resource

        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def activation_bytes(model: PromptedModel, rows: Sequence[EncodedRow]) -> int:
    """Returns the bytes that are kept for the backward pass of these rows, without weights."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def note(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor)
        kept.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(note, lambda holder: holder.tensor):
        likelihood = model.log_likelihood(rows)
    # what the backward pass does not need is freed already; the rest is alive at once, each storage at its own address
    storages = [holder.tensor.untyped_storage() for holder in kept]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    # trained weights are cast in every pass: their storages are known only after it
    weights = [*model.backbone.model.parameters(), *model.trained.parameters()]
    known = {parameter.untyped_storage().data_ptr() for parameter in weights}
    del likelihood
    return sum(size for address, size in sizes.items() if address not in known)


class _Kept:
    """A tensor that is kept for the backward pass."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def largest_batch(model: PromptedModel, rows: Sequence[EncodedRow]) -> int:
    """Returns the largest power of two of rows whose forward and backward pass fits in the free memory.

    It is computed from the longest row.

    Raises:
        AttemptError: not even one row fits.
    """
    longest = sorted(rows, key=lambda row: len(row.input_ids) + len(row.target_ids))[-1]
    # a layer's gradients exist beside what the backward pass still needs: a factor of two is on the safe side
    per_row = 2 * activation_bytes(model, [longest])
    # every trained number also has its gradient and AdamW's two moments, in fp32
    beside = 12 * sum(tensor.numel() for tensor in model.trained.parameters() if tensor.requires_grad)
    # of spread layers each GPU holds a part only: all of it on the fullest is on the safe side
    available = SHARE * min(map(free_memory, model.backbone.devices)) - beside
    if 3 * per_row < available:  # further rows take less if all share the pass of one prompt
        two, three = (2 * activation_bytes(model, [longest] * count) for count in (2, 3))
        per_row = three - two
        available -= two - 2 * per_row
    fits = int(available / max(1, per_row))
    if fits < 1:
        raise AttemptError(
            "the free memory does not hold even one row",
            "Give a shorter --max-length or --prompt-length, or --gradient-checkpointing.",
        )
    return min(LARGEST_BATCH, 1 << int(math.log2(fits)), 1 << max(0, (len(rows) - 1).bit_length()))
