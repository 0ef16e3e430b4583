"""A training in this process, without files or a registry: `training.loop.TrainingLoop` on a tiny backbone."""

from __future__ import annotations

import os
import signal
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.listener import Listener
from attempt_cli.method import PromptAttention, PromptMixture, rms_temperature
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.initial import vocabulary_prompt
from attempt_cli.training.loop import Evaluate, Trained, TrainingLoop
from attempt_cli.training.processes import Processes
from tests.training.toy import toy_rows

LENGTH, RANK = 4, 3


def model(backbone: FrozenBackbone, *, sources: int = 0, seed: int = 0) -> PromptedModel:
    """A prompt of four words in RMS units; with sources ATTEMPT's mixture."""
    generator = torch.Generator().manual_seed(seed)
    scale = backbone.embedding_rms
    drawn = [vocabulary_prompt(backbone, LENGTH, generator) / scale for _ in range(1 + sources)]
    if not sources:
        return PromptedModel(backbone, PromptMixture(drawn[0][None]), scale)
    attention = PromptAttention(backbone.width, RANK, rms_temperature(backbone.width), generator=generator)
    return PromptedModel(backbone, PromptMixture(drawn[0][None], torch.stack(drawn[1:]), attention), scale)


def encoded(backbone: FrozenBackbone, count: int, seed: int = 0) -> list[EncodedRow]:
    """Toy rows with their label words as targets: of one token, and every fifth of several."""
    rows = toy_rows(count, seed)
    targets = [
        backbone.target_tokens(row["mood"] if number % 5 else f"{row['mood']}, {row['text'][:6]}", end=False)
        for number, row in enumerate(rows)
    ]
    return backbone.encode([row["text"] + " label:" for row in rows], targets, 256)


@dataclass
class Recorder(Listener):
    """A listener that notes what it is told, and can stop the training as Ctrl-C does.

    Args:
        interrupt_at: the step after which this process sends itself SIGINT.
    """

    interrupt_at: int | None = None
    began: tuple[int, int] = (0, 0)
    steps: list[int] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    evaluations: list[tuple[int, bool]] = field(default_factory=list)

    def start(self, step: int, total: int) -> None:
        self.began = (step, total)

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self.steps.append(step)
        if step == self.interrupt_at:
            os.kill(os.getpid(), signal.SIGINT)

    def note(self, text: str) -> None:
        self.notes.append(text)

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None:
        self.evaluations.append((step, best))


def run(trained: PromptedModel, rows: Sequence[EncodedRow], checkpoint: Path, **settings: Any) -> Trained:
    """Trains in place.

    Args:
        settings: those of TrainingConfig, and `evaluate`, `resume`, `listener`, `key` of `TrainingLoop`.
    """
    evaluate: Evaluate | None = settings.pop("evaluate", None)
    resume: bool = settings.pop("resume", False)
    own = {"listener": Recorder(), "key": "key"}
    own = {name: settings.pop(name, default) for name, default in own.items()}
    config = TrainingConfig(prompt_length=LENGTH, attention_rank=RANK, **settings)
    loop = TrainingLoop(trained, rows, config, evaluate, checkpoint, processes=Processes(), **own)  # type: ignore[arg-type]
    return loop.train(resume)
