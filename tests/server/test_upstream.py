"""The same face in front of a server that has the layers: its answers are those of the engine that has them itself."""

from __future__ import annotations

import json
import math
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any

import httpx
import pytest
from click.testing import CliRunner

from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.load import load_backbone
from attempt_cli.cli.main import attempt
from attempt_cli.errors import ArgumentsError, AttemptError
from attempt_cli.server.app import create_app
from attempt_cli.server.catalogue import Catalogue
from attempt_cli.server.forwarding import UpstreamEngine, word_scores
from attempt_cli.server.run import _forwarding_engine, first_record, run_server
from attempt_cli.server.settings import ServerSettings
from attempt_cli.server.upstream import find_upstream
from attempt_cli.session import Session
from attempt_registry import Registry
from tests.exchange.conftest import add_prompt, chat_session
from tests.models import save_llama, save_t5
from tests.server.shop import Served, Shop, filled
from tests.server.test_engine import answers, ask
from tests.server.test_limits import problem
from tests.server.test_openai import TEXTS, expected
from tests.standins.vllm import Server, vllm_server

pytestmark = pytest.mark.usefixtures("one_thread")

LABELLED = ("mood", "topic", "long", "first", "aim")


def begin(shop: Shop, upstream: Server, *names: str, **given: Any) -> Served:
    """Starts a forwarding server in this process, as `run_server` does."""
    settings = ServerSettings(**{"upstream": upstream.url, "timeout": 30, **given})
    settings.check()
    session = Session(Path(shop.registry.folder))
    record = first_record(session, names)
    found = find_upstream(settings, session.store.backbone(record.fingerprint))
    engine = _forwarding_engine(session, record, settings, found)
    catalogue = Catalogue(session, names, engine.backbone.fingerprint)
    engine.start()
    return Served(shop, session, engine, catalogue, create_app(catalogue, engine, settings))


@pytest.fixture(scope="module")
def kept(tmp_path_factory: pytest.TempPathFactory, backbone: FrozenBackbone) -> Shop:
    """A registry for all tests of this file; read it only."""
    return filled(Registry.open(tmp_path_factory.mktemp("kept") / "shop"), backbone)


@pytest.fixture
def upstream(llama: Path) -> Iterator[Server]:
    """A stand-in for each test: what one left under way must not take the failures that the next one asks for."""
    with vllm_server(llama) as server:
        yield server


@pytest.fixture
def forward(kept: Shop, upstream: Server) -> Iterator[Callable[..., Served]]:
    """Starts forwarding servers with settings of one's own."""
    started: list[Served] = []

    def start(**settings: Any) -> Served:
        started.append(begin(kept, upstream, **settings))
        return started[-1]

    yield start
    upstream.delay = 0.0
    for one in started:
        one.engine.stop()


def same(found: dict[str, Any], own: Any) -> None:
    assert (found.get("word") or found.get("text")) == own.text
    assert found.get("probabilities") == (own.probabilities and pytest.approx(dict(own.probabilities), abs=1e-4))
    assert found.get("attention") == (own.attention and pytest.approx(dict(own.attention), abs=1e-5))
    assert "estimated" not in found


def test_labels_and_attention_are_those_of_the_local_engine(forward: Callable[..., Served]) -> None:
    """Before and after, of one token and of several, mixed by G."""
    server = forward()
    found = server.post("/predict", {"inputs": TEXTS, "models": [*LABELLED, "story"]}).json()["predictions"]
    for name in (*LABELLED, "story"):
        for one, own in zip(found[name], expected(server, name, TEXTS), strict=True):
            same(one, own)
    assert found["aim"][0]["attention"].keys() == {"mood@1", "topic@1", "target"}


def test_a_word_of_several_tokens_is_scored_prefix_by_prefix(forward: Callable[..., Served], upstream: Server) -> None:
    """ " nothing" begins as " no" does, and one step could not tell them apart."""
    server = forward()
    for name, requests in (("mood", 1), ("long", None)):
        upstream.asked.clear()
        (answer,) = answers(server, [ask(server, name, TEXTS[0])])
        words = server.engine._labels[(False, *server.catalogue[name].task.label_words)]
        prefixes = {tuple(word[:place]) for word in words for place in range(len(word))}
        assert len(upstream.asked) == len(prefixes) == (requests or len(prefixes))
        assert answer.prediction.probabilities == pytest.approx(
            list(expected(server, name, TEXTS[:1])[0].probabilities.values()), abs=1e-4
        )


