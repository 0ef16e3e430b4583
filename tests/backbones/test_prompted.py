"""A backbone behind a mixture: units, pooled inputs, rows of many tasks in one batch, batches under a budget."""

from __future__ import annotations

from dataclasses import replace
from itertools import pairwise

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.batches import TIGHT, by_length
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.method import PromptAttention, PromptMixture, rms_temperature
from attempt_cli.prompted import PromptedModel
from tests.method import reference

INPUTS = ["it was good: label", "the text: one two three four five, bad was the text it is label", "is", "two of 2:"]
TASKS = torch.tensor([1, 0, 2, 1])


def mixture_of(width: int, *, sources: int = 2, tasks: int = 3, length: int = 4) -> PromptMixture:
    generator = torch.Generator().manual_seed(11)

    def normal(*shape: int) -> torch.Tensor:
        return torch.randn(*shape, generator=generator)

    attention = PromptAttention(width, 5, rms_temperature(width), generator=generator)
    with torch.no_grad():
        for weight in (attention.down.weight, attention.up.weight):
            weight.mul_(100)
    return PromptMixture(normal(tasks, length, width), normal(sources, length, width), attention)


def rows_of(backbone: FrozenBackbone) -> list[EncodedRow]:
    targets = [backbone.target_tokens(word, end=True) for word in ("yes", "entailment", "no", "not good")]
    return backbone.encode(INPUTS, targets, 64)


@pytest.mark.parametrize("scale", [1.0, 0.25])
def test_prompts_enter_in_the_backbone_s_unit(backbone: FrozenBackbone, scale: float) -> None:
    mixture = mixture_of(backbone.width)
    model = PromptedModel(backbone, mixture, scale)
    rows = rows_of(backbone)
    batch = backbone.collate(rows)
    embeddings = backbone.embed(batch.input_ids)
    prompts, weights = model.prompts(batch, embeddings, TASKS)
    assert prompts is not None
    assert weights is not None
    g = mixture.attention
    parameters = reference.Parameters(
        *(
            p.detach().double().numpy()
            for p in (mixture.target_prompts, g.down.weight, g.up.weight, g.norm.weight, g.norm.bias)
        )
    )
    # X in units of `scale`, pooled over real tokens only; the mixture back in the model's unit
    inputs = [backbone.embed(torch.tensor(row.input_ids)).double().numpy() / scale for row in rows]
    expected, expected_weights = reference.instance_prompts(
        inputs, TASKS.tolist(), mixture.source_prompts.double().numpy(), parameters, g.temperature
    )
    torch.testing.assert_close(weights.double(), torch.from_numpy(expected_weights), rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(prompts.double(), torch.from_numpy(expected * scale), rtol=1e-5, atol=1e-5)


def of_tasks(rows: list[EncodedRow]) -> list[EncodedRow]:
    return [replace(row, task=task) for row, task in zip(rows, TASKS.tolist(), strict=True)]


def test_one_batch_holds_rows_of_many_tasks(backbone: FrozenBackbone) -> None:
    model = PromptedModel(backbone, mixture_of(backbone.width))
    rows = of_tasks(rows_of(backbone))
    labels = backbone.label_tokens(["yes", "entailment"])
    with torch.no_grad():
        likelihoods = model.log_likelihood(rows)
    scores, weights = model.score_labels(rows, labels)
    texts, same_weights = model.generate(rows, 6)
    assert weights is not None
    assert same_weights is not None
    assert torch.equal(weights, same_weights)
    for i, row in enumerate(rows):
        torch.testing.assert_close(model.log_likelihood([row])[0], likelihoods[i], rtol=1e-5, atol=2e-4)
        score, weight = model.score_labels([row], labels)
        torch.testing.assert_close(score[0], scores[i], rtol=1e-5, atol=2e-4)
        torch.testing.assert_close(weight[0], weights[i])
        assert model.generate([row], 6)[0][0] == texts[i]


def test_a_step_trains_the_mixture_and_nothing_else(backbone: FrozenBackbone) -> None:
    mixture = mixture_of(backbone.width)
    rows = of_tasks(rows_of(backbone))[:2]  # of tasks 1 and 0; task 2 has no row
    PromptedModel(backbone, mixture).log_likelihood(rows).sum().backward()
    gradient = mixture.target_prompts.grad
    assert gradient is not None
    assert bool(gradient[0].any())
    assert bool(gradient[1].any())
    assert not gradient[2].any()
    for parameter in mixture.attention.parameters():
        assert parameter.grad is not None
        assert float(parameter.grad.abs().max()) > 0
    assert all(parameter.grad is None for parameter in backbone.model.parameters())


def test_the_bare_model(backbone: FrozenBackbone) -> None:
    model = PromptedModel(backbone)
    rows = rows_of(backbone)
    assert model.prompt_length == 0
    batch = backbone.collate(rows)
    expected = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None)
    assert torch.equal(model.log_likelihood(rows), expected)
    assert model.score_labels(rows, [[5]])[1] is None
    assert model.generate(rows, 2)[1] is None


