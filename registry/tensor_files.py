"""Reads tensors from files that users bring: safetensors and `.npy`, never pickles."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_registry.database import file_failure
from attempt_registry.errors import RegistryError, did_you_mean
from attempt_registry.objects import decode, safetensors_entries

if TYPE_CHECKING:
    import numpy as np

PICKLES = (".pt", ".pth", ".bin", ".ckpt", ".pkl", ".pickle")
_ZIP, _PICKLE, _NPY = b"PK\x03\x04", b"\x80", b"\x93NUMPY"


def read_tensor(path: Path, tensor: str | None = None) -> np.ndarray[Any, Any]:
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
        return _read_npy(data, path, tensor)
    # torch writes zip archives of pickles; an older pickle starts with its protocol mark
    if path.suffix.casefold() in PICKLES or data.startswith(_ZIP) or (data[:1] == _PICKLE and data[1:2] <= b"\x05"):
        raise _pickle(path)
    if path.suffix.casefold() == ".npy":
        raise RegistryError(f"{path} is not a complete .npy file", "Write it again with numpy.save(path, array).")
    entries = safetensors_entries(data, path)
    name = _choose(entries, path, tensor)
    return decode(entries[name], name)


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


def _read_npy(data: bytes, path: Path, tensor: str | None) -> np.ndarray[Any, Any]:
    import io

    import numpy as np

    if tensor is not None:
        raise RegistryError(f"{path} holds one unnamed array", "Leave --tensor out.")
    try:
        array: np.ndarray[Any, Any] = np.load(io.BytesIO(data), allow_pickle=False)
    except (ValueError, EOFError) as error:
        if "pickle" in str(error).casefold() or "Object arrays" in str(error):
            raise _pickle(path) from error
        raise RegistryError(
            f"{path} is not a complete .npy file ({error})", "Write it again with numpy.save(path, array)."
        ) from error
    return array


def _pickle(path: Path) -> RegistryError:
    target = path.with_suffix(".safetensors").name
    return RegistryError(
        f"{path} is a pickle: opening one can run any program hidden in it, so it is not loaded here",
        "Convert it in Python, which reads tensors and nothing else:\n"
        f"  import torch, safetensors.torch; tensors = torch.load({str(path)!r}, weights_only=True)\n"
        "  safetensors.torch.save_file(tensors if isinstance(tensors, dict) else {'prompt': tensors}, "
        f"{str(path.with_name(target))!r})",
    )