def test_a_server_that_lists_the_most_probable_alone(forward: Callable[..., Served], upstream: Server) -> None:
    server = forward()
    upstream.old = True
    seen = set()
    for text in [*TEXTS, *(f"{text} {number}" for text in TEXTS for number in range(6))]:
        body = {"model": "mood", "prompt": text}
        answer = server.post("/v1/completions", body)
        (own,) = expected(server, "mood", [text])
        if answer.status_code == 502:
            assert "none begins a label word of 'mood'" in problem(answer, 502, "upstream_error")["message"]
            seen.add("none")
            continue
        (found,) = answer.json()["attempt"]
        if "estimated" not in found:
            same(found, own)
            seen.add("all")
            continue
        (word,) = found["estimated"]  # the other is listed, and more probable than all that are not
        assert found["word"] == own.text != word
        assert found["probabilities"][word] <= own.probabilities[own.text]
        seen.add("one")
    assert seen >= {"one"}


def test_what_is_not_listed_gets_the_mean_of_what_is_left() -> None:
    listed = {(): {3: math.log(0.6), 4: math.log(0.3)}, (4,): {7: math.log(0.5)}}
    scores, estimated = word_scores([[3], [4, 7], [4, 8], [5]], listed, vocabulary=12)
    assert scores == pytest.approx([math.log(p) for p in (0.6, 0.15, 0.3 * 0.5 / 11, 0.1 / 10)])
    assert estimated == [False, False, True, True]
    scores, _ = word_scores([[1], [2]], {(): {1: 0.0}}, vocabulary=2)  # rounded to a sum of one
    assert scores[1] < scores[0]


def test_texts_are_written_and_streamed(forward: Callable[..., Served], upstream: Server) -> None:
    server = forward()
    (own,) = expected(server, "story", TEXTS[:1])
    asks = [
        ask(server, "story", TEXTS[0]),
        ask(server, "story", TEXTS[0], max_new_tokens=3),
        ask(server, "story", TEXTS[0], stop=(own.text[10:12],)),
    ]
    whole, short, stopped = answers(server, asks)
    assert (whole.prediction.text, whole.new_tokens, whole.finish) == (own.text, 32, "length")
    assert (short.new_tokens, short.finish) == (3, "length")
    assert own.text.startswith(short.prediction.text)
    assert stopped.prediction.text == own.text[: own.text.index(own.text[10:12])].rstrip()
    assert stopped.finish == "stop"
    body = {"model": "story", "prompt": TEXTS[0], "stream": True, "stream_options": {"include_usage": True}}
    events = [
        json.loads(line.removeprefix("data: "))
        for line in server.post("/v1/completions", body).text.split("\n\n")
        if "{" in line
    ]
    pieces = [event["choices"][0]["text"] for event in events if event["choices"]]
    assert "".join(pieces) == own.text
    assert len([piece for piece in pieces if piece]) > 5
    assert events[-1]["usage"]["completion_tokens"] == 32
    assert {event["stop_token_ids"][0] for event in upstream.asked if event.get("stream")} == {
        server.engine.backbone.end_id
    }
    assert server.engine.counts.texts == 4


def test_a_text_that_nobody_waits_for_is_broken_off(forward: Callable[..., Served], upstream: Server) -> None:
    server = forward()
    upstream.delay = 0.05
    gone = ask(server, "story", TEXTS[0], max_new_tokens=100)
    gone.said = lambda _: setattr(gone, "gone", True)
    answers(server, [gone])
    deadline = time.monotonic() + 10
    while not upstream.broken_off:
        assert time.monotonic() < deadline
        time.sleep(0.01)


def test_many_go_at_once(forward: Callable[..., Served], upstream: Server) -> None:
    server = forward()
    upstream.delay = 0.2
    asks = [ask(server, name, text) for text in TEXTS for name in ("mood", "topic", "story", "aim")]
    found = answers(server, asks)
    assert upstream.most_at_once >= 6
    upstream.delay = 0.0
    again = answers(server, [replace(one, future=Future()) for one in asks])
    assert [one.prediction for one in found] == [one.prediction for one in again]


