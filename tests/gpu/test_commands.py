"""Every command on the pretend GPU: no tensors of two devices meet."""

from __future__ import annotations

import json
import os
import re
import signal
from collections.abc import Callable, Iterable
from pathlib import Path

import click
import httpx
import pytest

from attempt_cli.cli.main import attempt as root
from tests.backbones.hub_stand_in import running
from tests.hub.stand_in import UploadHub
from tests.hub.test_round_trip import ask_the_stand_in, environment
from tests.pretend_cuda import with_pretend_cuda
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

ON = "--device cuda --dtype float32"
TRAIN = f"{ON} --steps 2 --batch-size 8"
RATE = f"{TRAIN} --learning-rate 0.1"
RATES = "--learning-rate 0.1,0.2 --methods prompt-tuning,attempt"
METHODS = "none,source,instruction,icl,probe,spot-t,attempt-states,attempt-evidence,attempt-top2,smop,lora"
TASK = """\
name: aim
input: '{text} label:'
label: mood
labels: {'no': 'no', 'yes': 'yes'}
metrics: [accuracy, f1]
files: {train: train.csv, validation: validation.csv, test: test.csv}
"""

# what the other commands use: the sources one and two, and the composition aim-attempt
SOURCES = (
    f"train-source one --train-file train.csv {READ} {RATE} --prompt-length 4 --seed 0",
    f"train-source two --train-file train.csv {READ} {RATE} --prompt-length 4 --seed 1",
)
FIRST = (*SOURCES, f"train-target aim.yaml {RATE} --sources one,two --attention-rank 4")
USES = (
    f"train-target aim.yaml {RATE} --method spot --init-from two --eval-every 2",
    f"train-target aim.yaml {RATE} --sources one,two --attention-rank 4 --batch-size auto --name big",
    f"train-target aim.yaml {TRAIN} --method lora --gradient-checkpointing --name weights",
    f"train-attention --sources one,two --tasks aim.yaml --attention-rank 3 {RATE}",
    f"eval --tasks aim.yaml --composition aim-attempt --prompt aim-spot --prompt none {ON}",
    f"inspect aim-attempt --task aim {ON}",
    f"rank-sources aim.yaml --sources one,two {ON}",
    f"predict aim-attempt texts.txt {ON}",
    f"predict --prompts one,two texts.txt {ON}",
    "export aim-spot matrix --to npy",
    f"fewshot -k 4 --tasks aim.yaml --sources one,two --seeds 1 --methods prompt-tuning,attempt {RATE}",
    f"sweep aim.yaml --sources one,two --seeds 1 {RATES} {TRAIN} --eval-every 1",
)
GRIDS = (
    "compose fewer --from aim-attempt --drop one",
    "compose plain --flatten aim-attempt --tasks aim.yaml",
    f"eval --tasks aim.yaml --composition fewer --composition aim-attempt {ON}",
    "compare fewer aim-attempt",
    "reproduce table3 -k 8 --seeds 1 --tasks aim.yaml --sources one,two --max-length 24 "
    f"--methods {METHODS} {RATE} --eval-every 0",
    "export plain words --to vocabulary",
    "export aim-attempt aim.attempt --to bundle",
    "import aim.attempt --prefix again-",
)
SERVE = f"serve --port 0 {ON}"
# the third registry does not know the backbone, which is loaded there
MOVES = (
    f"{SOURCES[0]} --placement before",
    "push one me/one",
    "--registry other pull me/one",
    "export one adapter --to peft",
    "--registry third import adapter",
    "export one embeddings --to vllm",
    "export one added --to vocabulary-delta",
    f"backbone show {ON}",
    "backbone list",
    "registry list",
    "registry show one",
    "registry search one",
    "registry tag one --add mine",
    "export one matrix --to npy",
    "registry add matrix/one.npy --backbone llama --task aim --name again",
    "registry remove again --yes",
    "registry verify",
    "registry gc --yes",
    "registry path",
    "tasks list",
    "tasks show shop-reviews",
    "tasks check shop-reviews",
)
DEMO = f"demo {ON}"
SPREAD = "--device auto --dtype float32"
TRAIN_SPREAD = f"{SPREAD} --steps 2 --batch-size 8"
RATE_SPREAD = f"{TRAIN_SPREAD} --learning-rate 0.1"
SPREADS = (
    f"train-source one --train-file train.csv {READ} {RATE_SPREAD} --prompt-length 4",
    f"train-target aim.yaml {RATE_SPREAD} --sources one --attention-rank 4 --eval-every 1",
    f"eval --tasks aim.yaml --composition aim-attempt --prompt none {SPREAD}",
    f"predict aim-attempt texts.txt {SPREAD}",
    "predict aim-attempt texts.txt --device cpu --dtype float32",  # the same backbone
    f"fewshot -k 4 --tasks aim.yaml --sources one --seeds 2 --methods prompt-tuning,attempt {RATE_SPREAD}",
    f"sweep aim.yaml --sources one --seeds 1 {RATES} {TRAIN_SPREAD} --eval-every 1",
    "reproduce table3 -k 8 --seeds 1 --tasks aim.yaml --sources one --max-length 24 "
    f"--methods {METHODS.removesuffix(',lora')} {RATE_SPREAD} --eval-every 0",
)


