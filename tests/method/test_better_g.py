"""Variants of G that are not the paper's, against loops over float64 numbers: values, and gradients by differences."""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import numpy as np
import pytest
import torch

from attempt_cli.method import PromptAttention, PromptMixture, attempt_parameters, pool_input
from tests.method import reference
from tests.method.reference import Array
from tests.method.test_parity import Case, D, M, R, make, padded

CASE = "ragged, three tasks"


@dataclass
class Better:
    """What differs from the paper's G.

    Args:
        top: prompts that have a weight.
        cosine: scores are cosines.
        prior: added to each task's scores, [n, t + 1].
        norm: that of every source.
        token: equation 5.
        with_target: whether the target takes part.
    """

    top: int | None = None
    cosine: bool = False
    prior: bool = False
    norm: float | None = None
    token: bool = False
    with_target: bool = True


KINDS = {
    "top": Better(top=2),
    "cosine": Better(cosine=True),
    "prior": Better(prior=True),
    "one norm": Better(norm=3.0),
    "by token": Better(top=2, cosine=True, prior=True, token=True),
    "no target": Better(top=1, cosine=True, prior=True, with_target=False),
    "all": Better(top=2, cosine=True, prior=True, norm=0.5),
}


def prior_of(case: Case) -> Array:
    return np.random.default_rng(5).normal(size=(3, len(case.sources) + 1)).astype(np.float32).astype(np.float64)


def row_prompt(case: Case, number: int, kind: Better, prior: Array) -> tuple[Array, Array]:
    """One row's prompt and weights, by the definitions."""
    p, task = case.parameters, case.task_ids[number]
    sources = [source * (kind.norm / math.sqrt((source**2).sum())) if kind.norm else source for source in case.sources]
    prompts = [*sources, p.targets[task]] if kind.with_target else sources
    h = reference.query(reference.pool(case.inputs[number]), p)

    def weights_of(keys: list[Array]) -> list[float]:
        scores = []
        for place, key in enumerate(keys):
            score = float(key @ h)
            if kind.cosine:
                score /= math.sqrt(float(key @ key)) * math.sqrt(float(h @ h))
            scores.append(score / case.temperature + (prior[task, place] if kind.prior else 0.0))
        kept = sorted(range(len(scores)), key=scores.__getitem__, reverse=True)[: kind.top]
        total = sum(math.exp(scores[place]) for place in kept)
        return [math.exp(score) / total if place in kept else 0.0 for place, score in enumerate(scores)]

    if kind.token:
        weights = np.array([weights_of([prompt[i] for prompt in prompts]) for i in range(M)]).T  # [t + 1, m]
    else:
        weights = np.repeat(np.array(weights_of([reference.pool(prompt) for prompt in prompts]))[:, None], M, axis=1)
    mixed = sum(weight[:, None] * prompt for weight, prompt in zip(weights, prompts, strict=True))
    if not kind.with_target:
        return np.asarray(mixed), np.append(weights.mean(axis=1), 0.0)
    return p.targets[task] + mixed, weights.mean(axis=1)


def module_of(case: Case, kind: Better, prior: Array) -> PromptMixture:
    p = case.parameters
    attention = PromptAttention(D, R, case.temperature, top=kind.top, cosine=kind.cosine)
    with torch.no_grad():
        for parameter, values in (
            (attention.down.weight, p.down),
            (attention.up.weight, p.up),
            (attention.norm.weight, p.gain),
            (attention.norm.bias, p.bias),
        ):
            parameter.copy_(torch.from_numpy(values))
    mixture = PromptMixture(
        torch.from_numpy(p.targets),
        torch.from_numpy(case.sources),
        attention,
        level="token" if kind.token else "instance",
        with_target=kind.with_target,
        prior=torch.from_numpy(prior) if kind.prior else None,
    ).double()
    if kind.norm:  # scaled in float64, which the constructor does not
        sources = torch.from_numpy(case.sources)
        mixture.source_prompts = sources * (kind.norm / sources.flatten(1).norm(dim=1))[:, None, None]
        if not kind.token:
            mixture.source_keys = mixture.source_prompts.amax(dim=1)
    return mixture


