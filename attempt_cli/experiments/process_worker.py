"""A worker in a process of its own on this machine."""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Sequence
from multiprocessing.connection import Connection, wait
from typing import Any

from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cell_queue import WorkerDiedError
from attempt_cli.experiments.cells import CellResult, CellSpec
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.runner import Runner
from attempt_cli.listener import Listener
from attempt_cli.training.loop import TrainingStoppedError


class ProcessWorker:
    """A process on this machine that shares the registry.

    Args:
        plan: what all cells share.
        threads: of the process; all workers share the processor.
        number: of the worker, from 0; workers take turns at the GPUs.
    """

    def __init__(self, plan: Plan, threads: int, number: int = 0) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and a GPU's state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(plan, theirs, threads, number))
        self._process.start()
        theirs.close()

    def run_many(self, specs: Sequence[CellSpec], listener: Listener | None = None) -> list[CellResult | AttemptError]:
        """Sends the cells to the process and passes on its progress until the results come back.

        Raises:
            WorkerDiedError: the process ended before.
            AttemptError: all cells failed.
        """
        try:
            self._pipe.send(specs)
            while True:
                name, *arguments = self._pipe.recv()
                if name == "done":
                    results: list[CellResult | AttemptError] = arguments[0]
                    return results
                if name == "raised":
                    raise arguments[0]
                if listener is not None:
                    getattr(listener, name)(*arguments)
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            code = self._process.exitcode
            how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with code {code}"
            raise WorkerDiedError(f"the worker process ended {how}", "Is there enough memory for --workers?") from error

    def stop(self) -> None:
        """Passes a signal on to the process, which writes its checkpoints."""
        if self._process.pid is not None:
            with contextlib.suppress(ProcessLookupError):
                os.kill(self._process.pid, signal.SIGTERM)

    def close(self) -> None:
        """Ends the process once it has nothing to do."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _serve(plan: Plan, pipe: Connection, threads: int, number: int) -> None:
    """Fills the cells that come through the pipe until it is told to end, or its parent is gone."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent decides, and says so once
    os.environ["LOCAL_RANK"] = str(number)
    import torch

    torch.set_num_threads(min(threads, torch.get_num_threads()))  # OMP_NUM_THREADS may ask for fewer

    class Listening:
        stopped = False  # signals stop a process

        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *arguments: pipe.send((name, *arguments))

    runner = Runner(plan)
    listener: Any = Listening()
    with contextlib.suppress(EOFError):
        while (specs := pipe.recv()) is not None:
            try:
                results = runner.run_many(specs, listener)
                # some errors cannot be sent, and their causes neither
                plain = [AttemptError(first_line(one)) if isinstance(one, AttemptError) else one for one in results]
                pipe.send(("done", plain))
            except TrainingStoppedError as error:
                pipe.send(("raised", TrainingStoppedError(error.message)))
            except Exception as error:
                pipe.send(("raised", AttemptError(first_line(error))))
    runner.close()


def _die_with_parent() -> None:
    """Ends this process when its parent is gone: the next command resumes the same checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)
