"""Every command that computes, on the pretend GPU: no tensors of two devices meet."""

from __future__ import annotations

import json
import os
import signal
from pathlib import Path

import httpx
import pytest

from tests.pretend_cuda import with_pretend_cuda
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

pytestmark = pytest.mark.slow
ON = "--device cuda --dtype float32"
TRAIN = f"{ON} --steps 2 --batch-size 8"
RATE = f"{TRAIN} --learning-rate 0.1"
TASK = """\
name: aim
input: '{text} label:'
label: mood
labels: {'no': 'no', 'yes': 'yes'}
metrics: [accuracy, f1]
files: {train: train.csv, validation: validation.csv, test: test.csv}
"""


@pytest.fixture(params=["llama", "t5"])
def attempt(request: pytest.FixtureRequest, tmp_path: Path, folders: dict[str, Path]) -> Attempt:
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
    (tmp_path / "aim.yaml").write_text(TASK)
    (tmp_path / "texts.txt").write_text("it is good\nit is bad\n")
    return Attempt(tmp_path, folders[request.param])


def two_gpus() -> None:
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the library's threads know no pretend GPU
    with_pretend_cuda(2)


def test_layers_over_two_gpus(attempt: Attempt) -> None:
    on = "--device auto --dtype float32"

    def run(command: str, code: int = 0) -> str:
        result = attempt(f"--debug {command}" if code == 0 else command, prepare=two_gpus)
        assert result.code == code, result.err
        return result.out + result.err

    train = f"{on} --steps 2 --batch-size 8 --learning-rate 0.1"
    run(f"train-source one --train-file train.csv {READ} {train} --prompt-length 4")
    run(f"train-target aim.yaml {train} --sources one --attention-rank 4 --eval-every 1")
    run(f"eval --tasks aim.yaml --composition aim-attempt --prompt none {on}")
    run(f"predict aim-attempt texts.txt {on}")
    run("predict aim-attempt texts.txt --device cpu --dtype float32")  # the same backbone
    refused = run(f"train-target aim.yaml {on} --method lora --name weights", code=1)
    assert "are on several GPUs" in refused


class Commands:
    """Runs commands on the pretend GPU, and keeps what those that fail say."""

    def __init__(self, attempt: Attempt) -> None:
        self.attempt = attempt
        self.wrong: list[str] = []

    def __call__(self, command: str) -> None:
        result = self.attempt(f"--debug {command}", prepare=with_pretend_cuda)
        if result.code != 0:
            self.wrong.append(f"{command}: {result.err}")

    def train(self) -> None:
        """Trains the sources one and two, and the composition aim-attempt."""
        for seed, name in enumerate(("one", "two")):
            self(f"train-source {name} --train-file train.csv {READ} {RATE} --prompt-length 4 --seed {seed}")
        self(f"train-target aim.yaml {RATE} --sources one,two --attention-rank 4")


def test_every_command_that_computes(attempt: Attempt) -> None:
    run = Commands(attempt)
    run.train()
    run(f"train-target aim.yaml {RATE} --method spot --init-from two --eval-every 2")
    run(f"train-target aim.yaml {RATE} --sources one,two --attention-rank 4 --batch-size auto --name big")
    run(f"train-target aim.yaml {TRAIN} --method lora --gradient-checkpointing --name weights")
    run(f"train-attention --sources one,two --tasks aim.yaml --attention-rank 3 {RATE}")
    run(f"eval --tasks aim.yaml --composition aim-attempt --prompt aim-spot --prompt none {ON}")
    run(f"inspect aim-attempt --task aim {ON}")
    run(f"rank-sources aim.yaml --sources one,two {ON}")
    run(f"predict aim-attempt texts.txt {ON}")
    run(f"predict --prompts one,two texts.txt {ON}")
    run("export aim-spot matrix --to npy")
    run(f"fewshot -k 4 --tasks aim.yaml --sources one,two --seeds 1 --methods prompt-tuning,attempt {RATE}")
    rates = "--learning-rate 0.1,0.2 --methods prompt-tuning,attempt"
    run(f"sweep aim.yaml --sources one,two --seeds 1 {rates} {TRAIN} --eval-every 1")
    assert not run.wrong, "\n".join(run.wrong)


def test_experiments_compositions_and_what_leaves(attempt: Attempt) -> None:
    run = Commands(attempt)
    run.train()
    run("compose fewer --from aim-attempt --drop one")
    run("compose plain --flatten aim-attempt --tasks aim.yaml")
    run(f"eval --tasks aim.yaml --composition fewer --composition aim-attempt {ON}")
    run("compare fewer aim-attempt")
    methods = "none,source,instruction,icl,probe,spot-t,attempt-states,attempt-evidence,attempt-top2,smop,lora"
    rows = "-k 8 --seeds 1 --tasks aim.yaml --sources one,two --max-length 24"
    run(f"reproduce table3 {rows} --methods {methods} {RATE} --eval-every 0")
    run("export plain words --to vocabulary")
    run("export aim-attempt aim.attempt --to bundle")
    run("import aim.attempt --prefix again-")
    assert not run.wrong, "\n".join(run.wrong)


def test_the_server(attempt: Attempt) -> None:
    run = Commands(attempt)
    run.train()
    assert not run.wrong, "\n".join(run.wrong)
    running = attempt.start(f"--format json serve --port 0 {ON}", prepare=with_pretend_cuda)
    out = running.streams / "out"
    running.until(lambda: out.read_text("utf-8").endswith("}\n"))
    url = json.loads(out.read_text("utf-8"))["serving"]["url"]
    asked = {"inputs": ["it is good", "it is bad, all of it"], "models": ["one", "two"]}
    answer = httpx.post(f"{url}/predict", json=asked, timeout=60)
    assert answer.status_code == 200, running.err
    text = {"model": "one", "prompt": "it is good"}
    assert httpx.post(f"{url}/v1/completions", json=text, timeout=60).status_code == 200
    assert running.process.pid is not None
    os.kill(running.process.pid, signal.SIGTERM)
    assert running.result().code == 0
