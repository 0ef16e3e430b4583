"""Tokens of many rows, made once and kept in the cache folder."""

from __future__ import annotations

import contextlib
import os
import zipfile
from collections.abc import Callable

import numpy as np

from attempt_cli.backbones.machine import cache_folder

Tokens = list[tuple[list[int], int]]  # each row's tokens, and the number of tokens cut from it


def kept_tokens(name: str, make: Callable[[], Tokens]) -> Tokens:
    """Returns the tokens kept under a name; makes and keeps them if there are none.

    Args:
        name: a hash of all that they depend on: tokenizer, texts, limit.
        make: tokenises.
    """
    file = cache_folder() / "tokens" / f"{name}.npz"
    try:
        with np.load(file) as kept:
            ends = np.cumsum(kept["lengths"])[:-1]
            rows = [part.tolist() for part in np.split(kept["ids"], ends)]
            return list(zip(rows, kept["cuts"].tolist(), strict=True))
    except (OSError, ValueError, KeyError, zipfile.BadZipFile):
        pass  # missing or damaged: made again
    rows_and_cuts = make()
    partial = file.with_suffix(f".{os.getpid()}.partial")
    # if the cache cannot be written, the next training tokenises again
    with contextlib.suppress(OSError):
        file.parent.mkdir(parents=True, exist_ok=True)
        ids = np.concatenate([np.asarray(row, dtype=np.int32) for row, _ in rows_and_cuts])
        lengths = np.asarray([len(row) for row, _ in rows_and_cuts], dtype=np.int32)
        with partial.open("wb") as out:
            np.savez(out, ids=ids, lengths=lengths, cuts=np.asarray([cut for _, cut in rows_and_cuts], dtype=np.int32))
        partial.replace(file)
    with contextlib.suppress(OSError):
        partial.unlink(missing_ok=True)
    return rows_and_cuts
