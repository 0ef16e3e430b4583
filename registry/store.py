"""The registry: one folder of prompts, attentions, compositions, runs and backbones."""

from __future__ import annotations

import os
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_registry import lineage, upkeep
from attempt_registry.add import Adder, checked_tags, unique
from attempt_registry.conversion import json_text
from attempt_registry.database import Database
from attempt_registry.errors import RegistryError
from attempt_registry.objects import Objects
from attempt_registry.records import Attention, Composition, Garbage, Lineage, Problem, Prompt, Removal

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]

ENVIRONMENT_VARIABLE = "ATTEMPT_REGISTRY"


class Registry(Adder):
    """A folder with a SQLite database of metadata and the tensors beside it; opened by `Registry.open`."""

    def __init__(self, folder: Path, *, read_only: bool = False) -> None:
        self.folder = folder
        self.damaged = {}
        self._database = Database(folder, read_only=read_only)
        self._objects = Objects(folder)

    @classmethod
    def open(cls, path: Path | None = None, *, must_exist: bool = False, read_only: bool = False) -> Registry:
        """Opens a registry; the first addition creates its files.

        Args:
            path: its folder; without it $ATTEMPT_REGISTRY, else the user's data folder.
            must_exist: refuse a folder without a registry.
            read_only: refuse to write, even where the folder would allow it.

        Raises:
            RegistryError: when `path` is a file, or when `must_exist` is set and the folder holds no registry.
        """
        if path is None and os.environ.get(ENVIRONMENT_VARIABLE):
            path = Path(os.environ[ENVIRONMENT_VARIABLE])
        if path is None:
            import platformdirs

            path = platformdirs.user_data_path("attempt", appauthor=False)
        path = Path(path).expanduser().absolute()
        if path.exists() and not path.is_dir():
            raise RegistryError(f"{path} is a file, not a folder", "Name a folder with --registry.")
        registry = cls(path, read_only=read_only)
        if must_exist and not registry._database.file.exists():
            raise RegistryError(f"there is no registry in {path}", "Name its folder with --registry.")
        return registry

    def close(self) -> None:
        """Closes the database; the next use reopens it."""
        self._database.close()

    def __enter__(self) -> Registry:
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def prompt_tensor(self, prompt: Prompt) -> Array:
        """Reads a prompt's tensor, float32 [length, width], and checks its file's hash.

        Raises:
            RegistryError: when the file is missing or damaged; the message names file and prompt.
        """
        tensors = self._objects.get(prompt.sha256, f"prompt {prompt.ref}")
        return tensors["prompt"]

    def prompt_parts(self, prompt: Prompt) -> dict[str, Array]:
        """Reads what a prompt's method keeps beside it, by name; as `prompt_tensor`."""
        tensors = dict(self._objects.get(prompt.sha256, f"prompt {prompt.ref}"))
        tensors.pop("prompt")
        return tensors

    def attention_tensors(self, attention: Attention) -> dict[str, Array]:
        """Reads an attention's weights by name, float32, and checks their file's hash.

        Raises:
            RegistryError: when the file is missing or damaged; the message names file and attention.
        """
        return dict(self._objects.get(attention.sha256, f"attention {attention.ref}"))

    def tensor_path(self, record: Prompt | Attention) -> Path:
        """Returns the safetensors file of a prompt or an attention."""
        return self._objects.path(record.sha256)

    def tag(self, ref: str, add: Sequence[str] = (), remove: Sequence[str] = ()) -> Prompt:
        """Adds and removes tags of a prompt; returns the changed prompt.

        Raises:
            RegistryError: when the prompt is unknown or lacks a tag of `remove`.
        """
        self.prompt(ref)  # an unknown name needs no lock and creates no database
        with self._database.transaction():
            prompt = self.prompt(ref)
            for tag in remove:
                if tag not in prompt.tags:
                    hint = f"It has {', '.join(prompt.tags)}." if prompt.tags else "It has no tags."
                    raise RegistryError(f"{prompt.ref} has no tag '{tag}'", hint)
            kept = [tag for tag in prompt.tags if tag not in remove]
            tags = json_text(unique([*kept, *checked_tags(add)]), "the tags")
            self._database.execute("UPDATE prompts SET tags = ? WHERE id = ?", (tags, prompt.id))
            return self.prompt(prompt.ref)

    def remove(self, ref: str, *, kind: str = "prompt", force: bool = False, dry_run: bool = False) -> Removal:
        """Removes one version; its tensor's file stays until `gc`.

        Args:
            ref: a name; without a version, the newest.
            kind: "prompt", "attention" or "composition".
            force: even when a composition uses it, which then no longer loads.
            dry_run: only return what would happen.

        Raises:
            RegistryError: when it is unknown, or when a composition uses it and `force` is not set.
        """
        return upkeep.remove(self, self._database, ref, kind=kind, force=force, dry_run=dry_run)

    def lineage(self, ref: str, *, kind: str = "prompt") -> Lineage:
        """Collects the ancestors of an artefact and everything that depends on it.

        Raises:
            RegistryError: when it is unknown.
        """
        return lineage.lineage(self, ref, kind=kind)

    def search(self, text: str) -> list[Prompt | Attention | Composition]:
        """Finds records with every word of `text` in their name, task, note, tags, method or backbone, in any case."""
        return lineage.search(self, text)

    def repair(self) -> None:
        """Makes again what follows from the rows: the words that `search` looks into, and the table of references.

        Raises:
            RegistryError: the registry cannot be written to, or its rows themselves are damaged.
        """
        upkeep.repair(self._database)

    def verify(self) -> list[Problem]:
        """Checks the database, the presence and hash of every tensor's file, and every reference.

        A parent or a run's input that was removed later is history, not a problem; a composition's missing part is one.
        """
        return upkeep.verify(self, self._database, self._objects)

    def gc(self, dry_run: bool = False, *, grace: float = upkeep.GRACE_SECONDS) -> Garbage:
        """Removes the files that nothing refers to.

        Args:
            dry_run: only find them.
            grace: seconds for which a new file is kept: another process may be about to refer to it.
        """
        return upkeep.gc(self._database, self._objects, dry_run=dry_run, grace=grace)
