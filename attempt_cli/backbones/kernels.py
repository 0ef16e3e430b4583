"""Chooses the faster kernel of our attention by measuring both on this machine."""

from __future__ import annotations

import time
from dataclasses import dataclass, replace
from functools import lru_cache
from typing import Any

import torch

from attempt_cli.backbones.attention import KERNELS, causal_mask
from attempt_cli.backbones.machine import machine_name, recall, remember, wait

# up to this many keys both kernels take microseconds, and matrix products run without a measurement
UNMEASURED = 64
MEASUREMENTS = "attention-kernels"
# rows of a measurement, and the bytes that scores of all heads may take in it; matrix products hold about three of them
ROWS = 4
SCORE_BYTES = 256 << 20


@dataclass(frozen=True)
class Shape:
    """The properties that a kernel's speed depends on.

    Args:
        device, dtype: of the tensors.
        heads, key_heads, width: of the attention.
        keys: the number of positions looked at.
        backward: whether a gradient is computed, too.
    """

    device: torch.device
    dtype: torch.dtype
    heads: int
    key_heads: int
    width: int
    keys: int
    backward: bool


def choose_kernel(shape: Shape) -> str:
    """Returns the faster kernel, measured once on this machine for the next power of two of keys.

    The result is kept in the cache folder, so that a resumed training computes with the kernel it began with. On a GPU
    nothing is measured: matrix products are a dozen kernels, and launching them takes longer than their work.
    """
    if shape.device.type == "cuda":
        return "sdpa"
    if shape.keys <= UNMEASURED:
        return "plain"
    return _kept_kernel(replace(shape, keys=1 << (shape.keys - 1).bit_length()))


@lru_cache(maxsize=256)
def _kept_kernel(shape: Shape) -> str:
    name = (
        f"{machine_name(shape.device)} {shape.dtype} heads {shape.heads}/{shape.key_heads}x{shape.width} "
        f"keys {shape.keys} {'and back' if shape.backward else 'forward'}"
    )
    kept: Any = recall(MEASUREMENTS, name)
    if isinstance(kept, str) and kept in KERNELS:
        return kept
    fastest = _measured_kernel(shape)
    remember(MEASUREMENTS, name, fastest)
    return fastest


def _measured_kernel(shape: Shape) -> str:
    """Times causal attention over a few rows, the kernels alternating, best of 5.

    Where one row's scores are too large to try, or to hold, the kernel that keeps none is the faster.
    """
    row_bytes = shape.heads * shape.keys**2 * shape.dtype.itemsize
    if row_bytes > SCORE_BYTES:
        return "sdpa"
    try:
        return _timed_kernel(shape, min(ROWS, SCORE_BYTES // row_bytes))
    except (torch.OutOfMemoryError, MemoryError):
        return "sdpa"


def _timed_kernel(shape: Shape, rows: int) -> str:
    mask = causal_mask(shape.keys, shape.dtype, shape.device)
    heads = (shape.heads, shape.key_heads, shape.key_heads)
    query, key, value = (
        torch.randn(rows, n, shape.keys, shape.width, dtype=shape.dtype, device=shape.device).requires_grad_(
            shape.backward
        )
        for n in heads
    )
    best = dict.fromkeys(KERNELS, float("inf"))
    with torch.set_grad_enabled(shape.backward):
        for round_ in range(6):
            for kernel, function in KERNELS.items():
                wait(shape.device)
                began = time.perf_counter()
                output = function(query, key, value, mask, shape.width**-0.5, None, None)
                if shape.backward:
                    output.sum().backward()  # type: ignore[no-untyped-call]
                wait(shape.device)
                if round_:  # the first call sets things up
                    best[kernel] = min(best[kernel], time.perf_counter() - began)
    return min(best, key=best.__getitem__)
