"""Reads tensors from files that users bring: safetensors and `.npy`, never pickles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_registry.adapters import PLAIN, adapter_config, is_adapter, read_adapter
from attempt_registry.database import file_failure
from attempt_registry.errors import RegistryError, did_you_mean
from attempt_registry.objects import decode, safetensors_entries

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_ZIP, _PICKLE, _NPY = b"PK\x03\x04", b"\x80", b"\x93NUMPY"


def read_tensor(path: Path, tensor: str | None = None) -> Array:
    """Reads one tensor of a file; a safetensors file's 16-bit and 64-bit floats become float32.

    Args:
        path: a `.safetensors` or `.npy` file; its content decides, not its name.
        tensor: the name of the tensor in a safetensors file; not needed when there is only one.

    Raises:
        RegistryError: for a pickle, an incomplete file, an unknown tensor, or several tensors without a choice.
    """
    try:
        data = path.read_bytes()
    except OSError as error:
        raise file_failure(error, path) from error
    if data.startswith(_NPY):
        array = _read_npy(data, path, tensor)
        # beside an adapter's config it is the adapter's table, saved by numpy
        return _plain_adapter(path, {"prompt_embeddings": array}) if is_adapter(path.parent) else array
    # torch writes zip archives of pickles; an older pickle starts with its protocol mark
    if path.suffix.casefold() in PICKLES or data.startswith(_ZIP) or (data[:1] == _PICKLE and data[1:2] <= b"\x05"):
        raise _pickle(path)
    if path.suffix.casefold() == ".npy":
        raise RegistryError(f"{path} is not a complete .npy file", "Write it again with numpy.save(path, array).")
    entries = safetensors_entries(data, path)
    name = _choose(entries, path, tensor)
    prompt = _adapter_prompt(path, entries, name)
    return decode(entries[name], name) if prompt is None else prompt


def _choose(entries: dict[str, dict[str, Any]], path: Path, tensor: str | None) -> str:
    listed = ", ".join(f"{name} {entry['shape']}" for name, entry in list(entries.items())[:10])
    listed += f" and {len(entries) - 10} more" if len(entries) > 10 else ""
    if tensor is None and len(entries) == 1:
        return next(iter(entries))
    if not entries:
        raise RegistryError(f"{path} holds no tensor", "Choose another file.")
    if tensor is None:
        raise RegistryError(f"{path} holds {len(entries)} tensors", f"Choose one with --tensor NAME: {listed}.")
    if tensor not in entries:
        raise RegistryError(f"{path} has no tensor '{tensor}'", f"{did_you_mean(tensor, entries)}It holds {listed}.")
    return tensor


def _read_npy(data: bytes, path: Path, tensor: str | None) -> Array:
    import io

    import numpy as np

    if tensor is not None:
        raise RegistryError(f"{path} holds one unnamed array", "Leave --tensor out.")
    try:
        array: Array = np.load(io.BytesIO(data), allow_pickle=False)
    except Exception as error:  # numpy parses the header as Python: many types of errors
        if "pickle" in str(error).casefold() or "Object arrays" in str(error):
            raise _pickle(path) from error
        reason = str(error).strip().split("\n")[0] or type(error).__name__
        raise RegistryError(
            f"{path} is not a complete .npy file ({reason})", "Write it again with numpy.save(path, array)."
        ) from error
    return array


def _adapter_prompt(path: Path, entries: dict[str, dict[str, Any]], tensor: str | None) -> Array | None:
    """Returns the prompt of a PEFT adapter; None for a file that is no adapter's.

    Raises:
        RegistryError: the adapter is no plain prompt, or it cannot be told whether it is one.
    """
    named = [name for name in entries if "prompt_embeddings" in name]
    if not named or (tensor is not None and tensor not in named):
        return None
    if not is_adapter(path.parent):
        raise RegistryError(
            f"{path} is a PEFT adapter without its adapter_config.json: what kind it is cannot be told",
            "Put adapter_config.json beside it, or save the prompt's rows alone, under another tensor name.",
        )
    return _plain_adapter(path)


def _plain_adapter(path: Path, tensors: dict[str, Array] | None = None) -> Array:
    """Returns the prompt of an adapter's file, or of its tensors if they are read already.

    Raises:
        RegistryError: the adapter is no plain prompt.
    """
    folder = path.parent
    kind = adapter_config(folder)["peft_type"]
    if kind != PLAIN:
        raise RegistryError(
            f"{path} holds a {str(kind)[:40]!r} adapter, which is no plain prompt",
            f"`attempt import {folder}` takes what can be taken of it, or says what else to do.",
        )
    return read_adapter(folder, path.name, tensors).prompts[0]


def _pickle(path: Path) -> RegistryError:
    target = path.with_suffix(".safetensors").name
    return RegistryError(
        f"{path} is a pickle: opening one can run any program hidden in it, so it is not loaded here",
        "Convert it in Python, which reads tensors and nothing else:\n"
        f"  import torch, safetensors.torch; tensors = torch.load({str(path)!r}, weights_only=True)\n"
        "  safetensors.torch.save_file(tensors if isinstance(tensors, dict) else {'prompt': tensors}, "
        f"{str(path.with_name(target))!r})",
    )
