"""Requests for trainings on tasks whose rows are in files."""

from __future__ import annotations

from typing import Any

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.task import Task
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.request import Outcome, Request, load_task_rows
from attempt_cli.training.run import train
from attempt_registry import Registry


def request_for(*tasks: Task, config: TrainingConfig, name: str, limit: int | None = None, **rest: Any) -> Request:
    """A request for a training on the tasks' own rows; `rest` as in `Request`."""
    rows = tuple(load_task_rows(task, config, limit=limit) for task in tasks)
    return Request(tasks=rows, config=config, name=name, **rest)


def trained(registry: Registry, backbone: FrozenBackbone, request: Request, **arguments: Any) -> Outcome:
    """What a training left in the registry; `arguments` as in `train`."""
    outcome = train(registry, backbone, request, **arguments)
    assert outcome is not None
    return outcome
