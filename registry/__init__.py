"""Stores soft prompts: their metadata in SQLite, their tensors beside it; no torch, no command line.

from attempt_registry import Registry

registry = Registry.open()
prompt = registry.prompt("rte@2")
tensor = registry.prompt_tensor(prompt)  # float32 [length, width], its hash checked
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attempt_registry.errors import RegistryError
    from attempt_registry.records import (
        Attention,
        Backbone,
        Composition,
        Garbage,
        Lineage,
        Problem,
        Prompt,
        Removal,
        Run,
    )
    from attempt_registry.store import Registry

__all__ = [
    "Attention",
    "Backbone",
    "Composition",
    "Garbage",
    "Lineage",
    "Problem",
    "Prompt",
    "Registry",
    "RegistryError",
    "Removal",
    "Run",
]

_MODULES = {"Registry": "attempt_registry.store", "RegistryError": "attempt_registry.errors"}


def __getattr__(name: str) -> Any:
    # every start of the command line imports `attempt_registry.errors`; the rest is imported on first use
    if name not in __all__:
        raise AttributeError(f"module 'attempt_registry' has no attribute '{name}'")
    return getattr(importlib.import_module(_MODULES.get(name, "attempt_registry.records")), name)
