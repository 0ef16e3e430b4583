"""What `train-source` and `train-target` share: from options to a trained prompt and its report."""

from __future__ import annotations

import sys
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from attempt_cli.cli.options import attach_input_cache, check_lengths, chosen_backbone, typed_command

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.data.task import Task
    from attempt_cli.training.recipes import Outcome, Request
    from attempt_registry import Prompt, Registry

Made = TypeVar("Made")  # what a training gives back


def train_and_report(
    settings: Settings,
    registry: Registry,
    task: Task,
    options: dict[str, Any],
    *,
    kind: str,
    method: str,
    name: str,
    init_from: Prompt | None = None,
    sources: tuple[Prompt, ...] = (),
) -> None:
    """Trains with a progress bar, records, and says what was made and what to type next.

    Args:
        options: the training, record and backbone options, and those of `TrainingConfig` that the command adds.
        name: under which the prompt is kept when --name does not say.

    Raises:
        AttemptError: the prompts differ in length; see also `training.recipes.train_prompt`.
    """
    from attempt_cli.training.config import make_config
    from attempt_cli.training.recipes import Request, train_prompt

    used = [*sources, *([init_from] if init_from else [])]
    check_lengths(used, options["prompt_length"])
    if options["prompt_length"] is None and used:
        options["prompt_length"] = used[0].length
    record = {key: options.pop(key) for key in ("name", "note", "tags", "resume", "train_limit")}
    where = {key: options.pop(key) for key in ("backbone", "device", "dtype")}
    cache = {key: options.pop(key) for key in ("input_cache", "input_cache_dir")}
    largest = options["batch_size"] == "auto"
    if largest:
        options["batch_size"] = None
    config = make_config(options.pop("preset"), method=method, **options)
    backbone = chosen_backbone(registry, where, used, settings.output.note)
    attach_input_cache(backbone, cache)
    request = Request(
        task=task,
        kind=kind,
        name=record["name"] or name,
        config=config,
        sources=sources,
        init_from=init_from,
        train_limit=record["train_limit"],
        data_dir=settings.data_dir,
        command=typed_command(),
        note=record["note"],
        tags=record["tags"],
        largest_batch=largest,
    )
    outcome = shown(settings, request.name, partial(train_prompt, registry, backbone, request, resume=record["resume"]))
    if outcome is not None:
        # what is no prompt cannot be kept and evaluated later
        test = None if outcome.prompt is not None else _tested(settings, registry, request, outcome)
        outcome.release()
        _report(settings, request, outcome, test)


def shown(settings: Settings, name: str, train: Callable[..., Made]) -> Made:
    """Runs a training with a progress bar, on all processes that a launcher started.

    Args:
        train: takes `listener` and `processes`.
    """
    from attempt_cli.cli.progress import TrainingProgress
    from attempt_cli.training.loop import NotFiniteError, TrainingStoppedError
    from attempt_cli.training.processes import Processes

    processes = Processes.here()
    try:
        silent = settings.output.format == "quiet" or not processes.is_main
        with TrainingProgress(name, silent=silent) as progress:
            return train(listener=progress, processes=processes)
    except (TrainingStoppedError, NotFiniteError) as error:
        if processes.is_main:
            raise
        sys.exit(error.exit_code)  # all processes meet these together, and one of them says it


def _tested(settings: Settings, registry: Registry, request: Request, outcome: Outcome) -> dict[str, Any] | None:
    """Scores the model on the task's test rows, where there are any, and records that."""
    from attempt_cli.data.rows import load_examples
    from attempt_cli.errors import AttemptError
    from attempt_cli.evaluation.evaluate import evaluate
    from attempt_cli.evaluation.record import evaluation_result, record_evaluation

    task, config = request.task, request.config
    try:
        rows = load_examples(task, "test", data_dir=settings.data_dir)
    except AttemptError as error:
        settings.output.note(f"No test rows, so the trained model is not scored ({error.message})")
        return None
    settings.output.note(f"scoring {len(rows.examples):,} test rows …")
    result = evaluate(outcome.model, task, rows.examples, max_length=config.max_length, max_tokens=config.max_tokens)
    record = evaluation_result(task, rows, result, f"{request.name} (run {outcome.run})", "weights").record()
    run = record_evaluation(
        registry,
        task,
        rows,
        result,
        record,
        command=request.command,
        seed=config.seed,
        settings={"training": config.model_dump(exclude_none=True)},
        budget={"steps": outcome.trained.state.step},
    )
    return {**{name: record[name] for name in ("metrics", "interval", "n")}, "run": run}


def _report(settings: Settings, request: Request, outcome: Outcome, test: dict[str, Any] | None) -> None:
    from attempt_cli.data.task import task_names

    numbers = outcome.trained.numbers
    for warning in outcome.trained.warnings:
        settings.output.note(f"Warning: {warning}")
    if outcome.truncated:
        settings.output.note(
            f"{outcome.truncated:,} of {outcome.rows:,} training inputs were longer than the limit "
            "and lost their middle; --max-length raises it."
        )
    if "validation" not in numbers:
        settings.output.note("No validation rows were looked at: the last step is kept.")
    settings.output.record(
        "training",
        {
            "name": outcome.prompt or request.name,
            "kind": request.kind,
            "method": request.config.method,
            "task": request.task.name,
            **({"composition": outcome.composition, "attention": outcome.attention} if outcome.composition else {}),
            "trained_parameters": outcome.trained_parameters,
            "training_rows": outcome.rows,
            **shown_numbers(settings, numbers),
            **({"test": test} if test else {}),
            "run": outcome.run,
        },
    )
    if outcome.prompt is None:
        if test:
            settings.output.note(f"Next: `attempt compare {test['run']} RUN`, with a run on the same rows")
        return
    model = f"--composition {outcome.composition}" if outcome.composition else f"--prompt {outcome.prompt}"
    rows = f"--tasks {request.task.name}" if request.task.name in task_names() else "--test-file FILE"
    settings.output.note(f"Next: `attempt eval {rows} {model}`")


def shown_numbers(settings: Settings, numbers: dict[str, Any]) -> dict[str, Any]:
    """A training's numbers, for people with the memory in units that they know."""
    from attempt_cli.backbones.input_cache import size_text

    if settings.output.format == "json" or "peak_memory" not in numbers:
        return numbers
    return {**numbers, "peak_memory": size_text(numbers["peak_memory"])}
