"""Says before weights are loaded how much memory they need, from the headers of their files."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping
from typing import Any

import torch

from attempt_cli.backbones.machine import free_memory
from attempt_cli.backbones.quantized import QUANTIZATIONS, to_be_quantized
from attempt_cli.backbones.spread import TooLargeError, gpus
from attempt_cli.byte_sizes import size_text

ROOM = 0.8  # of the free memory: weights that take more leave little for a step


def check_memory(
    name: str,
    shapes: Mapping[str, list[int]],
    skeleton: Callable[[], Any] | None,
    device: torch.device,
    dtype: torch.dtype,
    quantize: str | None = None,
    spread: bool = False,
) -> str | None:
    """Compares what a backbone's weights need with the device's free memory.

    Args:
        name: of the backbone.
        shapes: of the tensors in its files.
        skeleton: makes its model without memory, which says what a quantisation would take; None where it cannot be
            quantised.
        device: where it is to be.
        dtype: as which it is to be loaded.
        quantize: a name in QUANTIZATIONS, or None.
        spread: they are spread over all GPUs.

    Returns:
        A remark where little room is left for a step, else None.

    Raises:
        TooLargeError: they do not fit; its hint says what would.
    """
    if device.type not in ("cuda", "cpu"):
        return None  # no other device says what is free
    where = gpus() if spread else [device]
    needed, free = weight_bytes(shapes, skeleton, dtype, quantize), sum(map(free_memory, where))
    if needed <= ROOM * free:
        return None
    kind = quantize or str(dtype).removeprefix("torch.")
    there = f"{len(where)} GPUs have" if spread else f"{device} has"
    what = f"{name} needs {size_text(needed)} in {kind}, and {there} {size_text(free)} free"
    quantised = {other: weight_bytes(shapes, skeleton, dtype, other) for other in QUANTIZATIONS if skeleton}
    smaller = [f"--quantize {other} ({size_text(size)})" for other, size in quantised.items() if size < needed]
    smaller += ["--dtype bfloat16 (half)"] if dtype == torch.float32 else []
    smaller += [f"--device auto ({len(gpus())} GPUs)"] if not spread and len(gpus()) > 1 else []
    ways = ", ".join([*smaller, "a smaller backbone", *(["--device cpu"] if device.type != "cpu" else [])])
    if needed <= free:
        return f"{what}: little room for a step. What takes less: {ways}."
    raise TooLargeError(what, f"Free some memory, or use one of: {ways}.")


def weight_bytes(
    shapes: Mapping[str, list[int]],
    skeleton: Callable[[], Any] | None,
    dtype: torch.dtype,
    quantize: str | None = None,
) -> int:
    """Returns the bytes that weights take once they are loaded; arguments as in `check_memory`."""
    numbers = sum(math.prod(shape) for shape in shapes.values())
    if quantize is None or skeleton is None:
        return numbers * dtype.itemsize
    packed = 0.0
    for matrix in to_be_quantized(skeleton()):
        rows, columns = matrix.shape
        numbers -= rows * columns
        packed += QUANTIZATIONS[quantize].bytes_of(rows, columns)
    return round(numbers * dtype.itemsize + packed)
