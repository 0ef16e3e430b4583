"""Which prompts or compositions a command means, and the tasks that they were trained for."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.errors import AttemptError
from attempt_registry.records import Composition, Prompt

if TYPE_CHECKING:
    from attempt_cli.artefacts import Loaded
    from attempt_cli.backbones.base import FrozenBackbone
    from attempt_cli.changes import Changes
    from attempt_cli.data.task import Task
    from attempt_registry import Registry

Chosen = Prompt | Composition | None  # None is the bare model


def named_models(registry: Registry, prompts: tuple[str, ...], compositions: tuple[str, ...]) -> list[Chosen]:
    """The models of `--prompt` and `--composition`; the prompt `none` is the bare model."""
    chosen: list[Chosen] = [None if name == "none" else registry.prompt(name) for name in prompts]
    return [*chosen, *(registry.composition(name) for name in compositions)]


def model_for_task(registry: Registry, task: str, backbone: str | None) -> Prompt | Composition:
    """What a task is served by when nothing is named: what was trained or composed for it last.

    Few-shot runs are experiments and do not count; a target of ATTEMPT counts through its composition.

    Raises:
        AttemptError: nothing was trained for the task.
    """
    tried = {prompt.ref for prompt in registry.prompts(task=task, backbone=backbone, tag="fewshot")}
    compositions = registry.compositions(task=task, backbone=backbone)
    prompts = registry.prompts(task=task, backbone=backbone)
    found: list[Prompt | Composition] = [
        *(record for record in compositions if not tried & set(record.targets)),
        *(record for record in prompts if record.ref not in tried and record.method != "attempt"),
    ]
    if found:
        return max(found, key=_age)
    where = f" for {backbone}" if backbone else ""
    raise AttemptError(
        f"nothing was trained for the task '{task}'{where}",
        f"Train it: `attempt train-target {task} --sources all`, or look at the bare model with `--prompt none`.",
    )


def _age(record: Prompt | Composition) -> tuple[str, bool, int]:
    return record.created, isinstance(record, Composition), record.id


def named_model(registry: Registry, name: str) -> Prompt | Composition:
    """The composition or prompt of that name; of both, what was made last.

    Raises:
        RegistryError: neither is there; says the nearest names of both.
    """
    from attempt_registry.errors import RegistryError, unknown_name_text

    kinds = registry.kinds_of(name)
    found: list[Prompt | Composition] = []
    if "composition" in kinds:
        found.append(registry.composition(name))
    if "prompt" in kinds:
        found.append(registry.prompt(name))
    if found:
        # a target of ATTEMPT and its composition are made together and share a name: the composition is meant
        alone = [isinstance(record, Prompt) and record.method == "attempt" for record in found]
        return max(zip(found, alone, strict=True), key=lambda pair: (not pair[1], _age(pair[0])))[0]
    known = [*registry.names(kind="composition"), *registry.names(kind="prompt")]
    text = unknown_name_text("prompt or composition", name, dict.fromkeys(known), "attempt registry list")
    raise RegistryError(*text)


def with_changes(registry: Registry, model: Prompt | Composition, changes: Changes) -> Prompt | Composition:
    """The model with other sources or weights; the same where nothing is to change.

    Raises:
        click.UsageError: a prompt is to change.
        AttemptError: see `changes.changed`.
    """
    from attempt_cli.changes import changed

    if not changes:
        return model
    if not isinstance(model, Composition):
        raise click.UsageError(f"'{model.ref}' is a prompt: --add, --drop, --only and --weights change compositions")
    return changed(registry, model, changes)


def alone_note(prompt: Prompt) -> str:
    """What to know of a target of ATTEMPT that is used without its mixture."""
    return (
        f"Note: '{prompt.ref}' was trained by ATTEMPT inside a mixture; alone it is not what was trained. "
        f"Its composition: `attempt registry show {prompt.ref}`."
    )


def load_model(registry: Registry, backbone: FrozenBackbone, chosen: Chosen, changes: str = "") -> Loaded:
    """Onto the device.

    Args:
        changes: what was changed in a composition, in words: its name says so.
    """
    from attempt_cli.artefacts import bare, load_composition, load_prompt

    if chosen is None:
        return bare(backbone)
    if isinstance(chosen, Composition):
        loaded = load_composition(registry, backbone, chosen)
        return replace(loaded, name=f"{loaded.name} {changes}") if changes else loaded
    return load_prompt(registry, backbone, chosen)


def trained_task(settings: dict[str, Any] | None, name: str) -> Task:
    """The task that a prompt was trained for, from its record: files of its own may be long gone.

    Raises:
        AttemptError: the record says nothing of its task (a prompt from outside) and no task has its name.
    """
    from attempt_cli.data.catalogue import load_task
    from attempt_cli.data.fields import task_from_fields

    fields = (settings or {}).get("task")
    if not isinstance(fields, dict):
        return load_task(name)
    task = task_from_fields(fields, f"the record of the task '{name}'", Path.cwd())
    return task.with_format(str((settings or {}).get("format", "words")))


def as_trained(
    task: Task, prompt: Prompt | None, text_format: str | None, note: Callable[[str], None]
) -> tuple[Task, int | None]:
    """The task in the text format that the prompt was trained under (or that is asked for), and the length limit."""
    from attempt_cli.data.fields import task_fields

    if prompt is None:
        return (task.with_format(text_format) if text_format else task), None
    trained = prompt.settings.get("format", task.format)
    chosen = text_format or (trained if task.reference or trained == "words" else task.format)
    if text_format and text_format != trained:
        note(f"Note: '{prompt.ref}' was trained under the text format '{trained}', not '{text_format}'.")
    own, length = prompt.settings.get("task"), None
    if prompt.task == task.name:  # another task's limit says nothing about this one's rows
        length = (prompt.settings.get("training") or {}).get("max_length")
        if isinstance(own, dict):
            now = task_fields(task)
            changed = [field for field in ("input", "labels", "prepare") if own.get(field) != now.get(field)]
            if changed:
                note(f"Note: '{prompt.ref}' was trained on another '{task.name}': it differs in {', '.join(changed)}.")
    return task.with_format(chosen), length


def with_files(task: Task, **files: Path | None) -> Task:
    """A task on other rows: the files that are given, as they are."""
    given = {split: path.resolve() for split, path in files.items() if path is not None}
    return task.model_copy(update={"hub": None, "files": given, "split_rule": "own", "splits": {}}) if given else task
