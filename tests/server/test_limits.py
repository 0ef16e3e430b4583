"""What is refused, and how: always with a reason in OpenAI's shape, never with a failure of the server."""

from __future__ import annotations

import asyncio
import json
import random
import threading
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from tests.server.shop import Served
from tests.server.test_engine import ask
from tests.server.test_openai import TEXTS

pytestmark = pytest.mark.usefixtures("one_thread")

COMPLETION = {"model": "mood", "prompt": "it was good"}
CHAT = {"model": "mood", "messages": [{"role": "user", "content": "it was good"}]}
PREDICT = {"inputs": ["it was good"], "models": ["mood"]}
BODIES = {"/v1/completions": COMPLETION, "/v1/chat/completions": CHAT, "/predict": PREDICT}


def problem(answer: httpx.Response, status: int, code: str | None = None) -> dict[str, Any]:
    assert answer.status_code == status, answer.text
    error: dict[str, Any] = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert error["message"]
    assert code in (None, error["code"])
    return error


@pytest.mark.parametrize(
    ("path", "change", "named"),
    [
        ("/v1/completions", {"temperature": 0.7}, "temperature"),
        ("/v1/completions", {"top_p": 0.5}, "top_p"),
        ("/v1/completions", {"n": 2}, "n"),
        ("/v1/completions", {"best_of": 3}, "best_of"),
        ("/v1/completions", {"echo": True}, "echo"),
        ("/v1/completions", {"suffix": "end"}, "suffix"),
        ("/v1/completions", {"logit_bias": {"50256": -100}}, "logit_bias"),
        ("/v1/completions", {"presence_penalty": 1}, "presence_penalty"),
        ("/v1/completions", {"prompt": [1, 2, 3]}, "prompt"),
        ("/v1/completions", {"prompt": []}, "prompt"),
        ("/v1/completions", {"max_tokens": 0}, "max_tokens"),
        ("/v1/completions", {"logprobs": 21}, "logprobs"),
        ("/v1/completions", {"stream_options": {"include_usage": True}}, "stream_options"),
        ("/v1/completions", {"tempreature": 0}, "tempreature"),
        ("/v1/completions", {"model": "story", "logprobs": 1}, "logprobs"),
        ("/v1/completions", {"model": "story", "max_tokens": 10_000}, "max_tokens"),
        ("/v1/chat/completions", {"tools": [{"type": "function"}]}, "tools"),
        ("/v1/chat/completions", {"response_format": {"type": "json_object"}}, "response_format"),
        ("/v1/chat/completions", {"messages": []}, "messages"),
        ("/v1/chat/completions", {"messages": [{"role": "system", "content": "be kind"}]}, "messages"),
        ("/v1/chat/completions", {"messages": [*CHAT["messages"], *CHAT["messages"]]}, "messages"),  # type: ignore[misc]
        ("/v1/chat/completions", {"top_logprobs": 3}, "top_logprobs"),
        ("/v1/chat/completions", {"reasoning_effort": "high"}, "reasoning_effort"),
        ("/predict", {"inputs": []}, "inputs"),
        ("/predict", {"models": []}, "models"),
        ("/predict", {"task": "mood"}, "task"),
    ],
)
def test_what_is_not_supported_is_refused_by_name(
    server: Served, path: str, change: dict[str, Any], named: str
) -> None:
    error = problem(server.post(path, BODIES[path] | change), 400)
    assert named in error["message"]
    assert error["param"].split(".")[0] == named


def test_what_clients_send_by_default_is_taken(server: Served) -> None:
    harmless = {
        "temperature": 0, "top_p": 1, "n": 1, "frequency_penalty": 0, "presence_penalty": 0.0, "logit_bias": None,
        "user": "somebody", "seed": 7, "stream": False, "stop": None, "max_tokens": 16,
    }  # fmt: skip
    assert server.post("/v1/completions", COMPLETION | harmless | {"best_of": 1, "echo": False}).status_code == 200
    chat = {"response_format": {"type": "text"}, "tools": [], "tool_choice": "none", "store": False, "metadata": {}}
    parts = [{"role": "user", "content": [{"type": "text", "text": "it was "}, {"type": "text", "text": "good"}]}]
    found = server.post("/v1/chat/completions", CHAT | harmless | chat | {"messages": parts})
    assert found.json()["attempt"] == server.post("/v1/chat/completions", CHAT).json()["attempt"]


