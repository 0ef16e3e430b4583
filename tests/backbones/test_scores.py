"""Log-likelihoods: those of plain transformers, the same alone and in any batch, with a gradient for prompts only."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from tests.backbones.plain import plain_log_likelihood

INPUTS = [
    "it was good: label",
    "the text: one two three four five, bad was the text it is label",
    "is",
    "",
    "two of 2:",
]
TARGETS = ["yes", "entailment", "no", "not good", "five two"]
LENGTHS = [None, 0, 1, 4]


def rows_of(backbone: FrozenBackbone, *, end: bool = False) -> list[EncodedRow]:
    return backbone.encode(INPUTS, [backbone.target_tokens(target, end=end) for target in TARGETS], 64)


def prompts_of(backbone: FrozenBackbone, rows: int, length: int | None, seed: int = 0) -> Tensor | None:
    """A prompt of its own for every row."""
    if length is None:
        return None
    return torch.randn(rows, length, backbone.width, generator=torch.Generator().manual_seed(seed))


def score(backbone: FrozenBackbone, rows: Sequence[EncodedRow], prompts: Tensor | None) -> Tensor:
    batch = backbone.collate(rows)
    return backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), prompts)


def score_labels(
    backbone: FrozenBackbone, rows: Sequence[EncodedRow], prompts: Tensor | None, labels: list[list[int]]
) -> Tensor:
    batch = backbone.collate(rows)
    return backbone.label_log_likelihoods(batch, backbone.embed(batch.input_ids), prompts, labels)


def close(a: Tensor, b: Tensor) -> None:
    # sums of up to twelve log-likelihoods of float32 models with logits of some tens
    torch.testing.assert_close(a, b, rtol=1e-5, atol=2e-4)


@pytest.mark.parametrize("length", LENGTHS)
@pytest.mark.parametrize("end", [False, True])
def test_a_target_s_log_likelihood_is_that_of_plain_transformers(
    backbone: FrozenBackbone, folder: Path, length: int | None, end: bool
) -> None:
    rows = rows_of(backbone, end=end)
    prompts = prompts_of(backbone, len(rows), length)
    ours = score(backbone, rows, prompts)
    assert ours.dtype == torch.float32
    assert ours.shape == (len(rows),)
    for i, row in enumerate(rows):
        close(
            ours[i],
            plain_log_likelihood(folder, row.input_ids, row.target_ids, None if prompts is None else prompts[i]),
        )


def test_so_are_its_gradients(backbone: FrozenBackbone, folder: Path) -> None:
    rows = rows_of(backbone)
    prompts = prompts_of(backbone, len(rows), 4)
    assert prompts is not None
    prompts.requires_grad_()
    towards = torch.tensor([1.0, -2.0, 0.5, 3.0, 1.0])
    ours = torch.autograd.grad((score(backbone, rows, prompts) * towards).sum(), prompts)[0]
    for i, row in enumerate(rows):
        prompt = prompts[i].detach().requires_grad_()
        plain = torch.autograd.grad(
            towards[i] * plain_log_likelihood(folder, row.input_ids, row.target_ids, prompt), prompt
        )
        assert float(plain[0].abs().max()) > 1e-3
        torch.testing.assert_close(ours[i], plain[0], rtol=1e-3, atol=1e-3)


@settings(max_examples=12, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(data=st.data())
def test_a_row_scores_the_same_alone_and_in_any_batch(backbone: FrozenBackbone, data: st.DataObject) -> None:
    tokens = st.integers(3, backbone.vocabulary_size - 1)
    rows = data.draw(
        st.lists(
            st.builds(EncodedRow, st.lists(tokens, min_size=1, max_size=12), st.lists(tokens, max_size=5)),
            min_size=1,
            max_size=5,
        )
    )
    length = data.draw(st.sampled_from(LENGTHS))
    prompts = prompts_of(backbone, len(rows), length)
    labels = [[10], [11], [11, 12, 13], [11, 12, 14], [15, 16]]
    together, labels_together = score(backbone, rows, prompts), score_labels(backbone, rows, prompts, labels)
    for i, row in enumerate(rows):
        prompt = None if prompts is None else prompts[i : i + 1]
        close(score(backbone, [row], prompt)[0], together[i])
        close(score_labels(backbone, [row], prompt, labels)[0], labels_together[i])


def test_what_stands_at_pads_is_irrelevant(backbone: FrozenBackbone) -> None:
    rows = rows_of(backbone)
    prompts = prompts_of(backbone, len(rows), 3)
    batch = backbone.collate(rows)
    embeddings = backbone.embed(batch.input_ids)
    loud = embeddings.masked_fill(~batch.input_mask[..., None], 50.0)
    labels = [backbone.target_tokens(word, end=False) for word in ("yes", "entailment")]
    close(
        backbone.target_log_likelihood(batch, embeddings, prompts), backbone.target_log_likelihood(batch, loud, prompts)
    )
    close(
        backbone.label_log_likelihoods(batch, embeddings, prompts, labels),
        backbone.label_log_likelihoods(batch, loud, prompts, labels),
    )


WORDS = {
    "one token each": ["yes", "no", "bad"],
    "several tokens, a shared prefix": ["entailment", "entailed", "neutral", "contradiction"],
    "one and several tokens": ["yes", "maybe", "no"],
    "one word begins another": ["no", "nothing", "not"],
    "a single word": ["entailment"],
    "a word of one token, alone": ["yes"],
}


@pytest.mark.parametrize("words", WORDS.values(), ids=WORDS)
@pytest.mark.parametrize("length", LENGTHS)
def test_label_words_in_one_pass_score_as_each_alone(
    backbone: FrozenBackbone, folder: Path, words: list[str], length: int | None
) -> None:
    labels = backbone.label_tokens(words)
    rows = backbone.encode(INPUTS, None, 64)
    prompts = prompts_of(backbone, len(rows), length)
    ours = score_labels(backbone, rows, prompts, labels)
    assert ours.dtype == torch.float32
    assert ours.shape == (len(rows), len(words))
    for j, label in enumerate(labels):
        close(ours[:, j], score(backbone, [EncodedRow(row.input_ids, label) for row in rows], prompts))
    prompt = None if prompts is None else prompts[1]
    for j, label in enumerate(labels):
        close(ours[1, j], plain_log_likelihood(folder, rows[1].input_ids, label, prompt))


def test_the_order_of_label_words_permutes_their_scores(backbone: FrozenBackbone) -> None:
    labels = backbone.label_tokens(WORDS["several tokens, a shared prefix"])
    rows = backbone.encode(INPUTS, None, 64)
    prompts = prompts_of(backbone, len(rows), 2)
    close(score_labels(backbone, rows, prompts, labels[::-1]).flip(1), score_labels(backbone, rows, prompts, labels))


def test_every_row_s_prompt_is_its_own(backbone: FrozenBackbone) -> None:
    rows = [rows_of(backbone)[0]] * 3
    prompts = prompts_of(backbone, 3, 4)
    assert prompts is not None
    scores = score(backbone, rows, prompts)
    assert len({round(float(value), 3) for value in scores}) == 3
    close(score(backbone, rows, prompts.flip(0)), scores.flip(0))


def test_the_prompt_s_order_matters_and_it_stands_before_the_text(backbone: FrozenBackbone) -> None:
    # a prompt made of a text's embeddings is that text: [P ; X] without a gap, in that order
    row = rows_of(backbone)[1]
    head, rest = row.input_ids[:3], row.input_ids[3:]
    whole = score(backbone, [row], None)
    split = EncodedRow(rest, row.target_ids)
    close(score(backbone, [split], backbone.embed(torch.tensor([head]))), whole)
    assert not torch.allclose(score(backbone, [split], backbone.embed(torch.tensor([head[::-1]]))), whole, atol=0.01)


def test_a_target_without_tokens_scores_nought(backbone: FrozenBackbone) -> None:
    row = rows_of(backbone)[0]
    scores = score(backbone, [EncodedRow(row.input_ids, []), row], None)
    assert scores[0] == 0
    close(scores[1], score(backbone, [row], None)[0])
    assert score(backbone, [EncodedRow(row.input_ids, [])], None).tolist() == [0.0]


def test_the_model_gets_no_gradient(backbone: FrozenBackbone) -> None:
    rows = rows_of(backbone)
    prompts = prompts_of(backbone, len(rows), 2)
    assert prompts is not None
    prompts.requires_grad_()
    score(backbone, rows, prompts).sum().backward()
    assert prompts.grad is not None
    assert not backbone.model.training
    assert not any(module.training for module in backbone.model.modules())
    for parameter in backbone.model.parameters():
        assert not parameter.requires_grad
        assert parameter.grad is None


def test_without_prompts_no_graph_is_kept(backbone: FrozenBackbone) -> None:
    assert not score(backbone, rows_of(backbone), None).requires_grad
    prompts = prompts_of(backbone, len(INPUTS), 2)
    assert not score(backbone, rows_of(backbone), prompts).requires_grad


def test_only_targets_are_projected(backbone: FrozenBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    projected: list[int] = []
    head = backbone._head.forward

    def counted(hidden: Tensor) -> Tensor:
        projected.append(hidden.shape[:-1].numel())
        return head(hidden)

    monkeypatch.setattr(backbone._head, "forward", counted)
    rows = rows_of(backbone)
    score(backbone, rows, prompts_of(backbone, len(rows), 4))
    assert projected == [sum(len(row.target_ids) for row in rows)]


@pytest.mark.parametrize("kind", ["t5", "llama"])
def test_scores_in_bf16_are_near_and_the_prompt_s_gradient_is_fp32(folder: Path, backbone: FrozenBackbone) -> None:
    low = load_backbone(str(folder), device="cpu", dtype="bfloat16")
    assert low.dtype == torch.bfloat16
    rows = rows_of(backbone)
    prompts = prompts_of(backbone, len(rows), 4)
    assert prompts is not None
    prompts.requires_grad_()
    scores = score(low, rows, prompts)
    assert scores.dtype == torch.float32
    scores.sum().backward()
    assert prompts.grad is not None
    assert prompts.grad.dtype == torch.float32
    torch.testing.assert_close(scores.detach(), score(backbone, rows, prompts.detach()), rtol=0.1, atol=2.0)


@pytest.mark.parametrize("kind", ["t5", "t5-untied", "llama", "gpt2"])
def test_label_words_do_not_tie_in_bf16(folder: Path) -> None:
    # a bf16 logit near 20 is a multiple of 0.125; the words' own logits are computed in fp32
    low = load_backbone(str(folder), device="cpu", dtype="bfloat16")
    labels = [[token] for token in range(low.vocabulary_size)]
    scores = score_labels(low, low.encode(INPUTS[:1], None, 64), None, labels)[0]
    assert len(set(scores.tolist())) > 0.97 * len(labels)
