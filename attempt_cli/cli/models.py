"""Which prompts or compositions a command means, and the tasks that they were trained for."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from attempt_cli.errors import AttemptError
from registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.artefacts import Loaded
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.data.task import Task
    from registry import Registry

Chosen = Prompt | Composition | None  # None is the bare model


def named_models(registry: Registry, prompts: tuple[str, ...], compositions: tuple[str, ...]) -> list[Chosen]:
    """The models of `--prompt` and `--composition`; the prompt `none` is the bare model."""
    chosen: list[Chosen] = [None if name == "none" else registry.prompt(name) for name in prompts]
    return [*chosen, *(registry.composition(name) for name in compositions)]


def model_for_task(registry: Registry, task: str, backbone: str | None) -> Prompt | Composition:
    """What a task is served by when nothing is named: the newest composition with a target prompt for it, else the
    newest prompt trained for it.

    Raises:
        AttemptError: nothing was trained for the task.
    """
    compositions = registry.compositions(task=task, backbone=backbone)
    if compositions:
        return max(compositions, key=lambda record: (record.created, record.id))
    prompts = registry.prompts(task=task, backbone=backbone)
    if prompts:
        return max(prompts, key=lambda record: (record.kind == "target", record.created, record.id))
    where = f" for {backbone}" if backbone else ""
    raise AttemptError(
        f"nothing was trained for the task '{task}'{where}",
        f"Train it: `attempt train-target {task} --sources all`, or look at the bare model with `--prompt none`.",
    )


def named_model(registry: Registry, name: str) -> Prompt | Composition:
    """The composition of that name, else the prompt.

    Raises:
        RegistryError: neither is there; says the nearest names of both.
    """
    from registry.errors import RegistryError, unknown_name_text

    if "composition" in registry.kinds_of(name):
        return registry.composition(name)
    if "prompt" in registry.kinds_of(name):
        return registry.prompt(name)
    known = [*registry.names(kind="composition"), *registry.names(kind="prompt")]
    raise RegistryError(
        *unknown_name_text("prompt or composition", name, dict.fromkeys(known), "attempt registry list")
    )


def load_model(registry: Registry, backbone: FrozenBackbone, chosen: Chosen) -> Loaded:
    """Onto the device."""
    from attempt_cli.artefacts import bare, load_composition, load_prompt

    if chosen is None:
        return bare(backbone)
    if isinstance(chosen, Composition):
        return load_composition(registry, backbone, chosen)
    return load_prompt(registry, backbone, chosen)


def trained_task(settings: dict[str, Any] | None, name: str) -> Task:
    """The task that a prompt was trained for, from its record: files of its own may be long gone.

    Raises:
        AttemptError: the record says nothing of its task (a prompt from outside) and no task has its name.
    """
    from attempt_cli.data.schema import task_from_fields
    from attempt_cli.data.task import load_task

    fields = (settings or {}).get("task")
    if not isinstance(fields, dict):
        return load_task(name)
    task = task_from_fields(fields, f"the record of the task '{name}'", Path.cwd())
    return task.with_format(str((settings or {}).get("format", "words")))


def with_files(task: Task, **files: Path | None) -> Task:
    """A task on other rows: the files that are given, as they are."""
    given = {split: path.resolve() for split, path in files.items() if path is not None}
    return replace(task, hub=None, files=given, split_rule="own", splits={}) if given else task
