"""What each method trains, before its first step."""

from __future__ import annotations

import torch
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.method import (
    DecomposedPrompt,
    PromptAttention,
    PromptMixture,
    PromptModule,
    SharedPrompt,
    constant_weights,
    decomposed_shape,
    paper_temperature,
    rms_temperature,
)
from attempt_cli.training.config import TrainingConfig


def prompt_module(
    config: TrainingConfig,
    initial: Tensor,
    sources: Tensor | None,
    *,
    generator: torch.Generator,
    positions: int,
    attention: PromptAttention | None = None,
) -> PromptModule:
    """The prompts of a method and all that is trained with them.

    Args:
        config: the method and its settings.
        initial: where prompts start, in their unit, one a task, [n, m, d].
        sources: [t, m, d]. ATTEMPT mixes them; MPT's shared prompt starts from their mean; others look at none.
        generator: draws what starts from numbers.
        positions: s, the longest input in tokens (DePT).
        attention: ATTEMPT's G where it is there already; a fresh one without it.

    Raises:
        AttemptError: DePT's budget leaves nothing for its offsets.
    """
    tasks, length, width = initial.shape
    if config.method == "mpt":
        return SharedPrompt(sources.mean(dim=0) if sources is not None else initial[0], tasks, generator=generator)
    if config.method == "dept":
        short, rank = offsets_shape(width, length, positions)
        return DecomposedPrompt(initial[:, :short], positions, rank, generator=generator)
    if config.method != "attempt" or sources is None:
        return PromptMixture(initial)
    if config.balanced_start:
        initial = balanced(initial, sources, 0 if config.constant_attention else 1 / (len(sources) + 1))
    if config.constant_attention:
        fixed = constant_weights(len(sources))
        return PromptMixture(initial, sources, with_target=config.with_target, fixed_weights=fixed)
    if attention is None:
        attention = PromptAttention(
            width,
            config.attention_rank or min(100, width // 2),
            temperature(config, width),
            learned_temperature=config.learned_temperature,
            generator=generator,
        )
    return PromptMixture(initial, sources, attention, level=config.level, with_target=config.with_target)


def balanced(prompts: Tensor, sources: Tensor, target_weight: float) -> Tensor:
    """Target prompts under which the mixture (equation 4) is the given prompts while attention is flat.

    Args:
        prompts: what the mixtures should be, [n, m, d].
        sources: [t, m, d].
        target_weight: flat attention's weight of the target; the sources have equal shares of the rest.

    Returns:
        (P - Σ a_j P_j) / (1 + a_target), [n, m, d].
    """
    return (prompts - (1 - target_weight) * sources.mean(dim=0)) / (1 + target_weight)


def temperature(config: TrainingConfig, width: int) -> float:
    """T as it was given, else the one that belongs to the units."""
    if config.temperature is not None:
        return config.temperature
    return rms_temperature(width) if config.units == "rms" else paper_temperature(width)


def offset_positions(backbone: FrozenBackbone, task: Task, config: TrainingConfig) -> int:
    """s of DePT: the most input tokens that a row can have."""
    longest = config.max_length or task.max_length
    return min(longest, backbone.max_positions) if backbone.max_positions is not None else longest


def offsets_shape(width: int, length: int, positions: int) -> tuple[int, int]:
    """m' and r of DePT with the budget of a prompt of m tokens.

    Raises:
        AttemptError: it leaves no rank for the offsets.
    """
    try:
        return decomposed_shape(width, length, positions, short_length=max(1, 2 * length // 5))
    except ValueError as error:
        raise AttemptError(
            f"DePT cannot have the budget of a prompt of {length} tokens: {error}",
            "Give a longer --prompt-length, or a shorter --max-length: offsets are for so many positions.",
        ) from error
