"""Small enough to follow with a pencil: prompts of two rows and width three."""

from __future__ import annotations

import math

import pytest
import torch

from attempt_cli.method import (
    PromptAttention,
    PromptMixture,
    paper_temperature,
    pool_input,
    pool_prompts,
    rms_temperature,
)

SOURCES = torch.tensor(
    [
        [[1.0, 0.0, 2.0], [0.0, 3.0, -1.0]],  # p̂_1 = (1, 3, 2)
        [[-1.0, 1.0, 0.0], [2.0, -2.0, 4.0]],  # p̂_2 = (2, 1, 4)
    ]
)
TARGET = torch.tensor([[[0.0, 1.0, 1.0], [1.0, 0.0, -3.0]]])  # p̂_3 = (1, 1, 1)


def attention_of(
    down: list[list[float]], up: list[list[float]], gain: list[float], bias: list[float], temperature: float
) -> PromptAttention:
    module = PromptAttention(len(gain), len(down), temperature)
    with torch.no_grad():
        module.down.weight.copy_(torch.tensor(down))
        module.up.weight.copy_(torch.tensor(up))
        module.norm.weight.copy_(torch.tensor(gain))
        module.norm.bias.copy_(torch.tensor(bias))
    return module


def test_an_input_is_pooled_over_its_real_tokens_only() -> None:
    embeddings = torch.tensor(
        [
            [[1.0, -2.0, 0.0], [-1.0, 2.0, 0.5], [9.0, 9.0, 9.0]],  # the last is padding
            [[-1.0, -1.0, -4.0], [-5.0, -5.0, -5.0], [-2.0, 0.0, -3.0]],  # no padding, and a maximum below zero
        ]
    )
    mask = torch.tensor([[True, True, False], [True, True, True]])
    assert pool_input(embeddings, mask).tolist() == [[1.0, 2.0, 0.5], [-1.0, 0.0, -3.0]]


def test_prompts_are_pooled_over_their_rows() -> None:
    assert pool_prompts(SOURCES).tolist() == [[1.0, 3.0, 2.0], [2.0, 1.0, 4.0]]
    assert pool_prompts(TARGET).tolist() == [[1.0, 1.0, 1.0]]


def test_the_query_is_down_silu_up_and_a_layer_norm_with_gain_and_bias() -> None:
    # W_down · x̂ = 1; SiLU(1) = 1 / (1 + e^-1) = 0.7310586; W_up gives (c, 0, -c) with c = 3 · 0.7310586 = 2.1931757
    # its mean is 0 and its variance 2c²/3 = 3.2066799, so the LayerNorm gives c / √3.2066899 = 1.2247430, its negative,
    # times the gain (2, 1, 1), plus the bias (0, 1, 0)
    module = attention_of([[1.0, 0.0, 0.0]], [[3.0], [0.0], [-3.0]], [2.0, 1.0, 1.0], [0.0, 1.0, 0.0], 1.0)
    h = module.query(torch.tensor([[1.0, 2.0, 0.5]]))[0]
    torch.testing.assert_close(h, torch.tensor([2.4494860, 1.0, -1.2247430]), rtol=0, atol=1e-6)


def test_scores_are_divided_by_the_temperature_and_the_target_is_one_of_them() -> None:
    # W_down · x̂ = (2·1 - 1·2, 1·2 - 4·0.5) = (0, 0), so h is the LayerNorm's bias (2 ln 2, 0, 0), and with T = 2
    # p̂_j · h / T = (1, 2, 1) · ln 2; their exponentials are 2, 4, 2: a = (1/4, 1/2, 1/4)
    module = attention_of(
        [[2.0, -1.0, 0.0], [0.0, 1.0, -4.0]],
        [[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]],
        [1.0, 1.0, 1.0],
        [2 * math.log(2), 0.0, 0.0],
        2.0,
    )
    x_hat = torch.tensor([[1.0, 2.0, 0.5]])
    weights = module(x_hat, pool_prompts(SOURCES), pool_prompts(TARGET))
    torch.testing.assert_close(weights, torch.tensor([[0.25, 0.5, 0.25]]))

    # P_instance = (1 + 1/4) P_target + 1/4 P_1 + 1/2 P_2
    # row 1: 1.25·(0, 1, 1) + 0.25·(1, 0, 2) + 0.5·(-1, 1, 0) = (-0.25, 1.75, 1.75)
    # row 2: 1.25·(1, 0, -3) + 0.25·(0, 3, -1) + 0.5·(2, -2, 4) = (2.25, -0.25, -2)
    prompts, same_weights = PromptMixture(TARGET, SOURCES, module)(torch.tensor([0]), x_hat)
    torch.testing.assert_close(same_weights, weights)
    torch.testing.assert_close(prompts, torch.tensor([[[-0.25, 1.75, 1.75], [2.25, -0.25, -2.0]]]))


