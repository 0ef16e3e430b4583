"""Stores tensors as content-addressed files, `objects/ab/cdef….safetensors`, written once and never changed."""

from __future__ import annotations

import contextlib
import os
import re
import stat
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_registry.database import file_failure
from attempt_registry.errors import RegistryError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, np.dtype[np.float32]]

SUFFIX = ".safetensors"
# the names that `Objects.put` writes; everything else under `objects/` is somebody else's
_FOLDER = re.compile(r"[0-9a-f]{2}")
_FINAL = re.compile(r"[0-9a-f]{62}\.safetensors")
_TEMPORARY = re.compile(r"\.[0-9a-f]{16}-[0-9]+-[0-9a-f]{8}\.tmp")
# how often a file is written again that `gc --grace 0` of another process took away before its rename
_TRIES = 100


class Objects:
    """The folder of tensors.

    Args:
        folder: the registry's folder.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = folder / "objects"

    def path(self, sha256: str) -> Path:
        """Returns the path of the file with this hash."""
        return self.folder / sha256[:2] / f"{sha256[2:]}{SUFFIX}"

    def put(self, data: bytes, sha256: str) -> None:
        """Writes a file unless it exists: temporary name, sync, rename, sync of the folder.

        Raises:
            RegistryError: when the disk is full or the folder is not writable; no partial file remains.
        """
        final = self.path(sha256)
        for tries_left in reversed(range(_TRIES)):
            try:
                if _holds(final, data):
                    # `gc` spares young files: this one is about to be referred to again
                    os.utime(final)
                else:
                    self._write(data, final)
                return
            except FileNotFoundError as error:
                if not tries_left:
                    raise file_failure(error, final) from error
            except OSError as error:
                raise file_failure(error, final) from error

    def _write(self, data: bytes, final: Path) -> None:
        temporary = final.with_name(f".{final.stem[:16]}-{os.getpid()}-{os.urandom(4).hex()}.tmp")
        new_folders = [folder for folder in (final.parent, self.folder) if not folder.exists()]
        try:
            final.parent.mkdir(parents=True, exist_ok=True)
            with open(temporary, "xb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, final)
            for folder in (final.parent, *(new.parent for new in new_folders)):
                _sync_folder(folder)
        finally:
            with contextlib.suppress(OSError):
                temporary.unlink(missing_ok=True)

    def get(self, sha256: str, of: str) -> dict[str, Array]:
        """Reads the tensors of a file and checks its hash.

        Args:
            sha256: the file's hash.
            of: its owner, for the error, e.g. "prompt rte@2".

        Raises:
            RegistryError: when the file is missing or damaged; the message names the file and `of`.
        """
        path = self.path(sha256)
        hint = "`attempt registry verify` checks all files. Restore a copy, or remove it and train or add it again."
        try:
            data = path.read_bytes() if _is_regular(path) else b""
        except FileNotFoundError:
            raise RegistryError(f"the file of {of} is missing: {path}", hint) from None
        except OSError as error:
            raise RegistryError(f"cannot read the file of {of}: {path} ({error.strerror})", hint) from error
        if _sha256(data) != sha256:
            raise RegistryError(f"the file of {of} is damaged: {path}", hint)
        return {name: decode(entry, name) for name, entry in safetensors_entries(data, path).items()}

    def problem(self, sha256: str) -> str | None:
        """Returns what is wrong with a file, or None; reads it in chunks."""
        try:
            import hashlib

            if not _is_regular(self.path(sha256)):
                return "it is not a file"
            with open(self.path(sha256), "rb") as file:
                found = hashlib.sha256()
                while piece := file.read(1 << 20):
                    found.update(piece)
        except FileNotFoundError:
            return "its file is missing"
        except OSError as error:
            return f"its file cannot be read ({error.strerror})"
        return None if found.hexdigest() == sha256 else "its file is damaged (wrong hash)"

    def files(self) -> Iterator[tuple[Path, str | None]]:
        """Yields every file that `put` wrote, with the hash in its name, or None for a temporary file.

        Links are not followed, and other names are passed over: what they lead to is not the registry's.

        Raises:
            RegistryError: when `objects/` itself is a link.
        """
        if self.folder.is_symlink():
            raise RegistryError(
                f"{self.folder} is a link, which is not followed: what it leads to may be another registry's",
                "Move the whole registry to where the link leads, and name that folder with --registry.",
            )
        for folder in _entries(self.folder):
            if not (_FOLDER.fullmatch(folder.name) and folder.is_dir(follow_symlinks=False)):
                continue
            for entry in _entries(Path(folder.path)):
                if not entry.is_file(follow_symlinks=False):
                    continue
                if _FINAL.fullmatch(entry.name):
                    yield Path(entry.path), folder.name + entry.name.removesuffix(SUFFIX)
                elif _TEMPORARY.fullmatch(entry.name):
                    yield Path(entry.path), None


def age(path: Path) -> float:
    """Returns the seconds since `Objects.put` last wrote or requested the file.

    A time in the future, of a clock that was wrong, counts as equally long ago: such a file grows old, too.
    """
    return abs(time.time() - path.lstat().st_mtime)


def to_safetensors(tensors: Mapping[str, Any]) -> tuple[bytes, str]:
    """Encodes tensors as a safetensors file in float32; returns its bytes and sha256. Equal tensors give equal bytes.

    Raises:
        RegistryError: when a tensor holds anything but finite floating-point numbers.
    """
    import numpy as np
    from safetensors.numpy import save

    plain = {name: _float32(np.asarray(tensor), name) for name, tensor in sorted(tensors.items())}
    # no metadata: safetensors writes it in an order that varies from call to call
    data = save({name: np.ascontiguousarray(tensor) for name, tensor in plain.items()})
    return data, _sha256(data)


def safetensors_entries(data: bytes, path: Path) -> dict[str, dict[str, Any]]:
    """Splits the bytes of a safetensors file into its tensors: dtype, shape and raw data by name.

    Raises:
        RegistryError: when the bytes are incomplete; the message names `path`.
    """
    import safetensors

    deserialize: Any = safetensors.deserialize
    try:
        return dict(deserialize(data))
    except safetensors.SafetensorError as error:
        raise RegistryError(
            f"{path} is not a complete safetensors file ({str(error)[:200]})", "Download or write the file again."
        ) from error


def decode(entry: Mapping[str, Any], name: str) -> Array:
    """Converts one of `safetensors_entries` to float32; bfloat16, which numpy lacks, is widened by its bits.

    Raises:
        RegistryError: when it does not hold 16-bit, 32-bit or 64-bit floats.
    """
    import numpy as np

    dtype = entry["dtype"]
    if dtype == "BF16":
        bits = np.frombuffer(entry["data"], "<u2").astype(np.uint32) << 16
        widened: Array = bits.view(np.float32).reshape(entry["shape"])
        return widened
    if dtype not in ("F16", "F32", "F64"):
        raise RegistryError(f"tensor '{name}' holds {dtype}, not floating-point numbers", "Convert it to float32.")
    tensor: Any = np.frombuffer(entry["data"], f"<f{int(dtype[1:]) // 8}")
    with np.errstate(over="ignore"):
        converted: Array = tensor.astype(np.float32).reshape(entry["shape"])
    return converted


def _float32(tensor: Any, name: str) -> Array:
    import numpy as np

    if tensor.dtype.kind != "f":
        raise RegistryError(
            f"tensor '{name}' holds {tensor.dtype}, not floating-point numbers", "Convert it to float32."
        )
    with np.errstate(over="ignore"):
        converted: Array = tensor.astype("<f4")
    if not np.isfinite(converted).all():
        bad = int(np.size(converted) - np.isfinite(converted).sum())
        raise RegistryError(
            f"tensor '{name}' has {bad} values that are not finite (NaN or infinity)",
            "A diverged training produces such values: use an earlier checkpoint or a lower learning rate.",
        )
    return converted


def _holds(path: Path, data: bytes) -> bool:
    # compared byte by byte: adding a tensor again repairs its damaged file
    try:
        return _is_regular(path) and path.read_bytes() == data
    except FileNotFoundError:
        return False


def _is_regular(path: Path) -> bool:
    # opening a FIFO waits for somebody to write into it
    return stat.S_ISREG(path.stat().st_mode)


def _entries(folder: Path) -> list[os.DirEntry[str]]:
    try:
        with os.scandir(folder) as entries:
            return sorted(entries, key=lambda entry: entry.name)
    except FileNotFoundError:
        return []


def _sha256(data: bytes) -> str:
    import hashlib  # not at the top: `attempt registry list` hashes nothing

    return hashlib.sha256(data).hexdigest()


def _sync_folder(folder: Path) -> None:
    # a rename is durable only once its folder is synced; Windows cannot open folders and does not need it
    with contextlib.suppress(PermissionError, IsADirectoryError):
        handle = os.open(folder, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
