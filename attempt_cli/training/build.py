"""Builds what each method trains, before its first step."""

from __future__ import annotations

import torch
from torch import Tensor

from attempt_cli.artefacts import load_attention, prompt_in_units
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.method import (
    COSINE_TEMPERATURE,
    BuildInputs,
    DecomposedPrompt,
    PromptAttention,
    PromptMixture,
    SharedPrompt,
    attempt_parameters,
    constant_weights,
    decomposed_shape,
    dept_parameters,
    mpt_parameters,
    paper_temperature,
    prompt_norms,
    prompt_tuning_parameters,
    rms_temperature,
    scaled_to,
)
from attempt_cli.method.adaptive import adaptive_shape
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.evidence import evidence
from attempt_cli.training.initial import vocabulary_prompt
from attempt_cli.training.request import Request
from attempt_registry import Registry


def build_model(registry: Registry, backbone: FrozenBackbone, request: Request) -> PromptedModel:
    """Builds the model before the first step: initial prompts, frozen sources, G; or weights in the backbone."""
    config, given = request.config, request.attention_from
    build, frame = config.row.builder(), backbone.chat_frame if config.chat_template else None
    if config.row.trains_weights:
        own = {"tasks": len(request.tasks)} if config.row.per_task else {}
        return PromptedModel(backbone, tuned=build(backbone, config.seed, **own), frame=frame)
    scale = backbone.embedding_rms if config.units == "rms" else 1.0
    if given is not None:  # G reads inputs and prompts in the units that it was trained in
        scale = float(given.settings.get("embedding_scale", scale))
    generator = torch.Generator().manual_seed(config.seed)
    initial = []
    for start in request.starts[: 1 if request.one_prompt else None]:
        if start is not None:
            initial.append(prompt_in_units(registry, backbone, start, scale))
        else:
            initial.append(vocabulary_prompt(backbone, config.prompt_length, generator).float() / scale)
    sources = attention = None
    if request.sources:
        sources = torch.stack([prompt_in_units(registry, backbone, prompt, scale) for prompt in request.sources])
    if given is not None:
        # with `onto` the other targets' mixtures stay what they are
        attention = load_attention(registry, given).requires_grad_(request.onto is None)
        config = config.model_copy(update={"level": given.level})
    positions = max(offset_positions(backbone, rows.task, config) for rows in request.tasks)
    placement = backbone.check_placement(config.placement)
    norm = None if request.onto is None else request.onto.settings.get("source_norm")
    if config.one_norm and sources is not None:
        norm = float(prompt_norms(sources).mean())
    prior = None
    if config.evidence and sources is not None:
        alone = [
            PromptedModel(backbone, PromptMixture(one[None]).to(backbone.device), scale, placement, frame=frame)
            for one in (*sources, *initial)
        ]
        prior = evidence(alone[: len(sources)], alone[len(sources) :], request)
    mixture = build(BuildInputs(config, torch.stack(initial), sources, generator, positions, attention, prior, norm))
    return PromptedModel(backbone, mixture.to(backbone.device), scale, placement, frame=frame)


def prompt_tuning(inputs: BuildInputs) -> PromptMixture:
    """Builds one prompt a task, and nothing beside it (equation 1)."""
    return PromptMixture(inputs.initial)


def prompt_tuning_count(inputs: BuildInputs) -> int:
    """Counts one prompt's parameters."""
    _, length, width = inputs.initial.shape
    return prompt_tuning_parameters(width, length)


def attempt(inputs: BuildInputs) -> PromptMixture:
    """Builds ATTEMPT's mixture of sources and target prompts (equations 2 to 5 and its variants)."""
    config: TrainingConfig = inputs.config
    initial, sources, attention = inputs.initial, inputs.sources, inputs.attention
    assert sources is not None
    norm = inputs.source_norm
    if config.balanced_start:
        mixed = sources if norm is None else scaled_to(sources, norm)
        initial = balanced(initial, mixed, 0 if config.constant_attention else 1 / (len(sources) + 1))
    if config.constant_attention:
        fixed = constant_weights(len(sources))
        return PromptMixture(initial, sources, with_target=config.with_target, fixed_weights=fixed, source_norm=norm)
    if attention is None:
        width = initial.shape[-1]
        attention = PromptAttention(
            width,
            attention_rank(config, width),
            temperature(config, width),
            learned_temperature=config.learned_temperature or config.cosine,
            generator=inputs.generator,
            reads=config.attention_input,
            top=config.attention_top,
            cosine=config.cosine,
        )
    return PromptMixture(
        initial,
        sources,
        attention,
        level=config.level,
        with_target=config.with_target,
        prior=inputs.prior,
        source_norm=norm,
    )


