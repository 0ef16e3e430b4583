"""The registry's records, as frozen dataclasses; a table has the fields of its record as columns, in the same order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A frozen language model that prompts were trained for.

    Args:
        name: the user's name for it: a hub id, an alias, a folder.
        fingerprint: hash of its embedding table; models with equal fingerprints are the same backbone.
        architecture: "decoder-only" or "encoder-decoder".
        width: entries of one token embedding (d).
        embedding_rms: root mean square of the embedding table's entries.
        parameters: number of weights.
        source: the place it was loaded from.
        created: the time of its first recording (UTC, ISO 8601); empty means now.
    """

    name: str
    fingerprint: str
    architecture: str
    width: int
    embedding_rms: float
    parameters: int
    source: str
    created: str = ""


# the orders of `Registry.prompts`
SORTS = ("name", "created", "task", "kind", "method", "backbone", "length", "width", "seed")


class _Named:
    """A record with a name and a version, which are unique together; a version is never reused after a removal."""

    name: str
    version: int
    settings: dict[str, Any]

    @property
    def ref(self) -> str:
        """Returns the full name, e.g. "rte@2"."""
        return f"{self.name}@{self.version}"

    @property
    def chat_template(self) -> str | None:
        """Returns the rendered chat template that it was trained in, "{input}" in its middle; None for none."""
        return self.settings.get("chat_template") if isinstance(self.settings, dict) else None


@dataclass(frozen=True)
class Prompt(_Named):
    """A soft prompt [length, width]; tensor * embedding_scale enters the model.

    Some methods keep more than a prompt (DePT its offsets, a mixture of prompts its router): see `parts`.

    Args:
        kind: "source" or "target".
        method: the training method's name, e.g. "attempt" or "mpt", or "imported" when it was added from a file.
        backbone, fingerprint: the only model it works with.
        task, task_version: the task it was trained for; the version is None when it is unknown.
        placement: "before" the input or "after" it; in the other place the prompt is useless.
        sha256: hash of its safetensors file, which also names the file.
        parents: the prompts it was trained from, e.g. ("sst2@1", "qnli@3").
    """

    name: str
    version: int
    kind: str
    method: str
    backbone: str
    fingerprint: str
    task: str
    task_version: int | None
    length: int
    width: int
    dtype: str
    embedding_scale: float
    placement: str
    sha256: str
    settings: dict[str, Any] = field(hash=False)
    numbers: dict[str, Any] = field(hash=False)
    seed: int | None
    created: str
    note: str
    tags: tuple[str, ...]
    parents: tuple[str, ...]
    id: int

    @property
    def parts(self) -> tuple[str, ...]:
        """Returns the names of the tensors that its method keeps beside it; a prompt with some is not used alone."""
        names = self.settings.get("parts", ()) if isinstance(self.settings, dict) else ()
        return tuple(names) if isinstance(names, list) else ()


@dataclass(frozen=True)
class Attention(_Named):
    """A trained attention G over source prompts.

    Args:
        rank: r of W_down [r, d] and W_up [d, r].
        level: "instance" (one weight per prompt) or "token" (one weight per row of a prompt).
        temperature: T, which divides the scores.
        placement: the placement of the prompts it was trained to mix.
    """

    name: str
    version: int
    backbone: str
    fingerprint: str
    rank: int
    level: str
    temperature: float
    width: int
    placement: str
    sha256: str
    settings: dict[str, Any] = field(hash=False)
    seed: int | None
    created: str
    note: str
    parents: tuple[str, ...]
    id: int


@dataclass(frozen=True)
class Composition(_Named):
    """A model that predicts: an ordered set of source prompts, an attention over them, and target prompts.

    Args:
        sources: source prompts in the order of the attention, e.g. ("sst2@1", "qnli@3").
        attention: the attention's full name, or None.
        targets: target prompts, one per task.
        placement: the placement of all of its prompts.
    """

    name: str
    version: int
    backbone: str
    fingerprint: str
    sources: tuple[str, ...]
    attention: str | None
    targets: tuple[str, ...]
    placement: str
    settings: dict[str, Any] = field(hash=False)
    created: str
    note: str
    id: int


@dataclass(frozen=True)
class Run:
    """One run of a command: its inputs, its cost and its results.

    Args:
        rows: the rows it used (counts, hashes, chosen row numbers).
        budget: steps, batch size, learning rates: everything that a fair comparison holds equal.
        duration: seconds.
        artefacts: the records it made, with their kinds, e.g. ("prompt:rte@1", "attention:glue@2").
        inputs: the records it used, in the same form.
    """

    id: int
    command: str
    settings: dict[str, Any] = field(hash=False)
    rows: dict[str, Any] = field(hash=False)
    seed: int | None
    budget: dict[str, Any] = field(hash=False)
    numbers: dict[str, Any] = field(hash=False)
    versions: dict[str, Any] = field(hash=False)
    duration: float
    created: str
    artefacts: tuple[str, ...]
    inputs: tuple[str, ...]


@dataclass(frozen=True)
class Lineage:
    """The ancestors of an artefact and everything that depends on it.

    Args:
        ref: its full name.
        parents: its parents and their ancestors, nearest first.
        removed: those of `parents` that are no longer in the registry.
        children: its direct children.
        made_by, used_by: runs.
        compositions: the compositions it is part of.
    """

    ref: str
    parents: tuple[str, ...]
    removed: tuple[str, ...]
    children: tuple[str, ...]
    made_by: tuple[Run, ...]
    used_by: tuple[Run, ...]
    compositions: tuple[Composition, ...]


@dataclass(frozen=True)
class Removal:
    """The effects of `Registry.remove`, or with `dry_run` the effects it would have."""

    kind: str
    ref: str
    compositions: tuple[str, ...]  # these lose a part
    children: tuple[str, ...]  # these keep its name as their parent
    other_versions: tuple[str, ...]
    removed: bool


@dataclass(frozen=True)
class Problem:
    """A fault found by `Registry.verify`."""

    what: str  # e.g. "prompt rte@1"
    problem: str
    file: str = ""


@dataclass(frozen=True)
class Garbage:
    """Files that no row refers to, removed by `Registry.gc` or with `dry_run` only found.

    Args:
        files: absolute paths.
        bytes: their total size.
        young: number of files that were kept because another process may be about to refer to them.
    """

    files: tuple[str, ...]
    bytes: int
    young: int
    removed: bool