def test_what_was_taken_is_answered_at_the_end(kept: Shop, upstream: Server) -> None:
    server = begin(kept, upstream, max_queue=300)
    upstream.delay = 0.1
    asks = [ask(server, "mood", f"{TEXTS[0]} {number}") for number in range(70)]
    server.engine.put(asks)
    server.engine.stop()
    assert {one.future.result(0).prediction.text for one in asks} <= {"yes", "no"}
    assert not server.engine.alive
    problem(server.post("/v1/completions", {"model": "mood", "prompt": "it"}), 503, "stopping")


def test_a_full_queue_and_a_late_answer(forward: Callable[..., Served], upstream: Server) -> None:
    server = forward(max_queue=2, max_rows=2, timeout=1)
    body = {"inputs": TEXTS[:2], "models": ["mood"]}
    upstream.delay = 2
    late = problem(server.post("/predict", body), 504, "upstream_timeout")
    assert late["message"].startswith("the upstream did not answer ")
    server.engine.queue = 0
    problem(server.post("/predict", body), 429, "queue_full")


@pytest.mark.parametrize(
    ("status", "own", "code"),
    [
        (400, 502, "upstream_error"),
        (401, 502, "upstream_key"),
        (404, 502, "upstream_error"),
        (500, 502, "upstream_error"),
        (302, 502, "upstream_error"),
        (429, 503, "upstream_busy"),
        (503, 503, "upstream_busy"),
    ],
)
@pytest.mark.parametrize("stream", [False, True])
def test_a_failure_is_said(
    forward: Callable[..., Served], upstream: Server, status: int, own: int, code: str, stream: bool
) -> None:
    server = forward()
    for name in ("mood", "story"):
        upstream.failing = [status]
        answer = server.post("/v1/completions", {"model": name, "prompt": "it", "stream": stream})
        assert problem(answer, own, code)["message"] == f"the upstream answered {status}: not now"
        assert (answer.headers.get("Retry-After") == "1") == (own == 503)
    assert server.post("/v1/completions", {"model": "mood", "prompt": "it"}).status_code == 200
    assert "attempt_upstream_failures_total 2.0" in server.get("/metrics").text


def test_a_server_that_went_away_or_serves_another_model(kept: Shop, llama: Path) -> None:
    with vllm_server(llama) as own:
        server = begin(kept, own)
        own.folder = "other"
        message = problem(server.post("/v1/completions", {"model": "mood", "prompt": "it"}), 502)["message"]
        assert message.startswith("the upstream answered 400: The model `")
        assert message.endswith("` does not exist.")
    for stream in (False, True):
        answer = server.post("/v1/completions", {"model": "story", "prompt": "it", "stream": stream})
        problem(answer, 503, "upstream_unreachable")
        assert own.url not in answer.text  # whoever asks here need not know where it is
    server.engine.stop()


