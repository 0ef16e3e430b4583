"""Who fills the cells of a grid: this process, others on this machine, or a Ray cluster."""

from __future__ import annotations

import contextlib
import logging
import multiprocessing
import os
import queue
import signal
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from multiprocessing.connection import Connection, wait
from typing import Any, Protocol

from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cells import Cell
from attempt_cli.experiments.grid import Ask, Plan, Result, Runner
from attempt_cli.training.loop import Listener, TrainingStoppedError


class WorkerDiedError(AttemptError):
    """A worker that ended in the middle of a cell: killed, or out of memory."""


class Worker(Protocol):
    """Fills one cell at a time."""

    def run(self, ask: Ask, listener: Listener | None = None) -> Result: ...

    def close(self) -> None: ...


class Watcher(Protocol):
    """Is told how a grid goes; always on the thread that called `fill`."""

    def began(self, ask: Ask) -> None: ...

    def step(self, ask: Ask, step: int, total: int, loss: float) -> None: ...

    def note(self, text: str) -> None: ...

    def done(self, ask: Ask, cells: tuple[Cell, ...], seconds: float) -> None: ...

    def failed(self, ask: Ask, error: str, seconds: float) -> None: ...


@dataclass
class Filled:
    """What came of a grid.

    Args:
        results: by ask, in the order of the asks.
        failures: the first line of what went wrong, for each ask that has no result.
    """

    results: dict[Ask, Result] = field(default_factory=dict)
    failures: dict[Ask, str] = field(default_factory=dict)

    @property
    def cells(self) -> list[Cell]:
        """Those of all results."""
        return [cell for result in self.results.values() for cell in result.cells]


class Waiting:
    """The asks that nobody has taken yet; a worker stays on its task while there are cells of it."""

    def __init__(self, asks: Sequence[Ask]) -> None:
        self._asks = list(asks)
        self._taken: list[tuple[str, tuple[str, ...]]] = []  # the rooms that workers are in
        self._lock = threading.Lock()

    def take(self, last: Ask | None) -> Ask | None:
        """The next ask for a worker: of the room it is in, else of one that nobody is in, else any."""
        with self._lock:
            if last is not None:
                self._taken.remove(last.room)
            if not self._asks:
                return None
            same = [ask for ask in self._asks if last is not None and ask.room == last.room]
            free = [ask for ask in self._asks if ask.room not in self._taken]
            chosen = (same or free or self._asks)[0]
            self._asks.remove(chosen)
            self._taken.append(chosen.room)
            return chosen

    def clear(self) -> None:
        """Nothing more is to be handed out."""
        with self._lock:
            self._asks.clear()


def fill(
    asks: Sequence[Ask],
    hire: Callable[[], Worker],
    watcher: Watcher,
    keep_failure: Callable[[Ask, str, float], None],
    *,
    workers: int = 0,
    fresh: bool = False,
) -> Filled:
    """Fills the cells of a grid; one that fails is noted, and the others go on.

    Args:
        asks: the cells.
        hire: makes a worker; called again for one that died.
        watcher: is told how it goes.
        keep_failure: records an ask, the first line of its error, and the seconds it took.
        workers: how many at once; 0 for one that is this thread itself, where signals reach the training.
        fresh: a new worker for every cell (where its memory is measured).

    Raises:
        TrainingStoppedError: stopped by a signal. What was finished is in the registry.
    """
    waiting, events = Waiting(asks), queue.SimpleQueue[tuple[Any, ...]]()
    stopping = threading.Event()
    results: dict[Ask, Result] = {}
    failures: dict[Ask, str] = {}

    def work() -> None:
        worker: Worker | None = None
        ask: Ask | None = None
        try:
            while not stopping.is_set() and (ask := waiting.take(ask)) is not None:
                events.put(("began", ask))
                started, died = time.monotonic(), False
                try:
                    worker = worker or hire()
                    result = worker.run(ask, _Forwarder(ask, events))
                    events.put(("done", ask, result, time.monotonic() - started))
                except TrainingStoppedError:
                    stopping.set()
                except Exception as error:  # whatever it is, it is this cell's failure
                    died = isinstance(error, WorkerDiedError)
                    if not stopping.is_set():
                        events.put(("failed", ask, first_line(error), time.monotonic() - started))
                if worker is not None and (fresh or died):
                    worker.close()
                    worker = None
        finally:
            if worker is not None:
                worker.close()
            events.put(("left",))

    def heard(event: tuple[Any, ...]) -> None:
        name, *rest = event
        if name == "done":
            ask, result, seconds = rest
            results[ask] = result
            rest = [ask, result.cells, seconds]
        elif name == "failed":
            failures[rest[0]] = rest[1]
            keep_failure(*rest)
        getattr(watcher, name)(*rest)

    if workers == 0:
        _here(asks, hire, heard)
    else:
        threads = [threading.Thread(target=work, daemon=True) for _ in range(min(workers, len(asks)))]
        with _stop_signals(stopping):
            for thread in threads:
                thread.start()
            there = len(threads)
            while there:
                event = events.get()
                if event == ("left",):
                    there -= 1
                else:
                    heard(event)
        if stopping.is_set():
            raise stopped()
    return Filled(
        {ask: results[ask] for ask in asks if ask in results}, {ask: failures[ask] for ask in asks if ask in failures}
    )


