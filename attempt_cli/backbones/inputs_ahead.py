"""Kept inputs of the next step, on their way from the host's memory to a GPU."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor


class InputsAhead:
    """Copies rows' keys and values to a GPU while it computes the step before.

    The copy has a stream of its own, and the host waits for nothing: the GPU waits for the copy before it reads the
    rows, and the copy for what still reads the rows before.

    Args:
        device: the GPU.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._stream = torch.cuda.Stream(device)  # type: ignore[no-untyped-call]
        self._rows: dict[bytes, Tensor] = {}
        self._copied: torch.cuda.Event | None = None  # until the GPU was told to wait for it
        self._read: torch.cuda.Event | None = None

    def send(self, rows: Mapping[bytes, Tensor]) -> None:
        """Starts copying rows, and drops those that were sent before.

        Args:
            rows: what lies in the host's memory, [layers, 2, g, l, e], by `row_key`.
        """
        if self._read is not None:  # their memory is the next rows': torch gives it out in the order of this stream
            self._stream.wait_event(self._read)
        self._rows, self._copied, self._read = {}, None, None
        if not rows:
            return
        sizes = [one.numel() for one in rows.values()]
        dtype = next(iter(rows.values())).dtype
        # a new block every time: torch gives the memory of pinned ones out again when their copies are done
        block = torch.empty(sum(sizes), dtype=dtype, pin_memory=True)
        for part, one in zip(torch.split(block, sizes), rows.values(), strict=True):
            part.view(one.shape).copy_(one)
        with torch.cuda.stream(self._stream):
            there = block.to(self._device, non_blocking=True)
        self._copied = self._stream.record_event()
        parts = zip(rows.items(), torch.split(there, sizes), strict=True)
        self._rows = {key: part.view(one.shape) for (key, one), part in parts}

    def get(self, key: bytes, kept: Tensor) -> Tensor:
        """Returns a row on the GPU, [layers, 2, g, l, e], or `kept` where it was not sent."""
        found = self._rows.get(key)
        if found is None:
            return kept
        if self._copied is not None:
            torch.cuda.current_stream(self._device).wait_event(self._copied)
            self._copied = None
        return found

    def was_read(self) -> None:
        """Notes that all kernels which read what `get` returned so far have been launched."""
        if self._rows:
            self._read = torch.cuda.current_stream(self._device).record_event()
