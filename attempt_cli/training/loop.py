"""The training loop: from rows to a prompt, with checkpoints that any kill can be resumed from."""

from __future__ import annotations

import math
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.errors import AttemptError, StoppedError
from attempt_cli.listener import Listener
from attempt_cli.method import PromptModule
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from attempt_cli.training.compiling import CompileTrial, compiling_pays
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.diagnosis import first_and_last, moved, samples, warnings_of
from attempt_cli.training.gradient import Positions, gradient_step, trained_tensors
from attempt_cli.training.graphs import StepGraphs, graphs_pay
from attempt_cli.training.memory import PeakMemory
from attempt_cli.training.methods import RATES
from attempt_cli.training.order import BatchOrder
from attempt_cli.training.processes import Processes
from attempt_cli.training.signals import caught_signals

SECONDS_BETWEEN_CHECKPOINTS = 15.0
# of the time, at the most, that goes into writing them between evaluations: all weights of a model take long
CHECKPOINT_SHARE = 0.05
# a GPU computes ahead of us; it is waited for only so often, to look at its losses
STEPS_BETWEEN_LOOKS = 16

# Evaluates the model as it is: the metrics by name, the one that chooses first, and the log-likelihood per row.
Scores = tuple[dict[str, float], float]
Evaluate = Callable[[PromptedModel], Scores]


class TrainingStoppedError(StoppedError):
    """A training that was stopped from outside, with a checkpoint to continue from."""


