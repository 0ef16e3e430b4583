"""`attempt serve` as a process, asked by the official client over the network."""

from __future__ import annotations

import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import openai
import pytest

from attempt_registry import Registry
from tests.server.shop import Shop
from tests.training.commands import Attempt

pytestmark = pytest.mark.usefixtures("one_thread")


class Process:
    """A server in a process of its own."""

    def __init__(self, folder: Path, registry: Path, *options: str) -> None:
        self.log = folder / "log"
        with self.log.open("w") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "attempt_cli", "--format", "json", "serve", "--port", "0", *options],
                env={**os.environ, "ATTEMPT_REGISTRY": str(registry)},
                stdout=subprocess.PIPE,
                stderr=log,
                text=True,
            )
        assert self.process.stdout is not None
        document = ""
        while line := self.process.stdout.readline():
            document += line
            if line == "}\n":
                break
        assert document, self.log.read_text()
        self.serving = json.loads(document)["serving"]
        self.url: str = self.serving["url"]

    def client(self, **options: Any) -> openai.OpenAI:
        return openai.OpenAI(base_url=f"{self.url}/v1", api_key="none", **({"max_retries": 0} | options))

    def end(self, number: int) -> int:
        self.process.send_signal(number)
        return self.process.wait(60)


@pytest.fixture
def run(tmp_path: Path, shop: Shop) -> Iterator[Callable[..., Process]]:
    """Starts `attempt serve` on the registry."""
    running: list[Process] = []

    def start(*options: str) -> Process:
        options = ("--device", "cpu", "--dtype", "float32", *options)
        running.append(Process(tmp_path, shop.registry.folder, *options))
        return running[-1]

    yield start
    for one in running:
        one.process.kill()
        one.process.wait()
        one.process.stdout.close()  # type: ignore[union-attr]


def load(process: Process, count: int) -> tuple[list[threading.Thread], list[Any]]:
    """Asks for texts from many threads; what they get."""
    found: list[Any] = []
    begin = threading.Barrier(count)

    def ask(number: int) -> None:
        name, client = ("story", "tale")[number % 2], process.client(timeout=60)
        begin.wait()
        try:
            answer = client.completions.create(model=name, prompt=f"it was good {number}", max_tokens=80)
            found.append(answer.choices[0].text)
        except openai.APIConnectionError as error:
            found.append(error)

    threads = [threading.Thread(target=ask, args=(number,)) for number in range(count)]
    for thread in threads:
        thread.start()
    return threads, found


def taken(process: Process) -> int:
    """How many requests are under way, but for this one."""
    text = httpx.get(f"{process.url}/metrics", timeout=60).text
    return int(float(text.partition("\nattempt_requests_under_way ")[2].partition("\n")[0])) - 1


def test_the_official_client_and_a_gentle_end(run: Callable[..., Process]) -> None:
    process = run()
    assert process.serving == {"url": process.url, "backbone": "tiny", "models": 10, "api_key": False}
    client = process.client()
    assert len(list(client.models.list())) == 10
    chat = client.chat.completions.create(
        model="aim", messages=[{"role": "user", "content": "it was good"}], logprobs=True, top_logprobs=2
    )
    assert chat.choices[0].message.content in ("yes", "no")
    assert len(chat.choices[0].logprobs.content[0].top_logprobs) == 2  # type: ignore[union-attr,index]
    with client.completions.create(model="story", prompt="it was good", stream=True) as stream:
        pieces = [chunk.choices[0].text for chunk in stream]
    assert len([piece for piece in pieces if piece]) > 5
    with pytest.raises(openai.NotFoundError, match="Did you mean mood"):
        client.completions.create(model="moodd", prompt="it was good")
    with pytest.raises(openai.BadRequestError, match="temperature"):
        client.completions.create(model="mood", prompt="it was good", temperature=0.5)

    threads, found = load(process, 24)
    while taken(process) + len(found) < 24:
        time.sleep(0.002)
    assert process.end(signal.SIGTERM) == 0
    for thread in threads:
        thread.join()
    assert [one for one in found if not isinstance(one, str)] == []
    assert len(found) == 24
    assert process.log.read_text().splitlines()[-1] == "Stopped."


def test_a_kill_under_load_loses_nothing_of_the_registry(run: Callable[..., Process], shop: Shop) -> None:
    process = run()
    before = [prompt.ref for prompt in shop.registry.prompts()]
    threads, found = load(process, 16)
    while not found:
        time.sleep(0.002)
    assert process.end(signal.SIGKILL) == -signal.SIGKILL
    for thread in threads:
        thread.join()
    with Registry.open(shop.registry.folder) as registry:
        assert registry.verify() == []
        assert [prompt.ref for prompt in registry.prompts()] == before
    assert run().client().completions.create(model="mood", prompt="it was good").choices[0].text in ("yes", "no")


def refusal(attempt: Attempt, command: str, **options: Any) -> str:
    result = attempt(command, **options)
    assert result.code in (1, 2)
    assert "defect" not in result.err
    assert "loading" not in result.err  # nothing is loaded before
    return result.err


def test_what_cannot_be_served_is_said_before_anything_is_loaded(tmp_path: Path, shop: Shop, llama: Path) -> None:
    attempt = Attempt(tmp_path, None, "shop")
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert f"port {port}" in refusal(attempt, f"serve --port {port}")
    assert "no.such.host.invalid" in refusal(attempt, "serve --host no.such.host.invalid --port 0")
    assert "192.0.2.1" in refusal(attempt, "serve --host 192.0.2.1 --port 0")
    assert "no prompt or composition named 'moodd'" in refusal(attempt, "serve moodd")
    assert "for smollm2-135m" in refusal(attempt, "serve --backbone smollm2-135m")
    assert "'mood@1' was trained for tiny" in refusal(attempt, "serve mood --backbone smollm2-135m")
    assert "is not a size" in refusal(attempt, "serve --input-cache much")
    assert "max_queue" in refusal(attempt, "serve --max-rows 10 --max-queue 5")
    assert "API key" in refusal(attempt, "serve", ATTEMPT_API_KEY="schlüssel")
    shop.own = shop.own | {"fingerprint": "f" * 16, "backbone": "another"}
    shop.prompt("foreign")
    assert "for 2 backbones" in refusal(attempt, "serve")
    assert "'mood@1' was trained for tiny" in refusal(attempt, "serve mood foreign")
    assert "no prompt to serve" in refusal(Attempt(tmp_path, None, "empty"), "serve")
    assert "pip install 'attempt-cli[serve]'" in refusal(attempt, "serve", prepare=without_uvicorn)


def without_uvicorn() -> None:
    """Makes the library look as if it were not installed."""
    import importlib.util

    found = importlib.util.find_spec
    importlib.util.find_spec = lambda name, *more: None if name == "uvicorn" else found(name, *more)  # type: ignore[assignment]


def test_other_machines_without_a_key_are_remarked_on(run: Callable[..., Process]) -> None:
    process = run("mood", "--host", "0.0.0.0")
    assert "no --api-key is set" in process.log.read_text()
    assert process.serving["models"] == 1
    assert process.end(signal.SIGINT) == 0
