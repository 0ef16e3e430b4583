"""Streams of the pretend GPU: what is copied beside the computation is there only when it was waited for.

A copy on a stream of its own happens as late as it may: its target holds NaN until the computing stream waits for an
event behind it. Computation itself happens at once, though on a card the host runs ahead of it; so what only a late
computation would spoil is found by rules:

- the host writes to pinned memory from which a copy may still read: it raises;
- memory of another stream is given back while the computing stream may still read it: it stands in `races`.

Other streams know copies from pinned memory and nothing else.
"""

from __future__ import annotations

import contextlib
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor


@dataclass
class PretendEvent:
    """A point in a stream.

    Args:
        stream: the stream.
        copies: of the stream before it.
        computed: operations before it, where it is the computing stream's.
    """

    stream: PretendStream
    copies: int
    computed: int


class PretendStream:
    """A queue of copies; the computing stream's has none that are still to come."""

    def __init__(self, streams: PretendStreams) -> None:
        self.streams = streams
        self.queue: list[tuple[Tensor, Tensor]] = []
        self.happened = 0  # copies of the queue
        self.behind = 0  # operations of the computing stream that have happened before what is queued from now on

    def record_event(self) -> PretendEvent:
        return PretendEvent(self, len(self.queue), self.streams.computed)

    def wait_event(self, event: PretendEvent) -> None:
        self.streams.gpu.refuse_in_graph("waiting for an event")
        if event.stream is self.streams.computing:
            self.behind = max(self.behind, event.computed)
        elif self is self.streams.computing:
            for into, source in event.stream.queue[event.stream.happened : event.copies]:
                into.copy_(source)
                self.streams.read_by[_address(source)] = self
            event.stream.queue[: event.copies] = [(torch.empty(0),) * 2] * event.copies  # lets go of the memory
            event.stream.happened = max(event.stream.happened, event.copies)


@dataclass
class _Memory:
    """What another stream than the computing one has allocated.

    Args:
        stream: that stream.
        used: the number of the last operation of the computing stream on it.
    """

    stream: PretendStream
    used: int = 0


class PretendStreams:
    """The streams of a pretend GPU.

    Args:
        gpu: the GPU.
    """

    def __init__(self, gpu: Any) -> None:
        self.gpu = gpu
        self.computing = self.current = PretendStream(self)
        self.computed = 0
        self.races: list[str] = []
        self.read_by: dict[int, PretendStream] = {}  # pinned memory that a copy on this stream may still read
        self._memory: dict[int, _Memory] = {}

    @contextlib.contextmanager
    def on(self, stream: PretendStream) -> Iterator[None]:
        """Makes a stream the current one."""
        before, self.current = self.current, stream
        try:
            yield
        finally:
            self.current = before

    def compute(self, tensors: list[Any]) -> None:
        """Notes an operation on tensors (those inside)."""
        if self.current is not self.computing:
            raise NotImplementedError("the pretend GPU computes on its first stream alone")
        self.computed += 1
        for tensor in tensors if self._memory else ():
            memory = self._memory.get(_address(tensor))
            if memory is not None:
                memory.used = self.computed

    def copied(self, source: Tensor) -> None:
        """Notes a copy from pinned memory that the host does not wait for."""
        self.read_by[_address(source)] = self.current

    def copy_later(self, source: Tensor, kind: torch.dtype) -> Tensor:
        """Queues a copy on the current stream, which is not the computing one; returns its target."""
        into = torch.full_like(source, float("nan"), dtype=kind)
        self.gpu.kernels["a copy beside"] += 1
        self.current.queue.append((into, source))
        memory, address, where = _Memory(self.current), _address(into), self.gpu.where()

        def freed() -> None:
            del self._memory[address]
            if memory.used > memory.stream.behind:
                self.races.append(f"memory is taken again while it may still be read: that of {where}")

        self._memory[address] = memory
        weakref.finalize(into.untyped_storage(), freed).atexit = False
        return into

    def written(self, tensors: list[Any]) -> None:
        """Refuses that the host writes where a copy may still read."""
        for tensor in tensors if self.read_by else ():
            if isinstance(tensor, Tensor) and _address(tensor) in self.read_by:
                raise RuntimeError(f"pinned memory is written to while a copy may still read it at {self.gpu.where()}")

    def host_waited(self) -> None:
        """Notes that the host has waited for the computing stream."""
        self.read_by = {address: stream for address, stream in self.read_by.items() if stream is not self.computing}


def _address(tensor: Tensor) -> int:
    return tensor.untyped_storage().data_ptr()
