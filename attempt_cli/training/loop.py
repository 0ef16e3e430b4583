"""The training loop: from rows to a prompt, with checkpoints that any kill can be resumed from."""

from __future__ import annotations

import math
import signal
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import torch
from torch import Tensor

from attempt_cli.backbones.machine import wait
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptModule
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from attempt_cli.training.compiling import MEASURED_STEPS, compile_now, compiling_pays, worth_trying
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.gradient import Positions, gradient_step, trained_tensors
from attempt_cli.training.memory import PeakMemory
from attempt_cli.training.order import BatchOrder
from attempt_cli.training.processes import Processes

SECONDS_BETWEEN_CHECKPOINTS = 15.0
# of the time, at the most, that goes into writing them between evaluations: all weights of a model take long
CHECKPOINT_SHARE = 0.05
# a GPU computes ahead of us; it is waited for only so often, to look at its losses
STEPS_BETWEEN_LOOKS = 16
# of a tensor, to see whether a training moves it
SAMPLED_ENTRIES = 65_536

# Evaluates the model as it is: the metrics by name, the one that chooses first, and the log-likelihood per row.
Evaluate = Callable[[PromptedModel], tuple[dict[str, float], float]]


class Listener(Protocol):
    """Is told how a training goes."""

    def start(self, step: int, total: int) -> None: ...

    def note(self, text: str) -> None: ...

    def step(self, step: int, loss: float, rows_per_second: float) -> None: ...

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None: ...


class TrainingStoppedError(AttemptError):
    """A training that was stopped from outside, with a checkpoint to go on from."""

    exit_code = 130


class NotFiniteError(AttemptError):
    """A loss or a gradient that is no longer a number."""


@dataclass(frozen=True)
class Trained:
    """How a training ended.

    Args:
        state: steps, losses, evaluations and the best step.
        total: the steps that were planned.
        warnings: what the user should know.
    """

    state: TrainingState
    total: int
    warnings: list[str]

    @property
    def numbers(self) -> dict[str, Any]:
        """What a record keeps."""
        losses = self.state.losses
        numbers: dict[str, Any] = {
            "steps": self.state.step,
            "first_loss": round(_mean(losses[: _tenth(losses)]), 4),
            "last_loss": round(_mean(losses[-_tenth(losses) :]), 4),
            "seconds": round(self.state.seconds, 1),
            "peak_memory": self.state.peak_memory,
        }
        computed, real = self.state.positions
        if real:
            numbers["padding"] = round(computed / real, 3)  # computed positions a real one
        if self.state.compiled:
            numbers["compiled"] = True
        best = next((entry for entry in self.state.history if entry["step"] == self.state.best_step), None)
        if best:
            numbers["best_step"] = best["step"]
            numbers["validation"] = best["metrics"]
        return numbers


