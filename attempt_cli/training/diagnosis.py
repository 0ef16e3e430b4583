"""Says when a training learned nothing: users of other libraries find that out much later."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from torch import Tensor

from attempt_cli.backbones.tuned import TunedWeights
from attempt_cli.method import PromptModule
from attempt_cli.training.checkpoint import TrainingState
from attempt_cli.training.config import TrainingConfig

SAMPLED_ENTRIES = 65_536  # of a tensor, to see whether a training moves it

Samples = dict[str, list[Tensor]]


def samples(module: PromptModule | TunedWeights) -> Samples:
    """Copies the trained tensors by group, of large ones a sample: enough to see whether they move."""
    return {
        name: [tensor.detach().flatten()[:: max(1, tensor.numel() // SAMPLED_ENTRIES)].clone() for tensor in tensors]
        for name, tensors in module.param_groups().items()
    }


def moved(before: Samples, module: PromptModule | TunedWeights) -> float:
    """Returns how far a training went from its start, over the norm of the start: of the prompts where there are any.

    Args:
        before: `samples` of the module before the first step.
        module: what was trained.
    """
    name, first_group = next(iter(before.items()))
    start, now = torch.cat(first_group), torch.cat(samples(module)[name])
    return float((now - start).norm() / start.norm().clamp_min(1e-12))


def warnings_of(state: TrainingState, before: Samples, way: float, config: TrainingConfig) -> list[str]:
    """Lists the signs that nothing was learned.

    Args:
        state: how the training ended.
        before: `samples` of what was trained before the first step.
        way: how far it has `moved`.
        config: its settings.
    """
    warnings = []
    if way < 1e-3:
        name = next(iter(before))
        what, option, rate = {
            "prompts": ("the prompt", "--learning-rate", config.learning_rate),
            "attention": ("G", "--attention-learning-rate", config.attention_learning_rate),
            "weights": ("the weights", "--weight-learning-rate", config.weight_learning_rate),
        }[name]
        warnings.append(f"{what} hardly moved (by {way:.2g} of the norm): raise {option} (now {rate:g})")
    losses = state.losses
    first, last = first_and_last(losses)
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


def first_and_last(losses: Sequence[float]) -> tuple[float, float]:
    """Returns the mean loss of the first and of the last tenth of the steps."""
    tenth = max(1, len(losses) // 10)
    return mean(losses[:tenth]), mean(losses[-tenth:])


def mean(values: Sequence[float]) -> float:
    """Returns the mean; NaN of nothing."""
    return sum(values) / len(values) if values else math.nan
