"""Published settings as data, one TOML file a preset: what holds for all trainings, and rules for what differs."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from attempt_cli.training.config import read_preset


def settings_for(preset: str | None, *, task: str, method: str, kind: str, rows: int) -> dict[str, Any]:
    """Returns a preset's settings for one training; nothing without a preset.

    Args:
        preset: its name.
        task: the task's name.
        method: the method's name in comparisons.
        kind: "source" or "target".
        rows: the training rows.

    Raises:
        AttemptError: an unknown preset.
    """
    if preset is None:
        return {}
    settings = dict(read_preset(preset)["training"])
    for rule in _rules(preset):
        if _holds(rule, task, method, kind, rows):
            settings.update(rule.get("settings", {}))
    return settings


def train_limit(preset: str | None, task: str) -> int | None:
    """Returns the most training rows that a preset takes of a task; None for all."""
    limits = [rule["train_limit"] for rule in _rules(preset) if "train_limit" in rule and task in rule["tasks"]]
    return limits[-1] if limits else None


def _rules(preset: str | None) -> list[Mapping[str, Any]]:
    rules: list[Mapping[str, Any]] = read_preset(preset).get("rules", []) if preset is not None else []
    return rules


def _holds(rule: Mapping[str, Any], task: str, method: str, kind: str, rows: int) -> bool:
    return (
        task in rule.get("tasks", [task])
        and method in rule.get("methods", [method])
        and kind == rule.get("kind", kind)
        and rows < rule.get("rows_below", rows + 1)
    )
