"""Kills `attempt` commands, trainings before all, and looks whether the same command ends where it would have ended.

    python -m tests.torture.command_kills --rounds 20

Each round is a training of 200 steps on a tiny random Llama, with a checkpoint after every step. It is killed by
SIGKILL one to three times: at a line of the product's own code that is drawn at random, or at a random moment. Each
time it continues with `--resume`. Its prompt must be that of the uninterrupted training, to the bit. Then
`attempt compose` and `attempt registry gc` are killed in the same ways: the registry must be as it was before or as it
would be afterwards, and `verify` must find nothing. Needs `os.fork`.
"""

from __future__ import annotations

import argparse
import os
import random
import shutil
import signal
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from multiprocessing.util import Finalize
from pathlib import Path
from types import FrameType
from typing import Any

from attempt_registry import Registry
from tests.torture.registry_kills import state
from tests.training.commands import Attempt
from tests.training.toy import READ, toy_rows, write_csv

# where a training's state is made, kept and recorded; lines of the model are neither here nor there
OWN = ("/attempt_cli/training/", "/attempt_cli/checked_files.py", "/registry/", "/attempt_registry/")
STEPS = 200
COMMON = f"--train-file train.csv --validation-file validation.csv {READ} --dtype float32 --batch-size 2 --seed 3"
TRAINING = f"train-source toy {COMMON} --prompt-length 2 --learning-rate 0.1 --steps {STEPS} --eval-every {STEPS // 4}"
COMMANDS = {"compose": "compose both --sources one,two --attention aim-attempt", "gc": "registry gc --grace 0 --yes"}


def prepare(line: int | None, told: str | None, steps: bool) -> None:
    """Runs in the process of a command before it.

    Args:
        line: kills it at this line of its own code.
        told: writes the number of its lines into this file at its end.
        steps: writes a checkpoint after every step.
    """
    if steps:
        import attempt_cli.training.loop as loop

        loop.SECONDS_BETWEEN_CHECKPOINTS, loop.CHECKPOINT_SHARE = 0.0, float("inf")
    if line is None and told is None:
        return
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if not any(part in frame.f_code.co_filename for part in OWN):
            return None
        seen += event == "line"
        if seen == line:
            os.kill(os.getpid(), signal.SIGKILL)
        return trace

    sys.settrace(trace)
    if told is not None:
        Finalize(
            None, lambda: Path(told).write_text(str(seen)), exitpriority=1
        )  # of multiprocessing: atexit is not run


def facts(folder: Path) -> dict[str, Any]:
    """Returns what a kill may not change of the trained prompt."""
    with Registry.open(folder, must_exist=True) as registry:
        assert registry.verify() == []
        prompt = registry.prompt("toy")
        numbers = {name: value for name, value in prompt.numbers.items() if name not in ("seconds", "peak_memory")}
        tensor = registry.prompt_tensor(prompt).tobytes()
        return {"sha256": prompt.sha256, "tensor": tensor, "numbers": numbers, "version": prompt.version}


