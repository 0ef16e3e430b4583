"""Files of tensors that are kept for later: written whole or not at all, with a checksum that reading compares."""

from __future__ import annotations

import contextlib
import hashlib
import os
import shutil
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from torch import Tensor


class DamagedFileError(Exception):
    """The file is missing, cannot be read, or does not hold what was written; the text says which."""


@contextmanager
def replacing(file: Path) -> Iterator[Path]:
    """Yields a temporary name beside a file; what was written there is synced and takes the file's place.

    A crash or a power cut leaves the file as it was before, or whole. After an exception nothing is left over.

    Args:
        file: its folder is made where it is missing.
    """
    partial = file.with_name(f"{file.name}.{os.getpid()}.partial")
    try:
        file.parent.mkdir(parents=True, exist_ok=True)
        remove_stale_partials(file.parent)
        yield partial
        with partial.open("rb+") as written:
            os.fsync(written.fileno())
        partial.replace(file)
    finally:
        with contextlib.suppress(OSError):
            partial.unlink(missing_ok=True)


STALE_SECONDS = 24 * 3600.0  # nothing is written for as long
_looked_into: set[Path] = set()


def remove_stale_partials(folder: Path) -> None:
    """Removes what killed processes left half written, once a process for each folder."""
    if folder in _looked_into:
        return
    _looked_into.add(folder)
    for partial in folder.glob("*.partial"):
        with contextlib.suppress(OSError):
            if time.time() - partial.lstat().st_mtime > STALE_SECONDS:
                if partial.is_dir() and not partial.is_symlink():
                    shutil.rmtree(partial)
                else:
                    partial.unlink()


def write_checked(file: Path, tensors: Mapping[str, Tensor], text: str, **names: str) -> None:
    """Writes tensors and a text.

    Args:
        file: a safetensors file, whatever its name.
        tensors: by name, on any device.
        text: what is to be kept with them; it is part of the checksum.
        names: further texts that are not.

    Raises:
        OSError, safetensors.SafetensorError: the disk is full, or the folder cannot be written to.
    """
    from safetensors.torch import save_file

    here = {name: tensor.detach().cpu().contiguous() for name, tensor in tensors.items()}
    with replacing(file) as partial:
        # tensor by tensor: fine-tuning has gigabytes of them
        save_file(here, partial, {**names, "state": text, "sha256": _digest(text, here)})


def read_checked(file: Path) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Returns the tensors of a file, mapped rather than read, and its texts, of which "state" is the checked one.

    Raises:
        DamagedFileError: it does not hold what was written.
    """
    from safetensors import SafetensorError, safe_open

    if not file.is_file():  # to open a pipe would wait for its writer
        raise DamagedFileError(f"there is no file {file}")
    try:
        with safe_open(file, "pt") as opened:
            texts = opened.metadata() or {}
            tensors = {name: opened.get_tensor(name) for name in opened.keys()}  # noqa: SIM118 - not a mapping
        if texts["sha256"] != _digest(texts["state"], tensors):
            raise DamagedFileError("its checksum is wrong")
    except (SafetensorError, OSError, KeyError, ValueError, TypeError, RuntimeError, MemoryError) as error:
        raise DamagedFileError(str(error)) from error
    return tensors, texts


def _digest(text: str, tensors: Mapping[str, Tensor]) -> str:
    """Hashes all that is read again: safetensors itself does not notice a changed byte."""
    import torch

    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        digest.update(name.encode())
        digest.update(tensors[name].reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()
