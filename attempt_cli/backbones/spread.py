"""Spreads a model's layers over all GPUs (`--device auto`): accelerate's hooks take what enters one to its weights."""

from __future__ import annotations

from typing import Any

import torch

from attempt_cli.backbones.machine import free_memory
from attempt_cli.backbones.quantized import to_be_quantized
from attempt_cli.errors import AttemptError


class TooLargeError(AttemptError):
    """Weights that the free memory does not hold."""


def gpus() -> list[torch.device]:
    """Returns the GPUs of this machine."""
    count = torch.cuda.device_count() if torch.cuda.is_available() else 0
    return [torch.device("cuda", number) for number in range(count)]


def places(name: str, skeleton: Any, dtype: torch.dtype, quantize: str | None) -> dict[str, torch.device]:
    """Returns which GPU each part of a model is loaded onto: about as many bytes each, in the order of the layers.

    Args:
        name: of the backbone.
        skeleton: the model without memory for its weights.
        dtype: as which they are loaded.
        quantize: how the layers' matrices are quantised while they are loaded; None for not at all.

    Raises:
        TooLargeError: the GPUs' free memory does not hold all layers.
    """
    from accelerate import infer_auto_device_map
    from accelerate.utils import CustomDtype, get_balanced_memory

    kinds: dict[str, Any] = {}
    if quantize is not None:
        packed = {id(weight) for weight in to_be_quantized(skeleton)}
        kind = CustomDtype.INT4 if quantize == "nf4" else torch.int8
        kinds = {name: kind for name, weight in skeleton.named_parameters() if id(weight) in packed}
    sizes = {
        "no_split_module_classes": sorted(skeleton._no_split_modules or ()),
        "dtype": dtype,
        "special_dtypes": kinds,
    }
    free = {gpu.index: free_memory(gpu) for gpu in gpus()}
    found = infer_auto_device_map(skeleton, get_balanced_memory(skeleton, free, **sizes), **sizes)
    if any(not isinstance(gpu, int) for gpu in found.values()):
        raise TooLargeError(
            f"the layers of {name} do not fit in the free memory of {len(free)} GPUs",
            "Free some memory, or use --quantize nf4 or a smaller backbone.",
        )
    return {part: torch.device("cuda", gpu) for part, gpu in found.items()}
