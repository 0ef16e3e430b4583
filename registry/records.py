"""What the registry holds, as frozen records; the columns of a table are the fields of its record, in this order."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True)
class Backbone:
    """A frozen language model that prompts were trained for.

    Args:
        name: how the user calls it: a hub id, an alias, a folder.
        fingerprint: hash of its embedding table; two models are one backbone when these are equal.
        architecture: "decoder-only" or "encoder-decoder".
        width: entries of one token embedding (d).
        embedding_rms: root mean square of the embedding table's entries.
        parameters: number of weights.
        source: where it was loaded from.
        created: when it was first recorded (UTC, ISO 8601); empty means now.
    """

    name: str
    fingerprint: str
    architecture: str
    width: int
    embedding_rms: float
    parameters: int
    source: str
    created: str = ""


@dataclass(frozen=True)
class Prompt:
    """A soft prompt [length, width]; what enters the model is tensor * embedding_scale.

    Args:
        name, version: together unique; a version is never given twice, even after a removal.
        kind: "source" or "target".
        method: "prompt-tuning", "spot", "attempt" or "imported".
        backbone, fingerprint: the one model it works on.
        task, task_version: what it was trained for; the version is None when nobody recorded it.
        placement: "before" the input or "after" it; a prompt means nothing in the other place.
        sha256: of its safetensors file, which is also the file's name.
        parents: the prompts it grew from, e.g. ("sst2@1", "qnli@3").
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
    def ref(self) -> str:
        """Its full name, e.g. "rte@2"."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Attention:
    """A trained attention G over source prompts.

    Args:
        rank: r of W_down [r, d] and W_up [d, r].
        level: "instance" (one weight a prompt) or "token" (one weight a row of a prompt).
        temperature: T, which divides the scores.
        placement: where the prompts stand that it was trained to mix.
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

    @property
    def ref(self) -> str:
        """Its full name, e.g. "glue@1"."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Composition:
    """A named, ordered set of source prompts, an attention over them, and target prompts: what predicts.

    Args:
        sources: source prompts in the order of the attention, e.g. ("sst2@1", "qnli@3").
        attention: the attention's full name, or None.
        targets: target prompts, one a task.
        placement: where all of its prompts stand.
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

    @property
    def ref(self) -> str:
        """Its full name, e.g. "reviews@1"."""
        return f"{self.name}@{self.version}"


@dataclass(frozen=True)
class Run:
    """One run of a command: what it was given, what it cost, what came out.

    Args:
        rows: which rows it used (counts, hashes, chosen row numbers).
        budget: steps, batch, learning rates: what a fair comparison holds equal.
        duration: seconds.
        artefacts: what it made, with its kind, e.g. ("prompt:rte@1", "attention:glue@2").
        inputs: what it used, in the same form.
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
    """Where an artefact comes from and what hangs on it.

    Args:
        ref: its full name.
        parents: what it grew from, and what those grew from, nearest first.
        removed: those of `parents` that are no longer in the registry.
        children: what grew directly from it.
        made_by, used_by: runs.
        compositions: those that it is part of.
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
    """What `Registry.remove` did, or with `dry_run` would do."""

    kind: str
    ref: str
    compositions: tuple[str, ...]  # these lose a part
    children: tuple[str, ...]  # these keep its name as their parent
    other_versions: tuple[str, ...]
    removed: bool


@dataclass(frozen=True)
class Problem:
    """Something that `Registry.verify` found wrong."""

    what: str  # e.g. "prompt rte@1"
    problem: str
    file: str = ""


@dataclass(frozen=True)
class Garbage:
    """Files that no row refers to, removed by `Registry.gc` or with `dry_run` only found.

    Args:
        files: paths, absolute.
        bytes: their sizes added up.
        young: files that were left because another process may be about to refer to them.
    """

    files: tuple[str, ...]
    bytes: int
    young: int
    removed: bool
