"""Sizes of memory as people write and read them."""

from __future__ import annotations

import re

from attempt_cli.errors import AttemptError

_UNITS = {"": 1, "b": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


def parse_size(text: str) -> int:
    """Returns the bytes of "4GiB", "500M" or "0".

    Raises:
        AttemptError: it is not a size.
    """
    match = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?\s*", text.lower())
    if match is None or len(match[1]) > 300:  # more than a float can hold
        raise AttemptError(f"'{text}' is not a size", "Write it like 4GiB or 500MiB, or 0 for none.")
    return int(float(match[1]) * _UNITS[match[2]])


def size_text(size: int) -> str:
    """Returns a size as people read it."""
    for unit, name in ((1 << 30, "GiB"), (1 << 20, "MiB"), (1 << 10, "KiB")):
        if size >= unit:
            return f"{size / unit:.3g} {name}"
    return f"{size} B"


def total_memory() -> int:
    """Returns the bytes of the machine's memory."""
    import psutil

    return int(psutil.virtual_memory().total)
