"""How much memory a training takes, and how large a batch fits."""

from __future__ import annotations

import contextlib
import math
import resource
import sys
import weakref
from collections.abc import Sequence
from pathlib import Path

import torch
from torch import Tensor

from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError
from attempt_cli.prompted import PromptedModel

# of what is free at the start, a batch may take so much: other programs, and the allocator's own gaps, take the rest
SHARE = 0.6
LARGEST_BATCH = 256


class PeakMemory:
    """The largest memory in use since it was made: of the GPU, or of this process where there is none."""

    def __init__(self, device: torch.device) -> None:
        self._device = device
        if device.type == "cuda":
            torch.cuda.reset_peak_memory_stats(device)
        else:
            with contextlib.suppress(OSError):  # Linux counts anew from here; elsewhere it is the whole process's peak
                Path("/proc/self/clear_refs").write_text("5", "ascii")

    def bytes(self) -> int:
        """The peak so far."""
        if self._device.type == "cuda":
            return int(torch.cuda.max_memory_allocated(self._device))
        try:
            for line in Path("/proc/self/status").read_text("ascii", "replace").splitlines():
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
        except OSError:
            pass
        peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
        return peak if sys.platform == "darwin" else peak * 1024


def free_memory(device: torch.device) -> int:
    """Bytes that can still be had on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def total_memory() -> int:
    """Bytes of the machine's memory."""
    import psutil

    return int(psutil.virtual_memory().total)


def activation_bytes(model: PromptedModel, rows: Sequence[EncodedRow]) -> int:
    """Bytes that the backward pass of these rows needs kept, weights not counted."""
    kept: weakref.WeakSet[_Kept] = weakref.WeakSet()

    def note(tensor: Tensor) -> _Kept:
        holder = _Kept(tensor)
        kept.add(holder)
        return holder

    with torch.autograd.graph.saved_tensors_hooks(note, lambda holder: holder.tensor):
        likelihood = model.log_likelihood(rows)
    # what the backward pass will not come by is gone already; what is left lives at once, each storage at its own place
    storages = [holder.tensor.untyped_storage() for holder in kept]
    sizes = {storage.data_ptr(): storage.nbytes() for storage in storages}
    # weights that are trained are cast anew in every pass: which they are is only known after it
    weights = [*model.backbone.model.parameters(), *model.trained.parameters()]
    known = {parameter.untyped_storage().data_ptr() for parameter in weights}
    del likelihood
    return sum(size for place, size in sizes.items() if place not in known)


class _Kept:
    """A tensor that the backward pass holds on to."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor = tensor


def largest_batch(model: PromptedModel, rows: Sequence[EncodedRow]) -> int:
    """The largest power of two of rows whose pass forward and back fits in the free memory, by the longest rows.

    Raises:
        AttemptError: not even one row fits.
    """
    longest = sorted(rows, key=lambda row: len(row.input_ids) + len(row.target_ids))[-1]
    # the gradients of a layer stand beside what the backward pass still needs: twice is on the safe side
    per_row = 2 * activation_bytes(model, [longest])
    # beside every trained number come its gradient and AdamW's two moments, in fp32
    beside = 12 * sum(tensor.numel() for tensor in model.trained.parameters() if tensor.requires_grad)
    room = SHARE * free_memory(model.backbone.device) - beside
    if 3 * per_row < room:  # a row takes less where a prompt has one pass for all
        two, three = (2 * activation_bytes(model, [longest] * count) for count in (2, 3))
        per_row = three - two
        room -= two - 2 * per_row
    fits = int(room / max(1, per_row))
    if fits < 1:
        raise AttemptError(
            "not even one row fits in the free memory",
            "Give a shorter --max-length or --prompt-length, or --gradient-checkpointing.",
        )
    return min(LARGEST_BATCH, 1 << int(math.log2(fits)), 1 << max(0, (len(rows) - 1).bit_length()))
