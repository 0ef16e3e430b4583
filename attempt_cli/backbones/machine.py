"""This machine: its name, its cache folder, and measurements that are made on it once."""

from __future__ import annotations

import contextlib
import json
import os
import platform
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

from attempt_cli.checked_files import replacing


def cache_folder() -> Path:
    """Returns the folder of unpacked weights, tokens and measurements: $ATTEMPT_CACHE, else the user's cache."""
    from platformdirs import user_cache_path

    return Path(os.environ.get("ATTEMPT_CACHE") or user_cache_path("attempt"))


def recall(kind: str, name: str) -> Any:
    """Returns the measurement of a kind that was kept under a name, else None."""
    return _kept(kind).get(name)


def remember(kind: str, name: str, value: Any) -> None:
    """Keeps a measurement; if the cache cannot be written, the next process measures again."""
    file = _file(kind)
    with contextlib.suppress(OSError), replacing(file) as partial:
        partial.write_text(json.dumps({**_kept(kind), name: value}, indent=1), "utf-8")


def _file(kind: str) -> Path:
    return cache_folder() / f"{kind}.json"


def _kept(kind: str) -> dict[str, Any]:
    try:
        kept = json.loads(_file(kind).read_text("utf-8"))
    except (OSError, ValueError, RecursionError):
        return {}  # missing or damaged: measured again
    return kept if isinstance(kept, dict) else {}


def machine_name(device: torch.device) -> str:
    """Returns what a measurement is valid for: the GPU, or the processor and its threads; and torch's version."""
    if device.type == "cuda":
        where = torch.cuda.get_device_name(device)
    else:
        parts = [processor_name(), _widest_instructions(), f"x{torch.get_num_threads()}"]
        where = " ".join([*filter(None, parts), *([device.type] if device.type != "cpu" else [])])
    return f"{where} torch {torch.__version__}"


def _widest_instructions() -> str:
    """Returns the widest vector instructions of the processor, which decide how fast products are and how they round.

    Virtual machines give one name to processors that differ in them.
    """
    supported = {
        "AMX": torch.cpu._is_amx_tile_supported,
        "AVX512-BF16": torch.cpu._is_avx512_bf16_supported,
        "AVX512": torch.cpu._is_avx512_supported,
        "AVX2": torch.cpu._is_avx2_supported,
    }
    return next((name for name, there in supported.items() if there()), "")


@lru_cache(maxsize=1)
def processor_name() -> str:
    """Returns the processor's model name, as far as the system tells it."""
    try:
        for line in Path("/proc/cpuinfo").read_text("utf-8").splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


def free_on_gpu(device: torch.device) -> int:
    """Returns the bytes that are free on a GPU; 0 for a CPU."""
    return free_memory(device) if device.type == "cuda" else 0


def free_memory(device: torch.device) -> int:
    """Returns the bytes that are still available on the device."""
    if device.type == "cuda":
        return int(torch.cuda.mem_get_info(device)[0])
    import psutil

    return int(psutil.virtual_memory().available)


def wait(device: torch.device) -> None:
    """Waits until the device has finished its work: a GPU continues after a call has returned."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
    elif device.type == "mps":
        torch.mps.synchronize()
