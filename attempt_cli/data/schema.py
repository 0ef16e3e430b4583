"""The schema of a task's YAML file: every problem of a file is told at once."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal

from pydantic import BaseModel, ConfigDict, Field, ValidationError

from attempt_cli.data.metrics import METRICS
from attempt_cli.data.prepare import PREPARATIONS
from attempt_cli.data.task import HubRows, Task
from attempt_cli.data.template import template_problems, text_value
from attempt_cli.data.yaml_file import read_yaml
from attempt_cli.errors import AttemptError
from attempt_registry.errors import nearest_names

Split = Literal["train", "validation", "test"]
Scalar = str | int | float | bool


class HubFields(BaseModel):
    """`hub: {path, config, where}`."""

    model_config = ConfigDict(extra="forbid", strict=True)
    path: str
    config: str | None = None
    where: dict[str, str] = {}


class ReferenceFields(BaseModel):
    """`reference: {input}`: the text format of the authors' code."""

    model_config = ConfigDict(extra="forbid", strict=True)
    input: str


class TaskFields(BaseModel):
    """What a task file may say; `Task` explains each field."""

    model_config = ConfigDict(extra="forbid", strict=True)
    name: str = Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$")
    version: int = Field(default=1, ge=1)
    description: str = ""
    input: str = Field(min_length=1)
    label: str = "label"
    labels: dict[Scalar, Scalar] | None = None
    answers: str | None = None
    target: str | None = None
    group: str | None = None
    prepare: str | None = None
    metrics: list[str] = Field(min_length=1)
    max_length: int = Field(default=256, ge=8)
    split_rule: Literal["halved", "held-out", "own"] = "own"
    splits: dict[Split, str] = {}
    hub: HubFields | None = None
    files: dict[Split, str] | None = None
    reference: ReferenceFields | None = None


def read_task_file(path: Path) -> Task:
    """The task that a YAML file describes.

    Raises:
        AttemptError: naming every problem of the file, one a line.
    """
    return task_from_fields(read_yaml(path), str(path), path.parent)


def task_from_fields(content: Any, origin: str, folder: Path) -> Task:
    """A task from the fields of its YAML.

    Args:
        content: what the YAML holds.
        origin: the file, for messages.
        folder: the folder that the paths under `files` start from.

    Raises:
        AttemptError: naming every problem, one a line.
    """
    if not isinstance(content, Mapping):
        raise AttemptError(
            f"{origin} does not describe a task: it holds {_kind(content)}, not fields",
            "`attempt tasks show sst2` shows the fields of a task.",
        )
    try:
        fields = TaskFields.model_validate(dict(content))
    except ValidationError as error:
        # the fields that stand on their own can still be checked against each other only when all have the right type
        _refuse(origin, [_problem_text(problem) for problem in error.errors()])
    problems = _problems(fields)
    if problems:
        _refuse(origin, problems)
    return Task(
        name=fields.name,
        version=fields.version,
        description=" ".join(fields.description.split()),
        input=fields.input.strip(),
        metrics=tuple(fields.metrics),
        label=fields.label,
        labels=_words(fields.labels) if fields.labels is not None else None,
        answers=fields.answers,
        target=fields.target.strip() if fields.target else None,
        group=fields.group,
        prepare=fields.prepare,
        max_length=fields.max_length,
        split_rule=fields.split_rule,
        splits={str(split): name for split, name in fields.splits.items()},
        hub=HubRows(fields.hub.path, fields.hub.config, dict(fields.hub.where)) if fields.hub else None,
        files={split: (folder / file).resolve() for split, file in (fields.files or {}).items()},
        reference=fields.reference.input.strip() if fields.reference else None,
    )


def task_fields(task: Task) -> dict[str, Any]:
    """A task as the fields of its YAML, with absolute paths: what `task_from_fields` reads back."""
    fields: dict[str, Any] = {
        "name": task.name,
        "version": task.version,
        "description": task.description,
        "hub": _hub_fields(task.hub) if task.hub else None,
        "files": {split: str(path) for split, path in task.files.items()},
        "split_rule": task.split_rule,
        "splits": dict(task.splits),
        "prepare": task.prepare,
        "input": task.input,
        "label": task.label if task.labels else None,
        "labels": dict(task.labels) if task.labels else None,
        "answers": task.answers,
        "target": task.target,
        "group": task.group,
        "metrics": list(task.metrics),
        "max_length": task.max_length,
        "reference": {"input": task.reference} if task.reference else None,
    }
    return {name: value for name, value in fields.items() if value not in (None, {}, "")}