def attempt_count(inputs: BuildInputs) -> float:
    """Counts a task's prompt and its part of G."""
    tasks, length, width = inputs.initial.shape
    config: TrainingConfig = inputs.config
    return attempt_parameters(
        width,
        length,
        attention_rank(config, width),
        tasks,
        learned_temperature=config.learned_temperature or config.cosine,
        with_target=config.with_target,
        prior=0 if inputs.prior is None else inputs.prior.shape[1],
    )


def mpt(inputs: BuildInputs) -> SharedPrompt:
    """Builds MPT's shared prompt, which starts from the sources' mean, and each task's factors."""
    shared = inputs.sources.mean(dim=0) if inputs.sources is not None else inputs.initial[0]
    return SharedPrompt(shared, len(inputs.initial), generator=inputs.generator)


def mpt_count(inputs: BuildInputs) -> float:
    """Counts a task's factors and its part of the shared prompt."""
    tasks, length, width = inputs.initial.shape
    return mpt_parameters(width, length, tasks=tasks)


def dept(inputs: BuildInputs) -> DecomposedPrompt:
    """Builds DePT's short prompts and offsets, with the budget of a prompt of m tokens."""
    _, length, width = inputs.initial.shape
    short, rank = offsets_shape(width, length, inputs.positions)
    return DecomposedPrompt(inputs.initial[:, :short], inputs.positions, rank, generator=inputs.generator)


def dept_count(inputs: BuildInputs) -> int:
    """Counts a short prompt and its offsets."""
    _, length, width = inputs.initial.shape
    short, rank = offsets_shape(width, length, inputs.positions)
    return dept_parameters(width, short, inputs.positions, rank)


def balanced(prompts: Tensor, sources: Tensor, target_weight: float) -> Tensor:
    """Returns target prompts under which the mixture (equation 4) is the given prompts while attention is flat.

    Args:
        prompts: what the mixtures should be, [n, m, d].
        sources: [t, m, d].
        target_weight: flat attention's weight of the target; the sources have equal shares of the rest.

    Returns:
        (P - Σ a_j P_j) / (1 + a_target), [n, m, d].
    """
    return (prompts - (1 - target_weight) * sources.mean(dim=0)) / (1 + target_weight)


def attention_rank(config: TrainingConfig, width: int) -> int:
    """Returns r of G as it was given, else the paper's 100, or half the width where that is less."""
    return config.attention_rank or min(100, width // 2)


def temperature(config: TrainingConfig, width: int) -> float:
    """Returns T as it was given, else the one that belongs to the units."""
    if config.temperature is not None:
        return config.temperature
    if config.cosine:
        return COSINE_TEMPERATURE
    return rms_temperature(width) if config.units == "rms" else paper_temperature(width)


def check_offsets(backbone: FrozenBackbone, request: Request) -> None:
    """Refuses a budget that leaves nothing for DePT's offsets; see `offsets_shape`."""
    for rows in request.tasks:
        positions = offset_positions(backbone, rows.task, request.config)
        offsets_shape(backbone.width, request.config.prompt_length, positions)


def check_adaptive(backbone: FrozenBackbone, request: Request) -> None:
    """Refuses a budget that leaves nothing for ADePT's network."""
    try:
        adaptive_shape(backbone.width, request.config.prompt_length)
    except ValueError as error:
        raise AttemptError(
            f"ADePT cannot have the budget of a prompt of {request.config.prompt_length} tokens: {error}",
            "Give a longer --prompt-length.",
        ) from error


def offset_positions(backbone: FrozenBackbone, task: Task, config: TrainingConfig) -> int:
    """Returns s of DePT: the most input tokens that a row can have, with the chat template's behind them."""
    longest = config.max_length or task.max_length
    if config.chat_template:
        longest += len(backbone.chat_frame.tail)
    return min(longest, backbone.max_positions) if backbone.max_positions is not None else longest


def offsets_shape(width: int, length: int, positions: int) -> tuple[int, int]:
    """Returns m' and r of DePT with the budget of a prompt of m tokens.

    Raises:
        AttemptError: it leaves no rank for the offsets.
    """
    try:
        return decomposed_shape(width, length, positions, short_length=max(1, 2 * length // 5))
    except ValueError as error:
        raise AttemptError(
            f"DePT cannot have the budget of a prompt of {length} tokens: {error}",
            "Give a longer --prompt-length, or a shorter --max-length: every input position costs parameters.",
        ) from error
