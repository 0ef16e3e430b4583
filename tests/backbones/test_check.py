"""Architectures whose numbers we would get wrong are refused when they are loaded."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import transformers
from torch import Tensor

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.check import check_scores
from attempt_cli.backbones.load import load_backbone
from attempt_cli.backbones.rows import EncodedRow
from attempt_cli.errors import AttemptError
from tests.models import byte_level_tokenizer, save, unigram_tokenizer

SMALL = {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "intermediate_size": 40}


def saved(folder: Path, architecture: str, **config: Any) -> Path:
    """A tiny model of any decoder-only architecture of the library, e.g. "Gemma2"."""
    tokenizer = byte_level_tokenizer(start=None)
    ends = {"pad_token_id": tokenizer.pad_token_id, "eos_token_id": tokenizer.eos_token_id, "bos_token_id": None}
    made = getattr(transformers, f"{architecture}Config")(vocab_size=len(tokenizer), **ends, **config)
    return save(getattr(transformers, f"{architecture}ForCausalLM")(made), tokenizer, folder)


def load(folder: Path) -> FrozenBackbone:
    return load_backbone(str(folder), device="cpu", dtype="float32")


GEMMA = SMALL | {"num_key_value_heads": 2, "head_dim": 8}


def test_a_model_that_caps_its_logits_is_refused(tmp_path: Path) -> None:
    load(saved(tmp_path / "uncapped", "Gemma2", **GEMMA, final_logit_softcapping=None))
    with pytest.raises(AttemptError, match="gemma2 changes its logits after the output layer") as caught:
        load(saved(tmp_path / "capped", "Gemma2", **GEMMA, final_logit_softcapping=5.0))
    assert caught.value.hint == "Use a backbone of the T5 or Llama families."


def test_a_model_that_scales_its_logits_is_refused(tmp_path: Path) -> None:
    load(saved(tmp_path / "unscaled", "Granite", **SMALL, logits_scaling=1.0))
    with pytest.raises(AttemptError, match="granite changes its logits after the output layer"):
        load(saved(tmp_path / "scaled", "Granite", **SMALL, logits_scaling=8.0))


def test_a_model_that_looks_ahead_is_refused(tmp_path: Path) -> None:
    with pytest.raises(AttemptError, match="roberta"):
        load(saved(tmp_path / "roberta", "Roberta", **SMALL, max_position_embeddings=128))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Bloom", {"hidden_size": 24, "n_layer": 2, "n_head": 4}),
        ("Falcon", {"hidden_size": 24, "num_hidden_layers": 2, "num_attention_heads": 4, "alibi": True}),
        ("Mamba", {"hidden_size": 24, "num_hidden_layers": 2}),
    ],
)
def test_a_model_that_takes_no_positions_and_masks_of_ours_is_refused(
    architecture: str, config: dict[str, Any], tmp_path: Path
) -> None:
    # they would fail, or score label words wrongly, only when label words are scored
    with pytest.raises(AttemptError, match=f"{architecture.lower()} .*masks and positions"):
        load(saved(tmp_path / "model", architecture, **config))


@pytest.mark.parametrize(
    ("architecture", "config"),
    [
        ("Qwen2", SMALL | {"num_key_value_heads": 2}),
        ("Qwen3", SMALL | {"num_key_value_heads": 2, "head_dim": 8}),
        ("GPTNeoX", SMALL),
        (
            "OPT",
            {
                "hidden_size": 24,
                "num_hidden_layers": 2,
                "num_attention_heads": 4,
                "ffn_dim": 40,
                "word_embed_proj_dim": 24,
            },
        ),
    ],
)
def test_kin_of_llama_are_taken(architecture: str, config: dict[str, Any], tmp_path: Path) -> None:
    assert load(saved(tmp_path / "model", architecture, **config)).architecture == "decoder-only"


def test_the_check_sees_a_change_in_every_part_of_the_score(kind: str, folder: Path) -> None:
    backbone = load(folder)
    check_scores(backbone)
    for change in (halved_logits, shifted_hidden_states):
        backbone = load(folder)
        change(backbone)
        with pytest.raises(AttemptError, match="changes its logits"):
            check_scores(backbone)


def halved_logits(backbone: FrozenBackbone) -> None:
    """The model's own forward pass gives half of what the head gives."""
    forward: Callable[..., Any] = backbone.model.forward

    def wrapped(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits / 2
        return output

    backbone.model.forward = wrapped


def shifted_hidden_states(backbone: FrozenBackbone) -> None:
    """Ours are read from a place that is off by one."""
    original = backbone._before_head

    def wrapped(hidden: Tensor) -> Tensor:
        return original(hidden.roll(1, dims=0))

    backbone._before_head = wrapped  # type: ignore[method-assign]


def test_label_words_see_no_further_than_a_sliding_window(tmp_path: Path) -> None:
    # Mistral's and Gemma 3's layers see only the last tokens; label words in one pass must not see more
    backbone = load(saved(tmp_path / "mistral", "Mistral", **SMALL, num_key_value_heads=2, sliding_window=16))
    labels = backbone.label_tokens(["entailment", "entailed", "no"])
    for text in ("is", "one two three", "one two three four five it was the text " * 4):
        rows = backbone.encode([text, "it is"], None, 128)
        prompts = torch.randn(2, 3, backbone.width, generator=torch.Generator().manual_seed(0))
        batch = backbone.collate(rows)
        ours = backbone.label_log_likelihoods(batch, backbone.embed(batch.input_ids), prompts, labels)
        for j, label in enumerate(labels):
            batch = backbone.collate([EncodedRow(row.input_ids, label) for row in rows])
            alone = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), prompts)
            torch.testing.assert_close(ours[:, j], alone, rtol=1e-5, atol=2e-4)


