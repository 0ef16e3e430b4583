"""Reads published numbers, which are shown beside ours and used for nothing else."""

from __future__ import annotations

from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any


@dataclass(frozen=True)
class Published:
    """A number from a paper.

    Args:
        value: as a fraction where it is a score, else in its own unit (gigabytes, parameters).
        source: the paper.
        unchecked: quoted without the paper's table at hand.
    """

    value: float
    source: str
    unchecked: bool = False


def published_scores(paper: str = "asai") -> dict[tuple[str, str], Published]:
    """Returns scores by task and method; a group's mean has the task "GLUE average".

    Args:
        paper: "asai" for the tables on its splits, or the name of another paper.
    """
    table = _table() if paper == "asai" else _table()["papers"][paper]
    found: dict[tuple[str, str], Published] = {}
    for group, methods in table.get("averages", {}).items():
        found |= {(f"{group} average", method): _number(entry, 0.01) for method, entry in methods.items()}
    for task, methods in table.get("tasks", {}).items():
        found |= {(task, method): _number(entry, 0.01) for method, entry in methods.items()}
    return found


def published_backbone(paper: str) -> str:
    """Returns the model that a paper's numbers are of."""
    return "T5-base" if paper == "asai" else str(_table()["papers"][paper]["backbone"])


def published_memory() -> dict[tuple[str, str], Published]:
    """Returns peak memory in gigabytes, by backbone and method."""
    return _by_backbone("memory")


def published_parameters() -> dict[tuple[str, str], Published]:
    """Returns trained parameters for a task, by backbone and method."""
    return _by_backbone("parameters")


def _by_backbone(kind: str) -> dict[tuple[str, str], Published]:
    table = _table()[kind]
    return {(backbone, method): _number(entry, 1) for backbone in table for method, entry in table[backbone].items()}


def _number(entry: list[Any], unit: float) -> Published:
    value, source, *marks = entry
    return Published(round(value * unit, 6), _table()["sources"][source], "unchecked" in marks)


@cache
def _table() -> dict[str, Any]:
    import yaml

    table: dict[str, Any] = yaml.safe_load(Path(__file__).with_name("published.yaml").read_text("utf-8"))
    return table