def test_the_target_counts_once_in_the_softmax_and_is_added_once_more() -> None:
    # three prompts with equal keys share the softmax: a = 1/3 each, and the mixture of three equal prompts P is 2P
    prompt = torch.tensor([[1.0, 2.0, 3.0], [-1.0, 0.0, 5.0]])
    mixture = PromptMixture(prompt[None], torch.stack([prompt, prompt]), PromptAttention(3, 2, 1.0))
    prompts, weights = mixture(torch.tensor([0]), torch.randn(1, 3))
    torch.testing.assert_close(weights, torch.full((1, 3), 1 / 3))
    torch.testing.assert_close(prompts[0], 2 * prompt)


def test_an_empty_set_of_sources_leaves_the_target_all_the_attention() -> None:
    # a = (1,), and P_instance = (1 + 1) P_target
    mixture = PromptMixture(TARGET, torch.empty(0, 2, 3), PromptAttention(3, 2, 1.0))
    prompts, weights = mixture(torch.tensor([0, 0]), torch.randn(2, 3))
    assert weights.tolist() == [[1.0], [1.0]]
    torch.testing.assert_close(prompts, 2 * TARGET.expand(2, -1, -1))


def test_without_sources_the_mixture_is_the_target_prompt() -> None:
    targets = torch.arange(12.0).reshape(2, 2, 3)
    prompts, weights = PromptMixture(targets)(torch.tensor([1, 0, 1]))
    assert weights is None
    assert prompts.tolist() == [targets[1].tolist(), targets[0].tolist(), targets[1].tolist()]


def test_temperatures() -> None:
    assert paper_temperature(768) == pytest.approx(2087.640444)  # 768 · 2.718281828
    assert rms_temperature(576) == pytest.approx(65.238764)  # 24 · 2.718281828


@pytest.mark.parametrize(("tasks", "expected"), [(1, 231_936), (8, 96_192)])
def test_the_paper_s_count_of_trained_parameters(tasks: int, expected: int) -> None:
    d = m = r = 100
    d = 768
    mixture = PromptMixture(torch.zeros(tasks, m, d), torch.zeros(2, m, d), PromptAttention(d, r, paper_temperature(d)))
    attention = sum(p.numel() for p in mixture.attention.parameters())
    assert attention == 2 * r * d + 2 * d == 155_136
    trained = sum(p.numel() for p in mixture.parameters() if p.requires_grad)
    assert trained == tasks * d * m + attention
    assert trained // tasks == expected  # a task's own prompt and its share of G


def test_only_the_targets_and_g_are_trained_and_stored() -> None:
    mixture = PromptMixture(TARGET, SOURCES, PromptAttention(3, 2, 1.0))
    names = {
        "target_prompts",
        "attention.down.weight",
        "attention.up.weight",
        "attention.norm.weight",
        "attention.norm.bias",
    }
    assert {name for name, p in mixture.named_parameters() if p.requires_grad} == names
    assert set(mixture.state_dict()) == names
    prompts, _ = mixture(torch.tensor([0]), torch.randn(1, 3))
    prompts.sum().backward()
    assert all(p.grad is not None for p in mixture.parameters())
    assert not mixture.source_prompts.requires_grad
    assert mixture.source_prompts.grad is None


def test_prompts_are_copies_in_fp32() -> None:
    targets, sources = TARGET.bfloat16(), SOURCES.bfloat16()
    mixture = PromptMixture(targets, sources, PromptAttention(3, 2, 1.0))
    assert mixture.target_prompts.dtype == mixture.source_prompts.dtype == torch.float32
    ours = TARGET.clone()
    mixture = PromptMixture(ours)
    ours.zero_()
    assert torch.equal(mixture.target_prompts.detach(), TARGET)


def test_g_starts_from_its_own_generator() -> None:
    def made(global_seed: int) -> PromptAttention:
        torch.manual_seed(global_seed)
        return PromptAttention(300, 100, 1.0, generator=torch.Generator().manual_seed(5))

    one, two = made(1), made(2)
    for a, b in zip(one.parameters(), two.parameters(), strict=True):
        assert torch.equal(a, b)
    for weight in (one.down.weight.detach(), one.up.weight.detach()):  # N(0, 0.01²), 30,000 draws each
        assert abs(float(weight.mean())) < 3e-4
        assert float(weight.std()) == pytest.approx(0.01, rel=0.02)
    assert one.norm.weight.tolist() == [1.0] * 300
    assert one.norm.bias.tolist() == [0.0] * 300
    assert one.norm.eps == 1e-5
    assert one.down.bias is None
    assert one.up.bias is None
