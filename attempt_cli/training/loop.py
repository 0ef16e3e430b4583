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

from attempt_cli.backbones.base import EncodedRow
from attempt_cli.backbones.prompted import PromptedModel, by_length
from attempt_cli.errors import AttemptError
from attempt_cli.method import PromptMixture
from attempt_cli.training.checkpoint import TrainingState, load_checkpoint, save_checkpoint
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.order import BatchOrder
from attempt_cli.training.processes import Processes

SECONDS_BETWEEN_CHECKPOINTS = 15.0

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
        }
        best = next((entry for entry in self.state.history if entry["step"] == self.state.best_step), None)
        if best:
            numbers["best_step"] = best["step"]
            numbers["validation"] = best["metrics"]
        return numbers


def make_optimizer(mixture: PromptMixture, config: TrainingConfig) -> torch.optim.AdamW:
    """AdamW with two speeds: one group holds the target prompts, the other all of G."""
    groups: list[dict[str, Any]] = [
        {"name": "prompts", "params": [mixture.target_prompts], "peak": config.learning_rate}
    ]
    if mixture.attention is not None:
        groups.append(
            {
                "name": "attention",
                "params": list(mixture.attention.parameters()),
                "peak": config.attention_learning_rate,
            }
        )
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
) -> Trained:
    """Trains the model's mixture in place; at the end it holds the best evaluated state, or the last.

    The loss of a step is the mean over the target tokens of all its rows, whatever micro-batches and processes they
    are spread over.

    Args:
        model: the backbone and the mixture to train.
        rows: the training rows with their targets.
        config: the settings.
        evaluate: looks at validation rows; None keeps the last step.
        checkpoint: the file of the training's state.
        key: names this training; a checkpoint of another key is refused.
        resume: go on from the checkpoint, where there is one.
        listener: is told every step and evaluation.
        processes: this process's place among those that share the work.

    Raises:
        TrainingStoppedError: stopped by a signal; the checkpoint is written.
        NotFiniteError: the loss or its gradient is no longer a number; the last checkpoint before is kept.
    """
    mixture = model.mixture
    if mixture is None:
        raise ValueError("a bare model has nothing to train")
    optimizer = make_optimizer(mixture, config)
    initial = mixture.target_prompts.detach().clone()
    state = TrainingState()
    if resume and checkpoint.exists():
        state = load_checkpoint(checkpoint, key, mixture, optimizer)
    elif resume:
        listener.note("There is no checkpoint of this very training (command, rows, sources): it starts at step 0.")
    elif checkpoint.exists():
        listener.note("An unfinished training of the same command is there and is replaced; --resume would go on.")
    lengths = [len(row.input_ids) + len(row.target_ids) for row in rows]
    order = BatchOrder(lengths, config.rows_per_step(processes.count), config.seed)
    total = config.total_steps(len(rows), processes.count)
    eval_every = config.eval_every if config.eval_every is not None else max(1, total // 10)
    began = time.monotonic() - state.seconds
    saved_at = time.monotonic()

    def save() -> None:
        state.seconds = time.monotonic() - began
        if processes.is_main:
            save_checkpoint(checkpoint, key, state, mixture, optimizer)

    def look() -> None:
        if evaluate is None:
            return
        metrics, log_likelihood = evaluate(model)
        # what is not a number would win over nothing, and then lose to nothing
        first, second = (-math.inf if math.isnan(x) else x for x in (next(iter(metrics.values())), log_likelihood))
        score = (first, second)
        better = state.best_score is None or score > state.best_score
        if better:
            state.best_step, state.best_score, state.stale = state.step, score, 0
            state.best = {name: tensor.detach().clone() for name, tensor in mixture.state_dict().items()}
        else:
            state.stale += 1
        state.history.append({"step": state.step, "metrics": metrics})
        listener.evaluation(state.step, metrics, better)

    listener.start(state.step, total)
    with caught_signals() as stop:
        if state.step == 0 and eval_every and not state.history:
            look()
        while state.step < total:
            # on a GPU two processes may score a hair apart: they leave together or not at all
            if config.patience is not None and processes.any(state.stale >= config.patience):
                break
            if processes.any(bool(stop)):
                save()
                raise TrainingStoppedError(
                    f"stopped at step {state.step} of {total}; nothing is lost",
                    "Go on with the same command and --resume.",
                )
            started = time.monotonic()
            indices = order.batch(state.step)
            factor = config.learning_rate_factor(state.step, total)
            for group in optimizer.param_groups:
                group["lr"] = group["peak"] * factor
            loss = gradient_step(model, [rows[i] for i in indices], config, processes)
            norm = torch.nn.utils.clip_grad_norm_(mixture.parameters(), config.clip_norm)
            # a finite loss may have a gradient that is not: the prompt would be lost, and the checkpoint after it
            if not (math.isfinite(loss) and math.isfinite(norm)):
                raise _not_finite(state, checkpoint, config)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            state.step += 1
            state.losses.append(loss)
            listener.step(state.step, loss, len(indices) / (time.monotonic() - started))
            if eval_every and (state.step % eval_every == 0 or state.step == total):
                look()
                save()
                saved_at = time.monotonic()
            elif time.monotonic() - saved_at > SECONDS_BETWEEN_CHECKPOINTS:
                save()
                saved_at = time.monotonic()
    save()
    warnings = _warnings(state, initial, mixture, config)
    if state.best:
        mixture.load_state_dict(state.best)
    return Trained(state, total, warnings)


def gradient_step(
    model: PromptedModel, rows: Sequence[EncodedRow], config: TrainingConfig, processes: Processes
) -> float:
    """Leaves the gradient of the mean loss per target token in the mixture, summed over processes.

    Returns:
        The loss over the rows of all processes.
    """
    assert model.mixture is not None
    tokens = sum(len(row.target_ids) for row in rows)
    mine = rows[processes.index :: processes.count]
    loss = torch.zeros((), device=model.backbone.device)
    lengths = [len(row.input_ids) + len(row.target_ids) for row in mine]
    for micro in by_length(lengths, model.prompt_length, config.max_tokens, config.batch_size):
        share = -model.log_likelihood([mine[i] for i in micro]).sum() / tokens
        share.backward()  # type: ignore[no-untyped-call]
        loss += share.detach()
    gradients: list[Tensor] = []
    for parameter in model.mixture.parameters():
        if parameter.grad is None:  # a process may have no rows in the last batch of an epoch
            parameter.grad = torch.zeros_like(parameter)
        gradients.append(parameter.grad)
    processes.sum_([*gradients, loss])
    return float(loss)


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


def _not_finite(state: TrainingState, checkpoint: Path, config: TrainingConfig) -> NotFiniteError:
    kept = f"; the checkpoint before it is kept at {checkpoint}" if checkpoint.exists() else ""
    return NotFiniteError(
        f"the loss is not a number at step {state.step + 1}{kept}",
        f"Train with a lower --learning-rate than {config.learning_rate:g}"
        f" (G: --attention-learning-rate, now {config.attention_learning_rate:g}), or with --dtype float32.",
    )


def _warnings(state: TrainingState, initial: Tensor, mixture: PromptMixture, config: TrainingConfig) -> list[str]:
    """Says when nothing was learned (PEFT's users find that out much later)."""
    warnings = []
    moved = float((mixture.target_prompts.detach() - initial).norm() / initial.norm().clamp_min(1e-12))
    if moved < 1e-3:
        warnings.append(
            f"the prompt hardly moved (by {moved:.2g} of its norm): "
            f"raise --learning-rate (now {config.learning_rate:g})"
        )
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