def slope(loss: Callable[[], float], values: Array, at: tuple[int, ...]) -> float:
    before = float(values[at])
    found = []
    for step in (1e-6, -1e-6):
        values[at] = before + step
        found.append(loss())
    values[at] = before
    return (found[0] - found[1]) / 2e-6


@pytest.mark.parametrize("name", KINDS)
def test_values_and_gradients_are_those_of_the_definitions(name: str) -> None:
    case, kind = make(CASE), KINDS[name]
    prior = prior_of(case)
    mixture = module_of(case, kind, prior)
    prompts, weights = mixture(torch.tensor(case.task_ids), pool_input(*padded(case, torch.float64)))
    assert weights is not None
    loss = (prompts * torch.from_numpy(case.towards)).sum() + (weights * torch.from_numpy(case.towards_weights)).sum()
    loss.backward()

    def expected() -> float:
        total = 0.0
        for number in range(len(case.inputs)):
            prompt, own = row_prompt(case, number, kind, prior)
            total += float((prompt * case.towards[number]).sum() + (own * case.towards_weights[number]).sum())
        return total

    for number in range(len(case.inputs)):
        prompt, own = row_prompt(case, number, kind, prior)
        np.testing.assert_allclose(prompts[number].detach().numpy(), prompt, rtol=1e-9, atol=1e-9)
        np.testing.assert_allclose(weights[number].detach().numpy(), own, rtol=1e-9, atol=1e-9)
    g = mixture.attention
    assert g is not None
    pairs: list[tuple[Any, Array]] = [(g.down.weight, case.parameters.down), (g.norm.bias, case.parameters.bias)]
    if kind.with_target:
        pairs.append((mixture.target_prompts, case.parameters.targets))
    if mixture.prior is not None:
        pairs.append((mixture.prior, prior))
    for parameter, values in pairs:
        for at in np.ndindex(values.shape):
            own_slope = 0.0 if parameter.grad is None else float(parameter.grad[at])
            assert own_slope == pytest.approx(slope(expected, values, at), rel=1e-4, abs=1e-6)


def test_sources_of_one_norm_keep_their_directions() -> None:
    sources = torch.randn(3, M, D)
    mixture = PromptMixture(torch.zeros(1, M, D), sources, PromptAttention(D, R, 1.0), source_norm=2.0)
    assert mixture.source_prompts is not None
    assert torch.allclose(mixture.source_prompts.flatten(1).norm(dim=1), torch.full((3,), 2.0))
    ratio = mixture.source_prompts / sources
    assert torch.allclose(ratio, ratio[:, :1, :1].expand_as(ratio), rtol=1e-4)


@pytest.mark.parametrize(("settings", "more"), [({"prior": 4}, 4 * 2), ({"learned_temperature": True}, 1)])
def test_the_count_is_the_paper_s_and_what_is_added(settings: dict[str, Any], more: int) -> None:
    learned = "learned_temperature" in settings
    prior = torch.zeros(2, 4) if "prior" in settings else None
    attention = PromptAttention(D, R, 1.0, learned_temperature=learned, cosine=learned)
    mixture = PromptMixture(torch.zeros(2, M, D), torch.ones(3, M, D), attention, prior=prior)
    counted = sum(tensor.numel() for tensor in mixture.parameters())
    assert counted == 2 * M * D + 2 * R * D + 2 * D + more
    assert attempt_parameters(D, M, R, 2, **settings) == counted / 2


def test_what_makes_no_sense_is_refused() -> None:
    with pytest.raises(ValueError, match="weighs one prompt or more"):
        PromptAttention(D, R, 1.0, top=0)
    with pytest.raises(ValueError, match="G reads words, last, mean"):
        PromptAttention(D, R, 1.0, reads="all")  # type: ignore[arg-type]
    with pytest.raises(ValueError, match=r"\[1, 4\]"):
        PromptMixture(torch.zeros(1, M, D), torch.ones(3, M, D), PromptAttention(D, R, 1.0), prior=torch.zeros(1, 3))
