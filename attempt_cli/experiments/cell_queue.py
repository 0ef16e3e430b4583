"""The queue of a grid's cells: workers take from it, and their results and failures are collected."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cells import Cell, CellResult, CellSpec
from attempt_cli.listener import Listener
from attempt_cli.training.loop import TrainingStoppedError
from attempt_cli.training.signals import caught_signals

Event = tuple[Any, ...]  # a method's name of GridListener with its arguments; "done" with a CellResult for the cells


class WorkerDiedError(AttemptError):
    """A worker ended in the middle of a cell: it was killed, or ran out of memory."""


class Worker(Protocol):
    """Fills one bank of cells at a time."""

    def run_many(
        self, specs: Sequence[CellSpec], listener: Listener | None = None
    ) -> list[CellResult | AttemptError]: ...

    def stop(self) -> None:
        """Lets what is being filled end with a checkpoint; another thread calls it, or the handler of a signal."""

    def close(self) -> None: ...


class GridListener(Protocol):
    """Follows the progress of a grid; all calls come from the thread that called `fill`."""

    def began(self, spec: CellSpec) -> None: ...

    def step(self, spec: CellSpec, step: int, total: int, loss: float) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, spec: CellSpec, cells: tuple[Cell, ...], seconds: float) -> None: ...

    def failed(self, spec: CellSpec, error: str, seconds: float) -> None: ...


Bank = Sequence[CellSpec]  # cells that a worker fills together
KeepFailure = Callable[[CellSpec, str, float], None]  # records a cell, the line that says why it failed, its seconds


@dataclass
class GridResult:
    """The results and failures of a grid.

    Args:
        results: by cell, in the order of the grid.
        failures: one line that says why, for each cell without a result.
    """

    results: dict[CellSpec, CellResult] = field(default_factory=dict)
    failures: dict[CellSpec, str] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """The cells of all results."""
        return [cell for result in self.results.values() for cell in result.cells]


class CellQueue:
    """The banks of cells that no worker has taken yet.

    A worker keeps its affinity (backbone and tasks) while cells of it are left, so that it loads nothing twice.

    Args:
        together: cells that are filled together, of one affinity each.
    """

    def __init__(self, together: Sequence[Bank]) -> None:
        self._banks = list(together)
        self._taken: list[tuple[str, tuple[str, ...]]] = []  # the affinities of the workers
        self._lock = threading.Lock()

    def take(self, last: Bank | None) -> Bank | None:
        """Hands out a worker's next cells: of its own affinity, else of one that no worker has, else any.

        Args:
            last: the worker's previous cells, which are finished.
        """
        with self._lock:
            own = last[0].affinity if last is not None else None
            if own is not None:
                self._taken.remove(own)
            if not self._banks:
                return None
            same = [bank for bank in self._banks if bank[0].affinity == own]
            free = [bank for bank in self._banks if bank[0].affinity not in self._taken]
            chosen = (same or free or self._banks)[0]
            self._banks.remove(chosen)
            self._taken.append(chosen[0].affinity)
            return chosen


def fill(
    specs: Sequence[CellSpec],
    make_worker: Callable[[], Worker],
    listener: GridListener,
    keep_failure: KeepFailure,
    *,
    together: Sequence[Bank] | None = None,
    workers: int = 0,
    fresh: bool = False,
) -> GridResult:
    """Fills the cells of a grid; where one fails, the others continue.

    Args:
        specs: the cells.
        make_worker: makes a worker, and a new one for each that died.
        listener: follows the progress.
        keep_failure: records a failed cell.
        together: the same cells, put together as a worker fills them; each alone without it.
        workers: how many at once; 0 for one in this thread, where signals reach the training.
        fresh: makes a new worker for each (to measure its memory).

    Raises:
        TrainingStoppedError: stopped by a signal. What was finished is in the registry.
    """
    results: dict[CellSpec, CellResult] = {}
    failures: dict[CellSpec, str] = {}
    told: set[str] = set()

    def handle(event: Event) -> None:
        name, *arguments = event
        if name == "done":
            spec, result, seconds = arguments
            results[spec] = result
            arguments = [spec, result.cells, seconds]
        elif name == "failed":
            failures[arguments[0]] = arguments[1]
            keep_failure(*arguments)
        elif name == "note":
            if arguments[0] in told:  # every worker has it to say
                return
            told.add(arguments[0])
        getattr(listener, name)(*arguments)

    together = [[spec] for spec in specs] if together is None else together
    if workers == 0:
        finished = _fill_here(together, make_worker, handle)
    else:
        finished = _fill_in_threads(together, make_worker, handle, min(workers, len(together)), fresh)
    if not finished:
        raise TrainingStoppedError(
            "stopped; what was finished is in the registry", "Continue with the same command and --resume."
        )
    return GridResult(
        {spec: results[spec] for spec in specs if spec in results},
        {spec: failures[spec] for spec in specs if spec in failures},
    )


def _fill_here(together: Sequence[Bank], make_worker: Callable[[], Worker], put: Callable[[Event], None]) -> bool:
    """Fills the cells in this thread, one after the other; returns False where a signal stopped them."""
    worker = make_worker()
    try:
        return not any(isinstance(_fill_cells(one, lambda: worker, put), TrainingStoppedError) for one in together)
    finally:
        worker.close()


def _fill_in_threads(
    together: Sequence[Bank],
    make_worker: Callable[[], Worker],
    handle: Callable[[Event], None],
    count: int,
    fresh: bool,
) -> bool:
    """Fills the cells with a thread for each worker; returns False where a signal stopped them."""
    cells, events, stopping = CellQueue(together), queue.SimpleQueue[Event](), threading.Event()
    live: list[Worker] = []

    def work() -> None:
        worker: Worker | None = None
        taken: Bank | None = None

        def current() -> Worker:
            nonlocal worker
            if worker is None:
                worker = make_worker()
                live.append(worker)
                if stopping.is_set():
                    worker.stop()
            return worker

        try:
            while not stopping.is_set() and (taken := cells.take(taken)) is not None:
                error = _fill_cells(taken, current, events.put)
                if isinstance(error, TrainingStoppedError):
                    stopping.set()
                if worker is not None and (fresh or isinstance(error, WorkerDiedError)):
                    live.remove(worker)
                    worker.close()
                    worker = None
        finally:
            if worker is not None:
                live.remove(worker)
                worker.close()
            events.put(("left",))

    threads = [threading.Thread(target=work, daemon=True) for _ in range(count)]

    def stop() -> None:
        stopping.set()
        for worker in tuple(live):
            worker.stop()

    with caught_signals(stop):
        for thread in threads:
            thread.start()
        working = count
        while working:
            event = events.get()
            if event == ("left",):
                working -= 1
            elif event[0] != "failed" or not stopping.is_set():  # workers that are stopped may die of it
                handle(event)
    return not stopping.is_set()


def _fill_cells(specs: Bank, worker: Callable[[], Worker], put: Callable[[Event], None]) -> Exception | None:
    """Fills cells together and puts their events; returns the error that ended them all."""
    for spec in specs:
        put(("began", spec))
    started = time.monotonic()
    results: Sequence[CellResult | AttemptError]
    ended: Exception | None = None
    try:
        results = worker().run_many(specs, _Forwarder(specs[0], put))
    except TrainingStoppedError as error:
        return error
    except Exception as error:  # whatever it is, the failure is these cells'
        ended = error
        results = [AttemptError(first_line(error))] * len(specs)
    seconds = (time.monotonic() - started) / len(specs)
    for spec, result in zip(specs, results, strict=True):
        if isinstance(result, AttemptError):
            put(("failed", spec, first_line(result), seconds))
        else:
            put(("done", spec, result, seconds))
    return ended


class _Forwarder(Listener):
    """Listens to the training of cells and passes on its progress, as the first cell's."""

    def __init__(self, spec: CellSpec, put: Callable[[Event], None]) -> None:
        self._spec = spec
        self._put = put
        self._total = 0

    def start(self, step: int, total: int) -> None:
        self._total = total

    def note(self, text: str) -> None:
        self._put(("note", text))

    def unfinished(self, text: str) -> None: ...  # a grid uses checkpoints without being asked

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self._put(("step", self._spec, step, self._total, loss))

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None: ...
