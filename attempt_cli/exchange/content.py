"""What a reader finds in a file or folder: drafts of records, not yet in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PromptDraft:
    """A prompt that was read; the fields are those of `attempt_registry.Prompt`.

    Args:
        tensor: [length, width]; times `embedding_scale` it enters the model.
        name, task: None where the file does not say.
        key: the full name that other drafts of the same content have for it.
        parents: keys of prompts, with the prefix "attention:" of attentions.
    """

    tensor: Array
    name: str | None = None
    task: str | None = None
    kind: str | None = None
    method: str = "imported"
    task_version: int | None = None
    embedding_scale: float = 1.0
    placement: str = "before"
    settings: Mapping[str, Any] = field(default_factory=dict)
    numbers: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    note: str = ""
    tags: tuple[str, ...] = ()
    key: str = ""
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class Content:
    """All that a reader found.

    Args:
        prompts: in the order in which they can be added: parents first.
        origin: the format and what else is worth recording of where it comes from.
        backbone: the backbone's name, place or hub id, as far as it is said.
        fingerprint: its fingerprint, as far as it is said.
    """

    prompts: tuple[PromptDraft, ...]
    origin: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    fingerprint: str | None = None
