"""The list of tasks that come with the package, read fast: no torch, no pydantic, no rows."""

from __future__ import annotations

from typing import Any

from attempt_cli.data.task import TASKS_FOLDER, task_names
from attempt_cli.data.yaml_file import read_yaml


def task_summaries() -> list[dict[str, Any]]:
    """One record a task: name, version, kind, rows (where they are), metrics, label_words, split_rule, description."""
    return [_summary(read_yaml(TASKS_FOLDER / f"{name}.yaml")) for name in task_names()]


def _summary(fields: dict[str, Any]) -> dict[str, Any]:
    hub = fields.get("hub")
    rows = " ".join([hub["path"], hub["config"], *hub.get("where", {}).values()]) if hub else "with the package"
    return {
        "name": fields["name"],
        "version": fields["version"],
        "kind": "classification" if "labels" in fields else "free text",
        "rows": rows,
        "metrics": fields["metrics"],
        "label_words": list(fields.get("labels", {}).values()),
        "split_rule": fields["split_rule"],
        "max_length": fields["max_length"],
        "description": fields["description"],
    }
