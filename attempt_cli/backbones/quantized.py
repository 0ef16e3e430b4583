"""Quantises weights while they are loaded, with bitsandbytes: 4 or 8 bits for each number of the layers' matrices."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from attempt_cli.backbones.identity import ENTRIES, Original
from attempt_cli.backbones.strangers import weight_files
from attempt_cli.errors import AttemptError


@dataclass(frozen=True)
class Quantization:
    """A way of keeping weights in fewer bits.

    Args:
        bytes_of: bytes of a matrix of r rows and c columns, with its scales.
        settings: what bitsandbytes is told.
    """

    bytes_of: Callable[[int, int], float]
    settings: dict[str, Any]


QUANTIZATIONS = {
    # 64 numbers share a scale, which is a byte; 256 scales share one of four bytes
    "nf4": Quantization(
        lambda rows, columns: rows * columns * (0.5 + 1 / 64 + 4 / (64 * 256)),
        {"load_in_4bit": True, "bnb_4bit_quant_type": "nf4", "bnb_4bit_use_double_quant": True},
    ),
    "int8": Quantization(lambda rows, columns: rows * columns + 4 * rows, {"load_in_8bit": True}),
}


def check_quantization(quantize: str | None, device: torch.device) -> None:
    """Refuses a quantisation that there is not, before anything is loaded.

    Raises:
        AttemptError: no quantisation has this name, bitsandbytes is not installed, or it does not know the device.
    """
    if quantize is None:
        return
    if quantize not in QUANTIZATIONS:
        raise AttemptError(f"no quantisation named '{quantize}'", f"Use {' or '.join(QUANTIZATIONS)}, or leave it out.")
    try:
        import bitsandbytes
    except ImportError as error:
        raise AttemptError(
            f"--quantize {quantize} needs bitsandbytes, which is not installed", "pip install 'attempt-cli[quantize]'"
        ) from error
    known = getattr(bitsandbytes, "supported_torch_devices", {"cuda", "cpu"})
    if device.type not in known:
        raise AttemptError(
            f"bitsandbytes {bitsandbytes.__version__} quantises nothing on {device.type}",
            "Use --device cuda or cpu, or leave --quantize out.",
        )


def check_unquantized(config: dict[str, Any], quantize: str | None) -> None:
    """Refuses to quantise what is quantised.

    Raises:
        AttemptError: the checkpoint's weights are quantised already.
    """
    if quantize is not None and config.get("quantization_config"):
        raise AttemptError("its weights are quantised already", "Leave --quantize out.")


def loading_options(quantize: str | None, dtype: torch.dtype) -> dict[str, Any]:
    """Returns what the library is told to quantise weights while it loads them."""
    if quantize is None:
        return {}
    from transformers import BitsAndBytesConfig

    settings = QUANTIZATIONS[quantize].settings
    computing = {"bnb_4bit_compute_dtype": dtype} if "load_in_4bit" in settings else {}
    make: Any = BitsAndBytesConfig
    return {"quantization_config": make(**settings, **computing)}


def quantized_modules(model: nn.Module) -> dict[str, nn.Module]:
    """Returns the modules that bitsandbytes has quantised, by name."""
    from bitsandbytes.nn import modules

    kinds = (modules.Linear4bit, modules.Linear8bitLt)
    return {name: module for name, module in model.named_modules() if isinstance(module, kinds)}


def settle(model: nn.Module) -> None:
    """Keeps one layout of the weights: on some CPUs the library changes it in the first pass without a gradient.

    What it changes them to has no backward pass.
    """
    for module in model.modules():
        if hasattr(module, "support_avx512bf16_for_cpu"):
            vars(module)["support_avx512bf16_for_cpu"] = False


def to_be_quantized(model: Any) -> Iterable[Tensor]:
    """Yields the matrices of a model (on the device `meta`) that the library would quantise."""
    from transformers.pytorch_utils import Conv1D
    from transformers.quantizers.base import get_keys_to_not_convert
    from transformers.quantizers.quantizers_utils import should_convert_module

    kept = [*get_keys_to_not_convert(model), *(model._keep_in_fp32_modules or ())]
    for name, module in model.named_modules():
        if (type(module) is nn.Linear or isinstance(module, Conv1D)) and should_convert_module(name, kept):
            yield module.weight


def originals(model: nn.Module, find: Callable[[str], Path | None]) -> dict[str, Original]:
    """Reads from the files what a fingerprint looks at in the weights that are quantised in memory.

    A fingerprint so is that of the checkpoint, whatever device has quantised it.

    Args:
        model: the quantised model.
        find: returns the file of a name in the folder or the repository.

    Raises:
        AttemptError: the files call a weight something else.
    """
    from safetensors import safe_open

    wanted = [f"{name}.weight" for name in quantized_modules(model)]
    found: dict[str, Original] = {}
    for file in weight_files(find):
        with safe_open(file, "pt") as opened:
            there = set(opened.keys())
            for name in wanted:
                own = next((one for one in (name, name.partition(".")[2]) if one in there), None)
                if own is not None:
                    found[name] = _read(opened.get_slice(own))
    if missing := [name for name in wanted if name not in found]:
        raise AttemptError(f"it cannot be quantised: its files have no weight named {missing[0]}")
    return found


def _read(weight: Any) -> Original:
    """Reads the entries of a matrix that a fingerprint looks at."""
    rows, columns = weight.get_shape()
    step = max(1, rows * columns // ENTRIES)
    places = [divmod(place, columns) for place in range(0, rows * columns, step)]
    entries: list[Tensor] = [weight[row : row + 1][0, column] for row, column in places]
    return Original(torch.stack(entries).to(torch.bfloat16), rows * columns)
