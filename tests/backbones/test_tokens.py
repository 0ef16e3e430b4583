"""Tokens: long inputs lose their middle, targets nothing; pads come after; a target's tokens are its continuation's."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from attempt_cli.backbones.base import CUE_TOKENS, FrozenBackbone
from attempt_cli.backbones.decoder_only import DecoderOnlyBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError
from tests.models import save_gpt2, save_llama

LONG = "text: " + "it was the one " * 30 + "label:"


def test_tokens_of_many_rows_are_made_once(
    backbone: FrozenBackbone, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ATTEMPT_CACHE", str(tmp_path))
    monkeypatch.setattr("attempt_cli.backbones.base.KEPT_ROWS", 3)
    texts = ["it was good", "", "the text: one two three four five, bad was the text it is label", "two"]
    targets = [[5], [6], [7], [8]]
    first = backbone.encode(texts, targets, 8)
    made = []
    monkeypatch.setattr(type(backbone), "_cut_tokens", lambda *_: made.append(1) or [([9], 0)])
    assert backbone.encode(texts, targets, 8) == first
    assert not made
    assert backbone.encode(texts[:2], None, 8) == [EncodedRow([9], [])]  # few rows are not kept
    assert backbone.encode(texts, targets, 7) == [EncodedRow([9], [5])]  # another limit, other tokens
    assert len(made) == 2


def test_a_long_input_keeps_its_head_and_its_cue(backbone: FrozenBackbone) -> None:
    whole = backbone.encode([LONG], None, 1000)[0]
    assert whole.truncated == 0
    row = backbone.encode([LONG], None, 80)[0]
    assert len(row.input_ids) == 80
    assert row.truncated == len(whole.input_ids) - 80
    assert row.input_ids[: 80 - CUE_TOKENS] == whole.input_ids[: 80 - CUE_TOKENS]
    assert row.input_ids[-CUE_TOKENS:] == whole.input_ids[-CUE_TOKENS:]
    text = backbone.tokenizer.decode(row.input_ids, skip_special_tokens=True)
    assert text.startswith("text: it was")
    assert text.endswith("label:")


def test_the_end_that_a_cut_must_leave_whole(backbone: FrozenBackbone) -> None:
    # a question behind a passage is longer than the cue
    passage, question = "text: " + "it was the one " * 60, "question: is one good and two bad? label:"
    needed = len(backbone.encode([question], None, 1000)[0].input_ids)
    assert needed > CUE_TOKENS
    limit = needed * 2
    row, plain = (backbone.encode([passage + question], None, limit, tails)[0] for tails in ([question], None))
    assert len(row.input_ids) == len(plain.input_ids) == limit
    assert row.truncated == plain.truncated
    text = backbone.tokenizer.decode(row.input_ids, skip_special_tokens=True)
    assert text.startswith("text: it was")
    assert text.endswith(question)
    # an end that leaves no room for the rest gives way: a quarter stays the head's
    row = backbone.encode([passage + question], None, 20, [question])[0]
    whole = backbone.encode([passage + question], None, 1000)[0]
    assert row.input_ids == whole.input_ids[:5] + whole.input_ids[-15:]


@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(words=st.integers(0, 40), limit=st.integers(1, 60))
def test_truncation_for_any_length_and_limit(backbone: FrozenBackbone, words: int, limit: int) -> None:
    text = " ".join(["yes"] * words)
    target = backbone.target_tokens("entailment, and then some more", end=True)
    whole = backbone.encode([text], None, 1000)[0].input_ids
    row = backbone.encode([text], [target], limit)[0]
    assert row.target_ids == target  # the target is never cut
    assert 1 <= len(row.input_ids) <= max(1, limit)
    if len(whole) <= limit:
        assert row == EncodedRow(whole, target)
    else:
        assert row.truncated == len(whole) - limit
        tail = min(CUE_TOKENS, limit // 4)
        assert row.input_ids == whole[: limit - tail] + whole[len(whole) - tail :]


def test_a_truncated_input_still_ends_as_the_encoder_wants_it(backbones: dict[str, FrozenBackbone]) -> None:
    t5 = backbones["t5"]
    assert t5.encode([LONG], None, 20)[0].input_ids[-1] == t5.end_id


def test_an_empty_input_has_one_position_from_which_the_target_is_predicted(backbone: FrozenBackbone) -> None:
    for text in ("", " "):
        row = backbone.encode([text], [[5]], 64)[0]
        assert len(row.input_ids) >= 1
        assert row.target_ids == [5]
        batch = backbone.collate([row])
        score = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None)
        assert bool(torch.isfinite(score).all())


def test_no_rows(backbone: FrozenBackbone) -> None:
    assert backbone.encode([], [], 64) == []


def test_pads_come_after_the_text(backbone: FrozenBackbone) -> None:
    rows = [EncodedRow([7, 8, 9], [5]), EncodedRow([6], [5, 4, 10])]
    batch = backbone.collate(rows)
    pad = backbone.pad_id
    assert batch.input_ids.tolist() == [[7, 8, 9], [6, pad, pad]]
    assert batch.input_mask.tolist() == [[True, True, True], [True, False, False]]
    assert batch.input_lengths.tolist() == [3, 1]
    assert batch.target_ids.tolist() == [[5, pad, pad], [5, 4, 10]]
    assert [part.tolist() for part in batch.targets] == [[0, 1, 1, 1], [0, 0, 1, 2]]
    assert [part.tolist() for part in batch.read] == [[1, 1], [0, 1]]


def test_a_token_that_is_the_pad_is_real_where_it_stands_in_a_row(tmp_path: Path) -> None:
    # GPT-2 and SmolLM2 pad with the end token: masks go by length, never by id
    folder = save_gpt2(tmp_path / "gpt2")
    (folder / "tokenizer_config.json").write_text(
        (folder / "tokenizer_config.json").read_text().replace('"pad_token": "<pad>"', '"pad_token": null')
    )
    backbone = load_backbone(str(folder), device="cpu", dtype="float32")
    assert backbone.pad_id == backbone.end_id
    rows = [EncodedRow([7, 8, 9, 10], [5]), EncodedRow([6, backbone.pad_id], [backbone.end_id, 4, backbone.end_id])]
    batch = backbone.collate(rows)
    together = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None)
    for row, score in zip(rows, together, strict=True):
        batch = backbone.collate([row])
        alone = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None)[0]
        torch.testing.assert_close(alone, score, rtol=1e-5, atol=1e-4)


@pytest.fixture(scope="module")
def sentencepiece(tmp_path_factory: pytest.TempPathFactory) -> FrozenBackbone:
    folder = save_llama(tmp_path_factory.mktemp("sentencepiece") / "llama", sentencepiece=True)
    return load_backbone(str(folder), device="cpu", dtype="float32")


@pytest.mark.parametrize(
    "word", ["yes", "no", "nothing", "entailment", "not good", " yes ", "2", "3.4", "not_duplicate"]
)
def test_target_tokens_are_those_that_follow_the_cue(
    backbones: dict[str, FrozenBackbone], sentencepiece: FrozenBackbone, word: str
) -> None:
    for backbone in (backbones["llama"], backbones["gpt2"], sentencepiece):
        assert isinstance(backbone, DecoderOnlyBackbone)
        cue = backbone.encode(["it was good. label:"], None, 64)[0].input_ids
        joined = backbone.encode([f"it was good. label: {word.strip()}"], None, 64)[0].input_ids
        assert cue + backbone.target_tokens(word, end=False) == joined
        assert cue + backbone.target_tokens(word, end=True) == [*joined, backbone.end_id]


@pytest.mark.parametrize("kind", ["t5"])
def test_an_encoder_decoder_s_targets_always_end(backbone: FrozenBackbone) -> None:
    yes = backbone.tokenizer.convert_tokens_to_ids("▁yes")
    assert (
        backbone.target_tokens("yes", end=False) == backbone.target_tokens(" yes ", end=True) == [yes, backbone.end_id]
    )
    assert backbone.target_tokens("", end=False) == [backbone.end_id]


@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_label_words_end_only_where_one_begins_another(backbone: FrozenBackbone) -> None:
    def plain(*words: str) -> list[list[int]]:
        return [backbone.target_tokens(word, end=False) for word in words]

    assert backbone.label_tokens(["yes", "no"]) == plain("yes", "no")
    assert backbone.label_tokens(["entailment", "entailed"]) == plain("entailment", "entailed")
    no, nothing, yes = plain("no", "nothing", "yes")
    assert nothing[: len(no)] == no
    end = backbone.end_id
    assert backbone.label_tokens(["no", "nothing", "yes"]) == [[*no, end], [*nothing, end], [*yes, end]]


def test_label_words_of_the_same_tokens_are_refused(backbones: dict[str, FrozenBackbone]) -> None:
    # T5's vocabulary lacks many letters: both words are the unknown token, and the first would always win
    with pytest.raises(AttemptError, match="the label word '坏' has the same tokens in t5 as '好'") as caught:
        backbones["t5"].label_tokens(["好", "坏"])
    assert caught.value.hint
    assert len(backbones["llama"].label_tokens(["好", "坏"])) == 2  # bytes know every letter
    for backbone in backbones.values():
        with pytest.raises(AttemptError, match="the label word 'yes' has the same tokens"):
            backbone.label_tokens(["yes", "no", "yes"])


def test_generated_text_has_no_special_tokens_and_no_spaces_around(backbone: FrozenBackbone) -> None:
    rows = backbone.encode(["it was good: label", ""], None, 64)
    batch = backbone.collate(rows)
    for text in backbone.generate(batch, backbone.embed(batch.input_ids), None, 8):
        assert text == text.strip()
        assert "<" not in text or not any(token in text for token in ("</s>", "<pad>", "<end>", "<s>"))