def instead_of_network(
    server: Served, answer: Callable[[httpx.Request], httpx.Response], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Answers in the upstream's place."""
    answers(server, [ask(server, "mood", TEXTS[0])])  # it is connected
    assert isinstance(server.engine, UpstreamEngine)
    client = httpx.AsyncClient(transport=httpx.MockTransport(answer), base_url="http://upstream")
    monkeypatch.setattr(server.engine.upstream, "_client", client)


@pytest.mark.parametrize(
    "text",
    [
        "no JSON",
        "[]",
        "{}",
        '{"choices": []}',
        '{"choices": [{"logprobs": null}]}',
        '{"choices": [{"logprobs": {"top_logprobs": [{"yes": -1}]}}]}',
        '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:3": NaN}]}}]}',
        '{"choices": [{"logprobs": {"top_logprobs": [{"token_id:3": "x"}]}}]}',
        '{"choices": [{"logprobs": {"top_logprobs": [{}]}}]}',
        "data: {}\n\n",
        "data: [\n\n",
        'data: {"error": {"message": "no memory"}}\n\n',
        'data: {"choices": [{"logprobs": {"tokens": ["it"]}}]}\n\n',
        'data: {"choices": [{"logprobs": {"tokens": ["token_id:9"]}}]}\n\n',  # and then nothing
    ],
)
def test_an_answer_that_is_none_is_no_failure_of_ours(
    forward: Callable[..., Served], text: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    def answer(request: httpx.Request) -> httpx.Response:
        return httpx.Response(200, text=text)

    server = forward()
    instead_of_network(server, answer, monkeypatch)
    for name in ("mood", "story"):
        found = server.post("/v1/completions", {"model": name, "prompt": "it"})
        assert problem(found, 502, "upstream_error")["message"].startswith("the upstream answered, but ")


def test_a_stream_that_breaks_ends_with_the_reason(
    forward: Callable[..., Served], monkeypatch: pytest.MonkeyPatch
) -> None:
    server = forward()
    token = server.engine.backbone.target_tokens("good", end=False)[0]
    event = {"choices": [{"logprobs": {"tokens": [f"token_id:{token}"]}}]}
    text = f"data: {json.dumps(event)}\n\n" * 3 + 'data: {"error": {"message": "no memory"}}\n\n'
    instead_of_network(server, lambda request: httpx.Response(200, text=text), monkeypatch)
    found = server.post("/v1/completions", {"model": "story", "prompt": "it", "stream": True})
    assert found.status_code == 200
    last = json.loads(found.text.strip().split("\n\n")[-1].removeprefix("data: "))
    assert last["error"]["message"] == "the upstream answered, but broke off: no memory"
    assert "good" in found.text


@pytest.mark.parametrize("placement", ["before", "after"])
def test_a_prompt_of_a_chat_template_beside_one_without(tmp_path: Path, placement: str) -> None:
    shop = chat_shop(tmp_path, placement)
    with vllm_server(tmp_path / "chat") as upstream:
        server = begin(shop, upstream)
        try:
            found = server.post("/predict", {"inputs": TEXTS, "models": ["moods", "plain", "tale"]}).json()
            for name, ours in found["predictions"].items():
                for one, own in zip(ours, expected(server, name, TEXTS), strict=True):
                    same(one, own)
            frame = shop.backbone.chat_frame
            ends = [body["stop_token_ids"] for body in upstream.asked if body.get("stream")]
            assert ends == [[shop.backbone.end_id, frame.end_id]] * len(TEXTS)
        finally:
            server.engine.stop()


def chat_shop(folder: Path, placement: str) -> Shop:
    """A registry with a prompt trained in a chat template, one without, and one in it that writes texts."""
    session, _ = chat_session(folder, placement)
    add_prompt(session, "plain", placement=placement, seed=1)
    frame = session.load_backbone().chat_frame
    task: dict[str, Any] = {"name": "tale", "input": "{text}", "files": {"train": "t.csv"}, "answers": "answer"}
    settings = {
        "task": {**task, "metrics": ["squad_em"]},
        "format": "words",
        "chat_template": frame.text,
        "training": {"max_length": 64},
    }
    add_prompt(session, "tale", placement=placement, seed=2, task="tale", settings=settings)
    return Shop(session.store, session.load_backbone())


# the start


def started(shop: Shop, *names: str, backbone: str | None = None, **settings: Any) -> str:
    """What a start ends with."""
    with pytest.raises(AttemptError) as caught:
        run_server(
            Session(Path(shop.registry.folder), backbone=backbone),
            names,
            ServerSettings(port=0, **settings),
            lambda _: pytest.fail("it began"),
        )
    return f"{caught.value.message} | {caught.value.hint}"


def test_no_start_without_the_upstream(kept: Shop, upstream: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    def loaded(*_: Any, **__: Any) -> None:
        raise AssertionError("something is loaded first")

    monkeypatch.setattr("attempt_cli.backbones.table.load_table", loaded)
    monkeypatch.setattr("attempt_cli.server.run.bound", loaded)
    with vllm_server(Path(upstream.folder)) as gone:
        pass
    text = started(kept, upstream=gone.url)
    assert "cannot be reached" in text
    assert gone.url in text
    assert "--enable-prompt-embeds" in text
    upstream.failing = [500]
    assert "the upstream answered 500: not now" in started(kept, upstream=f"{upstream.url}/v1/")
    upstream.key = "secret"
    assert "Give its key with --upstream-key" in started(kept, upstream=upstream.url)
    assert "Give its key with --upstream-key" in started(kept, upstream=upstream.url, upstream_key="wrong")
    text = started(kept, upstream=upstream.url, upstream_key="secret", upstream_model="tinny")
    assert f"serves {upstream.folder[:10]}" in text
    assert "not tinny | Name it with --upstream-model." in text


def test_a_key_is_shown(kept: Shop, upstream: Server) -> None:
    upstream.key = "secret"
    server = begin(kept, upstream, upstream_key="secret", upstream_model=upstream.folder)
    try:
        assert server.post("/v1/completions", {"model": "mood", "prompt": "it"}).status_code == 200
    finally:
        server.engine.stop()


def test_another_model_is_noticed_at_the_start(kept: Shop, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch
    from transformers import LlamaForCausalLM

    wide = save_llama(tmp_path / "wide", hidden_size=32)
    other = save_llama(tmp_path / "other")
    model: Any = LlamaForCausalLM.from_pretrained(other)
    with torch.no_grad():
        table = model.get_input_embeddings().weight
        table.copy_(table.roll(1, 0))
    model.save_pretrained(other)
    with vllm_server(wide) as upstream:
        text = started(kept, upstream=upstream.url, upstream_model=str(wide))
        assert "answered 400: prompt_embeds must be [tokens, 32]" in text
        assert "Start it with --enable-prompt-embeds and the weights of tiny." in text
    with vllm_server(other) as upstream:
        text = started(kept, upstream=upstream.url)
        assert "Name it with --upstream-model, if it is this backbone." in text
        text = started(kept, upstream=upstream.url, upstream_model=str(other))
        assert "has other embeddings than tiny" in text


def test_an_encoder_decoder_is_refused(tmp_path: Path) -> None:
    shop = Shop(Registry.open(tmp_path / "shop"), load_backbone(str(save_t5(tmp_path / "t5")), device="cpu"))
    shop.prompt("mood", placement="before")
    assert "is an encoder-decoder" in started(shop, upstream="http://127.0.0.1:9")


@pytest.mark.parametrize(
    "settings",
    [
        {"upstream": "127.0.0.1:8001"},
        {"upstream": "ftp://127.0.0.1"},
        {"upstream": "http://"},
        {"upstream": "http://me:secret@host"},
        {"upstream": "http://host:99999"},
        {"upstream": "http://host/v1/completions"},
        {"upstream": "http://host?model=a"},
        {"upstream": ""},
        {"upstream": "http://host", "upstream_key": "é"},
        {"upstream": "http://host", "max_tokens": 100},
        {"upstream": "http://host", "wait": 1.0},
        {"upstream_model": "tiny"},
    ],
)
def test_settings_that_no_server_can_have(settings: dict[str, Any]) -> None:
    with pytest.raises(ArgumentsError):
        ServerSettings(**settings).check()


@pytest.mark.parametrize(
    ("options", "said"),
    [
        (["--upstream", "http://host", "--device", "cpu", "--wait", "3"], "--wait and --device say nothing"),
        (["--upstream", "http://host", "--input-cache", "1GiB"], "--input-cache says nothing with --upstream"),
        (["--upstream-key", "secret"], "--upstream-key says nothing without --upstream"),
    ],
)
def test_options_that_say_nothing_are_refused(options: list[str], said: str, tmp_path: Path) -> None:
    found = CliRunner().invoke(attempt, ["--registry", str(tmp_path), "serve", *options])
    assert found.exit_code == 2
    assert said in found.output


def test_no_layers_are_loaded(kept: Shop, upstream: Server, monkeypatch: pytest.MonkeyPatch) -> None:
    """The whole way, by the function that the command calls, over the network."""
    from transformers import AutoModelForCausalLM

    def refused(*_: Any, **__: Any) -> None:
        raise AssertionError("the whole model is loaded")

    own = expected(Served(kept, None, None, None, None), "aim", TEXTS)  # type: ignore[arg-type]
    monkeypatch.setattr(AutoModelForCausalLM, "from_pretrained", refused)
    found: list[Any] = []

    def work(serving: Any) -> None:
        def asking() -> None:
            import signal

            try:
                assert serving.record() == {
                    "url": serving.url, "backbone": "tiny", "models": 10, "api_key": False, "upstream": upstream.url,
                }  # fmt: skip
                with ThreadPoolExecutor(3) as pool:
                    body = [{"model": "aim", "prompt": text} for text in TEXTS]
                    asked = [pool.submit(httpx.post, f"{serving.url}/v1/completions", json=one) for one in body]
                    found.extend(one.result().json()["attempt"][0] for one in asked)
            finally:
                signal.raise_signal(signal.SIGINT)

        threading.Thread(target=asking).start()

    run_server(Session(Path(kept.registry.folder)), (), ServerSettings(port=0, upstream=upstream.url), work)
    for one, each in zip(found, own, strict=True):
        same(one, each)
