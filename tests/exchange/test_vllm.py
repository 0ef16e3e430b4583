"""Prompt embeddings for vLLM: a server that decodes as vLLM does gives our scores for the request that is written."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import attempt_cli
from attempt_cli.errors import AttemptError
from attempt_cli.exchange.vllm import SAMPLE
from attempt_cli.session import Session
from tests.exchange.conftest import add_prompt, chat_session
from tests.exchange.test_peft import ours
from tests.standins.vllm import vllm_server


def ask(url: str, body: dict[str, Any]) -> dict[str, Any]:
    import urllib.request

    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    with urllib.request.urlopen(request) as answer:
        found: dict[str, Any] = json.load(answer)
    return found


@pytest.mark.parametrize("placement", ["before", "after"])
@pytest.mark.parametrize("kind", ["llama", "gpt2"])
def test_the_request_gets_our_scores(
    kind: str, placement: str, sessions: Callable[..., Session], folders: dict[str, Path], tmp_path: Path
) -> None:
    session = sessions(kind)
    prompt = add_prompt(session, placement=placement)
    exported = attempt_cli.export("moods", tmp_path / "vllm", to="vllm", session=session)
    assert set(exported.files) >= {"prompt.pt", "completions.json", "attempt.json"}
    tensor = torch.load(tmp_path / "vllm" / "prompt.pt", weights_only=True)
    assert tensor.shape == (prompt.length, prompt.width)
    assert tensor.dtype == torch.float32
    body = json.loads((tmp_path / "vllm" / "completions.json").read_text())
    with vllm_server(folders[kind]) as server:
        answer = ask(f"{server.url}/v1/completions", body)
    top = answer["choices"][0]["logprobs"]["top_logprobs"][0]
    tokenizer = session.load_backbone().tokenizer
    texts = [tokenizer.decode([number]) for number in range(len(tokenizer))]  # halves of letters look alike
    theirs = {texts.index(token): score for token, score in top.items() if texts.count(token) == 1}
    assert len(theirs) > 5
    words = [[number] for number in theirs]
    found = ours(session, "moods", SAMPLE, words)
    np.testing.assert_allclose(found.numpy(), list(theirs.values()), atol=1e-4)
    assert (found - ours(session, "none", SAMPLE, words)).abs().max() > 0.1  # the prompt is in both


def test_layers_are_not_loaded(
    sessions: Callable[..., Session], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    from transformers import AutoModelForCausalLM

    session = sessions("llama")
    add_prompt(session)

    def refused(*args: Any, **settings: Any) -> None:
        raise AssertionError("the whole model is loaded")

    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refused)
    attempt_cli.export("moods", tmp_path / "vllm", to="vllm", session=session)


def test_a_t5_is_refused(sessions: Callable[..., Session], tmp_path: Path) -> None:
    session = sessions("t5")
    add_prompt(session)
    with pytest.raises(AttemptError, match="vLLM does not serve encoder-decoders"):
        attempt_cli.export("moods", tmp_path / "vllm", to="vllm", session=session)
    assert not (tmp_path / "vllm").exists()


def test_another_table_is_refused(sessions: Callable[..., Session], folders: dict[str, Path], tmp_path: Path) -> None:
    from attempt_cli.backbones.table import load_table

    session = sessions("llama")
    known = session.store.backbone(session.load_backbone().fingerprint)
    assert load_table(str(folders["llama"]), known).embedding_rms == pytest.approx(known.embedding_rms, rel=1e-6)
    with pytest.raises(AttemptError, match="others than those that the prompts were trained for"):
        load_table(str(folders["llama"]), replace(known, embedding_rms=known.embedding_rms * 1.001))
    with pytest.raises(AttemptError, match="encoder-decoder"):
        load_table(str(folders["t5"]), known)


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_chat_carries_the_prompt_alone(placement: str, tmp_path: Path) -> None:
    session, _ = chat_session(tmp_path, placement)
    attempt_cli.export("moods", tmp_path / "vllm", to="vllm", session=session)
    tokenizer = session.load_backbone().tokenizer
    with vllm_server(tmp_path / "chat") as server:
        for name, path in (("chat", "/v1/chat/completions"), ("completions", "/v1/completions")):
            body = json.loads((tmp_path / "vllm" / f"{name}.json").read_text())
            (choice,) = ask(server.url + path, body)["choices"]
            logprobs = choice["logprobs"]
            top = (
                {one["token"]: one["logprob"] for one in logprobs["content"][0]["top_logprobs"]}
                if name == "chat"
                else logprobs["top_logprobs"][0]
            )
            scores = in_chat_scores(session, [[number] for number in range(len(tokenizer))])
            best = int(scores.argmax())
            assert top[tokenizer.decode([best])] == pytest.approx(float(scores[best]), abs=1e-4)


def in_chat_scores(session: Session, words: list[list[int]]) -> torch.Tensor:
    model = attempt_cli.load("moods", session=session).load().model
    rows = session.load_backbone().encode([SAMPLE], [words[0]], 64, around=model.around)
    return model.score_labels(rows, words)[0][0]
