"""Every command of docs/serving.md runs as it stands there, with fewer steps, on a tiny model and a free port."""

from __future__ import annotations

import json
import os
import re
import shutil
import socket
import subprocess
import sys
import time
from pathlib import Path

import httpx
import openai
import pytest

from tests.models import save_llama
from tests.server.shop import Shop
from tests.standins.vllm import vllm_server

PAGE = (Path(__file__).parents[2] / "docs" / "serving.md").read_text("utf-8")
TRAINING, ASKING, FORWARDING, _ = re.findall(r"```console\n(.*?)```", PAGE, flags=re.S)  # the last measures
(PYTHON,) = re.findall(r"```python\n(.*?)```", PAGE, flags=re.S)

UNSET = ("upstream", "upstream_model", "upstream_key")  # without a default

pytestmark = [pytest.mark.slow, pytest.mark.skipif(shutil.which("curl") is None, reason="curl is not installed")]


def test_the_page_s_commands_run(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ATTEMPT_REGISTRY": str(tmp_path / "registry"),
    }
    training = TRAINING.replace("smollm2-135m", str(save_llama(tmp_path / "model"))).replace("8000", str(port))
    training = re.sub(r"--steps \d+", "--steps 2", training)
    *before, serve = training.strip().splitlines()
    script = "\n".join([*before, f"exec {serve}"])
    with subprocess.Popen(["bash", "-ec", script], env=environment, stderr=subprocess.PIPE, text=True) as server:
        try:
            deadline = time.monotonic() + 300
            while True:
                try:
                    httpx.get(f"http://127.0.0.1:{port}/health", timeout=60)
                    break
                except httpx.ConnectError:
                    assert server.poll() is None, server.stderr.read() if server.stderr else ""
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
            found = []
            for command in ASKING.replace("8000", str(port)).strip().splitlines():
                done = subprocess.run(["bash", "-ec", command], capture_output=True, text=True, timeout=60, check=True)
                found.append(done.stdout)
            models, completion, predictions, health, metrics = found
            assert {one["id"] for one in json.loads(models)["data"]} == {
                "shop-reviews", "message-topics", "support-chats-attempt",
            }  # fmt: skip
            (choice,) = json.loads(completion)["choices"]
            assert set(choice["logprobs"]["top_logprobs"][0]) == {"happy", "unhappy"}
            assert list(json.loads(predictions)["predictions"]) == ["shop-reviews", "message-topics"]
            assert json.loads(health)["status"] == "ok"
            assert "attempt_labels_total 3.0" in metrics
            python = [sys.executable, "-c", PYTHON.replace("8000", str(port))]
            done = subprocess.run(python, capture_output=True, text=True, timeout=60, check=True)
            assert done.stdout.strip() in ("happy", "unhappy")
        finally:
            server.terminate()
        assert server.wait(60) == 0


def test_the_command_in_front_of_another_server_runs(tmp_path: Path, shop: Shop, llama: Path) -> None:
    """With the stand-in in vLLM's place."""
    _, command = FORWARDING.strip().splitlines()
    command = command.replace("--port 8000", "--port 0")
    environment = {
        **os.environ,
        "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}",
        "ATTEMPT_REGISTRY": str(shop.registry.folder),
        "ATTEMPT_UPSTREAM_KEY": "secret",
    }
    with vllm_server(llama) as upstream, (tmp_path / "out").open("w") as out:
        upstream.key = "secret"
        script = f"exec {command.replace('http://127.0.0.1:8001', upstream.url)}"
        with subprocess.Popen(["bash", "-ec", script], env=environment, stdout=out, stderr=out) as server:
            try:
                deadline = time.monotonic() + 100
                while not (found := re.search(r"http://[\d.]+:(?!8001)\d+", (tmp_path / "out").read_text())):
                    assert server.poll() is None, (tmp_path / "out").read_text()
                    assert time.monotonic() < deadline
                    time.sleep(0.2)
                client = openai.OpenAI(base_url=f"{found[0]}/v1", api_key="none", max_retries=0)
                answer = client.completions.create(model="mood", prompt="it was good", logprobs=2)
                assert set(answer.choices[0].logprobs.top_logprobs[0]) == {"yes", "no"}  # type: ignore[union-attr,index]
            finally:
                server.terminate()
        assert server.wait(60) == 0


def test_options_and_defaults_are_those_of_the_command() -> None:
    from attempt_cli.cli.serve import command
    from attempt_cli.server.settings import ServerSettings

    options = {option.opts[0]: option for option in command.params if option.opts[0].startswith("--")}
    for name in set(re.findall(r"`(--[a-z-]+)`", PAGE)):
        assert name in options, name
    for row in re.findall(r"^\| `(--[a-z-]+)` \| (\S+)", PAGE, flags=re.M):
        default = str(options[row[0]].default).removesuffix(".0").removesuffix("MiB")
        assert default == row[1]
    own = ServerSettings()
    for option in options.values():
        if option.name in vars(own) and option.name not in ("max_body", "api_key", *UNSET):
            assert getattr(own, str(option.name)) == option.default
    assert own.max_body == 1 << 20