def _hub_fields(hub: HubRows) -> dict[str, Any]:
    fields = {"path": hub.path, "config": hub.config, "where": dict(hub.where)}
    return {name: value for name, value in fields.items() if value}


def _words(labels: Mapping[Any, Any]) -> dict[str, str]:
    return {text_value(value, "labels"): text_value(word, "labels") for value, word in labels.items()}


def _problems(fields: TaskFields) -> list[str]:
    """What single fields cannot know: templates, names of functions, and fields that belong together."""
    problems = []
    templates = {"input": fields.input, "target": fields.target, "group": fields.group}
    templates["reference.input"] = fields.reference.input if fields.reference else None
    for name, template in templates.items():
        problems += [f"{name}: {problem}" for problem in template_problems(template or "")]
    targets = [name for name in ("labels", "answers", "target") if getattr(fields, name) is not None]
    if len(targets) != 1:
        found = " and ".join(targets) or "none of them"
        problems.append(f"labels, answers, target: exactly one says what the model should write; there is {found}")
    if (fields.hub is None) == (fields.files is None):
        problems.append("hub, files: exactly one says where the rows are")
    if fields.files is not None and not fields.files:
        problems.append("files: names no file (train, validation, test)")
    if fields.labels is not None:
        problems += _label_problems(fields.labels)
    if fields.prepare is not None and fields.prepare not in PREPARATIONS:
        problems.append(f"prepare: no function '{fields.prepare}' (there are {', '.join(PREPARATIONS)})")
    for name in fields.metrics:
        problems += _metric_problems(name, fields)
    return problems


def _label_problems(labels: Mapping[Any, Any]) -> list[str]:
    words = _words(labels)
    problems = []
    if len(words) < 2:
        problems.append("labels: a task needs at least two")
    if len(words) < len(labels):
        problems.append("labels: two values are the same text")
    if any(not word for word in words.values()):
        problems.append("labels: a label word is empty")
    twice = sorted({word for word in words.values() if list(words.values()).count(word) > 1})
    if twice:
        problems.append(f"labels: two values have the word {', '.join(repr(word) for word in twice)}")
    return problems


def _metric_problems(name: str, fields: TaskFields) -> list[str]:
    if name not in METRICS:
        near = nearest_names(name, METRICS)
        did_you_mean = f"did you mean {' or '.join(near)}? " if near else ""
        return [f"metrics: no metric '{name}' ({did_you_mean}there are {', '.join(METRICS)})"]
    needs = METRICS[name].needs
    if needs in ("labels", "two labels") and fields.labels is None:
        return [f"metrics: {name} needs labels"]
    if needs == "two labels" and fields.labels is not None and len(fields.labels) != 2:
        return [f"metrics: {name} needs exactly two labels, there are {len(fields.labels)}"]
    if needs == "text" and fields.labels is not None:
        return [f"metrics: {name} is for free text, this task has labels"]
    if name.startswith("multirc") and fields.group is None:
        return [f"metrics: {name} needs group"]
    return []


def _refuse(origin: str, problems: list[str]) -> Any:
    lines = "".join(f"\n  {problem}" for problem in dict.fromkeys(problems))
    raise AttemptError(
        f"{origin} does not describe a task:{lines}", "`attempt tasks show sst2` shows the fields of a task."
    ) from None


def _problem_text(problem: Any) -> str:
    """One of pydantic's findings in plain words, e.g. "max_length: input should be a valid integer (got '256')"."""
    place = ".".join(str(part) for part in problem["loc"] if part not in ("str", "int", "float", "bool"))
    if problem["type"] == "missing":
        return f"{place}: missing"
    if problem["type"] == "extra_forbidden":
        top = problem["loc"][0] if len(problem["loc"]) == 1 else ""
        near = nearest_names(str(top), TaskFields.model_fields) if top else []
        return f"{place}: no such field" + (f" (did you mean {' or '.join(near)}?)" if near else "")
    message = problem["msg"].removesuffix(".")
    return f"{place}: {message[0].lower()}{message[1:]} (got {problem['input']!r})"


def _kind(content: Any) -> str:
    names = {list: "a list", str: "a text", int: "a number", float: "a number", bool: "a truth value"}
    return "nothing" if content is None else names.get(type(content), f"a {type(content).__name__}")
