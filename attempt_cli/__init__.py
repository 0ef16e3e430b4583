"""ATTEMPT: multi-task tuning of a frozen language model by attentional mixtures of soft prompts.

import attempt_cli as attempt

attempt.train_source("shop-reviews", steps=60)
model = attempt.load("shop-reviews")
model.predict(["Broke after a day."])

docs/python.md shows all of it. Nothing heavy is imported before a name is used.
"""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from attempt_cli.api.exchange import add_starters, export, import_from
    from attempt_cli.api.experiments import fewshot, reproduce, sweep
    from attempt_cli.api.scoring import Model, compare, compose, evaluate, flatten, inspect, load, predict, rank_sources
    from attempt_cli.api.serving import serve
    from attempt_cli.api.sharing import Pulled, Pushed, pull, push
    from attempt_cli.api.training import train_attention, train_source, train_target
    from attempt_cli.changes import Changes
    from attempt_cli.data.catalogue import load_task
    from attempt_cli.data.own_files import task_from_files
    from attempt_cli.data.task import Task
    from attempt_cli.errors import StoppedError
    from attempt_cli.evaluation.comparison import RunComparison
    from attempt_cli.evaluation.flattening import Flattened
    from attempt_cli.evaluation.inspection import Inspection
    from attempt_cli.evaluation.ranking import SourceRanking
    from attempt_cli.evaluation.record import EvaluationResult
    from attempt_cli.evaluation.serving import Prediction
    from attempt_cli.exchange.exporting import Exported
    from attempt_cli.exchange.importing import Imported
    from attempt_cli.experiments.report import Report
    from attempt_cli.experiments.run import FewShotResult
    from attempt_cli.experiments.sweep import SweepResult
    from attempt_cli.listener import Listener
    from attempt_cli.session import Session
    from attempt_cli.training.loop import TrainingStoppedError
    from attempt_cli.training.request import Outcome
    from attempt_registry.errors import AttemptError
    from attempt_registry.records import Attention, Composition, Prompt, Run
    from attempt_registry.store import Registry

__version__ = "0.1.0"

__all__ = [
    "AttemptError",
    "Attention",
    "Changes",
    "Composition",
    "EvaluationResult",
    "Exported",
    "FewShotResult",
    "Flattened",
    "Imported",
    "Inspection",
    "Listener",
    "Model",
    "Outcome",
    "Prediction",
    "Prompt",
    "Pulled",
    "Pushed",
    "Registry",
    "Report",
    "Run",
    "RunComparison",
    "Session",
    "SourceRanking",
    "StoppedError",
    "SweepResult",
    "Task",
    "TrainingStoppedError",
    "add_starters",
    "compare",
    "compose",
    "evaluate",
    "export",
    "fewshot",
    "flatten",
    "import_from",
    "inspect",
    "load",
    "load_task",
    "predict",
    "pull",
    "push",
    "rank_sources",
    "reproduce",
    "serve",
    "sweep",
    "task_from_files",
    "train_attention",
    "train_source",
    "train_target",
]

_MODULES = {
    "AttemptError": "attempt_registry.errors",
    "Attention": "attempt_registry.records",
    "Changes": "attempt_cli.changes",
    "Composition": "attempt_registry.records",
    "EvaluationResult": "attempt_cli.evaluation.record",
    "Exported": "attempt_cli.exchange.exporting",
    "FewShotResult": "attempt_cli.experiments.run",
    "Flattened": "attempt_cli.evaluation.flattening",
    "Imported": "attempt_cli.exchange.importing",
    "Inspection": "attempt_cli.evaluation.inspection",
    "Listener": "attempt_cli.listener",
    "Model": "attempt_cli.api.scoring",
    "Outcome": "attempt_cli.training.request",
    "Prediction": "attempt_cli.evaluation.serving",
    "Prompt": "attempt_registry.records",
    "Pulled": "attempt_cli.api.sharing",
    "Pushed": "attempt_cli.api.sharing",
    "Registry": "attempt_registry.store",
    "Report": "attempt_cli.experiments.report",
    "Run": "attempt_registry.records",
    "RunComparison": "attempt_cli.evaluation.comparison",
    "Session": "attempt_cli.session",
    "SourceRanking": "attempt_cli.evaluation.ranking",
    "StoppedError": "attempt_cli.errors",
    "SweepResult": "attempt_cli.experiments.sweep",
    "Task": "attempt_cli.data.task",
    "TrainingStoppedError": "attempt_cli.training.loop",
    "add_starters": "attempt_cli.api.exchange",
    "compare": "attempt_cli.api.scoring",
    "compose": "attempt_cli.api.scoring",
    "evaluate": "attempt_cli.api.scoring",
    "export": "attempt_cli.api.exchange",
    "fewshot": "attempt_cli.api.experiments",
    "flatten": "attempt_cli.api.scoring",
    "import_from": "attempt_cli.api.exchange",
    "inspect": "attempt_cli.api.scoring",
    "load": "attempt_cli.api.scoring",
    "load_task": "attempt_cli.data.catalogue",
    "predict": "attempt_cli.api.scoring",
    "pull": "attempt_cli.api.sharing",
    "push": "attempt_cli.api.sharing",
    "rank_sources": "attempt_cli.api.scoring",
    "reproduce": "attempt_cli.api.experiments",
    "serve": "attempt_cli.api.serving",
    "sweep": "attempt_cli.api.experiments",
    "task_from_files": "attempt_cli.data.own_files",
    "train_attention": "attempt_cli.api.training",
    "train_source": "attempt_cli.api.training",
    "train_target": "attempt_cli.api.training",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module 'attempt_cli' has no attribute '{name}'")
    found = globals()[name] = getattr(importlib.import_module(_MODULES[name]), name)
    return found


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