def test_an_unknown_model_has_near_names(server: Served) -> None:
    for path, body in BODIES.items():
        named = {"models": ["moood"]} if path == "/predict" else {"model": "moood"}
        error = problem(server.post(path, body | named), 404, "model_not_found")
        assert "Did you mean mood?" in error["message"]
    problem(server.get("/v1/models/moood"), 404, "model_not_found")
    problem(server.post("/v1/completions", COMPLETION | {"model": "mood@7"}), 404)


def test_a_row_of_several_columns(server: Served) -> None:
    row = {"first": "it is", "second": "good"}
    found = server.post("/predict", {"inputs": row, "models": "pair"}).json()["predictions"]["pair"]
    text = server.post("/v1/completions", {"model": "pair", "prompt": json.dumps(row)}).json()
    assert text["attempt"] == found
    error = problem(server.post("/v1/completions", {"model": "pair", "prompt": "it is good"}), 400)
    assert "first, second" in error["message"]
    error = problem(server.post("/predict", {"inputs": [{"first": "it"}], "models": "pair"}), 400)
    assert "no column 'second'" in error["message"]


def test_long_inputs_say_how_much_was_cut(server: Served) -> None:
    found = server.post("/predict", {"inputs": "good " * 200, "models": "mood"}).json()["predictions"]["mood"][0]
    assert found["truncated"] > 100
    assert "truncated" not in server.post("/predict", PREDICT).json()["predictions"]["mood"][0]


def test_bodies_and_rows_have_a_limit(start: Callable[..., Served]) -> None:
    server = start(max_body=2000, max_rows=4)
    problem(server.post("/predict", PREDICT | {"inputs": ["good"] * 3, "models": ["mood", "topic"]}), 400)
    assert server.post("/predict", PREDICT | {"inputs": ["good"] * 2, "models": ["mood", "topic"]}).status_code == 200
    problem(server.post("/predict", PREDICT | {"inputs": "a" * 3000}), 413, "body_too_large")

    async def chunks(client: httpx.AsyncClient) -> httpx.Response:
        async def parts() -> Any:
            for _ in range(10):
                yield b'"' + b"a" * 300

        return await client.post("/predict", content=parts())  # its length is not said beforehand

    problem(server.run(chunks), 413, "body_too_large")


def held(server: Served) -> threading.Event:
    """Keeps the engine busy until the event is set."""
    begun, go_on = threading.Event(), threading.Event()

    def hold(piece: str) -> None:
        begun.set()
        go_on.wait(30)

    server.engine.put([ask(server, "story", TEXTS[0], said=hold)])
    assert begun.wait(30)
    return go_on


def test_a_full_queue_turns_requests_away_until_there_is_room(start: Callable[..., Served]) -> None:
    server = start(max_queue=3, max_rows=3)
    go_on = held(server)

    async def work(client: httpx.AsyncClient) -> Any:
        waiting = [asyncio.create_task(client.post("/v1/completions", json=COMPLETION)) for _ in range(3)]
        while server.engine.waiting < 3:
            await asyncio.sleep(0.001)
        turned = [await client.post(path, json=body) for path, body in BODIES.items()]
        turned.append(await client.post("/v1/completions", json=COMPLETION | {"stream": True}))
        go_on.set()
        return turned, await asyncio.gather(*waiting)

    turned, answered = server.run(work)
    for answer in turned:
        problem(answer, 429, "queue_full")
        assert int(answer.headers["Retry-After"]) >= 1
    assert [answer.status_code for answer in answered] == [200] * 3


def test_a_request_that_takes_too_long_is_given_up(start: Callable[..., Served]) -> None:
    server = start(timeout=1)
    go_on = held(server)
    problem(server.post("/v1/completions", COMPLETION), 503, "timeout")
    problem(server.post("/v1/completions", COMPLETION | {"stream": True}), 503, "timeout")
    assert server.get("/health").json()["status"] == "ok"
    go_on.set()


def test_a_key_is_asked_for(start: Callable[..., Served]) -> None:
    server = start(api_key="s3cret")
    for path in ("/v1/models", "/metrics", "/v1/models/mood", "/nowhere"):
        problem(server.get(path), 401, "invalid_api_key")
        problem(server.get(path, Authorization="Bearer wrong"), 401)
        problem(server.get(path, Authorization="Basic s3cret"), 401)
    problem(server.post("/predict", PREDICT), 401)
    assert server.post("/predict", PREDICT, Authorization="Bearer s3cret").status_code == 200
    for path in ("/", "/page.js", "/page.css", "/health"):
        assert server.get(path).status_code == 200
        assert "mood" not in server.get(path).text


