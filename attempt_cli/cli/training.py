"""What the train commands share: the session that shows a training's progress, and its report."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attempt_cli.cli.main import Settings
    from attempt_cli.cli.options import BackboneOptions, CacheOptions
    from attempt_cli.session import Session
    from attempt_cli.training.request import Outcome


@contextmanager
def training_session(settings: Settings, where: BackboneOptions, cache: CacheOptions) -> Iterator[Session]:
    """Opens a session with a progress bar; of several processes that share a training only the first one speaks."""
    from attempt_cli.cli.progress import TrainingProgress

    helps = os.environ.get("RANK", "0") != "0"
    with TrainingProgress(silent=settings.output.format == "quiet" or helps) as progress:
        session = settings.session(where, listener=progress, **cache.arguments())
        try:
            yield session
        except Exception as error:
            from attempt_cli.training.loop import NotFiniteError, TrainingStoppedError

            # all processes meet these together, and one of them says it
            if helps and isinstance(error, TrainingStoppedError | NotFiniteError):
                sys.exit(error.exit_code)
            raise


def report(settings: Settings, outcome: Outcome | None) -> None:
    """Says what was made and what to type next; nothing on processes that only helped."""
    if outcome is None:
        return
    for warning in outcome.trained.warnings:
        settings.output.note(f"Warning: {warning}")
    for note in outcome.notes:
        settings.output.note(f"{note[0].upper()}{note[1:]}.")
    settings.output.record("training", _record(settings, outcome))
    if hint := _next(outcome):
        settings.output.note(f"Next: {hint}")


def _record(settings: Settings, outcome: Outcome) -> dict[str, Any]:
    request, made = outcome.request, {"composition": outcome.composition, "attention": outcome.attention}
    numbers = {**_shown(settings, outcome.trained.numbers), **({"test": outcome.test} if outcome.test else {})}
    if len(request.tasks) == 1 and request.keep == "targets" and request.onto is None:
        return {
            "name": outcome.prompt or request.name,
            "kind": request.kind,
            "method": request.config.method,
            "task": request.tasks[0].task.name,
            **(made if outcome.composition else {}),
            "trained_parameters": outcome.trained_parameters,
            "training_rows": sum(outcome.rows.values()),
            **numbers,
            "run": outcome.run,
        }
    return {
        "name": outcome.composition or outcome.attention or request.name,
        **({"composition": outcome.composition, "prompts": outcome.prompts} if outcome.composition else {}),
        **({"attention": outcome.attention} if outcome.attention or request.config.row.kept else {}),
        "tasks": list(outcome.rows),
        "trained_parameters": outcome.trained_parameters,
        "parameters_per_task": round(outcome.parameters_per_task, 1),
        "training_rows": outcome.rows,
        **numbers,
        "run": outcome.run,
    }


def _next(outcome: Outcome) -> str | None:
    """Returns what to type next."""
    from attempt_cli.data.catalogue import task_names

    if outcome.request.keep == "attention":
        return f"`attempt train-target TASK --sources … --attention-from {outcome.attention}`"
    if outcome.prompt is None:
        if not outcome.test:
            return None
        test = outcome.test if len(outcome.rows) == 1 else next(iter(outcome.test.values()))
        return f"`attempt compare {test['run']} RUN`, with a run on the same rows"
    model = f"--composition {outcome.composition}" if outcome.composition else f"--prompt {outcome.prompt}"
    known = all(task in task_names() for task in outcome.prompts)
    rows = "--tasks FILE.yaml,…" if len(outcome.prompts) > 1 else "--test-file FILE"
    rows = f"--tasks {','.join(outcome.prompts)}" if known else rows
    return f"`attempt eval {rows} {model}`"


def _shown(settings: Settings, numbers: dict[str, Any]) -> dict[str, Any]:
    """Returns a training's numbers, for people with the memory in units that they know."""
    from attempt_cli.byte_sizes import size_text

    if settings.output.format == "json" or "peak_memory" not in numbers:
        return numbers
    return {**numbers, "peak_memory": size_text(numbers["peak_memory"])}
