"""Where a call works: the registry, the rows, the backbone, and who is told how it goes."""

from __future__ import annotations

import os
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING

from attempt_cli.errors import AttemptError
from attempt_cli.listener import Listener
from attempt_registry import Registry

if TYPE_CHECKING:
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.backbones.table import EmbeddingTable
    from attempt_registry import Attention, Composition, Prompt


@dataclass(frozen=True)
class Session:
    """Where calls work. One session serves many calls, and keeps the backbone that it loaded.

    Args:
        registry: an open registry, or its folder; None is the user's own (`ATTEMPT_REGISTRY`, else the data folder).
        data_dir: a folder of rows in the hub's layout; None is `ATTEMPT_DATA`. What is not there comes from the hub.
        backbone: alias, hub id, folder or GGUF file; None is `ATTEMPT_BACKBONE`, else the prompts' own, else t5-base.
        device: "cuda", "mps" or "cpu"; None chooses.
        dtype: "bfloat16" or "float32"; None chooses.
        quantize: "nf4" or "int8" keeps the layers' weights in 4 or 8 bits (bitsandbytes); None as they are.
        input_cache: memory for inputs that were read, kept across epochs and calls: bytes, or a text such as "4GiB";
            None is a quarter of the memory, shared by the processes of a training on this machine.
        input_cache_dir: keep them in files here instead.
        listener: is told how work goes.
        command: what records say the user typed or called.
    """

    registry: Registry | Path | str | None = None
    data_dir: Path | str | None = None
    backbone: str | None = None
    device: str | None = None
    dtype: str | None = None
    quantize: str | None = None
    input_cache: int | str | None = None
    input_cache_dir: Path | str | None = None
    listener: Listener = field(default_factory=Listener)
    command: str = ""

    @cached_property
    def store(self) -> Registry:
        """The open registry."""
        if isinstance(self.registry, Registry):
            return self.registry
        return Registry.open(Path(self.registry) if self.registry is not None else None)

    @property
    def rows_folder(self) -> Path | None:
        """The folder of rows; None where all come from the hub.

        Raises:
            AttemptError: there is no such folder.
        """
        given = self.data_dir or os.environ.get("ATTEMPT_DATA")
        folder = Path(given).expanduser() if given else None
        if folder is not None and not folder.is_dir():
            raise AttemptError(f"data_dir is {folder}, which is not a folder", "Name a folder in the hub's layout.")
        return folder

    @property
    def backbone_name(self) -> str | None:
        """The name that prompts of the chosen backbone are found by, or its fingerprint where others share the name.

        None when nothing is chosen.
        """
        from attempt_cli.backbones.names import find_backbone, listed_as

        if not (chosen := self._chosen):
            return None
        place = find_backbone(chosen)
        own = [known for known in self.store.backbones() if (known.name, known.source) == (place.name, place.source)]
        return listed_as(self.store, place.name, own[-1].fingerprint) if own else place.name

    @property
    def _chosen(self) -> str | None:
        """The backbone that is chosen, as its place can be found."""
        from attempt_cli.backbones.names import with_recorded

        name = self.backbone or os.environ.get("ATTEMPT_BACKBONE")
        return with_recorded(self.store, name) if name else None

    def load_backbone(
        self, records: Sequence[Prompt | Composition | Attention] = (), *, chat_template: bool = False
    ) -> FrozenBackbone:
        """Loads the backbone that is chosen, else that of the records in use, else the paper's; once a session.

        Args:
            records: what it is loaded for.
            chat_template: refuse a backbone without a chat template before its weights are loaded.

        Raises:
            AttemptError: the backbone is unknown or cannot be loaded, or has no chat template.
        """
        from attempt_cli.backbones.names import DEFAULT_BACKBONE, recorded_backbone

        name = self._chosen
        if not name and records:
            name = recorded_backbone(self.store, records[0])
        name = name or DEFAULT_BACKBONE
        if name not in self._loaded:
            from attempt_cli.backbones.load import check_chat_template, load_backbone
            from attempt_cli.byte_sizes import parse_size, total_memory

            # of all memory, not of what is free now: which rows are kept should not depend on what else is running
            # Processes of one training share the machine.
            share = total_memory() // 4 // int(os.environ.get("LOCAL_WORLD_SIZE", 1))
            budget = parse_size(str(self.input_cache)) if self.input_cache is not None else share
            if os.environ.get("RANK", "0") == "0":  # of several processes one speaks
                self.listener.note(f"loading {name} …")
            if chat_template:
                check_chat_template(name)
            self._loaded.clear()  # one at a time in memory
            self._told.clear()
            backbone = load_backbone(name, device=self.device, dtype=self.dtype, quantize=self.quantize)
            for note in backbone.notes if os.environ.get("RANK", "0") == "0" else ():
                self.listener.note(note)
            backbone.keep_inputs(budget, Path(self.input_cache_dir) if self.input_cache_dir is not None else None)
            self._loaded[name] = backbone
        if records and os.environ.get("RANK", "0") == "0":
            from attempt_cli.artefacts import new_differences

            for text in new_differences(self.store, self._loaded[name], records, self._told):
                self.listener.note(text)
        return self._loaded[name]

    def load_table(self, record: Prompt | Composition | Attention) -> EmbeddingTable:
        """Loads the embeddings and the tokenizer of a record's backbone alone, without its layers.

        Raises:
            AttemptError: they cannot be loaded, or are others than those that the record's prompts were trained for.
        """
        from attempt_cli.backbones.names import recorded_backbone
        from attempt_cli.backbones.table import load_table

        name = self._chosen or recorded_backbone(self.store, record)
        return load_table(name, self.store.backbone(record.fingerprint))

    @classmethod
    def of(cls, session: Session | None) -> Session:
        """Returns the session that a call is given, a new one for None.

        Raises:
            AttemptError: it is something else.
        """
        if session is None:
            return cls()
        if not isinstance(session, cls):
            raise AttemptError(
                f"{session!r} is not a session"[:200], "Give `session=attempt.Session(registry=…, backbone=…)`."
            )
        return session

    def with_listener(self, listener: Listener) -> Session:
        """Returns the same session with another listener; both share the loaded backbone."""
        told = replace(self, registry=self.store, listener=listener)
        vars(told).update(_loaded=self._loaded, _told=self._told)
        return told

    @cached_property
    def _loaded(self) -> dict[str, FrozenBackbone]:
        return {}

    @cached_property
    def _told(self) -> set[tuple[str, str]]:
        """Prompts with what was told of them, each once for a backbone that is loaded."""
        return set()