def leaves(group: click.Group, before: str = "") -> Iterable[str]:
    """Returns the names of all commands."""
    context = click.Context(group)
    for name in group.list_commands(context):
        command = group.get_command(context, name)
        if isinstance(command, click.Group):
            yield from leaves(command, f"{before}{name} ")
        else:
            yield f"{before}{name}"


def test_no_command_is_left_out() -> None:
    lines = [re.sub(r"^--registry \S+ ", "", line) for line in (*FIRST, *USES, *GRIDS, *MOVES, SERVE, DEMO)]
    assert [name for name in leaves(root) if not any(f"{line} ".startswith(f"{name} ") for line in lines)] == []


@pytest.fixture(params=["llama", "t5"])
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.param)


@pytest.fixture
def attempt(kind: str, tmp_path: Path, folders: dict[str, Path]) -> Attempt:
    for seed, (name, count) in enumerate((("train", 40), ("validation", 12), ("test", 24))):
        write_csv(tmp_path / f"{name}.csv", toy_rows(count, seed))
    (tmp_path / "aim.yaml").write_text(TASK)
    (tmp_path / "texts.txt").write_text("it is good\nit is bad\n")
    return Attempt(tmp_path, folders[kind])


def two_gpus() -> None:
    os.environ["HF_DEACTIVATE_ASYNC_LOAD"] = "1"  # the library's threads know no pretend GPU
    with_pretend_cuda(2)


def with_hub() -> None:
    ask_the_stand_in()
    with_pretend_cuda()


def short_demo() -> None:
    import attempt_cli.cli.demo

    attempt_cli.cli.demo.SOURCE_STEPS = attempt_cli.cli.demo.TARGET_STEPS = 2
    with_pretend_cuda()


def succeed(attempt: Attempt, *commands: str, prepare: Callable[[], None] = with_pretend_cuda, **more: str) -> str:
    """Runs commands on pretend GPUs, returns their stderr; those that fail do not stop the others, and all are told."""
    results = [(command, attempt(f"--debug {command}", prepare=prepare, **more)) for command in commands]
    wrong = [f"{command}: {result.err}" for command, result in results if result.code != 0]
    assert not wrong, "\n".join(wrong)
    return "\n".join(result.err for _, result in results)


@pytest.mark.slow
@pytest.mark.parametrize("commands", [USES, GRIDS], ids=["uses", "grids"])
def test_every_command_that_computes(attempt: Attempt, commands: tuple[str, ...]) -> None:
    succeed(attempt, *FIRST, *commands)


@pytest.mark.slow
def test_the_server(attempt: Attempt) -> None:
    succeed(attempt, *FIRST)
    running = attempt.start(f"--format json {SERVE}", prepare=with_pretend_cuda)
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


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama"])
def test_what_moves_and_lists_prompts(attempt: Attempt) -> None:
    with running(UploadHub()) as hub:
        there = environment(hub, attempt.folder) | {"prepare": with_hub}
        succeed(attempt, *MOVES, **there)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["llama"])
def test_the_demo(attempt: Attempt) -> None:
    succeed(attempt, f"{DEMO} --backbone {attempt.backbone}", prepare=short_demo)


@pytest.mark.slow
def test_layers_over_two_gpus(attempt: Attempt) -> None:
    assert "all layers are on" not in succeed(attempt, *SPREADS, prepare=two_gpus)
    grid = "--sources one --seeds 1 --methods attempt,lora"
    for command, code, message in (
        ("train-target aim.yaml --method lora --name weights", 1, "are on several GPUs"),
        (f"fewshot -k 4 --tasks aim.yaml {grid}", 2, "not those that --device auto spreads over 2 GPUs"),
        (f"sweep aim.yaml {grid}", 2, "not those that --device auto spreads over 2 GPUs"),
        (f"reproduce table3 --tasks aim.yaml {grid}", 2, "not those that --device auto spreads over 2 GPUs"),
        (f"reproduce table3 --tasks aim.yaml {grid.removesuffix(',lora')} --workers 2", 1, "cannot each have them"),
    ):
        refused = attempt(f"{command} {SPREAD}", prepare=two_gpus)
        assert (refused.code, message in refused.err) == (code, True), refused.err
        assert refused.code == 1 or "loading" not in refused.err
