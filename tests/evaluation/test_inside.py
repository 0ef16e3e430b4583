"""Attention row by row without the model's layers, words near a prompt, and cosines of prompts."""

from __future__ import annotations

import pytest
import torch

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.evaluation.inside import nearest_tokens, prompt_cosines, row_attention, token_text
from attempt_cli.evaluation.prediction import predict
from tests.evaluation.test_prediction import examples, task
from tests.models import unigram_tokenizer
from tests.training import tiny

pytestmark = pytest.mark.usefixtures("one_thread")


def test_attention_is_that_of_predictions(backbone: FrozenBackbone) -> None:
    model, toy = tiny.model(backbone, sources=3, seed=1), task()
    assert model.mixture is not None
    assert model.mixture.attention is not None
    torch.nn.init.normal_(model.mixture.attention.up.weight, generator=torch.Generator().manual_seed(0))
    predictions = predict(model, toy, examples(toy, 9))
    weights = row_attention(model, toy, examples(toy, 9), max_tokens=40)  # in several batches
    assert weights.shape == (9, 4)
    torch.testing.assert_close(weights, torch.tensor([row.attention for row in predictions.rows]))
    assert weights.std(dim=0).max() > 0  # rows attend differently, so the order matters


def test_a_model_without_sources_attends_to_nothing(backbone: FrozenBackbone) -> None:
    with pytest.raises(ValueError, match="without sources"):
        row_attention(tiny.model(backbone), task(), examples(task(), 2))


def test_the_words_that_a_prompt_is_made_of_are_its_nearest(backbone: FrozenBackbone) -> None:
    ids = backbone.tokenizer(" good two")["input_ids"][-2:]
    prompt = 3 * backbone.embed(torch.tensor(ids)).float()
    found = nearest_tokens(backbone, prompt, 2)
    assert [row[0].token for row in found] == ["▁good", "▁two"]
    for row, own in zip(found, prompt / 3, strict=True):
        assert row[0].cosine == pytest.approx(1, abs=1e-5)
        assert row[0].l2 == pytest.approx(2 * float(own.norm()), rel=1e-5)  # thrice as long, the same direction
        assert row[1].cosine < row[0].cosine
    assert len(nearest_tokens(backbone, prompt, 10**6)[0]) == min(len(backbone.tokenizer), backbone.vocabulary_size)


def test_tokens_read_alike_in_every_vocabulary(backbone: FrozenBackbone) -> None:
    sentencepiece = unigram_tokenizer()
    for tokenizer in (backbone.tokenizer, sentencepiece):
        (word,) = tokenizer("it good", add_special_tokens=False)["input_ids"][-1:]
        assert token_text(tokenizer, word) == "▁good"
    line_break = backbone.tokenizer("\n", add_special_tokens=False)["input_ids"][-1]
    assert token_text(backbone.tokenizer, line_break) == "\\n"
    assert token_text(backbone.tokenizer, backbone.end_id) == "<end>"


def test_cosines_by_hand() -> None:
    prompt = torch.tensor([[1.0, 0.0], [0.0, 1.0]])
    target = torch.tensor([[2.0, 0.0]])
    pooled, pairs = prompt_cosines(prompt, target)
    assert pooled == pytest.approx(0.5**0.5)
    assert pairs == pytest.approx(0.5)
    assert prompt_cosines(5 * prompt, prompt)[0] == pytest.approx(1)
