"""The formulas of trained parameters against published numbers and counts (MPT's and DePT's: beside their modules)."""

from __future__ import annotations

import pytest
import torch

from attempt_cli.method import (
    PromptAttention,
    PromptMixture,
    attempt_parameters,
    dept_parameters,
    mpt_parameters,
    prompt_tuning_parameters,
)


def trained(mixture: PromptMixture) -> int:
    return sum(tensor.numel() for tensors in mixture.param_groups().values() for tensor in tensors)


def test_numbers_of_the_papers() -> None:
    # T5-base: d = 768, m = 100; ATTEMPT's r = 100; MPT of eight tasks trains 10.5K a task; DePT 76.8K
    assert prompt_tuning_parameters(768, 100) == 76_800
    assert attempt_parameters(768, 100, 100) == 231_936
    assert attempt_parameters(768, 100, 100, 8) == 96_192
    assert mpt_parameters(768, 100, tasks=8) == 10_468
    assert dept_parameters(768, 40, 256, 45) == 76_800


@pytest.mark.parametrize("tasks", [1, 3])
@pytest.mark.parametrize("learned", [False, True])
@pytest.mark.parametrize("with_target", [False, True])
def test_attempt_s_formula_counts_its_parameters(tasks: int, learned: bool, with_target: bool) -> None:
    d, m, r = 12, 5, 4
    attention = PromptAttention(d, r, 1.0, learned_temperature=learned)
    mixture = PromptMixture(torch.zeros(tasks, m, d), torch.zeros(2, m, d), attention, with_target=with_target)
    formula = attempt_parameters(d, m, r, tasks, learned_temperature=learned, with_target=with_target)
    assert formula == pytest.approx(trained(mixture) / tasks)


@pytest.mark.parametrize("tasks", [1, 3])
def test_prompt_tuning_s_formula_counts_its_parameters(tasks: int) -> None:
    assert trained(PromptMixture(torch.zeros(tasks, 5, 12))) == tasks * prompt_tuning_parameters(12, 5)
