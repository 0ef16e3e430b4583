"""Runs `attempt …` in processes of their own.

Importing torch and transformers takes seconds; a server imports them and our own modules once and forks a process for
every command (multiprocessing's own fork server). What runs is the module `attempt_cli`, with its own arguments,
environment, folder and streams, as `python -m attempt_cli` would.
"""

from __future__ import annotations

import json
import multiprocessing
import os
import pkgutil
import runpy
import shlex
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from functools import cache
from multiprocessing.process import BaseProcess
from pathlib import Path
from typing import Any

import attempt_cli
import attempt_registry

PRELOADED = [
    "attempt_cli.backbones",  # before peft: it silences what that imports
    "torch",
    "transformers",
    "transformers.models.llama.modeling_llama",
    "transformers.models.gpt2.modeling_gpt2",
    "transformers.models.t5.modeling_t5",
    "transformers.generation.utils",
    "rich.progress",
    "sqlite_utils",
    "scipy.stats",
    "sklearn.metrics",
    "pydantic.main",
    "peft",
    "matplotlib.figure",
    "tests.training.warm",
]
LONGEST = 120.0  # seconds for one command, on a machine that is busy with other things


@dataclass(frozen=True)
class Result:
    """How a command ended."""

    code: int
    out: str
    err: str

    @property
    def json(self) -> Any:
        """The document on stdout."""
        return json.loads(self.out)

    @property
    def lines(self) -> list[Any]:
        """JSON lines on stdout."""
        return [json.loads(line) for line in self.out.splitlines()]


@dataclass(frozen=True)
class Running:
    """A command that has been started."""

    process: BaseProcess
    streams: Path

    @property
    def err(self) -> str:
        """What it has written to stderr so far."""
        return (self.streams / "err").read_text("utf-8")

    def until(self, condition: Callable[[], bool]) -> None:
        """Waits for something that the command does."""
        deadline = time.monotonic() + LONGEST
        while not condition():
            assert self.process.is_alive(), f"ended with {self.process.exitcode} before: {self.err}"
            if time.monotonic() > deadline:
                self.process.kill()  # its workers end with it; left alone they would take the time of other tests
                self.process.join()
                raise AssertionError(f"not there after {LONGEST:.0f} seconds: {self.err}")
            time.sleep(0.002)

    def result(self) -> Result:
        """Waits for its end."""
        self.process.join(LONGEST)
        if self.process.exitcode is None:
            self.process.kill()
            self.process.join()
            raise AssertionError(f"not done after {LONGEST:.0f} seconds: {self.err}")
        return Result(self.process.exitcode, (self.streams / "out").read_text("utf-8"), self.err)


@dataclass(frozen=True)
class Attempt:
    """Commands of one registry.

    Args:
        folder: where they run, and where the folder of the registry is.
        backbone: what ATTEMPT_BACKBONE says.
    """

    folder: Path
    backbone: Path | None = None
    registry: str = "kept"  # not "registry": `python -m` looks into its folder first, and would find no package there

    def __call__(self, command: str, **options: Any) -> Result:
        """Runs a command line to its end, e.g. `attempt("registry list")`; see `start`."""
        return self.start(command, **options).result()

    def start(
        self,
        command: str,
        *,
        input: str | None = None,
        prepare: Callable[[], None] | None = None,
        **environment: str,
    ) -> Running:
        """Starts a command line without the word `attempt`.

        Args:
            command: as it would be typed.
            input: standard input; half a surrogate stands for a byte that is no UTF-8.
            prepare: a function of a module, run in the process before (limits, patches).
            environment: further variables.
        """
        streams = Path(tempfile.mkdtemp(dir=self.folder, prefix="streams-"))
        for name, text in (("in", input or ""), ("out", ""), ("err", "")):
            (streams / name).write_text(text, "utf-8", "surrogateescape")
        process = _context().Process(
            target=_run, args=(shlex.split(command), self.folder, streams, self.environment | environment, prepare)
        )
        process.start()
        return Running(process, streams)

    @property
    def environment(self) -> dict[str, str]:
        """What the commands see besides the environment of the tests."""
        settings = {"ATTEMPT_REGISTRY": str(self.folder / self.registry), "OMP_NUM_THREADS": "1"}
        return settings | ({"ATTEMPT_BACKBONE": str(self.backbone)} if self.backbone else {})

    def succeed(self, command: str, **options: Any) -> Result:
        """Runs a command that must not fail."""
        result = self(command, **options)
        assert result.code == 0, result.err
        return result

    def json(self, command: str, **options: Any) -> Any:
        """Runs a command that must not fail and gives its JSON."""
        return self.succeed(f"--format json {command}", **options).json


@cache
def _context() -> multiprocessing.context.ForkServerContext:
    context = multiprocessing.get_context("forkserver")
    ours = [
        module.name
        for package in (attempt_cli, attempt_registry)
        for module in pkgutil.walk_packages(package.__path__, f"{package.__name__}.")
        if not module.name.endswith("__main__")
    ]
    context.set_forkserver_preload([*PRELOADED, *ours])
    return context


def _run(
    arguments: list[str],
    folder: Path,
    streams: Path,
    environment: dict[str, str],
    prepare: Callable[[], None] | None,
) -> None:
    for number, name in enumerate(("in", "out", "err")):
        os.dup2(os.open(streams / name, os.O_RDONLY if number == 0 else os.O_WRONLY | os.O_APPEND), number)
    # multiprocessing points Python's stdin elsewhere
    sys.stdin = open(0, encoding="utf-8", closefd=False)  # noqa: SIM115
    os.chdir(folder)
    for name in ("ATTEMPT_DATA", "ATTEMPT_DEBUG"):
        os.environ.pop(name, None)
    os.environ.update(environment)
    sys.argv = ["attempt", *arguments]
    if prepare is not None:
        prepare()
    runpy.run_module("attempt_cli", run_name="__main__")
