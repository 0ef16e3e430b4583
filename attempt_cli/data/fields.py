"""A task as the fields of a YAML file or of a record, read and written."""

from __future__ import annotations

import reprlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_registry.errors import nearest_names

# of a file with more problems than this the rest is only counted
SHOWN_PROBLEMS = 50


def task_from_fields(content: Any, origin: str, folder: Path) -> Task:
    """Builds a task from the fields of its YAML.

    Args:
        content: what the YAML holds.
        origin: the file, for messages.
        folder: the folder that the paths under `files` start from.

    Raises:
        AttemptError: naming every problem, one a line.
    """
    hint = "`attempt tasks show sst2` shows the fields of a task."
    if not isinstance(content, Mapping):
        raise AttemptError(f"{origin} does not describe a task: it holds {_kind(content)}, not fields", hint)
    try:
        return Task.model_validate({str(name): value for name, value in content.items()}, context={"folder": folder})
    except ValidationError as error:
        # fields are checked against each other only when each has the right type
        errors = error.errors()
        problems = [line for problem in errors[:SHOWN_PROBLEMS] for line in _problem_text(problem).split("\n")]
        if len(errors) > SHOWN_PROBLEMS:
            problems.append(f"… and {len(errors) - SHOWN_PROBLEMS:,} more")
        lines = "".join(f"\n  {problem}" for problem in dict.fromkeys(problems))
        raise AttemptError(f"{origin} does not describe a task:{lines}", hint) from None


def task_fields(task: Task) -> dict[str, Any]:
    """Returns a task as the fields of its YAML, with absolute paths: what `task_from_fields` reads back."""
    fields = _filled(task.model_dump(mode="json"))
    return fields if task.labels else {name: value for name, value in fields.items() if name != "label"}


def _filled(fields: dict[str, Any]) -> dict[str, Any]:
    """Leaves out the fields that say nothing."""
    filled = {name: _filled(value) if isinstance(value, dict) else value for name, value in fields.items()}
    return {name: value for name, value in filled.items() if value not in (None, {}, "")}


def _problem_text(problem: Any) -> str:
    """Says one of pydantic's findings in plain words: "max_length: input should be a valid integer (got '256')"."""
    loc = problem["loc"][:2] if problem["loc"][0:1] == ("files",) else problem["loc"]  # without pydantic's own parts
    place = ".".join(str(part)[:60] for part in loc if part not in ("str", "int", "float", "bool"))
    if problem["type"] == "missing":
        return f"{place}: missing"
    if problem["type"] == "extra_forbidden":
        known = [name for name, field in Task.model_fields.items() if not field.exclude]
        near = nearest_names(str(problem["loc"][0]), known) if len(problem["loc"]) == 1 else []
        return f"{place}: no such field" + (f" (did you mean {' or '.join(near)}?)" if near else "")
    if problem["type"] == "value_error":  # one of our own checks
        return f"{place}: {problem['ctx']['error']}" if place else str(problem["ctx"]["error"])
    message = problem["msg"].removesuffix(".")
    return f"{place}: {message[0].lower()}{message[1:]} (got {reprlib.repr(problem['input'])})"


def _kind(content: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}
    return "nothing" if content is None else names.get(type(content), f"a {type(content).__name__}")
