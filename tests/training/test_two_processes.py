"""One training on two processes (gloo on the processor): the same as one process with the double batch."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from attempt_cli.errors import AttemptError
from attempt_cli.training.processes import COUNTS, Processes
from attempt_registry import Registry
from tests.training.commands import LONGEST, Attempt, Running
from tests.training.test_kill import checkpoints, elsewhere, opened
from tests.training.toy import READ

pytestmark = pytest.mark.slow

TRAIN = (
    f"train-target aim --train-file train.csv --validation-file validation.csv {READ} --sources one,two "
    "--dtype float32 --device cpu --attention-rank 4 --learning-rate 0.05"
)


def sources(*attempts: Attempt, placement: str = "after") -> None:
    for attempt in attempts:
        # two unlike prompts: between like ones G's gradient is nothing but rounding, which Adam makes whole steps of
        for seed, name in enumerate(("one", "two")):
            attempt.succeed(
                f"train-source {name} --train-file train.csv {READ} --prompt-length 4 --steps 2 --eval-every 0 "
                f"--dtype float32 --device cpu --placement {placement} --seed {seed}"
            )


def free_port() -> int:
    with socket.socket() as some:
        some.bind(("127.0.0.1", 0))
        port: int = some.getsockname()[1]
        return port


def two(attempt: Attempt, command: str) -> tuple[Running, Running]:
    """Starts a command on two processes, as a launcher does."""
    shared = {"WORLD_SIZE": "2", "LOCAL_WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": str(free_port())}
    ranks = [attempt.start(command, RANK=str(rank), LOCAL_RANK=str(rank), **shared) for rank in range(2)]
    return ranks[0], ranks[1]


def assert_close(ours: Registry, theirs: Registry) -> None:
    for registry in (ours, theirs):
        assert [prompt.ref for prompt in registry.prompts(kind="target")] == ["aim-attempt@1"]
        assert [composition.ref for composition in registry.compositions()] == ["aim-attempt@1"]
        assert len(registry.runs()) == 3
        assert registry.verify() == []
    prompts = [registry.prompt_tensor(registry.prompt("aim-attempt")) for registry in (ours, theirs)]
    np.testing.assert_allclose(prompts[0], prompts[1], rtol=1e-3, atol=1e-3)
    weights = [registry.attention_tensors(registry.attention("aim-attempt")) for registry in (ours, theirs)]
    for name in weights[0]:
        # Adam makes whole steps of tiny gradients: a last bit shows here first, and micro-batches alone do as much
        np.testing.assert_allclose(weights[0][name], weights[1][name], atol=5e-3, err_msg=name)
    numbers = [registry.prompt("aim-attempt").numbers for registry in (ours, theirs)]
    for name in ("first_loss", "last_loss"):
        assert numbers[0][name] == pytest.approx(numbers[1][name], abs=2e-3)
    assert numbers[0]["best_step"] == numbers[1]["best_step"]
    assert numbers[0]["validation"] == numbers[1]["validation"]  # of all rows, whichever process scored them


@pytest.mark.parametrize("total", [0, 1, 2, 3, 7, 8])
def test_shares_come_together_in_the_order_of_the_items(total: int, monkeypatch: pytest.MonkeyPatch) -> None:
    items = [f"row {number}" for number in range(total)]
    for count in (1, 2, 3):
        ranks = [Processes(index, count) for index in range(count)]
        made = [[item.upper() for item in rank.share(items)] for rank in ranks]

        def gather(parts: list[object], own: object, made: list[list[str]] = made) -> None:
            parts[:] = made

        monkeypatch.setattr(torch.distributed, "all_gather_object", gather)
        for rank, own in zip(ranks, made, strict=True):
            assert rank.gathered(own, total) == [item.upper() for item in items]
        if total >= count:
            assert sum(map(len, made)) == total


def test_accelerate_launch_on_two_processes_is_one_with_the_double_batch(attempt: Attempt) -> None:
    one = elsewhere(attempt)
    sources(attempt, one)
    one.succeed(f"{TRAIN} --batch-size 8 --steps 6")
    launcher = Path(sys.executable).parent / "accelerate"
    command = (
        f"'{launcher}' launch --multi_gpu --num_processes 2 --main_process_port {free_port()} -m attempt_cli "
        f"{TRAIN} --batch-size 4 --steps 6"
    )
    done = subprocess.run(
        ["bash", "-c", command],
        cwd=attempt.folder,
        env=os.environ | attempt.environment,
        capture_output=True,
        text=True,
        timeout=2 * LONGEST,
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.count("aim-attempt@1") == 3  # one record: prompt, composition, attention
    for line in ("loading ", "step 6/6  validation", "Next: "):
        assert done.stderr.count(line) == 1
    assert_close(opened(attempt), opened(one))
    budget = opened(attempt).runs()[-1].budget
    assert (budget["processes"], budget["rows_per_step"], budget["steps"]) == (2, 8, 6)


def test_ragged_batches_a_stop_and_a_resumption_on_two_processes(attempt: Attempt) -> None:
    """Six rows a step of 37: the last batch of an epoch has one row, and one process none."""
    one = elsewhere(attempt)
    sources(attempt, one, placement="before")  # the tests above run with the prompt after the input
    settings = f"{TRAIN} --train-limit 37 --steps 8 --eval-every 4"
    one.succeed(f"{settings} --batch-size 6")
    command = f"{settings} --batch-size 3"
    first, second = two(attempt, command)
    first.until(lambda: "step 1/8  loss" in first.err)  # by then both are in it
    assert second.process.pid is not None
    os.kill(second.process.pid, signal.SIGINT)  # told to one, both stop at the same step
    results = first.result(), second.result()
    assert [result.code for result in results] == [130, 130]
    assert results[0].err.count("nothing is lost") == 1
    assert (results[1].out, results[1].err) == ("", "")
    assert len(checkpoints(attempt)) == 1
    first, second = two(attempt, f"{command} --resume")
    results = first.result(), second.result()
    assert [result.code for result in results] == [0, 0], results[0].err + results[1].err
    assert results[0].err.count("continuing from step") == 1
    assert (results[1].out, results[1].err) == ("", "")
    assert_close(opened(attempt), opened(one))


def test_a_loss_that_is_no_number_ends_both(attempt: Attempt) -> None:
    sources(attempt)
    command = TRAIN.replace("--learning-rate 0.05", "--learning-rate 1e37")
    results = [running.result() for running in two(attempt, f"{command} --batch-size 4 --steps 9 --eval-every 1")]
    assert [result.code for result in results] == [1, 1]
    assert results[0].err.count("the loss is not a number at step") == 1
    assert results[1].err == ""


def test_a_process_whose_other_is_gone_says_so(attempt: Attempt) -> None:
    sources(attempt)
    first, second = two(attempt, f"{TRAIN} --batch-size 4 --steps 100000")
    first.until(lambda: "step 1/100000  loss" in first.err)
    second.process.kill()
    result = first.result()
    assert result.code == 1
    assert "Error: another process of this training has ended" in result.err
    assert "--resume" in result.err.splitlines()[-1]


def test_a_launcher_that_starts_one_process_of_several_is_told(monkeypatch: pytest.MonkeyPatch) -> None:
    """`accelerate launch --cpu --num_processes 2` does so, with exactly these variables."""
    for name in (*COUNTS, "MASTER_ADDR", "ACCELERATE_MIXED_PRECISION"):
        monkeypatch.delenv(name, raising=False)
    assert Processes.here() == Processes(0, 1)
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "no")
    assert Processes.here() == Processes(0, 1)  # --num_processes 1
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")
    with pytest.raises(AttemptError, match="started only this one") as failure:
        Processes.here()
    assert "--multi_gpu" in str(failure.value.hint)
    monkeypatch.setenv("WORLD_SIZE", "1")
    assert Processes.here() == Processes(0, 1)
