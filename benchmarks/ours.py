"""This project's own ways, as its commands run them."""

from __future__ import annotations

import math
from collections.abc import Sequence
from functools import partial
from typing import Literal

import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.batches import by_length
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptAttention, PromptMixture
from attempt_cli.prompted import PromptedModel, score_many
from attempt_cli.training.config import make_config
from attempt_cli.training.gradient import gradient_step
from attempt_cli.training.initial import vocabulary_prompt
from attempt_cli.training.loop import make_optimizer
from attempt_cli.training.processes import Processes
from benchmarks.harness import Contender
from benchmarks.rows import bucketed_batches

CACHE_BYTES = 4 << 30

Cache = Literal["none", "first epoch", "kept"]


def prompted(
    backbone: FrozenBackbone, length: int, *, sources: int = 0, placement: str = "before", tasks: int = 1
) -> PromptedModel:
    """Prompt tuning, or ATTEMPT where there are sources, in RMS units, with prompts of sampled words.

    Args:
        length: m.
        sources: t.
        placement: "before" or "after" the input.
        tasks: how many target prompts.
    """
    generator = torch.Generator().manual_seed(0)
    scale = backbone.embedding_rms
    drawn = torch.stack([vocabulary_prompt(backbone, length, generator) for _ in range(tasks + sources)]) / scale
    if not sources:
        mixture = PromptMixture(drawn)
    else:
        width = backbone.width
        attention = PromptAttention(width, min(100, width // 2), math.e * math.sqrt(width), generator=generator)
        mixture = PromptMixture(drawn[:tasks], drawn[tasks:], attention)
    return PromptedModel(backbone, mixture.to(backbone.device), scale, placement)


def training(name: str, model: PromptedModel, rows: Sequence[EncodedRow], *, cache: Cache = "none") -> Contender:
    """An epoch of optimiser steps, each as the training loop takes it.

    Args:
        model: what is trained; it goes on from round to round.
        rows: the epoch's rows.
        cache: "none"; "first epoch": an empty input cache every round; "kept": one that an epoch before has filled.
    """
    config = make_config(None, prompt_length=model.prompt_length)
    assert model.mixture is not None
    mixture, optimizer = model.mixture, make_optimizer(model.mixture, config)
    batches = bucketed_batches(rows)
    caches: dict[str, InputCache | None] = {"now": None}

    def empty_cache() -> None:
        store = InputCache(CACHE_BYTES)
        store.plan([rows], model.backbone.cache_bytes_per_token)
        caches["now"] = store

    def step(number: int, batch: Sequence[EncodedRow]) -> torch.Tensor:
        if cache == "first epoch" and number == 0:
            empty_cache()
        model.backbone.input_cache = caches["now"]
        loss = gradient_step(model, batch, config, Processes())
        torch.nn.utils.clip_grad_norm_(mixture.parameters(), config.clip_norm)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        return loss

    if cache == "kept":
        empty_cache()
    steps = [partial(step, number, batch) for number, batch in enumerate(batches)]
    return Contender(name, steps, len(rows), warm=None)


def _store(model: PromptedModel, rows: Sequence[EncodedRow]) -> InputCache:
    """Returns a cache that keeps these rows' inputs."""
    store = InputCache(CACHE_BYTES)
    store.plan([rows], model.backbone.cache_bytes_per_token)
    return store


def label_scoring(
    name: str,
    model: PromptedModel,
    rows: Sequence[EncodedRow],
    labels: Sequence[Sequence[int]],
    max_tokens: int = 8192,
    *,
    kept: bool = False,
) -> Contender:
    """Every label word's log-likelihood for every row, in the batches of `predict`.

    Args:
        kept: the inputs' keys and values are there already, as for validation rows from the second look on.
    """
    store = _store(model, rows) if kept else None
    lengths = [len(row.input_ids) for row in rows]
    behind = sum(map(len, labels))
    overhead = model.overhead(max(lengths) + behind) + behind
    least = model.backbone.least_positions
    batches = [[rows[i] for i in group] for group in by_length(lengths, overhead, max_tokens, least=least)]

    def step(batch: Sequence[EncodedRow]) -> None:
        model.backbone.input_cache = store
        model.score_labels(batch, labels)

    return Contender(name, [partial(step, batch) for batch in batches], len(rows), warm=None)


def writing(
    name: str, model: PromptedModel, rows: Sequence[EncodedRow], tokens: int = 4, *, kept: bool = False
) -> Contender:
    """A text of a few tokens for every row, in the batches of `predict`.

    Args:
        tokens: how many are generated at the most.
        kept: the inputs' keys and values are there already, as for validation rows from the second look on.
    """
    store = _store(model, rows) if kept else None
    lengths = [len(row.input_ids) for row in rows]
    room = model.prompt_length + tokens
    batches = [
        [rows[i] for i in group] for group in by_length(lengths, room, 8192, least=model.backbone.least_positions)
    ]

    def step(batch: Sequence[EncodedRow]) -> None:
        model.backbone.input_cache = store
        model.generate(batch, tokens)

    return Contender(name, [partial(step, batch) for batch in batches], len(rows), warm=None)


def many_tasks(
    name: str, models: Sequence[PromptedModel], batches: Sequence[Sequence[EncodedRow]], labels: Sequence[Sequence[int]]
) -> Contender:
    """Every batch answered under every prompt; the inputs are read once."""

    def step(batch: Sequence[EncodedRow]) -> None:
        models[0].backbone.input_cache = None
        score_many(models, batch, [labels] * len(models))

    return Contender(name, [partial(step, batch) for batch in batches], sum(map(len, batches)), warm=None)
