"""Tokens of many rows, made once and kept in the cache folder."""

from __future__ import annotations

import contextlib
from collections.abc import Callable

import torch

from attempt_cli.backbones.machine import cache_folder
from attempt_cli.checked_files import DamagedFileError, read_checked, write_checked

Tokens = list[tuple[list[int], int]]  # each row's tokens, and the number of tokens cut from it


def kept_tokens(name: str, make: Callable[[], Tokens]) -> Tokens:
    """Returns the tokens kept under a name; makes and keeps them if there are none, or if they are damaged.

    Args:
        name: a hash of all that they depend on: tokenizer, texts, limit.
        make: tokenises.
    """
    file = cache_folder() / "tokens" / f"{name}.safetensors"
    with contextlib.suppress(DamagedFileError, KeyError, ValueError, RuntimeError):
        kept, whose = read_checked(file)
        if whose["state"] == name:
            rows = [part.tolist() for part in torch.split(kept["ids"], kept["lengths"].tolist())]
            return list(zip(rows, kept["cuts"].tolist(), strict=True))
    rows_and_cuts = make()
    # if the cache cannot be written, the next training tokenises again
    with contextlib.suppress(Exception):
        tensors = {
            "ids": [token for row, _ in rows_and_cuts for token in row],
            "lengths": [len(row) for row, _ in rows_and_cuts],
            "cuts": [cut for _, cut in rows_and_cuts],
        }
        write_checked(file, {part: torch.tensor(numbers, dtype=torch.int32) for part, numbers in tensors.items()}, name)
    return rows_and_cuts
