"""Resolves a backbone's name to the place of its weights; imports no torch."""

from __future__ import annotations

import importlib.util
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError, unknown_name

if TYPE_CHECKING:
    from attempt_registry import Attention, Composition, Prompt, Registry

DEFAULT_BACKBONE = "t5-base"  # the paper's


@dataclass(frozen=True)
class Place:
    """The place of a backbone's weights.

    Args:
        name: the name that prompts are bound to.
        kind: "folder", "gguf" or "hub".
        location: a path, or a hub id.
    """

    name: str
    kind: str
    location: str

    @property
    def source(self) -> str:
        """The place as the registry records it."""
        return self.location if self.kind == "hub" else str(Path(self.location).resolve())


def aliases() -> dict[str, dict[str, Any]]:
    """Returns the short names and what they stand for."""
    import yaml

    table: dict[str, dict[str, Any]] = yaml.safe_load(Path(__file__).with_name("aliases.yaml").read_text("utf-8"))
    return table


def find_backbone(name: str) -> Place:
    """Returns the first place that has the backbone.

    A path means that folder or GGUF file. An alias is looked up as a folder of that name in `ATTEMPT_MODELS`, then as
    an installed package that carries the weights, then on the hub (its cache first). Any other name with a slash is a
    hub id: a folder of that name in `ATTEMPT_MODELS`, else the hub.

    Raises:
        AttemptError: the path does not exist, or the name is no alias.
    """
    known = aliases()
    path = Path(name).expanduser()
    if name not in known and (path.suffix == ".gguf" or path.is_dir() or name.startswith((".", "/", "~"))):
        if not path.exists():
            raise AttemptError(
                f"there is no backbone at {name}", "Give a folder saved by transformers or a .gguf file."
            )
        if path.is_dir() and not (path / "config.json").exists():
            files = sorted(path.glob("*.gguf"))
            if len(files) != 1:
                raise AttemptError(
                    f"the folder {name} has no config.json", "Give a folder saved by transformers or a .gguf file."
                )
            path = files[0]
        return Place(
            path.stem if path.is_file() else path.resolve().name, "gguf" if path.is_file() else "folder", str(path)
        )
    by_hub = {entry["hub"]: alias for alias, entry in known.items()}
    alias = name if name in known else by_hub.get(name)
    if alias is None and name.count("/") != 1:
        raise unknown_name("backbone", name, known, "attempt backbone list")
    models = os.environ.get("ATTEMPT_MODELS")
    if models and (Path(models) / (alias or name) / "config.json").exists():
        return Place(alias or name, "folder", str(Path(models) / (alias or name)))
    if alias is None:
        return Place(name, "hub", name)
    entry = known[alias]
    if "package" in entry:
        spec = importlib.util.find_spec(entry["package"])
        if spec is not None and spec.origin:
            file = Path(spec.origin).with_name(entry["file"])
            if file.exists():
                return Place(alias, "gguf", str(file))
    return Place(alias, "hub", entry["hub"])


def with_recorded(registry: Registry, name: str) -> str:
    """Returns what `find_backbone` finds for a name: for one that only the registry knows, the place it has recorded.

    Raises:
        AttemptError: it has recorded several backbones of the name.
    """
    if name in aliases() or "/" in name or Path(name).exists():
        return name
    sources = sorted({known.source for known in registry.backbones() if name in (known.name, known.fingerprint)})
    if len(sources) > 1:
        raise AttemptError(
            f"'{name}' is the name of {len(sources)} recorded backbones",
            f"Name one by its place: {', '.join(sources)}.",
        )
    return sources[0] if sources else name


def recorded_backbone(registry: Registry, record: Prompt | Composition | Attention) -> str:
    """Returns what --backbone takes to load a record's backbone again: its name, else its place."""
    recorded = registry.backbones()
    findable = record.backbone in aliases() or record.backbone.count("/") == 1
    if findable and len({known.fingerprint for known in recorded if known.name == record.backbone}) <= 1:
        return str(record.backbone)
    own = [known.source for known in recorded if known.fingerprint == record.fingerprint]
    return own[-1] if own else str(record.backbone)


def listed_as(registry: Registry, name: str, fingerprint: str) -> str:
    """Returns the name by which the registry finds what is of a backbone: its fingerprint where others share it."""
    shared = any(known.name == name and known.fingerprint != fingerprint for known in registry.backbones())
    return fingerprint if shared else name


def install_hint(name: str) -> str | None:
    """Returns the command that installs a package with the weights, for an alias that has one."""
    command: str | None = aliases().get(name, {}).get("install")
    return command
