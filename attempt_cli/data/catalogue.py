"""The tasks by name. Listing them is fast: no torch, no pydantic, no rows."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.data.yaml_file import read_yaml
from attempt_cli.errors import unknown_name

if TYPE_CHECKING:
    from attempt_cli.data.task import Task

TASKS_FOLDER = Path(__file__).parent / "tasks"


def task_names() -> list[str]:
    """Returns the names of the tasks that come with the package, sorted."""
    return sorted(path.name[: -len(".yaml")] for path in TASKS_FOLDER.glob("*.yaml"))


def task_file(name: str | Path) -> Path:
    """Returns the YAML file that a task's name or a path stands for; errors as in `load_task`."""
    text = str(name)
    if text.endswith((".yaml", ".yml")):
        return Path(name)
    if text not in task_names():
        raise unknown_name("task", text, task_names(), "attempt tasks list")
    return TASKS_FOLDER / f"{text}.yaml"


def load_task(name: str | Path) -> Task:
    """Loads a task by its name, or from a YAML file of one's own.

    Args:
        name: a name in `task_names()`, or the path of a file that ends in .yaml or .yml.

    Raises:
        AttemptError: an unknown name (with the nearest), a missing file, or a file that does not fit the schema.
    """
    from attempt_cli.data.fields import task_from_fields  # pydantic is slow to import, and the list does without it
    from attempt_cli.data.task import check_no_leak

    path = task_file(name)
    task = task_from_fields(read_yaml(path), str(path), path.parent)
    check_no_leak(task)
    return task


def task_summaries() -> list[dict[str, Any]]:
    """Summarises each task: name, version, kind, rows (where they are), metrics, label_words, split_rule, …"""
    return [_summary(read_yaml(TASKS_FOLDER / f"{name}.yaml")) for name in task_names()]


def _summary(fields: dict[str, Any]) -> dict[str, Any]:
    hub = fields.get("hub")
    place = [hub["path"], hub.get("config", ""), *hub.get("where", {}).values()] if hub else ["with the package"]
    return {
        "name": fields["name"],
        "version": fields["version"],
        "kind": "classification" if "labels" in fields else "free text",
        "rows": " ".join(filter(None, place)),
        "metrics": fields["metrics"],
        "label_words": list(fields.get("labels", {}).values()),
        "split_rule": fields["split_rule"],
        "max_length": fields["max_length"],
        "description": fields["description"],
    }
