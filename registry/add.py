"""Adds to the registry: a tensor's file first, its row last, under the next version of its name."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import MappingProxyType
from typing import TYPE_CHECKING, Any

from attempt_registry.conversion import KIND_OF, Named, json_text, now
from attempt_registry.errors import RegistryError
from attempt_registry.find import Finder
from attempt_registry.objects import Objects, to_safetensors
from attempt_registry.records import Attention, Backbone, Composition, Prompt, Run
from attempt_registry.references import check_name, check_seen

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]


class Adder(Finder):
    """The adding half of `Registry`."""

    _objects: Objects

    @contextmanager
    def transaction(self) -> Iterator[None]:
        """Makes everything added and removed inside visible together at its end, or nothing after an exception.

        Other processes wait meanwhile: prepare the tensors before it, not inside.
        """
        with self._database.transaction():
            yield

    def remember_backbone(self, backbone: Backbone) -> Backbone:
        """Records a backbone or updates its record; returns it with the time of its first recording."""
        with self._database.transaction():
            query = "SELECT created FROM backbones WHERE name = ? AND fingerprint = ?"
            known = self._database.rows(query, (backbone.name, backbone.fingerprint))
            backbone = replace(backbone, created=known[0][0] if known else backbone.created or now())
            values = [
                backbone.name,
                backbone.fingerprint,
                backbone.architecture,
                int(backbone.width),
                float(backbone.embedding_rms),
                int(backbone.parameters),
                backbone.source,
                backbone.created,
            ]
            self._database.execute("INSERT OR REPLACE INTO backbones VALUES (?, ?, ?, ?, ?, ?, ?, ?)", values)
        return backbone

    def add_prompt(
        self,
        tensor: Array,
        *,
        name: str,
        kind: str,
        method: str,
        backbone: str,
        fingerprint: str,
        task: str,
        task_version: int | None,
        embedding_scale: float,
        settings: Mapping[str, Any],
        numbers: Mapping[str, Any],
        seed: int | None,
        placement: str = "before",
        note: str = "",
        tags: Sequence[str] = (),
        parents: Sequence[str] = (),
        parts: Mapping[str, Array] = MappingProxyType({}),
    ) -> Prompt:
        """Adds a soft prompt under the next version of its name.

        Args:
            tensor: float [length, width]; stored as float32.
            parts: what its method keeps beside it, by name; stored in the same file.
            embedding_scale: tensor * embedding_scale enters the model.
            placement: "before" or "after" the input.
            parents: prompts it was trained from; a name without a version means the newest now.

        Raises:
            RegistryError: for a bad shape, values that are not finite, unknown parents, a full disk, or a read-only
                registry; then nothing is added.
        """
        import numpy as np

        tensor = np.asarray(tensor)
        if tensor.ndim != 2 or 0 in tensor.shape:
            raise RegistryError(
                f"a prompt is a matrix [length, width], not a tensor of shape {list(tensor.shape)}",
                "Take one prompt out of a larger tensor before adding it.",
            )
        if kind not in ("source", "target"):
            raise RegistryError(f"'{kind}' is not a kind of prompt", "A prompt is a source or a target.")
        check_seen(task, "a task")
        _check_placement(placement)
        if not np.isfinite(embedding_scale) or embedding_scale <= 0:
            raise RegistryError(f"the embedding scale {embedding_scale} is not a positive number", "Leave it at 1.0.")
        if "prompt" in parts:
            raise RegistryError("a part beside a prompt is named 'prompt'", "Give it another name.")
        settings = {name: value for name, value in settings.items() if name != "parts"}
        if parts:
            settings["parts"] = sorted(parts)
        data, sha256 = to_safetensors({"prompt": tensor, **parts})
        record: dict[str, Any] = {
            "kind": kind,
            "method": method,
            "backbone": backbone,
            "fingerprint": fingerprint,
            "task": task,
            "task_version": task_version,
            "length": tensor.shape[0],
            "width": tensor.shape[1],
            "dtype": "float32",
            "embedding_scale": float(embedding_scale),
            "placement": placement,
            "sha256": sha256,
            "settings": json_text(settings, "the settings"),
            "numbers": json_text(numbers, "the numbers"),
            "seed": None if seed is None else int(seed),
            "note": note,
            "tags": json_text(unique(checked_tags(tags)), "the tags"),
        }
        return self._add(Prompt, name, record, data, parents=parents)

    def import_prompt(
        self,
        path: Path,
        *,
        backbone: str,
        task: str,
        name: str | None = None,
        tensor: str | None = None,
        scale: float = 1.0,
        **fields: Any,
    ) -> Prompt:
        """Adds a soft prompt from a safetensors or `.npy` file.

        Args:
            backbone: the name or fingerprint of a recorded backbone.
            name: its name in the registry, by default the task's.
            tensor: the name of the tensor in a safetensors file; not needed when there is only one.
            scale: the embedding scale.
            fields: kind, placement, note and tags, as in `add_prompt`.

        Raises:
            RegistryError: for an unknown backbone, a width other than its own, and as `read_tensor` and `add_prompt`.
        """
        from attempt_registry.tensor_files import read_tensor

        known = self.backbone(backbone)
        matrix = read_tensor(path, tensor)
        if matrix.ndim == 2 and matrix.shape[1] != known.width:
            transposed = matrix.shape[0] == known.width
            raise RegistryError(
                f"{path} has width {matrix.shape[1]}, but the embeddings of {known.name} have width {known.width}",
                "Its height fits: save the transposed matrix, one row per prompt token."
                if transposed
                else "Name the backbone that it was trained for with --backbone.",
            )
        return self.add_prompt(
            matrix,
            name=name or task,
            method="imported",
            backbone=known.name,
            fingerprint=known.fingerprint,
            task=task,
            task_version=None,
            embedding_scale=scale,
            settings={"file": path.name, **({"tensor": tensor} if tensor else {})},
            numbers={},
            seed=None,
            **fields,
        )

    def add_attention(
        self,
        tensors: Mapping[str, Array],
        *,
        name: str,
        backbone: str,
        fingerprint: str,
        rank: int,
        level: str,
        temperature: float,
        width: int,
        settings: Mapping[str, Any],
        seed: int | None,
        placement: str = "before",
        note: str = "",
        parents: Sequence[str] = (),
    ) -> Attention:
        """Adds a trained attention G under the next version of its name.

        Args:
            tensors: its weights by name, stored as float32.
            level: "instance" or "token".
            placement: the placement of the prompts it mixes.
            parents: the prompts it was trained with, and with the prefix `attention:` the attention it started from.

        Raises:
            RegistryError: as `add_prompt`.
        """
        if level not in ("instance", "token"):
            raise RegistryError(f"'{level}' is not a level of attention", "The level is instance or token.")
        _check_placement(placement)
        if not tensors:
            raise RegistryError(f"the attention '{name}' has no tensors", "Pass its weights by name.")
        data, sha256 = to_safetensors(tensors)
        record = {
            "backbone": backbone,
            "fingerprint": fingerprint,
            "rank": int(rank),
            "level": level,
            "temperature": float(temperature),
            "width": int(width),
            "placement": placement,
            "sha256": sha256,
            "settings": json_text(settings, "the settings"),
            "seed": None if seed is None else int(seed),
            "note": note,
        }
        return self._add(Attention, name, record, data, parents=parents)

    def add_composition(
        self,
        *,
        name: str,
        backbone: str,
        fingerprint: str,
        sources: Sequence[str],
        attention: str | None = None,
        targets: Sequence[str] = (),
        settings: Mapping[str, Any] | None = None,
        note: str = "",
    ) -> Composition:
        """Adds a named set of source prompts, an attention and target prompts, all of one backbone.

        Args:
            sources, targets: prompts; a name without a version means the newest now.

        Raises:
            RegistryError: when a part is unknown, named twice, or differs from the rest in backbone, width,
                placement or chat template.
        """
        if not sources and not targets:
            raise RegistryError(f"the composition '{name}' would be empty", "Name sources or targets.")
        with self._database.transaction():
            source_prompts = [self.prompt(source) for source in sources]
            target_prompts = [self.prompt(target) for target in targets]
            mixer = None if attention is None else self.attention(attention)
            parts: list[Prompt | Attention] = [*source_prompts, *target_prompts, *([mixer] if mixer else [])]
            for part in parts:
                if part.fingerprint != fingerprint or part.width != parts[0].width:
                    raise RegistryError(
                        f"{part.ref} belongs to the backbone {part.backbone} "
                        f"({part.fingerprint[:12]}, width {part.width}), "
                        f"not to {backbone} ({fingerprint[:12]}, width {parts[0].width})",
                        f"`attempt registry list --backbone {fingerprint}` shows what fits.",
                    )
            check_plain([*source_prompts, *target_prompts])
            check_one_placement(parts)
            for refs in ([prompt.ref for prompt in source_prompts], [prompt.ref for prompt in target_prompts]):
                if len(set(refs)) < len(refs):
                    raise RegistryError(f"a prompt is named twice in {', '.join(refs)}", "Name each once.")
            record = {
                "backbone": backbone,
                "fingerprint": fingerprint,
                "sources": json_text([prompt.ref for prompt in source_prompts], "the sources"),
                "attention": mixer.ref if mixer else None,
                "targets": json_text([prompt.ref for prompt in target_prompts], "the targets"),
                "placement": parts[0].placement,
                "settings": json_text({**(settings or {}), **of_chat_template(parts[0])}, "the settings"),
                "note": note,
            }
            return self._add(Composition, name, record)

    def add_run(
        self,
        *,
        command: str,
        settings: Mapping[str, Any],
        numbers: Mapping[str, Any],
        versions: Mapping[str, Any],
        seed: int | None,
        rows: Mapping[str, Any] = MappingProxyType({}),
        budget: Mapping[str, Any] = MappingProxyType({}),
        duration: float = 0.0,
        artefacts: Sequence[str] = (),
        inputs: Sequence[str] = (),
    ) -> Run:
        """Records a run; `artefacts` and `inputs` are names such as "prompt:rte@1" (without a kind, a prompt)."""
        with self._database.transaction():
            record = {
                "command": command,
                "settings": json_text(settings, "the settings"),
                "rows": json_text(rows, "the rows"),
                "seed": None if seed is None else int(seed),
                "budget": json_text(budget, "the budget"),
                "numbers": json_text(numbers, "the numbers"),
                "versions": json_text(versions, "the versions"),
                "duration": float(duration),
                "created": now(),
                "artefacts": json_text([self._full_reference(ref) for ref in artefacts], "the artefacts"),
                "inputs": json_text([self._full_reference(ref) for ref in inputs], "the inputs"),
            }
            return self.run(self._database.insert("runs", record))

    def next_version(self, kind: str, name: str) -> int:
        """Gives out the next version of a name, inside a transaction; none is given twice."""
        self._database.execute(
            "INSERT INTO names (kind, name, version) VALUES (?, ?, 1) "
            "ON CONFLICT (kind, name) DO UPDATE SET version = version + 1",
            (kind, name),
        )
        ((version,),) = self._database.rows("SELECT version FROM names WHERE kind = ? AND name = ?", (kind, name))
        return int(version)

    def _add(
        self,
        record: type[Named],
        name: str,
        fields: dict[str, Any],
        data: bytes | None = None,
        parents: Sequence[str] | None = None,
    ) -> Named:
        """Writes the tensor, then the row with the next version of the name; returns the record."""
        check_name(name)
        kind = KIND_OF[record]
        self._database.require_writable()
        if data is not None:
            # before the transaction: other processes need not wait for the disk
            self._objects.put(data, fields["sha256"])
        with self._database.transaction():
            if data is not None:
                # `gc` holds this lock while it removes files: if it has just removed this one, it is written again
                self._objects.put(data, fields["sha256"])
            if parents is not None:
                fields["parents"] = json_text([self._parent(parent) for parent in parents], "the parents")
            version = self.next_version(kind, name)
            self._database.insert(f"{kind}s", {"name": name, "version": version, **fields, "created": now()})
            # read here: after the transaction another process may have removed it
            return self._one(record, f"{name}@{version}")


def _check_placement(placement: str) -> None:
    if placement not in ("before", "after"):  # as in attempt_cli.placement, which may not be imported here
        raise RegistryError(f"'{placement}' is not a placement", "A prompt stands before or after the input.")


def check_one_placement(parts: Sequence[Prompt | Attention]) -> None:
    """Refuses to mix prompts that were trained in different places, or in different chat templates.

    Raises:
        RegistryError: when placements or templates differ; the message names every part with its own.
    """
    if len({part.placement for part in parts}) > 1:
        found = ", ".join(f"{part.ref} {part.placement}" for part in dict.fromkeys(parts))
        raise RegistryError(
            f"the prompts were trained in different places of the row: {found}",
            "Mix prompts of one placement (`attempt registry list` shows it), or train one in the other: --placement.",
        )
    if len({part.chat_template for part in parts}) > 1:
        sides = {part.ref: "outside" if part.chat_template is None else "inside" for part in parts}
        found = ", ".join(f"{ref} {side}" for ref, side in sides.items())
        raise RegistryError(
            f"the prompts were trained inside and outside of a chat template, or in different ones: {found}",
            "Mix prompts of one kind (`attempt registry show` tells it), or train one again, with --chat-template or "
            "without.",
        )


def check_plain(prompts: Sequence[Prompt]) -> None:
    """Refuses to mix, or to start from, prompts that are not used alone: their method keeps something beside them.

    Raises:
        RegistryError: the message names every such prompt with its method.
    """
    if found := [f"{prompt.ref} ({prompt.method})" for prompt in prompts if prompt.parts]:
        raise RegistryError(
            f"{', '.join(found)} {'is' if len(found) == 1 else 'are'} more than a prompt, which neither mixes with "
            "others nor starts a training",
            "Use it by its own name (eval, predict, serve: --prompt NAME), or train one with --method prompt-tuning.",
        )


def of_chat_template(part: Prompt | Attention | Composition) -> dict[str, str]:
    """Returns what the settings of a composition say of its parts' chat template: nothing where there is none."""
    return {} if part.chat_template is None else {"chat_template": part.chat_template}


def checked_tags(tags: Sequence[str]) -> list[str]:
    """Returns the tags.

    Raises:
        RegistryError: for a tag that is empty, has commas or control characters, or has spaces at its ends.
    """
    for tag in tags:
        check_seen(tag, "a tag")
        if not tag or tag != tag.strip() or "," in tag:
            raise RegistryError(
                f"'{tag}' cannot be a tag", "A tag is not empty and has no commas, and no spaces at its ends."
            )
    return list(tags)


def unique(items: Sequence[str]) -> list[str]:
    """Returns the items without repetitions, in order."""
    return list(dict.fromkeys(items))
