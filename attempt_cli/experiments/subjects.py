"""Makes the model that a cell scores: untrained, trained on a task alone, or trained on several tasks at once."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from attempt_cli.artefacts import Loaded
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.rows import Rows
from attempt_cli.data.task import Task
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import WEIGHT_METHODS, TrainingConfig
from attempt_cli.training.loop import Listener
from attempt_cli.training.many import ManyOutcome, ManyRequest, train_many
from attempt_cli.training.recipes import Request, train_prompt
from attempt_registry import Attention, Prompt, Registry


@dataclass(frozen=True)
class Parts:
    """Holds what a training starts from, besides its rows.

    Args:
        config: the settings, with method and seed.
        start: the prompt it starts from; where nothing is trained, the prompt that is scored.
        mixed: the source prompts that are mixed.
        attention: the trained G that it starts from.
    """

    config: TrainingConfig
    start: Prompt | None = None
    mixed: tuple[Prompt, ...] = ()
    attention: Attention | None = None


@dataclass(frozen=True)
class Subject:
    """Holds a model to score.

    Args:
        model: ready to predict.
        name: a prompt's or a composition's full name, or "no prompt".
        inputs: its records, as a run names them.
        config: the settings it was trained with; untrained, the settings for reading rows.
        sources: names of the sources, in the order of the attention's weights.
        steps: optimiser steps of the task.
        trained_parameters: the number of parameters that were trained for the task.
        numbers: the training's numbers, as a run records them.
        warnings: the training's warnings.
    """

    model: PromptedModel
    name: str
    inputs: Sequence[str]
    config: TrainingConfig
    sources: tuple[str, ...] = ()
    steps: int = 0
    trained_parameters: int = 0
    numbers: Mapping[str, Any] = field(default_factory=dict)
    warnings: Sequence[str] = ()


OnTrained = Callable[[PromptedModel], None]


@dataclass(frozen=True)
class Workshop:
    """Makes trainings and records them.

    Args:
        registry: holds the prompts and the runs.
        backbone: the model they belong to.
        command: as it was typed.
        tags: for the registry.
        resume: continues unfinished trainings from their checkpoints.
        data_dir: rows in the hub's layout.
        train_limit: the most training rows of a task.
    """

    registry: Registry
    backbone: FrozenBackbone
    command: str = ""
    tags: tuple[str, ...] = ()
    resume: bool = False
    data_dir: Path | None = None
    train_limit: int | None = None

    def train_one(
        self,
        task: Task,
        kind: str,
        name: str,
        rows: tuple[Rows, Rows | None],
        parts: Parts,
        listener: Listener | None,
        on_trained: OnTrained,
    ) -> Subject:
        """Trains on one task.

        Args:
            kind: "source" or "target".
            name: the prompt's name in the registry.
            rows: training rows, and the rows that choose the checkpoint (None: the last step counts).
            on_trained: is called with the trained model before anything is recorded.
        """
        train, validation = rows
        if parts.attention is not None:  # only the training on several tasks takes a given G
            given = (train,) if validation is None else ()
            (subject,) = self.train_together((task,), name, given, (parts,), listener, on_trained)
            return subject
        request = Request(
            task=task,
            kind=kind,
            name=name,
            config=parts.config,
            sources=parts.mixed,
            init_from=parts.start,
            train_rows=train,
            validation_rows=validation,
            command=self.command,
            tags=self.tags,
        )
        outcome = train_prompt(
            self.registry, self.backbone, request, resume=self.resume, listener=listener, look=on_trained
        )
        assert outcome is not None
        kept = {"prompt": outcome.prompt, "composition": outcome.composition}
        made = [f"{kind}:{ref}" for kind, ref in kept.items() if ref is not None]
        return Subject(
            outcome.model,
            outcome.composition or outcome.prompt or f"{name} (run {outcome.run})",  # weights are not kept
            made,
            parts.config,
            tuple(prompt.ref for prompt in parts.mixed),
            steps=outcome.trained.state.step,
            trained_parameters=outcome.trained_parameters,
            numbers=outcome.trained.numbers,
            warnings=outcome.trained.warnings,
        )

    def train_together(
        self,
        tasks: Sequence[Task],
        name: str,
        trains: Sequence[Rows],
        parts: Sequence[Parts],
        listener: Listener | None,
        on_trained: OnTrained,
    ) -> list[Subject]:
        """Trains several tasks with one G, each for as many steps as alone, and returns a subject for each.

        Args:
            trains: training rows of each task, without validation; empty takes the tasks' own rows, and their
                validation rows choose the checkpoint.
            parts: one for each task; settings, sources and G are the first one's.
            on_trained: as in `train_one`.
        """
        config = _for_all(parts[0].config, len(tasks))
        weights = config.method in WEIGHT_METHODS
        request = ManyRequest(
            tasks=tuple(tasks),
            name=name,
            config=config,
            keep="shared" if weights else "targets",
            sources=parts[0].mixed,
            init_from=() if weights else tuple(part.start for part in parts),
            attention_from=parts[0].attention,
            train_rows=tuple(trains),
            train_limit=self.train_limit,
            data_dir=self.data_dir,
            command=self.command,
            tags=self.tags,
        )
        outcome = self._many(request, listener, on_trained)
        return [
            Subject(
                outcome.model,
                f"{outcome.prompts[task.name]} of {outcome.composition}"
                if outcome.prompts
                else f"{name} (run {outcome.run})",
                [f"composition:{outcome.composition}", f"prompt:{outcome.prompts[task.name]}"]
                if outcome.prompts
                else [],
                part.config,
                tuple(prompt.ref for prompt in part.mixed),
                steps=round(outcome.trained.state.step / len(tasks)),
                trained_parameters=round(outcome.parameters_per_task),
                numbers={
                    **outcome.trained.numbers,
                    "seconds": outcome.trained.numbers.get("seconds", 0.0) / len(tasks),
                },
                warnings=outcome.trained.warnings if index == 0 else (),
            )
            for index, (task, part) in enumerate(zip(tasks, parts, strict=True))
        ]

    def prepare(
        self,
        kind: str,
        tasks: Sequence[Task],
        name: str,
        config: TrainingConfig,
        sources: tuple[Prompt, ...],
        listener: Listener | None,
    ) -> str:
        """Trains on the source tasks what targets start from: the attention prior, or one prompt for all.

        Args:
            kind: a name in `methods.PREPARED`.

        Returns:
            The full name of the attention, or of the prompt.
        """
        request = ManyRequest(
            tasks=tuple(tasks),
            name=name,
            config=_for_all(config, len(tasks)),
            keep="attention" if kind == "attention" else "shared",
            sources=sources if kind == "attention" else (),
            train_limit=self.train_limit,
            data_dir=self.data_dir,
            command=self.command,
            tags=self.tags,
        )
        outcome = self._many(request, listener)
        made = outcome.attention if kind == "attention" else next(iter(outcome.prompts.values()))
        assert made is not None
        return made

    def _many(
        self, request: ManyRequest, listener: Listener | None, on_trained: OnTrained | None = None
    ) -> ManyOutcome:
        outcome = train_many(
            self.registry, self.backbone, request, resume=self.resume, listener=listener, look=on_trained
        )
        assert outcome is not None
        return outcome


def as_it_stands(loaded: Loaded, config: TrainingConfig) -> Subject:
    """Makes the subject of an untrained model."""
    return Subject(loaded.model, loaded.name, loaded.inputs, config)


def _for_all(config: TrainingConfig, tasks: int) -> TrainingConfig:
    """Returns the settings of a training on several tasks: each has the steps that it would have alone."""
    steps = config.steps if config.epochs is not None else config.total_steps(0)
    return config.model_copy(update={"steps": steps and steps * tasks})