@dataclass(frozen=True)
class Staff:
    """How many fill a grid, and where they are.

    Args:
        workers: how many at once.
        on_ray: as actors of a Ray cluster, else as processes of this machine (one alone: this process).
    """

    workers: int = 1
    on_ray: bool = False

    def fill(
        self,
        plan: Plan,
        asks: Sequence[Ask],
        watcher: Watcher,
        keep_failure: Callable[[Ask, str, float], None],
        *,
        fresh: bool = False,
    ) -> Filled:
        """Fills the cells of a plan; see `fill`.

        Raises:
            AttemptError: Ray is asked for and not installed.
            TrainingStoppedError: stopped by a signal.
        """
        workers = min(self.workers, len(asks))
        if self.on_ray:
            threads = ray_threads(workers)  # connects before there are threads, which would each connect
            return fill(asks, lambda: RayWorker(plan, threads), watcher, keep_failure, workers=workers, fresh=fresh)
        if workers > 1 or fresh:
            threads = max(1, (os.cpu_count() or 1) // workers)
            return fill(asks, lambda: ProcessWorker(plan, threads), watcher, keep_failure, workers=workers, fresh=fresh)
        return fill(asks, lambda: Runner(plan), watcher, keep_failure)


def _here(asks: Sequence[Ask], hire: Callable[[], Worker], heard: Callable[[tuple[Any, ...]], None]) -> None:
    """All cells in this thread, one after the other: signals reach the training that runs."""

    class Direct:
        def put(self, event: tuple[Any, ...]) -> None:
            heard(event)

    worker = hire()
    try:
        for ask in asks:
            heard(("began", ask))
            started = time.monotonic()
            try:
                result = worker.run(ask, _Forwarder(ask, Direct()))
            except TrainingStoppedError:
                raise stopped() from None
            except Exception as error:
                heard(("failed", ask, first_line(error), time.monotonic() - started))
            else:
                heard(("done", ask, result, time.monotonic() - started))
    finally:
        worker.close()


def stopped() -> TrainingStoppedError:
    """What a grid that was stopped says."""
    return TrainingStoppedError(
        "stopped; what was finished is in the registry", "Go on with the same command and --resume."
    )


class _Forwarder:
    """A listener that passes on, with the ask it is about."""

    def __init__(self, ask: Ask, events: Any) -> None:
        self._ask = ask
        self._events = events
        self._total = 0

    def start(self, step: int, total: int) -> None:
        self._total = total

    def note(self, text: str) -> None:
        if self._total:  # before a training starts it says whether there is a checkpoint: in a grid that goes by itself
            self._events.put(("note", text))

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self._events.put(("step", self._ask, step, self._total, loss))

    def evaluation(self, step: int, metrics: dict[str, float], best: bool) -> None: ...


# --- a process of its own


class ProcessWorker:
    """A process on this machine that shares the registry.

    Args:
        plan: what all cells share.
        threads: of the process; as many workers as there are share the processor.
    """

    def __init__(self, plan: Plan, threads: int) -> None:
        context = multiprocessing.get_context("spawn")  # a fork would inherit threads and a GPU's state
        self._pipe, theirs = context.Pipe()
        self._process = context.Process(target=_serve, args=(plan, theirs, threads))
        self._process.start()
        theirs.close()

    def run(self, ask: Ask, listener: Listener | None = None) -> Result:
        """Sends the ask and passes on what comes back, until it is the result.

        Raises:
            WorkerDiedError: the process ended before.
        """
        try:
            self._pipe.send(ask)
            while True:
                name, *rest = self._pipe.recv()
                if name == "done":
                    result: Result = rest[0]
                    return result
                if name == "raised":
                    raise rest[0]
                if listener is not None:
                    getattr(listener, name)(*rest)
        except (EOFError, ConnectionError) as error:
            self._process.join(5)
            code = self._process.exitcode
            how = f"by signal {signal.Signals(-code).name}" if code is not None and code < 0 else f"with code {code}"
            raise WorkerDiedError(f"the worker process ended {how}", "Is there enough memory for --workers?") from error

    def close(self) -> None:
        """Ends the process once it has nothing to do."""
        with contextlib.suppress(OSError):
            self._pipe.send(None)
        self._process.join(10)
        if self._process.is_alive():
            self._process.kill()
            self._process.join()
        self._pipe.close()


def _serve(plan: Plan, pipe: Connection, threads: int) -> None:
    """The process of a `ProcessWorker`: fills what is asked for until it is told to end, or its parent is gone."""
    threading.Thread(target=_die_with_parent, daemon=True).start()
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # a terminal sends Ctrl-C to all; the parent decides, and says so once
    import torch

    torch.set_num_threads(threads)

    class Listening:
        def __getattr__(self, name: str) -> Callable[..., None]:
            return lambda *arguments: pipe.send((name, *arguments))

    runner = Runner(plan)
    listener: Any = Listening()
    with contextlib.suppress(EOFError):
        while (ask := pipe.recv()) is not None:
            try:
                pipe.send(("done", runner.run(ask, listener)))
            except TrainingStoppedError:
                pipe.send(("raised", stopped()))
            except Exception as error:
                pipe.send(("raised", AttemptError(first_line(error))))
    runner.close()


def _die_with_parent() -> None:
    """A worker whose parent was killed must not go on: the next command resumes the same checkpoint."""
    parent = multiprocessing.parent_process()
    assert parent is not None
    wait([parent.sentinel])
    os._exit(1)


@contextlib.contextmanager
def _stop_signals(stopping: threading.Event) -> Iterator[None]:
    """SIGINT and SIGTERM reach the workers, which write their checkpoints; then the grid ends."""

    def stop(number: int, _frame: object) -> None:
        stopping.set()
        for child in multiprocessing.active_children():
            assert child.pid is not None
            with contextlib.suppress(ProcessLookupError):
                os.kill(child.pid, signal.SIGTERM)
        signal.signal(number, previous[number])

    previous = {int(number): signal.signal(number, stop) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in previous.items():
            signal.signal(number, handler)


# --- a Ray cluster


class RayWorker:
    """An actor of a Ray cluster; its machine must see the registry's folder and the rows under the same paths.

    Args:
        plan: what all cells share.
        threads: processors of an actor.
    """

    def __init__(self, plan: Plan, threads: int) -> None:
        ray = connected_ray()
        gpus = 1 if ray.cluster_resources().get("GPU") else 0
        self._ray = ray
        self._actor = ray.remote(num_cpus=threads, num_gpus=gpus)(Runner).remote(plan)

    def run(self, ask: Ask, listener: Listener | None = None) -> Result:
        """The actor's result.

        Raises:
            WorkerDiedError: the actor died.
            AttemptError: what the cell failed with.
        """
        try:
            result: Result = self._ray.get(self._actor.run.remote(ask))
            return result
        except self._ray.exceptions.RayTaskError as error:
            raise AttemptError(first_line(error.cause or error)) from error
        except self._ray.exceptions.RayError as error:
            raise WorkerDiedError(f"the Ray actor died ({first_line(error)})") from error

    def close(self) -> None:
        """Gives the actor back."""
        self._ray.kill(self._actor)


def ray_threads(workers: int) -> int:
    """Processors for each of so many actors; connects to Ray.

    Raises:
        AttemptError: it is not installed.
    """
    ray = connected_ray()
    largest = max((int(node["Resources"].get("CPU", 0)) for node in ray.nodes()), default=1)
    return max(1, min(largest, int(ray.cluster_resources().get("CPU", 1)) // workers))


def connected_ray() -> Any:
    """The library, connected to the cluster of RAY_ADDRESS, else to one of this machine.

    Raises:
        AttemptError: it is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise AttemptError("Ray is not installed", "pip install 'attempt-cli[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    return ray