class Torture:
    """Commands of one folder, and how to kill them."""

    def __init__(self, folder: Path, backbone: Path, seed: int) -> None:
        self.folder, self.backbone = folder, backbone
        self.choose, self.counts = random.Random(seed), Counter[str]()

    def attempt(self, registry: str) -> Attempt:
        """Returns the commands of a registry."""
        return Attempt(self.folder, self.backbone, registry)

    def lines_and_seconds(self, attempt: Attempt, command: str) -> tuple[int, float]:
        """Runs a command to its end; returns its lines, and the seconds it takes without counting them."""
        told = str(self.folder / "lines")
        steps = command == TRAINING
        kept = self.folder / attempt.registry
        copy = self.folder / "copy"
        if kept.exists():
            shutil.copytree(kept, copy)
        began = time.monotonic()
        self.attempt("copy").succeed(command, prepare=partial(prepare, None, None, steps))
        seconds = time.monotonic() - began
        shutil.rmtree(copy)
        attempt.succeed(command, prepare=partial(prepare, None, told, steps))
        return int(Path(told).read_text()), seconds

    def kill(self, attempt: Attempt, command: str, lines: int, seconds: float) -> bool:
        """Starts a command and kills it somewhere; returns whether the kill came before its end."""
        line = self.choose.randrange(1, lines + 1) if self.choose.random() < 1 / 2 else None
        running = attempt.start(command, prepare=partial(prepare, line, None, command.startswith(TRAINING)))
        if line is None:
            running.process.join(self.choose.uniform(0, seconds))
            running.process.kill()
        result = running.result()
        assert result.code in (0, -signal.SIGKILL), result.err
        self.counts[f"killed at a {'moment' if line is None else 'line'}" if result.code else "finished before"] += 1
        return result.code != 0

    def trainings(self, rounds: int, tell: Callable[[str], object]) -> None:
        """Kills and continues so many trainings."""
        lines, seconds = self.lines_and_seconds(self.attempt("whole"), TRAINING)
        right = facts(self.folder / "whole")
        for _ in range(rounds):
            attempt = self.attempt("tortured")
            unfinished = all(
                self.kill(attempt, f"{TRAINING} --resume", lines, seconds) for _ in range(self.choose.randint(1, 3))
            )
            kept = self.folder / "tortured"
            # a kill after the last write loses nothing: the training is then done
            recorded = kept.exists() and bool(Registry.open(kept).prompts())
            if unfinished and not recorded:
                attempt.succeed(f"{TRAINING} --resume", prepare=partial(prepare, None, None, True))
            found = facts(kept)
            assert found == right, f"another prompt than without a kill: {found['numbers']}, not {right['numbers']}"
            self.counts["trainings equal to the bit"] += 1
            shutil.rmtree(kept)
        tell(f"training: {rounds} of {STEPS} steps each, killed over {lines} lines, all equal to the bit")

    def others(self, rounds: int, tell: Callable[[str], object]) -> None:
        """Kills so many of each of the other commands."""
        start = self.folder / "start"
        few = TRAINING.replace(f"--steps {STEPS} --eval-every {STEPS // 4}", "--steps 2 --eval-every 0")
        for name in ("one", "two", "gone"):
            self.attempt("start").succeed(few.replace("toy", name, 1).replace("--seed 3", f"--seed {ord(name[0])}"))
        self.attempt("start").succeed(
            f"train-target aim {COMMON} --sources one,two --attention-rank 2 --steps 2 --eval-every 0"
        )
        with Registry.open(start) as registry:
            registry.remove("gone")
        for what, command in COMMANDS.items():
            shutil.copytree(start, self.folder / "after")
            lines, seconds = self.lines_and_seconds(self.attempt("after"), command)
            allowed = (state(start), state(self.folder / "after"))
            for _ in range(rounds):
                kept = self.folder / "tortured"
                shutil.copytree(start, kept)
                attempt = self.attempt("tortured")
                self.kill(attempt, command, lines, seconds)
                found = state(kept)
                assert found in allowed, f"{what}: half done: {found}"
                if found == allowed[0]:
                    attempt.succeed(command)
                assert state(kept) == allowed[1], f"{what}: the next try ended elsewhere"
                with Registry.open(kept) as registry:
                    assert registry.verify() == [], what
                self.counts[f"{what} whole"] += 1
                shutil.rmtree(kept)
            shutil.rmtree(self.folder / "after")
            tell(f"{what}: {rounds} kills over {lines} lines, nothing lost")


def torture(rounds: int, seed: int = 0, *, tell: Callable[[str], object] = print) -> Counter[str]:
    """Kills so many trainings, and as many of each other command; returns counts.

    Raises:
        AssertionError: something was lost, left half done, or other than without a kill.
    """
    from tests.models import save_llama

    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        write_csv(folder / "train.csv", toy_rows(40, 0))
        write_csv(folder / "validation.csv", toy_rows(4, 1))
        tortured = Torture(folder, save_llama(folder / "tiny"), seed)
        tortured.trainings(rounds, tell)
        tortured.others(rounds, tell)
        return tortured.counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=20, help="Trainings, and kills of each other command.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = torture(options.rounds, options.seed)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) + ": nothing lost")


if __name__ == "__main__":
    main()
