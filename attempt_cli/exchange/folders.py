"""Writes a folder in one step: a kill leaves nothing of it, or all.

An earlier export that is replaced is renamed first: a kill between the two renames leaves it whole, beside its place.
"""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from attempt_cli.errors import AttemptError

PROVENANCE = "attempt.json"  # is in every folder that an export wrote


@contextmanager
def replacing_folder(path: Path, *, force: bool = False) -> Iterator[Path]:
    """Yields a new folder beside a path; what was written there is synced and takes the path's place.

    Args:
        path: a folder that does not exist or is empty.
        force: it may also be an earlier export, which is replaced.

    Raises:
        AttemptError: something else is there.
    """
    check_free(path, force=force)
    partial, former = (path.with_name(f".{path.name}.{os.getpid()}.{end}") for end in ("partial", "former"))
    try:
        partial.mkdir(parents=True)
        yield partial
        for file in (*(file for file in partial.rglob("*") if file.is_file()), partial):
            _sync(file)
        check_free(path, force=force)  # somebody may have put something there meanwhile
        if path.exists() and any(path.iterdir()):
            path.rename(former)
        elif path.exists():
            path.rmdir()
        partial.rename(path)
        _sync(path.parent)
    finally:
        if former.exists() and not path.exists():
            former.rename(path)
        for left in (partial, former):
            shutil.rmtree(left, ignore_errors=True)


def check_free(path: Path, *, force: bool = False, file: bool = False) -> None:
    """Refuses to write where something is.

    Args:
        path: where an export is to go.
        force: an earlier export, or with `file` a file, may be replaced.
        file: the export is one file.

    Raises:
        AttemptError: a non-empty folder or a file is there, and `force` is not set or it is no export.
    """
    if path.is_symlink():
        raise AttemptError(f"{path} is a link", "Name the place that it leads to.")
    if not path.exists():
        return
    if file or not path.is_dir():
        if path.is_dir():
            raise AttemptError(f"{path} is a folder, and this format is one file", "Name a file in it.")
        if not file:
            raise AttemptError(f"{path} is a file, and this format is a folder", "Name another place.")
        if not force:
            raise AttemptError(f"{path} is there already", "Name another file, or replace it with --force.")
        return
    there = sorted(entry.name for entry in path.iterdir())
    if there and not force:
        raise AttemptError(f"{path} is not empty", "Name another folder, or replace an earlier export with --force.")
    if there and PROVENANCE not in there:
        raise AttemptError(f"{path} holds files that no export wrote", "Name another folder.")


def _sync(path: Path) -> None:
    with contextlib.suppress(PermissionError, IsADirectoryError):  # Windows cannot open folders and does not need it
        handle = os.open(path, os.O_RDONLY)
        try:
            os.fsync(handle)
        finally:
            os.close(handle)