class NotFiniteError(AttemptError):
    """A loss or a gradient that is no longer a number."""


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Args:
        state: steps, losses, evaluations and the best step.
        total: the steps that were planned.
        warnings: what the user should know.
        moved: how far what is kept went from its start, over the norm of the start (of the prompts, where there are).
    """

    state: TrainingState
    total: int
    warnings: list[str]
    moved: float

    @property
    def numbers(self) -> dict[str, Any]:
        """What a record keeps."""
        first, last = first_and_last(self.state.losses)
        numbers: dict[str, Any] = {
            "steps": self.state.step,
            "first_loss": round(first, 4),
            "last_loss": round(last, 4),
            "seconds": round(self.state.seconds, 1),
            "peak_memory": self.state.peak_memory,
            "moved": float(f"{self.moved:.3g}"),
        }
        computed, real = self.state.positions
        if real:
            numbers["padding"] = round(computed / real, 3)  # computed positions a real one
        if self.state.compiled:
            numbers["compiled"] = True
        if self.state.graphs:
            numbers["graphs"] = self.state.graphs
        if self.state.bank > 1:
            numbers["bank"] = self.state.bank
        best = next((entry for entry in self.state.history if entry["step"] == self.state.best_step), None)
        if best:
            numbers["best_step"] = best["step"]
            numbers["validation"] = best["metrics"]
        return numbers


def make_optimizer(module: PromptModule | TunedWeights, config: TrainingConfig) -> torch.optim.AdamW:
    """Makes AdamW with a learning rate of its own for prompts, for all of G, and for weights."""
    groups = [
        {"name": name, "params": tensors, "peak": getattr(config, RATES[name])}
        for name, tensors in module.param_groups().items()
    ]
    on_gpu = any(tensor.is_cuda for tensor in module.parameters())  # one kernel for all tensors, not a dozen
    return torch.optim.AdamW(
        groups, lr=config.learning_rate, weight_decay=config.weight_decay, fused=True if on_gpu else None
    )


@dataclass
class TrainingLoop:
    """One training of a model's mixture or weights, in place.

    The loss of a step is the mean over the target tokens of all its rows, whatever micro-batches and processes they
    are spread over.

    Args:
        model: the backbone and what is to be trained.
        rows: the training rows with their targets.
        config: the settings.
        evaluate: scores validation rows; None keeps the last step.
        checkpoint: the file of the training's state.
        key: names this training; a checkpoint of another key is refused.
        listener: is told every step and evaluation, and can stop the training.
        processes: this process's place among those that share the work.
        mix: each row's task, and how many rows of each task an epoch holds; without it an epoch is all rows.
    """

    model: PromptedModel
    rows: Sequence[EncodedRow]
    config: TrainingConfig
    evaluate: Evaluate | None
    checkpoint: Path
    key: str
    listener: Listener
    processes: Processes
    mix: tuple[Sequence[int], Sequence[int]] | None = None

    def __post_init__(self) -> None:
        model, rows, config, mix, processes = self.model, self.rows, self.config, self.mix, self.processes
        self.module = model.trained
        self.optimizer = make_optimizer(self.module, config)
        self.before = samples(self.module)
        self.state = TrainingState()
        lengths = [len(row.input_ids) + len(row.target_ids) for row in rows]
        self.order = BatchOrder(lengths, config.rows_per_step(processes.count), config.seed, *(mix or ()))
        self.total = config.total_steps(sum(mix[1]) if mix else len(rows), processes.count)
        self.eval_every = config.eval_every if config.eval_every is not None else max(1, self.total // 10)
        self.look_every = STEPS_BETWEEN_LOOKS if model.backbone.device.type == "cuda" else 1
        self.told, self.rows_since, self.since = 0, 0, time.monotonic()  # when the listener was told a step last
        self.graphs: StepGraphs | None = None
        self.pending: list[Tensor] = []  # loss and gradient norm of steps whose numbers nobody has looked at yet

    def train(self, resume: bool = False) -> Trained:
        """Takes all steps; at the end the model holds the best evaluated state, or the last.

        Args:
            resume: continue from the checkpoint, where there is one.

        Raises:
            TrainingStoppedError: stopped by a signal or by the listener; the checkpoint is written.
            NotFiniteError: the loss or its gradient is no longer a number; the last checkpoint before is kept.
        """
        self.begin(resume)
        with caught_signals() as signals:
            self.run(signals)
        self.model.backbone.fetch([])  # lets go of what was sent for a step that does not come
        return self.end()

    def end(self) -> Trained:
        """Saves the state, and puts the best evaluated one into the model."""
        self.save()
        self.tell()
        self.state.graphs = max(self.state.graphs, self.graphs.count if self.graphs is not None else 0)
        self.graphs = None  # their memory goes to what comes next
        way = moved(self.before, self.module)
        warnings = warnings_of(self.state, self.before, way, self.config)
        if self.state.best:
            self.module.load_state_dict(self.state.best)
            way = moved(self.before, self.module)
        return Trained(self.state, self.total, warnings, way)

    def begin(self, resume: bool) -> None:
        """Loads the checkpoint where it is wanted, and compiles the layers where that is settled."""
        if resume and self.checkpoint.exists():
            self.state = load_checkpoint(self.checkpoint, self.key, self.module, self.optimizer)
        elif resume:
            self.listener.unfinished(
                "No checkpoint of this very training (command, rows, sources) is there: it starts at step 0."
            )
        elif self.checkpoint.exists():
            self.listener.unfinished(
                "An unfinished training of the same command is replaced; --resume would continue it."
            )
        self.told = self.state.step
        self.first, self.positions = self.state.step, Positions(*self.state.positions)
        self.saved_at = time.monotonic()
        self.began = self.saved_at - self.state.seconds
        self.saving = 0.0
        self.memory = PeakMemory(self.model.backbone.devices)
        self.listener.start(self.state.step, self.total)
        self.trial = CompileTrial(self.model, self.config, self.processes, self.listener.note)
        next_rows = [self.batch(self.state.step)] if self.state.step < self.total else []
        self.state.compiled = self.trial.settle(self.state.compiled, next_rows)
        self.graphs = None

    def run(self, signals: list[int]) -> None:
        """Takes the steps that are left."""
        state, config = self.state, self.config
        if graphs_pay(self.model, config, self.processes, self.total):
            self.graphs = StepGraphs(self.model, self.listener.note)
            state.compiled = bool(state.compiled)  # the trial would time what the graphs do away with
        self.score_start()
        while self.has_steps():
            if self.processes.any(bool(signals) or self.listener.stopped):
                self.save()
                raise TrainingStoppedError(
                    f"stopped at step {state.step} of {self.total}; nothing is lost",
                    "Continue with the same command and --resume.",
                )
            started = time.monotonic()
            if not self.rows_since:  # what went before (an evaluation, a trial of the compiler) is no time of steps
                self.since = started
            rows = self.batch(state.step)
            with self.module.in_step(state.step, self.total):
                loss = gradient_step(self.model, rows, config, self.processes, self.positions, self.graphs)
            fetch_next([self])
            self.update(loss)
            self.rows_since += len(rows)
            if not self.pending:
                self.tell()
            left = self.total - state.step
            if state.compiled is None and (worth := self.trial.worth_trying(started, left)) is not None:
                state.compiled = False
                if worth:
                    self.save()  # whoever stops it in the minutes that follow loses nothing
                    seen = [self.batch(step) for step in (state.step - 2, state.step - 1)]
                    state.compiled = compiling_pays(self.model, seen, config, left, self.listener.note)
            self.after_step()

    def has_steps(self) -> bool:
        """Tells whether steps are left that the settings want."""
        if self.state.step >= self.total:
            return False
        patience = self.config.patience
        # on a GPU two processes may score a hair apart: they leave together or not at all
        return patience is None or not self.processes.any(self.state.stale >= patience)

    def update(self, loss: Tensor) -> None:
        """Takes a step along the gradient that is there.

        Raises:
            NotFiniteError: a loss or a gradient was no number.
        """
        factor = self.config.learning_rate_factor(*self.module.schedule(self.state.step, self.total))
        for group in self.optimizer.param_groups:
            group["lr"] = group["peak"] * factor
        norm = torch.nn.utils.clip_grad_norm_(trained_tensors(self.module), self.config.clip_norm)
        self.pending.append(torch.stack([loss, norm.to(loss.device)]))
        if len(self.pending) >= self.look_every:
            self.read_pending()
        self.optimizer.step()
        self.optimizer.zero_grad(set_to_none=True)
        self.state.step += 1

    @property
    def scores_start(self) -> bool:
        """Whether what the training starts from is to be scored now."""
        return self.state.step == 0 and bool(self.eval_every) and not self.state.history

    @property
    def scores_step(self) -> bool:
        """Whether the step that was just taken is to be scored."""
        return bool(self.eval_every) and (self.state.step % self.eval_every == 0 or self.state.step == self.total)

    def score_start(self, found: Scores | None = None) -> None:
        """Scores what the training starts from; `found` as in `score`."""
        if self.scores_start:
            self.score(found)

    def after_step(self, found: Scores | None = None) -> None:
        """Scores and saves when it is time to; `found` as in `score`."""
        if self.scores_step:
            self.read_pending()
            self.tell()
            self.score(found)
            self.save()
        elif time.monotonic() - self.saved_at > max(SECONDS_BETWEEN_CHECKPOINTS, self.saving / CHECKPOINT_SHARE):
            self.save()
            self.tell()

    def tell(self) -> None:
        """Tells the listener the newest step whose loss is known, and the rows a second since the one before."""
        now = time.monotonic()
        if self.state.step > self.told and not self.pending:
            self.listener.step(self.state.step, self.state.losses[-1], self.rows_since / max(1e-9, now - self.since))
            self.told = self.state.step
        self.rows_since, self.since = 0, now

    def batch(self, step: int) -> list[EncodedRow]:
        """Returns the rows of a step."""
        return [self.rows[i] for i in self.order.batch(step)]

    def score(self, found: Scores | None = None) -> None:
        """Scores the validation rows, and keeps the state if it is the best so far.

        Args:
            found: the scores of this state, where they are known.
        """
        if self.evaluate is None:
            return
        state = self.state
        with self.model.backbone.as_loaded():  # it is scored as it will be when it is used
            metrics, log_likelihood = self.evaluate(self.model) if found is None else found
        # NaN compares false with everything: as a first score it would never be beaten
        first, second = (-math.inf if math.isnan(x) else x for x in (next(iter(metrics.values())), log_likelihood))
        better = state.best_score is None or (first, second) > state.best_score
        if better:
            state.best_step, state.best_score, state.stale = state.step, (first, second), 0
            state.best = {name: tensor.detach().clone() for name, tensor in self.module.state_dict().items()}
        else:
            state.stale += 1
        state.history.append({"step": state.step, "metrics": metrics})
        self.listener.evaluation(state.step, metrics, better)

    def read_pending(self) -> None:
        """Takes the losses over; one that is not a number is found before anything is kept of it."""
        for loss, norm in torch.stack(self.pending).tolist() if self.pending else []:
            # a finite loss may have a gradient that is not: the prompt would be lost, and the checkpoint after it
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise self.not_finite(len(self.state.losses) + 1)
            self.state.losses.append(loss)
        self.pending.clear()

    def save(self) -> None:
        """Writes a checkpoint of the state as it is."""
        self.read_pending()
        state, started = self.state, time.monotonic()
        state.seconds = started - self.began
        state.positions = (self.positions.computed, self.positions.real)
        if state.step > self.first:  # a run of no step says nothing of what steps take
            state.peak_memory = max(state.peak_memory, self.memory.bytes())
        if self.processes.is_main:
            save_checkpoint(self.checkpoint, self.key, state, self.module, self.optimizer)
        self.saved_at = time.monotonic()
        self.saving = self.saved_at - started

    def not_finite(self, step: int) -> NotFiniteError:
        kept = f"; the checkpoint before it is kept at {self.checkpoint}" if self.checkpoint.exists() else ""
        return NotFiniteError(
            f"the loss is not a number at step {step}{kept}",
            f"Train with a lower --learning-rate than {self.config.learning_rate:g}"
            f" (G: --attention-learning-rate, now {self.config.attention_learning_rate:g}), or with --dtype float32.",
        )


def fetch_next(loops: Sequence[TrainingLoop]) -> None:
    """Sends kept inputs of the loops' next steps to a GPU, which still computes this one."""
    model = loops[0].model
    if not model.backbone.on_gpu or model.placement != "after":
        return
    coming: list[EncodedRow] = []
    for loop in loops:
        if loop.state.step + 1 < loop.total:
            coming += loop.batch(loop.state.step + 1)[loop.processes.index :: loop.processes.count]
    model.backbone.fetch(coming)