def test_a_page_of_another_site_cannot_use_this_machine_s_name(server: Served) -> None:
    problem(server.get("/v1/models", Host="evil.example"), 403, "wrong_host")
    for host in ("localhost:8000", "127.0.0.1", "[::1]:8000", "LOCALHOST"):
        assert server.get("/v1/models", Host=host).status_code == 200


def test_every_answer_says_what_a_page_may_do(server: Served) -> None:
    for answer in (server.get("/"), server.get("/v1/models"), server.get("/nowhere"), server.post("/predict", {})):
        assert "script-src 'self'" in answer.headers["Content-Security-Policy"]
        assert answer.headers["X-Content-Type-Options"] == "nosniff"
        assert "access-control-allow-origin" not in answer.headers


def test_numbers_for_prometheus(server: Served) -> None:
    server.post("/v1/completions", COMPLETION)
    server.get("/some/path/of/a/stranger")
    text = server.get("/metrics").text
    assert 'attempt_requests_total{route="/v1/completions",status="200"} 1.0' in text
    assert "stranger" not in text
    assert "attempt_labels_total 1.0" in text
    assert "attempt_kept_inputs_missed_total 1.0" in text


# --- malformed requests

ODD: list[Any] = [
    None, True, -1, 0, 1.5, 10**30, 1e308, "", "\ud800", "\u0000", "a" * 5000, [], {}, [[]], {"a": {"b": [None]}},
    ["x"] * 300, {"role": "user"}, "mood@", "mood@0", "@", ":", "prompt:mood", "attention:aim", "none", "all", "../..",
    "aim:none", "mood:mood:mood", [{"role": "user", "content": "\udfff"}],
]  # fmt: skip


def mangled(randomness: random.Random) -> tuple[str, bytes]:
    """A request that was right, with a part of it wrong."""
    path, body = randomness.choice(list(BODIES.items()))
    body = json.loads(json.dumps(body))
    content = json.dumps(body).encode()
    kind = randomness.randrange(4)
    if kind == 0:  # bytes
        data = bytearray(content)
        for _ in range(randomness.randint(1, 6)):
            data[randomness.randrange(len(data))] = randomness.randrange(256)
        return path, bytes(data[: randomness.randint(0, len(data))])
    if kind == 1:
        odd = [b"", b"[" * 50_000, b'{"a":' * 20_000, b"\xff\xfe", b"NaN", b"1" * 5000, b"null", b'"', b"{}" * 2]
        return path, randomness.choice(odd)
    if kind == 2:  # a field
        body[randomness.choice(list(body))] = randomness.choice(ODD)
    else:  # one more field
        names = ["temperature", "stop", "max_tokens", "stream", "stream_options", "logprobs", "n", "user", "x\ud800"]
        body[randomness.choice(names)] = randomness.choice(ODD)
    return path, json.dumps(body).encode()


def check_mangled(server: Served, count: int) -> dict[int, int]:
    """Sends mangled requests; returns how often each status was answered."""
    randomness = random.Random(20220522)
    seen: dict[int, int] = {}

    async def work(client: httpx.AsyncClient) -> None:
        for _ in range(count):
            path, content = mangled(randomness)
            answer = await client.post(path, content=content, headers={"Content-Type": "application/json"})
            assert answer.status_code < 500, (path, content[:200], answer.text)
            if answer.status_code >= 400:
                problem(answer, answer.status_code)
            seen[answer.status_code] = seen.get(answer.status_code, 0) + 1

    server.run(work)
    return seen


def test_malformed_requests_are_the_client_s_fault(server: Served) -> None:
    seen = check_mangled(server, 300)
    assert seen[400] > 150
    assert server.post("/v1/completions", COMPLETION).status_code == 200


@pytest.mark.slow
def test_ten_thousand_malformed_requests(server: Served) -> None:
    seen = check_mangled(server, 10_000)
    assert seen[400] > 5_000
    assert server.engine.alive


def test_rows_that_are_nested_too_deeply_are_refused(server: Served) -> None:
    for depth in (10, 400, 900, 5000):
        deep = b"[" * depth + b"1" + b"]" * depth
        content = b'{"models": "mood", "inputs": [{"text": ' + deep + b"}]}"
        answer = server.post("/predict", content=content)
        assert answer.status_code == (200 if depth == 10 else 400), answer.text


def test_wrong_methods_paths_and_types(server: Served) -> None:
    problem(server.get("/v1/completions"), 405)
    problem(server.get("/nowhere"), 404)
    problem(
        server.post("/v1/completions", content=b"a=b", **{"Content-Type": "application/x-www-form-urlencoded"}), 400
    )
    problem(server.post("/v1/completions", content=b"\x00\x01", **{"Content-Type": "multipart/form-data"}), 400)
