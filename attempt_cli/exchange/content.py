"""What a reader finds in a file or folder: drafts of records, not yet in the registry."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    import numpy as np

    from attempt_registry import Backbone

    Array = np.ndarray[Any, Any]


@dataclass(frozen=True)
class PromptDraft:
    """A prompt that was read; the fields are those of `attempt_registry.Prompt`.

    Args:
        tensor: [length, width]; times `embedding_scale` it enters the model.
        name, task: None where the file does not say.
        parts: what its method keeps beside it, by name.
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
    parts: Mapping[str, Array] = field(default_factory=dict)
    key: str = ""
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class AttentionDraft:
    """A trained G that was read; the fields are those of `attempt_registry.Attention`.

    Args:
        tensors: down.weight [r, d], up.weight [d, r], norm.weight and norm.bias [d]; with a learned temperature
            log_temperature [].
        name: None where the file does not say.
        key, parents: as of a prompt.
    """

    tensors: Mapping[str, Array]
    rank: int
    level: str
    temperature: float
    placement: str = "before"
    settings: Mapping[str, Any] = field(default_factory=dict)
    seed: int | None = None
    note: str = ""
    name: str | None = None
    key: str = ""
    parents: tuple[str, ...] = ()


@dataclass(frozen=True)
class CompositionDraft:
    """A composition that was read; the fields are those of `attempt_registry.Composition`.

    Args:
        name: None where the file does not say.
        sources, attention, targets: keys of other drafts, else names in the registry.
        key: as of a prompt.
    """

    name: str | None
    sources: tuple[str, ...]
    attention: str | None
    targets: tuple[str, ...]
    settings: Mapping[str, Any] = field(default_factory=dict)
    note: str = ""
    key: str = ""


@dataclass(frozen=True)
class Content:
    """All that a reader found.

    Args:
        prompts, attentions: in an order in which they can be added: parents first.
        compositions: they refer to the others.
        runs: what made them: fields of `attempt_registry.Run`, whose artefacts and inputs are keys with their kinds.
        origin: what is worth recording of where it comes from.
        backbone: the backbone's name, place or hub id, as far as it is said.
        fingerprint: its fingerprint, as far as it is said.
        bundle: it comes from another registry, with all names: equal records that are here already are used, and other
            records of these names are in the way.
        notes: what the user should know.
        recorded: the backbone as another registry recorded it, for one that does not know it yet.
    """

    prompts: tuple[PromptDraft, ...]
    attentions: tuple[AttentionDraft, ...] = ()
    compositions: tuple[CompositionDraft, ...] = ()
    runs: tuple[Mapping[str, Any], ...] = ()
    origin: Mapping[str, Any] = field(default_factory=dict)
    backbone: str | None = None
    fingerprint: str | None = None
    bundle: bool = False
    notes: tuple[str, ...] = ()
    recorded: Backbone | None = None
