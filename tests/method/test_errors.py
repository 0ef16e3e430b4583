"""Shapes and settings that cannot be meant."""

from __future__ import annotations

import pytest
import torch

from attempt_cli.method import PromptAttention, PromptMixture


@pytest.mark.parametrize("rank", [-1, 0, 4, 5])
def test_the_rank_lies_below_the_width(rank: int) -> None:
    with pytest.raises(ValueError, match=rf"the rank of G is {rank}; .* the width less one \(3\)"):
        PromptAttention(4, rank, 1.0)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_the_temperature_is_positive(temperature: float) -> None:
    with pytest.raises(ValueError, match=r"the temperature is .*; it is positive"):
        PromptAttention(4, 2, temperature)


@pytest.mark.parametrize("shape", [(3,), (2, 3), (1, 1, 2, 3)])
def test_target_prompts_have_three_dimensions(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match=r"target prompts are \[n, m, d\]"):
        PromptMixture(torch.zeros(shape))


@pytest.mark.parametrize("shape", [(2, 3), (4, 1, 3), (4, 2, 5), (4, 2), (2, 3, 4, 2)])
def test_sources_have_the_targets_length_and_width(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="differ in length m or width d"):
        PromptMixture(torch.zeros(1, 2, 3), torch.zeros(shape), PromptAttention(3, 2, 1.0))


def test_sources_and_attention_come_together() -> None:
    with pytest.raises(ValueError, match="come together"):
        PromptMixture(torch.zeros(1, 2, 3), torch.zeros(4, 2, 3))
    with pytest.raises(ValueError, match="come together"):
        PromptMixture(torch.zeros(1, 2, 3), None, PromptAttention(3, 2, 1.0))


def test_the_attention_has_the_prompts_width() -> None:
    with pytest.raises(ValueError, match=r"width 5.*width 3"):
        PromptMixture(torch.zeros(1, 2, 3), torch.zeros(4, 2, 3), PromptAttention(5, 2, 1.0))


def test_prompts_of_no_rows_have_no_key() -> None:
    with pytest.raises(ValueError, match="at least one row"):
        PromptMixture(torch.zeros(1, 0, 3), torch.zeros(4, 0, 3), PromptAttention(3, 2, 1.0))


def test_a_mixture_of_sources_needs_the_pooled_input() -> None:
    mixture = PromptMixture(torch.zeros(1, 2, 3), torch.zeros(4, 2, 3), PromptAttention(3, 2, 1.0))
    with pytest.raises(ValueError, match="needs the pooled input"):
        mixture(torch.tensor([0]))
