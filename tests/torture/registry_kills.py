"""Kills registry operations and looks whether anything was lost or left half done.

    python -m tests.torture.registry_kills --rounds 1000

Each round forks a process that does one of add, remove, compose, tag and gc, and ends it by SIGKILL: at a line of the
registry's own code that is drawn at random, or at a random moment. Then the registry must be as it was before or as it
would be afterwards, `verify` must find nothing, and the operation must work when it is done again. Needs `os.fork`.
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
from pathlib import Path
from types import FrameType
from typing import Any

import numpy as np

import attempt_registry.store
from attempt_registry import Registry

FINGERPRINT = "f" * 64
OWN = str(Path(attempt_registry.store.__file__).parent)


def add(registry: Registry, name: str, number: int = 0) -> str:
    """Adds a prompt; returns its full name."""
    tensor = np.full((2, 3), number, np.float32)
    return registry.add_prompt(
        tensor,
        name=name,
        kind="source",
        method="prompt-tuning",
        backbone="tiny",
        fingerprint=FINGERPRINT,
        task="t",
        task_version=1,
        embedding_scale=1.0,
        settings={},
        numbers={},
        seed=number,
    ).ref


def compose(registry: Registry) -> str:
    """Adds a composition; returns its full name."""
    return registry.add_composition(name="both", backbone="tiny", fingerprint=FINGERPRINT, sources=["a", "b"]).ref


OPERATIONS: dict[str, Callable[[Registry], object]] = {
    "add": lambda registry: add(registry, "a", 7),
    "remove": lambda registry: registry.remove("c"),
    "compose": compose,
    "tag": lambda registry: registry.tag("a", add=["new"], remove=["old"]),
    "gc": lambda registry: registry.gc(grace=0),
}


def prepared(folder: Path) -> None:
    """Makes a registry on which every operation has something to do."""
    with Registry.open(folder) as registry:
        for number, name in enumerate(("a", "b", "c", "gone")):
            add(registry, name, number)
        registry.tag("a", add=["old"])
        registry.remove("gone")


def state(folder: Path) -> tuple[object, ...]:
    """Returns everything that the registry holds but for unused files and times, its tensors included."""
    with Registry.open(folder) as registry:
        prompts = [(prompt.ref, prompt.tags, registry.prompt_tensor(prompt).tolist()) for prompt in registry.prompts()]
        return (prompts, [made.ref for made in registry.compositions()])


def killed(folder: Path, operation: Callable[[Registry], object], line: int | None, after: float) -> bool:
    """Does an operation in a process of its own and kills it; returns whether the kill came before its end.

    Args:
        line: the line to kill it at, counted from its first; None kills it after a time.
        after: that time, in seconds.
    """
    child = os.fork()
    if not child:
        seen = 0

        def trace(frame: FrameType, event: str, argument: Any) -> Any:
            nonlocal seen
            if not frame.f_code.co_filename.startswith(OWN):
                return None
            seen += event == "line"
            if seen == line:
                os.kill(os.getpid(), signal.SIGKILL)
            return trace

        code = 1
        try:
            registry = Registry.open(folder)
            if line is not None:
                sys.settrace(trace)
            operation(registry)
            code = 0
        finally:
            os._exit(code)
    if line is None:
        time.sleep(after)
        os.kill(child, signal.SIGKILL)
    _, status = os.waitpid(child, 0)
    if os.WIFEXITED(status) and os.WEXITSTATUS(status):
        raise AssertionError("the operation failed by itself")
    return os.WIFSIGNALED(status)


def lines_of(folder: Path, operation: Callable[[Registry], object]) -> int:
    """Counts the lines that an operation runs through."""
    seen = 0

    def trace(frame: FrameType, event: str, argument: Any) -> Any:
        nonlocal seen
        if not frame.f_code.co_filename.startswith(OWN):
            return None
        seen += event == "line"
        return trace

    before = sys.gettrace()
    with Registry.open(folder) as registry:
        sys.settrace(trace)
        try:
            operation(registry)
        finally:
            sys.settrace(before)
    return seen


def torture(rounds: int, seed: int = 0, *, tell: Callable[[str], object] = print) -> Counter[str]:
    """Kills so many operations of each kind; returns counts.

    Raises:
        AssertionError: something was lost, left half done, or in the way of the next try.
    """
    choose, counts = random.Random(seed), Counter[str]()
    with tempfile.TemporaryDirectory() as name:
        start = Path(name) / "start"
        prepared(start)
        for what, operation in OPERATIONS.items():
            finished = Path(name) / f"after-{what}"
            shutil.copytree(start, finished)
            began = time.perf_counter()
            lines = lines_of(finished, operation)
            seconds = time.perf_counter() - began
            allowed = (state(start), state(finished))
            for number in range(rounds):
                folder = Path(name) / "tortured"
                shutil.copytree(start, folder)
                line = choose.randrange(1, lines + 1) if number % 4 else None
                counts["killed" if killed(folder, operation, line, choose.uniform(0, seconds)) else "finished"] += 1
                where = f"{what}, {f'line {line}' if line else 'a random moment'}"
                found = state(folder)
                assert found in allowed, f"{where}: half done: {found}"
                counts["not done" if found == allowed[0] and what != "gc" else "done"] += 1
                with Registry.open(folder) as registry:
                    assert registry.verify() == [], where
                    if found == allowed[0]:
                        operation(registry)
                    registry.gc(grace=0)
                    left = [path.name for path in (folder / "objects").rglob("*.tmp")]
                    assert registry.verify() == left == [], where
                assert state(folder) == allowed[1], f"{where}: the next try ended elsewhere"
                shutil.rmtree(folder)
            tell(f"{what}: {rounds} kills over {lines} lines, nothing lost")
    return counts


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=1000, help="Kills of each operation.")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    counts = torture(options.rounds, options.seed)
    print(", ".join(f"{count} {what}" for what, count in sorted(counts.items())) + ": nothing lost")


if __name__ == "__main__":
    main()
