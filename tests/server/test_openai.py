"""OpenAI's face, asked by the official client."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import openai
import pytest

from attempt_cli.api.scoring import predict
from attempt_cli.backbones.load import load_backbone
from attempt_cli.session import Session
from attempt_registry import Registry
from tests.models import save_gpt2, save_t5
from tests.server.shop import M, Served, Shop, serve_here

pytestmark = pytest.mark.usefixtures("one_thread")

TEXTS = ["it was good", "the text is bad", "one two three four five it is the text"]


def expected(server: Served, name: str, rows: list[Any]) -> list[Any]:
    """What the library predicts, on the same weights, alone."""
    backbone = server.shop.backbone
    session = Session(server.shop.registry, backbone=backbone.source, device="cpu", dtype="float32", input_cache=0)
    return predict(name, rows, session=session)[name]


def test_models_are_listed_and_found(server: Served) -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        return [model async for model in await client.models.list()], await client.models.retrieve("aim")

    listed, aim = server.openai(work)
    assert [model.id for model in listed] == [
        "aim", "first", "long", "mood", "pair", "second", "story", "style", "tale", "topic",
    ]  # fmt: skip
    assert aim.kind == "composition"
    assert aim.sources == ["mood@1", "topic@1"]
    assert aim.lineage["parents"]


@pytest.mark.parametrize("name", ["mood", "long", "first", "aim", "aim@1"])
def test_a_completion_is_the_label_with_its_probabilities(server: Served, name: str) -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        return await client.completions.create(model=name, prompt=TEXTS, logprobs=5, temperature=0)

    found = server.openai(work)
    assert (found.object, found.model) == ("text_completion", name)
    for choice, own in zip(found.choices, expected(server, name, TEXTS), strict=True):
        assert choice.text == own.text
        assert choice.finish_reason == "stop"
        assert choice.logprobs.tokens == [own.text]
        top = {word: math.exp(logprob) for word, logprob in choice.logprobs.top_logprobs[0].items()}
        assert top == pytest.approx(dict(own.probabilities), abs=1e-5)
        assert choice.logprobs.token_logprobs[0] == max(choice.logprobs.top_logprobs[0].values())
    assert found.usage.total_tokens == found.usage.prompt_tokens + found.usage.completion_tokens


def test_a_chat_completion_is_the_label(server: Served) -> None:
    async def work(client: openai.AsyncOpenAI) -> Any:
        return await client.chat.completions.create(
            model="aim", messages=[{"role": "user", "content": TEXTS[0]}], logprobs=True, top_logprobs=1
        )

    found = server.openai(work)
    (own,) = expected(server, "aim", TEXTS[:1])
    (choice,) = found.choices
    assert (choice.message.role, choice.message.content) == ("assistant", own.text)
    (token,) = choice.logprobs.content
    assert (token.token, bytes(token.bytes).decode()) == (own.text, own.text)
    assert math.exp(token.logprob) == pytest.approx(max(own.probabilities.values()), abs=1e-5)
    assert [top.token for top in token.top_logprobs] == [own.text]


def test_an_encoder_decoder_is_served(tmp_path: Path) -> None:
    backbone = load_backbone(str(save_t5(tmp_path / "t5")), device="cpu", dtype="float32")
    shop = Shop(Registry.open(tmp_path / "shop"), backbone)
    for seed, name in enumerate(("mood", "topic")):
        shop.prompt(name, seed=seed, placement="before")
    shop.prompt("story", labels=None, seed=2, placement="before")
    shop.mixture("aim", ["mood"], ["topic"], placement="before")
    server = serve_here(shop, wait=50)
    try:
        body = {"inputs": TEXTS, "models": ["mood", "topic", "aim", "story"]}
        found = server.post("/predict", body).json()["predictions"]
        for name in body["models"]:
            for one, own in zip(found[name], expected(server, str(name), TEXTS), strict=True):
                assert (one.get("word") or one.get("text")) == own.text
                assert one.get("probabilities") == (own.probabilities and pytest.approx(own.probabilities, abs=1e-4))
        streamed = server.post("/v1/completions", {"model": "story", "prompt": TEXTS[0], "stream": True}).text
        events = [json.loads(line.removeprefix("data: ")) for line in streamed.split("\n\n") if "{" in line]
        assert "".join(event["choices"][0]["text"] for event in events) == found["story"][0]["text"]
    finally:
        server.engine.stop()


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_text_ends_where_the_model_has_no_more_positions(tmp_path: Path, placement: str) -> None:
    """GPT-2 looks its positions up: one too many is an error."""
    backbone = load_backbone(str(save_gpt2(tmp_path / "gpt2")), device="cpu", dtype="float32")
    if placement not in backbone.placements:
        pytest.skip("this backbone has no such placement")
    shop = Shop(Registry.open(tmp_path / "shop"), backbone)
    shop.prompt("story", labels=None, placement=placement, seed=1)
    server = serve_here(shop, wait=50)
    try:
        body = {"model": "story", "prompt": ["good", "good " * 200], "max_tokens": 250}
        found = server.post("/v1/completions", body).json()
        assert found["usage"]["total_tokens"] + 2 * M == 2 * 128
        short, long = found["choices"]
        assert short["finish_reason"] == long["finish_reason"] == "length"
        assert short["text"].startswith(expected(server, "story", ["good"])[0].text)
    finally:
        server.engine.stop()


def test_free_text_is_written_and_streamed_token_by_token(server: Served) -> None:
    (own,) = expected(server, "story", TEXTS[:1])

    async def work(client: openai.AsyncOpenAI) -> Any:
        whole = await client.completions.create(model="story", prompt=TEXTS[0])
        stream = await client.completions.create(
            model="story", prompt=TEXTS[0], stream=True, stream_options={"include_usage": True}
        )
        chat = await client.chat.completions.create(
            model="story", messages=[{"role": "user", "content": TEXTS[0]}], stream=True
        )
        return whole, [chunk async for chunk in stream], [chunk async for chunk in chat]

    whole, chunks, chat = server.openai(work)
    assert whole.choices[0].text == own.text
    assert whole.choices[0].finish_reason == "length"
    pieces = [chunk.choices[0].text for chunk in chunks if chunk.choices]
    assert "".join(pieces) == own.text
    assert len([piece for piece in pieces if piece]) > 5
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens == 32
    assert "".join(chunk.choices[0].delta.content or "" for chunk in chat) == own.text
    assert (chat[0].choices[0].delta.role, chat[-1].choices[0].finish_reason) == ("assistant", "length")
