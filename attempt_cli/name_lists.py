"""Reads lists as people give them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any


def listed(given: Any) -> list[Any]:
    """Returns one or several as a list: "a,b" is two names, and what is no list is alone in one."""
    if isinstance(given, str):
        return [name.strip() for name in given.split(",") if name.strip()]
    return list(given) if isinstance(given, Sequence) else [given]
