"""What `train-target a,b,c` and `train-attention` share: from options to a training on several tasks and its report."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from typing import TYPE_CHECKING, Any

import click

from attempt_cli.cli.options import (
    FILE_FIELDS,
    attach_input_cache,
    check_lengths,
    chosen_backbone,
    split_names,
    stacked,
    typed_command,
)
from attempt_cli.cli.training import shown, shown_numbers

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task
    from attempt_cli.training.many import ManyOutcome
    from attempt_registry import Attention, Composition, Prompt, Registry

sampling_options = stacked(
    click.option("--max-rows-per-task", type=int, help="Of several tasks: none counts for more rows in an epoch."),
    click.option(
        "--sampling-temperature",
        type=float,
        default=1.0,
        show_default=True,
        help="Of several tasks: 1 samples them in proportion to their rows, more evens them out.",
    ),
)


def named_tasks(names: str, options: dict[str, Any]) -> tuple[Task, ...]:
    """The tasks of a comma list; takes the task options out of `options`.

    Raises:
        UsageError: files are given too.
    """
    from attempt_cli.data.catalogue import load_task

    if any(options.pop(field) is not None for field in FILE_FIELDS):
        raise click.UsageError("several tasks are named by their names or YAML files; file options go with one task")
    text_format = options.pop("text_format")
    tasks = [load_task(name) for name in split_names(names)]
    return tuple(task.with_format(text_format) if text_format else task for task in tasks)


def train_many_and_report(
    settings: Settings,
    registry: Registry,
    tasks: tuple[Task, ...],
    options: dict[str, Any],
    *,
    name: str,
    keep: str,
    sources: tuple[Prompt, ...],
    init_from: tuple[Prompt | None, ...],
    attention_from: Attention | None = None,
    onto: Composition | None = None,
) -> None:
    """Trains with a progress bar, records, and says what was made and what to type next.

    Args:
        options: the training, sampling, record and backbone options.
        name, keep, sources, init_from, attention_from, onto: as in `training.many.ManyRequest`.
    """
    from attempt_cli.training.config import make_config
    from attempt_cli.training.many import ManyRequest, train_many

    if options["batch_size"] == "auto":
        raise click.UsageError("--batch-size auto is for one task: give a number for several")
    used = [*sources, *(prompt for prompt in init_from if prompt is not None)]
    check_lengths(used, options["prompt_length"])
    options["prompt_length"] = options["prompt_length"] or used[0].length
    record = {key: options.pop(key) for key in ("name", "note", "tags", "resume", "train_limit")}
    sampling = {key: options.pop(key) for key in ("max_rows_per_task", "sampling_temperature")}
    where = {key: options.pop(key) for key in ("backbone", "device", "dtype")}
    cache = {key: options.pop(key) for key in ("input_cache", "input_cache_dir")}
    config = make_config(options.pop("preset"), method="attempt", **options)
    backbone = chosen_backbone(registry, where, used, settings.output.note)
    attach_input_cache(backbone, cache)
    request = ManyRequest(
        tasks=tasks,
        name=record["name"] or name,
        config=config,
        keep=keep,
        sources=sources,
        init_from=init_from,
        attention_from=attention_from,
        onto=onto,
        train_limit=record["train_limit"],
        data_dir=settings.data_dir,
        command=typed_command(),
        note=record["note"],
        tags=record["tags"],
        **sampling,
    )
    outcome = shown(settings, request.name, partial(train_many, registry, backbone, request, resume=record["resume"]))
    if outcome is not None:
        _report(settings, request.keep, outcome)


def _report(settings: Settings, keep: str, outcome: ManyOutcome) -> None:
    for warning in outcome.trained.warnings:
        settings.output.note(f"Warning: {warning}")
    record: dict[str, Any] = {"name": outcome.composition or outcome.attention}
    if outcome.composition:
        record |= {"composition": outcome.composition, "prompts": outcome.prompts}
    record |= {
        "attention": outcome.attention,
        "tasks": list(outcome.rows),
        "trained_parameters": outcome.trained_parameters,
        "parameters_per_task": round(outcome.parameters_per_task, 1),
        "training_rows": outcome.rows,
        **shown_numbers(settings, outcome.trained.numbers),
        "run": outcome.run,
    }
    settings.output.record("training", record)
    if keep == "attention":
        settings.output.note(f"Next: `attempt train-target TASK --sources … --attention-from {outcome.attention}`")
    else:
        tasks = ",".join(outcome.prompts)
        settings.output.note(f"Next: `attempt eval --tasks {tasks} --composition {outcome.composition}`")


def starts(prompts: Sequence[Prompt], tasks: Sequence[Task], named: Prompt | None) -> tuple[Prompt | None, ...]:
    """Where each task's target prompt starts: the named prompt, else the first source of another task."""
    if named is not None:
        return (named,) * len(tasks)
    return tuple(next((p for p in prompts if p.task != task.name), prompts[0]) for task in tasks)