def make_optimizer(module: PromptModule | TunedWeights, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with a speed of its own for target prompts, for all of G, and for weights."""
    peaks = {
        "prompts": config.learning_rate,
        "attention": config.attention_learning_rate,
        "weights": config.weight_learning_rate,
    }
    groups = [{"name": name, "params": tensors, "peak": peaks[name]} for name, tensors in module.param_groups().items()]
    return torch.optim.AdamW(groups, lr=config.learning_rate, weight_decay=config.weight_decay)


def train(
    model: PromptedModel,
    rows: Sequence[EncodedRow],
    config: TrainingConfig,
    *,
    evaluate: Evaluate | None,
    checkpoint: Path,
    key: str,
    resume: bool,
    listener: Listener,
    processes: Processes,
    mix: tuple[Sequence[int], Sequence[int]] | None = None,
) -> Trained:
    """Trains the model's mixture or weights in place; at the end it holds the best evaluated state, or the last.

    The loss of a step is the mean over the target tokens of all its rows, whatever micro-batches and processes they
    are spread over.

    Args:
        model: the backbone and what is to be trained.
        rows: the training rows with their targets.
        config: the settings.
        evaluate: looks at validation rows; None keeps the last step.
        checkpoint: the file of the training's state.
        key: names this training; a checkpoint of another key is refused.
        resume: go on from the checkpoint, where there is one.
        listener: is told every step and evaluation.
        processes: this process's place among those that share the work.
        mix: each row's task, and how many rows of each task an epoch holds; without it an epoch is all rows.

    Raises:
        TrainingStoppedError: stopped by a signal; the checkpoint is written.
        NotFiniteError: the loss or its gradient is no longer a number; the last checkpoint before is kept.
    """
    module = model.trained
    optimizer = make_optimizer(module, config)
    initial = _samples(module)
    state = TrainingState()
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, key, module, optimizer)
    elif resume:
        listener.note("There is no checkpoint of this very training (command, rows, sources): it starts at step 0.")
    elif checkpoint.exists():
        listener.note("An unfinished training of the same command is there and is replaced; --resume would go on.")
    lengths = [len(row.input_ids) + len(row.target_ids) for row in rows]
    order = BatchOrder(lengths, config.rows_per_step(processes.count), config.seed, *(mix or ()))
    total = config.total_steps(len(rows), processes.count)
    eval_every = config.eval_every if config.eval_every is not None else max(1, total // 10)
    began = time.monotonic() - state.seconds
    saved_at = time.monotonic()
    saving = 0.0

    def save() -> None:
        nonlocal saving, saved_at
        started = time.monotonic()
        state.seconds = started - began
        state.positions = (positions.computed, positions.real)
        if state.step > first:  # a run of no step says nothing of what steps take
            state.peak_memory = max(state.peak_memory, memory.bytes())
        if processes.is_main:
            save_checkpoint(checkpoint, key, state, module, optimizer)
        saved_at = time.monotonic()
        saving = saved_at - started

    def look() -> None:
        if evaluate is None:
            return
        with model.backbone.as_loaded():  # it is scored as it will be when it is used
            metrics, log_likelihood = evaluate(model)
        # what is not a number would win over nothing, and then lose to nothing
        first, second = (-math.inf if math.isnan(x) else x for x in (next(iter(metrics.values())), log_likelihood))
        score = (first, second)
        better = state.best_score is None or score > state.best_score
        if better:
            state.best_step, state.best_score, state.stale = state.step, score, 0
            state.best = {name: tensor.detach().clone() for name, tensor in module.state_dict().items()}
        else:
            state.stale += 1
        state.history.append({"step": state.step, "metrics": metrics})
        listener.evaluation(state.step, metrics, better)

    pending: list[Tensor] = []  # loss and gradient norm of steps whose numbers nobody has looked at yet
    look_every = STEPS_BETWEEN_LOOKS if model.backbone.device.type == "cuda" else 1

    def read_pending() -> None:
        """Takes the losses over; what is not a number is found before anything is kept of it."""
        for loss, norm in torch.stack(pending).tolist() if pending else []:
            # a finite loss may have a gradient that is not: the prompt would be lost, and the checkpoint after it
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _not_finite(len(state.losses) + 1, checkpoint, config)
            state.losses.append(loss)
        pending.clear()

    first, positions = state.step, Positions(*state.positions)
    memory = PeakMemory(model.backbone.device)
    listener.start(state.step, total)
    if config.compile is not None:
        state.compiled = config.compile
    elif not _may_compile(model, config, processes):
        state.compiled = False
    spent: list[float] = []  # seconds of steps, while it is open whether layers are compiled

    def batch(step: int) -> list[EncodedRow]:
        return [rows[i] for i in order.batch(step)]

    if state.compiled and state.step < total:
        listener.note("Compiling the layers; this takes a minute or two.")
        try:
            compile_now(model, [batch(state.step)], config)
        except AttemptError as error:
            if config.compile:
                raise
            listener.note(f"{error.message}; the training goes on without.")
            state.compiled = False
    with caught_signals() as stop:
        if state.step == 0 and eval_every and not state.history:
            look()
        while state.step < total:
            # on a GPU two processes may score a hair apart: they leave together or not at all
            if config.patience is not None and processes.any(state.stale >= config.patience):
                break
            if processes.any(bool(stop)):
                read_pending()
                save()
                raise TrainingStoppedError(
                    f"stopped at step {state.step} of {total}; nothing is lost",
                    "Go on with the same command and --resume.",
                )
            started = time.monotonic()
            step_rows = batch(state.step)
            factor = config.learning_rate_factor(state.step, total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            loss = gradient_step(model, step_rows, config, processes, positions)
            norm = torch.nn.utils.clip_grad_norm_(trained_tensors(module), config.clip_norm)
            pending.append(torch.stack([loss, norm.to(loss.device)]))
            if len(pending) >= look_every:
                read_pending()
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            if not pending:
                listener.step(state.step, state.losses[-1], look_every * len(step_rows) / (time.monotonic() - started))
            if state.compiled is None:
                wait(model.backbone.device)
                spent.append(time.monotonic() - started)
                if len(spent) == MEASURED_STEPS:
                    state.compiled = False
                    left = total - state.step
                    if worth_trying(left, _mean(spent[1:])):
                        read_pending()
                        save()  # whoever stops it in the minutes that follow loses nothing
                        seen = [batch(step) for step in (state.step - 2, state.step - 1)]
                        state.compiled = compiling_pays(model, seen, config, left, listener.note)
            if eval_every and (state.step % eval_every == 0 or state.step == total):
                read_pending()
                look()
                save()
            elif time.monotonic() - saved_at > max(SECONDS_BETWEEN_CHECKPOINTS, saving / CHECKPOINT_SHARE):
                read_pending()
                save()
    read_pending()
    save()
    warnings = _warnings(state, initial, module, config)
    if state.best:
        module.load_state_dict(state.best)
    return Trained(state, total, warnings)


@contextmanager
def caught_signals() -> Iterator[list[int]]:
    """Notes SIGINT and SIGTERM in a list instead of dying; the second of them ends the process as ever."""
    seen: list[int] = []

    def note(number: int, _frame: object) -> None:
        seen.append(number)
        signal.signal(number, previous[number])

    try:
        previous = {int(number): signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    except ValueError:  # signals belong to the main thread
        yield seen
        return
    try:
        yield seen
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


def _may_compile(model: PromptedModel, config: TrainingConfig, processes: Processes) -> bool:
    """Whether a measurement may decide: not where layers are changed or computed twice, nor for several processes.

    Each of these would decide for itself.
    """
    plain = model.tuned is None and not config.gradient_checkpointing
    return plain and processes.count == 1 and model.backbone.can_compile


def _samples(module: PromptModule | TunedWeights) -> dict[str, list[Tensor]]:
    """The trained tensors by speed, of large ones a sample: enough to see whether they move."""
    return {
        name: [tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLED_ENTRIES)].clone() for tensor in tensors]
        for name, tensors in module.param_groups().items()
    }


def _not_finite(step: int, checkpoint: Path, config: TrainingConfig) -> NotFiniteError:
    kept = f"; the checkpoint before it is kept at {checkpoint}" if checkpoint.exists() else ""
    return NotFiniteError(
        f"the loss is not a number at step {step}{kept}",
        f"Train with a lower --learning-rate than {config.learning_rate:g}"
        f" (G: --attention-learning-rate, now {config.attention_learning_rate:g}), or with --dtype float32.",
    )


def _warnings(
    state: TrainingState,
    initial: dict[str, list[Tensor]],
    module: PromptModule | TunedWeights,
    config: TrainingConfig,
) -> list[str]:
    """Says when nothing was learned (PEFT's users find that out much later)."""
    warnings = []
    name, before = next(iter(initial.items()))  # prompts where there are any
    now = torch.cat(_samples(module)[name])
    moved = float((now - torch.cat(before)).norm() / torch.cat(before).norm().clamp_min(1e-12))
    if moved < 1e-3:
        what, option, rate = {
            "prompts": ("the prompt", "--learning-rate", config.learning_rate),
            "attention": ("G", "--attention-learning-rate", config.attention_learning_rate),
            "weights": ("the weights", "--weight-learning-rate", config.weight_learning_rate),
        }[name]
        warnings.append(f"{what} hardly moved (by {moved:.2g} of the norm): raise {option} (now {rate:g})")
    losses = state.losses
    first, last = _mean(losses[: _tenth(losses)]), _mean(losses[-_tenth(losses) :])
    if len(losses) >= 20 and last > 0.98 * first:
        warnings.append(
            f"the loss did not fall ({first:.3f} at the start, {last:.3f} at the end): "
            "try another --learning-rate, more --steps or another --init-from"
        )
    scores = [next(iter(entry["metrics"].values())) for entry in state.history]
    if len(scores) > 2 and len(set(scores)) == 1:
        warnings.append("the validation metric never changed")
    if state.best_step == 0 and state.step > 0:
        warnings.append("no evaluated step was better than the start: the initial prompt is kept")
    return warnings


def _tenth(values: Sequence[float]) -> int:
    return max(1, len(values) // 10)


def _mean(values: Sequence[float]) -> float:
    return sum(values) / len(values) if values else math.nan