def assert_label_words_score_as_they_do_alone(backbone: FrozenBackbone) -> None:
    labels = backbone.label_tokens(["entailment", "entailed", "no"])
    for length in (1, 30, 80):
        rows = backbone.encode(["one two three four five it was the text " * length, "it is"], None, length)
        batch = backbone.collate(rows)
        ours = backbone.label_log_likelihoods(batch, backbone.embed(batch.input_ids), None, labels)
        for row, scores in zip(rows, ours, strict=True):
            for label, score in zip(labels, scores, strict=True):
                ids = torch.tensor([row.input_ids + label])
                logits = backbone.model(input_ids=ids).logits[0, len(row.input_ids) - 1 : -1].log_softmax(-1)
                plain = logits.gather(1, torch.tensor(label)[:, None]).sum()
                torch.testing.assert_close(score, plain, rtol=1e-5, atol=2e-4)


GPT_NEO = {
    **{"hidden_size": 24, "num_layers": 2, "num_heads": 4, "max_position_embeddings": 200},
    **{"attention_types": [[["global", "local"], 1]], "window_size": 16},
}


@torch.no_grad()
def test_local_attention_is_scored_right_beyond_its_window(tmp_path: Path) -> None:
    assert_label_words_score_as_they_do_alone(load(saved(tmp_path / "neo", "GPTNeo", **GPT_NEO)))


def test_a_window_that_we_do_not_know_by_its_name_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = saved(tmp_path / "neo", "GPTNeo", **GPT_NEO)
    monkeypatch.setattr("attempt_cli.backbones.decoder_only.DecoderOnlyBackbone._reach", None)
    with pytest.raises(AttemptError, match="gpt_neo does not follow our masks and positions"):
        load(folder)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_wrong_scores_are_seen_where_all_scores_are_alike(tmp_path: Path, dtype: str) -> None:
    # MPT's positions are a bias on its scores (ALiBi); in a model as it is drawn, errors are as small as all else
    tokenizer = byte_level_tokenizer(start=None)
    torch.manual_seed(3)
    config = transformers.MptConfig(vocab_size=len(tokenizer), d_model=24, n_heads=4, n_layers=2, max_seq_len=200)
    for part in (transformers.MptForCausalLM(config), tokenizer):
        part.save_pretrained(tmp_path)
    with pytest.raises(AttemptError, match="mpt does not follow our masks and positions"):
        load_backbone(str(tmp_path), device="cpu", dtype=dtype)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
@pytest.mark.parametrize("scale", [1.0, 20.0])
def test_a_deep_t5_as_it_is_drawn_is_taken_and_a_slightly_wrong_one_refused(
    tmp_path: Path, dtype: str, scale: float
) -> None:
    """As deep as T5-base; with embeddings of `scale` times the size its logits are as large as a trained model's."""
    tokenizer = unigram_tokenizer()
    torch.manual_seed(0)
    config = transformers.T5Config(
        **{"vocab_size": len(tokenizer), "d_model": 96, "d_kv": 16, "d_ff": 384, "num_layers": 12, "num_heads": 6},
        **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    )
    model = transformers.T5ForConditionalGeneration(config)
    with torch.no_grad():
        model.shared.weight.mul_(scale)
    for part in (model, tokenizer):
        part.save_pretrained(tmp_path)
    backbone = load_backbone(str(tmp_path), device="cpu", dtype=dtype)  # which checks it
    forward: Callable[..., Any] = backbone.model.forward

    def a_tenth_less(*args: Any, **kwargs: Any) -> Any:
        output = forward(*args, **kwargs)
        output.logits = output.logits * 0.9
        return output

    backbone.model.forward = a_tenth_less
    with pytest.raises(AttemptError, match="changes its logits after the output layer"):
        check_scores(backbone)


def test_a_model_without_a_gradient_is_refused(folder: Path, kind: str) -> None:
    backbone = load(folder)
    table = backbone._before_head
    backbone._before_head = lambda hidden: table(hidden).detach()  # type: ignore[method-assign]
    with pytest.raises(AttemptError, match="does not require grad"):
        check_scores(backbone)


@pytest.mark.parametrize("form", ["local", "transient-global"])
def test_longt5_scores_and_trains_on_rows_of_any_length(tmp_path: Path, form: str) -> None:
    tokenizer = unigram_tokenizer()
    config = transformers.LongT5Config(
        **{"vocab_size": len(tokenizer), "d_model": 24, "d_kv": 8, "d_ff": 40, "num_layers": 2, "num_heads": 3},
        **{"local_radius": 7, "relative_attention_num_buckets": 8, "encoder_attention_type": form},
        **{"decoder_start_token_id": 0, "pad_token_id": 0, "eos_token_id": 1},
    )
    backbone = load(save(transformers.LongT5ForConditionalGeneration(config), tokenizer, tmp_path / "model"))
    for length in (3, 200):
        rows = backbone.encode(["one two three " * length], [[9, 1]], length)
        batch = backbone.collate(rows)
        prompts = torch.randn(1, 3, backbone.width, requires_grad=True)
        backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), prompts).sum().backward()
        assert prompts.grad is not None
        assert bool(prompts.grad.isfinite().all())
        ours = backbone.target_log_likelihood(batch, backbone.embed(batch.input_ids), None)
        theirs = backbone.model(input_ids=batch.input_ids, labels=batch.target_ids).logits.log_softmax(-1)
        plain = theirs.gather(2, batch.target_ids[..., None]).sum()
        torch.testing.assert_close(ours[0], plain, rtol=1e-5, atol=2e-4)
