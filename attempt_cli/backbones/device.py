"""Chooses the device that a backbone is on, and the dtype that it computes in."""

from __future__ import annotations

import os
import platform

import torch

from attempt_cli.errors import AttemptError

DTYPES = {"bfloat16": torch.bfloat16, "bf16": torch.bfloat16, "float32": torch.float32, "fp32": torch.float32}


def choose_device(device: str | None) -> torch.device:
    """Returns the named device, else the first available of cuda, mps and cpu.

    Of several processes on this machine (`LOCAL_RANK`) each has a GPU of its own, as far as there are enough. "auto"
    starts at the first; see `spread.places`.
    """
    if device == "auto" and int(os.environ.get("WORLD_SIZE", 1)) > 1:
        raise AttemptError(
            "--device auto spreads the layers of one process over all GPUs, and this is one of several",
            "Leave --device out, so that each process takes a GPU of its own, or start one process.",
        )
    if device in (None, "cuda", "auto") and torch.cuda.is_available():
        return torch.device("cuda", int(os.environ.get("LOCAL_RANK", 0)) % torch.cuda.device_count())
    if device in (None, "auto"):
        return torch.device("mps" if torch.backends.mps.is_available() else "cpu")
    try:
        chosen = torch.device(device)
        torch.empty(1, device=chosen).item()
    except (RuntimeError, AssertionError) as error:
        raise AttemptError(
            f"the device '{device}' is not available", "Use --device cuda, auto, mps or cpu, or leave it out."
        ) from error
    return chosen


def choose_dtype(dtype: str | None, device: torch.device) -> torch.dtype:
    """Returns the named dtype, else bf16 where the processor is faster in it, else fp32."""
    if dtype is not None:
        if dtype not in DTYPES:
            raise AttemptError(f"no dtype named '{dtype}'", "Use bfloat16 or float32 (T5 overflows in float16).")
        return DTYPES[dtype]
    if device.type == "cuda":
        return torch.bfloat16 if torch.cuda.is_bf16_supported(including_emulation=False) else torch.float32
    if device.type == "cpu":
        return torch.bfloat16 if _fast_in_bf16() else torch.float32
    return torch.float32


def _fast_in_bf16() -> bool:
    """Tells whether this processor is faster in bf16: with AMX, and with AVX512-BF16 unless Intel made it.

    Intel's AVX512-BF16 alone (virtual machines may hide AMX) multiplies matrices at 0.6 to 0.8 of fp32's speed; AMD's
    is faster than fp32.
    """
    if torch.cpu._is_amx_tile_supported():
        return True
    return torch.cpu._is_avx512_bf16_supported() and "GenuineIntel" not in _processor()


def _processor() -> str:
    """Returns what the system says of its first processor, its maker's name among it."""
    try:
        with open("/proc/cpuinfo", encoding="utf-8") as file:
            return file.read(1000)
    except OSError:  # not Linux
        return platform.processor()