def test_a_row_is_of_the_first_task_if_it_names_none(backbone: FrozenBackbone) -> None:
    model = PromptedModel(backbone, mixture_of(backbone.width))
    rows = rows_of(backbone)
    with torch.no_grad():
        assert torch.equal(model.log_likelihood(rows), model.log_likelihood([replace(row, task=0) for row in rows]))


def test_scoring_keeps_no_graph(backbone: FrozenBackbone) -> None:
    model = PromptedModel(backbone, mixture_of(backbone.width))
    scores, weights = model.score_labels(of_tasks(rows_of(backbone)), [[5], [6, 7]])
    assert not scores.requires_grad
    assert weights is not None
    assert not weights.requires_grad


def test_the_longest_input_leaves_room_for_prompt_and_target(backbones: dict[str, FrozenBackbone]) -> None:
    def longest(kind: str, limit: int, target: int) -> int:
        return PromptedModel(backbones[kind], mixture_of(24, length=20)).longest_input(limit, target)

    assert longest("llama", 256, 8) == 128 - 20 - 8
    assert longest("llama", 64, 8) == 64
    assert longest("llama", 256, 200) == 1
    assert longest("t5", 256, 8) == 256
    # and there it works, with positions that are learned
    gpt2 = backbones["gpt2"]
    model = PromptedModel(gpt2, mixture_of(24, length=20))
    target = gpt2.target_tokens("entailment", end=True)
    rows = gpt2.encode(["text " * 300, "is"], [target, target], model.longest_input(256, len(target)))
    assert model.prompt_length + len(rows[0].input_ids) + len(target) == 128
    assert bool(torch.isfinite(model.log_likelihood(rows)).all())
    assert bool(torch.isfinite(model.score_labels(rows, [target])[0]).all())
    assert len(model.generate(rows, len(target))[0]) == 2


@settings(max_examples=100, deadline=None)
@given(
    st.lists(st.integers(1, 60), max_size=30), st.integers(0, 20), st.integers(1, 300), st.none() | st.integers(1, 5)
)
def test_batches_hold_every_row_once_and_keep_the_budget(
    lengths: list[int], overhead: int, most: int, rows: int | None
) -> None:
    groups = list(by_length(lengths, overhead, most, rows))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    sizes = [max(lengths[index] for index in group) + overhead for group in groups]
    for group, size in zip(groups, sizes, strict=True):
        assert len(group) == 1 or size * len(group) <= most
        assert rows is None or len(group) <= rows
    assert sizes == sorted(sizes, reverse=True)  # longest first
    for group, following in pairwise(groups):  # and no batch is closed too early
        width = lengths[group[0]] + overhead
        assert width * (len(group) + 1) > most or len(group) == rows
        assert min(lengths[i] for i in group) >= max(lengths[i] for i in following)


@settings(max_examples=100, deadline=None)
@given(st.lists(st.integers(1, 60), max_size=30), st.integers(0, 20), st.integers(1, 400))
def test_a_batch_that_is_large_enough_takes_no_much_shorter_row(lengths: list[int], overhead: int, least: int) -> None:
    groups = list(by_length(lengths, overhead, 10_000, least=least))
    assert sorted(index for group in groups for index in group) == list(range(len(lengths)))
    for group, following in pairwise(groups):
        longest, nearest = lengths[group[0]] + overhead, lengths[following[0]] + overhead
        assert longest * len(group) >= least
        assert nearest < TIGHT * longest
    for group in groups:
        widths = [lengths[index] + overhead for index in group]
        for place, width in enumerate(widths):  # whoever is much shorter came while the batch was small
            assert width >= TIGHT * widths[0] or widths[0] * place < least
