"""Real trainings killed and stopped from outside: `--resume` ends where the uninterrupted training ends, to the bit."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from attempt_registry import Prompt, Registry
from tests.training.commands import LONGEST, Attempt
from tests.training.toy import READ

pytestmark = pytest.mark.slow

FILES = f"--train-file train.csv --validation-file validation.csv {READ}"
COMMON = f"{FILES} --dtype float32 --batch-size 8 --learning-rate 0.1 --seed 3"
SOURCE = f"train-source toy {COMMON} --prompt-length 4 --steps 90 --eval-every 30"


def slow_with_a_checkpoint_every_step() -> None:
    """Slow enough to be killed in the middle even where the one who kills is kept waiting."""
    import attempt_cli.training.loop as loop

    loop.SECONDS_BETWEEN_CHECKPOINTS = 0.0
    loop.CHECKPOINT_SHARE = float("inf")
    save = loop.save_checkpoint

    def slowly(*arguments: Any) -> None:
        save(*arguments)
        time.sleep(0.02)

    loop.save_checkpoint = slowly


def checkpoints(attempt: Attempt) -> list[Path]:
    return list((attempt.folder / attempt.registry / "checkpoints").glob("*.safetensors"))


def kill_somewhere(attempt: Attempt, command: str, randomness: random.Random) -> None:
    """Starts a training and kills it at some moment after the first checkpoint of its own."""

    def states() -> list[tuple[str, int]]:
        return [(path.name, path.stat().st_mtime_ns) for path in checkpoints(attempt)]

    before = states()
    running = attempt.start(command, prepare=slow_with_a_checkpoint_every_step)
    running.until(lambda: states() != before)
    time.sleep(randomness.uniform(0, 0.15))
    assert running.process.pid is not None
    os.kill(running.process.pid, signal.SIGKILL)
    assert running.result().code == -signal.SIGKILL


def elsewhere(attempt: Attempt) -> Attempt:
    """The same folder with another registry."""
    return Attempt(attempt.folder, attempt.backbone, "kept-elsewhere")


def opened(attempt: Attempt) -> Registry:
    return Registry.open(attempt.folder / attempt.registry, must_exist=True)


def facts(prompt: Prompt) -> dict[str, Any]:
    """What must not depend on interruptions."""
    numbers = {name: value for name, value in prompt.numbers.items() if name not in ("seconds", "peak_memory")}
    return {"sha256": prompt.sha256, "numbers": numbers, "settings": prompt.settings, "parents": prompt.parents}


def test_killed_at_any_moment_a_source_goes_on_to_the_same_prompt(attempt: Attempt) -> None:
    whole = elsewhere(attempt)
    whole.succeed(SOURCE)
    randomness = random.Random()  # another moment in every run of the tests
    for _ in range(3):
        kill_somewhere(attempt, f"{SOURCE} --resume", randomness)
        assert opened(attempt).prompts() == []
    resumed = attempt.succeed(f"{SOURCE} --resume")
    assert "continuing from step" in resumed.err
    assert facts(opened(attempt).prompt("toy")) == facts(opened(whole).prompt("toy"))
    assert opened(attempt).run(1).budget == opened(whole).run(1).budget
    assert checkpoints(attempt) == []  # done: nothing is left to go on from
    assert opened(attempt).verify() == []


def test_killed_at_any_moment_attempt_goes_on_to_the_same_mixture(attempt: Attempt) -> None:
    whole = elsewhere(attempt)
    target = f"train-target aim {COMMON} --sources one,two --attention-rank 4 --steps 40 --eval-every 8 --accumulate 2"
    for some in (attempt, whole):
        for name in ("one", "two"):
            some.succeed(f"train-source {name} {COMMON} --prompt-length 4 --steps 2 --eval-every 0")
    whole.succeed(target)
    kill_somewhere(attempt, target, random.Random())
    attempt.succeed(f"{target} --resume")
    one, other = opened(attempt), opened(whole)
    assert facts(one.prompt("aim-attempt")) == facts(other.prompt("aim-attempt"))
    assert one.attention("aim-attempt").sha256 == other.attention("aim-attempt").sha256
    assert one.composition("aim-attempt").settings == other.composition("aim-attempt").settings


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_leaves_a_checkpoint_and_says_how_to_go_on(attempt: Attempt, number: signal.Signals) -> None:
    """The second half of it through `python -m attempt_cli` itself."""
    whole = elsewhere(attempt)
    whole.succeed(SOURCE)
    command = [sys.executable, "-m", "attempt_cli"]
    if number == signal.SIGINT:
        process = subprocess.Popen(
            ["bash", "-c", f'exec "$0" "$@" {SOURCE} --resume', *command],
            cwd=attempt.folder,
            env=os.environ | attempt.environment,
            stderr=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        assert process.stderr is not None
        seen = ""
        while "validation" not in seen:
            seen += process.stderr.readline()
        process.send_signal(number)
        out, rest = process.communicate(timeout=LONGEST)
        code, err = process.returncode, seen + rest
    else:
        running = attempt.start(SOURCE)
        running.until(lambda: "validation" in running.err)
        assert running.process.pid is not None
        os.kill(running.process.pid, number)
        result = running.result()
        code, out, err = result.code, result.out, result.err
    assert code == 130
    assert out == ""
    last = err.splitlines()[-2:]
    assert last[0].startswith("stopped at step ")
    assert last[0].endswith(" of 90; nothing is lost")
    assert last[1] == "Continue with the same command and --resume."
    assert len(checkpoints(attempt)) == 1
    assert opened(attempt).prompts() == []
    attempt.succeed(f"{SOURCE} --resume")
    assert facts(opened(attempt).prompt("toy")) == facts(opened(whole).prompt("toy"))


def test_a_damaged_checkpoint_of_a_command(attempt: Attempt) -> None:
    kill_somewhere(attempt, SOURCE, random.Random(0))
    (checkpoint,) = checkpoints(attempt)
    checkpoint.write_bytes(checkpoint.read_bytes()[:1000])
    failed = attempt(f"{SOURCE} --resume")
    assert failed.code == 1
    assert f"Error: the checkpoint {checkpoint} is damaged" in failed.err
    assert failed.err.endswith("Run without --resume to start again; it is then replaced.\n")
    attempt.succeed(SOURCE)
    assert checkpoints(attempt) == []


def test_another_command_does_not_take_up_the_checkpoint(attempt: Attempt) -> None:
    kill_somewhere(attempt, SOURCE, random.Random(0))
    other = attempt.succeed(SOURCE.replace("--steps 90", "--steps 3") + " --resume")
    assert "going on" not in other.err
    assert len(checkpoints(attempt)) == 1  # the killed one can still go on
