"""Imports what a table names when it is first needed: tables of methods and formats are read to make help texts."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from typing import Any


def imported(place: str) -> Callable[..., Any]:
    """Imports a function by its "module:function"."""
    module, _, name = place.partition(":")
    function: Callable[..., Any] = getattr(importlib.import_module(module), name)
    return function
