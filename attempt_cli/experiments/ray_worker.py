"""A worker on a Ray cluster: all that it needs travels with its cells, and all that it makes comes back."""

from __future__ import annotations

import contextlib
import logging
import os
import queue
import shutil
import tempfile
import threading
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from attempt_cli.checked_files import replacing
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cell_queue import WorkerDiedError
from attempt_cli.experiments.cells import Cell, CellResult, CellSpec, finished_cells, prepared_artefacts
from attempt_cli.experiments.choices import Choices, Loaded
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.runner import Runner
from attempt_cli.listener import Listener
from attempt_cli.training.loop import TrainingStoppedError
from attempt_registry import Registry
from attempt_registry.parcels import Parcel, adopt, pack, pack_new, unpack

RETRIES = 2  # new actors for cells whose actor died
LOOK = 0.5  # seconds between looks at progress and checkpoints
LARGEST = 256 << 20  # bytes of a checkpoint that travels: those of prompts are kilobytes, all weights too many

Event = tuple[Any, ...]


@dataclass(frozen=True)
class Share:
    """What an actor gets of the cluster.

    Args:
        processors: whole ones of one machine.
        gpus: one, or a part of one.
    """

    processors: int
    gpus: float


@dataclass(frozen=True)
class Luggage:
    """What an actor begins with.

    Args:
        records: the prompts and attentions that the plan names.
        checkpoints: the contents of unfinished trainings' files, by name.
        finished, prepared: results that are there, by key.
    """

    records: Parcel
    checkpoints: Mapping[str, bytes]
    finished: Mapping[str, Cell]
    prepared: Mapping[str, tuple[str, float]]


class RayWorker:
    """An actor of a Ray cluster. Registry, rows and checkpoints stay with this process: the actor shares no folder.

    Where the actor dies its cells go on in another one, from the newest checkpoints.

    Args:
        plan: what all cells share.
        share: what the actor gets.
    """

    def __init__(self, plan: Plan, share: Share) -> None:
        self._ray = connected_ray()
        self._plan, self._share = plan, share
        self._registry = Registry.open(plan.registry)
        self._choices = Choices(plan, self._registry)
        self._stopping = threading.Event()
        self._kept: set[str] = set()  # names of the checkpoints that came from actors
        self._start()

    def _start(self) -> None:
        """Makes an actor, which finds the checkpoints of those before it."""
        plan, ray = self._plan, self._ray
        self._sent: set[object] = set()
        self._here: list[Callable[[str], str]] = []
        folder = self._registry.folder / "checkpoints"
        files = [file for file in folder.glob("*.safetensors") if plan.resume or file.name in self._kept]
        luggage = Luggage(
            pack(self._registry, _named_in(plan)),
            {file.name: file.read_bytes() for file in files if file.stat().st_size <= LARGEST},
            finished_cells(self._registry) if plan.resume else {},
            prepared_artefacts(self._registry) if plan.resume else {},
        )
        # `stop` arrives while cells are filled
        options = {"num_cpus": self._share.processors, "num_gpus": self._share.gpus, "max_concurrency": 2}
        self._actor = ray.remote(**options)(RemoteRunner).remote(plan, luggage)

    def run_many(self, specs: Sequence[CellSpec], listener: Listener | None = None) -> list[CellResult | AttemptError]:
        """Returns the actor's results, whose records are in the registry.

        Raises:
            WorkerDiedError: actors died, as often as they may.
            TrainingStoppedError: stopped; the checkpoints are in the registry's folder.
            AttemptError: all cells failed.
        """
        listener = listener or Listener()
        for left in reversed(range(RETRIES + 1)):
            try:
                return self._filled(specs, listener)
            except WorkerDiedError as error:
                if not left or self._stopping.is_set():
                    raise
                listener.note(f"{error.message}: another one goes on from its checkpoints.")
                self._start()
        raise AssertionError("unreachable")

    def _filled(self, specs: Sequence[CellSpec], listener: Listener) -> list[CellResult | AttemptError]:
        ray = self._ray
        try:
            rows = {key: one for key, one in self._choices.needed(specs).items() if key not in self._sent}
            events = self._actor.run_many.options(num_returns="streaming").remote(list(specs), rows)
            self._sent = {*self._choices.needed(()), *rows}
            told, gone = False, set[str]()
            while True:
                if self._stopping.is_set() and not told:
                    self._actor.stop.remote()
                    told = True
                if not ray.wait([events], timeout=LOOK)[0]:
                    continue
                name, *arguments = ray.get(next(events))
                if name == "done":
                    results, parcel = arguments
                    return self._written(results, parcel, gone)
                if name == "stopped":
                    raise TrainingStoppedError(arguments[0])
                if name == "failed":
                    raise AttemptError(arguments[0])
                if name == "checkpoint":
                    self._keep(arguments[0], arguments[1], gone)
                else:
                    getattr(listener, name)(*arguments)
        except StopIteration as error:
            raise WorkerDiedError("the Ray actor ended") from error
        except ray.exceptions.RayTaskError as error:
            raise AttemptError(first_line(error.cause or error)) from error
        except ray.exceptions.RayError as error:
            raise WorkerDiedError(f"the Ray actor died ({first_line(error)})") from error

    def _written(
        self, results: Sequence[CellResult | AttemptError], parcel: Parcel, gone: set[str]
    ) -> list[CellResult | AttemptError]:
        """Writes what cells have made, and then removes their checkpoints."""
        self._here.append(adopt(self._registry, parcel))
        for name in gone:
            (self._registry.folder / "checkpoints" / name).unlink(missing_ok=True)
        return [one if isinstance(one, AttemptError) else self._as_here(one) for one in results]

    def _as_here(self, result: CellResult) -> CellResult:
        """Returns a result with the names that its records have in this registry."""

        def here(text: str) -> str:
            for known in self._here:
                text = known(text)
            return text

        cells = tuple(replace(cell, prompt=here(cell.prompt)) for cell in result.cells)
        return CellResult(cells, here(result.artefact) if result.artefact else None)

    def _keep(self, name: str, data: bytes | None, gone: set[str]) -> None:
        """Keeps a checkpoint; one that is finished with goes once its records are written."""
        if data is None:
            gone.add(name)
            return
        self._kept.add(name)
        file = self._registry.folder / "checkpoints" / Path(name).name
        with replacing(file) as partial:
            partial.write_bytes(data)

    def stop(self) -> None:
        """Lets trainings end at their next step, with a checkpoint."""
        self._stopping.set()

    def close(self) -> None:
        """Gives the actor back."""
        with contextlib.suppress(Exception):  # one that is dead has nothing to tidy up
            self._ray.get(self._actor.close.remote(), timeout=10)
        self._ray.kill(self._actor)
        self._registry.close()


class RemoteRunner:
    """What an actor is: a runner with a registry of its own, in a temporary folder.

    Args:
        plan: what all cells share.
        luggage: what it begins with.
    """

    def __init__(self, plan: Plan, luggage: Luggage) -> None:
        self._folder = Path(tempfile.mkdtemp(prefix="attempt-worker-"))
        self._checkpoints = self._folder / "checkpoints"
        self._checkpoints.mkdir()
        with Registry.open(self._folder) as registry:
            unpack(registry, luggage.records)
            _, self._seen = pack_new(registry, {})
        for name, data in luggage.checkpoints.items():
            (self._checkpoints / name).write_bytes(data)
        self._times = self._looked()
        # what it is given is to be continued, even where the command does not resume what was there before it
        here = replace(plan, registry=self._folder, resume=True)
        self._runner = Runner(here, luggage.finished, luggage.prepared)
        self._told = _Told()

    def run_many(self, specs: Sequence[CellSpec], rows: Loaded) -> Iterator[Event]:
        """Yields what a listener is told, checkpoints as they are written, and at last the results and records."""
        outcome: list[Event] = []

        def work() -> None:
            try:
                self._runner.choices.keep(specs[0], rows)
                results = self._runner.run_many(specs, self._told)
                # some errors cannot be sent, and their causes neither
                plain = [AttemptError(first_line(one)) if isinstance(one, AttemptError) else one for one in results]
                parcel, self._seen = pack_new(self._runner.registry, self._seen)
                outcome.append(("done", plain, parcel))
            except TrainingStoppedError as error:
                outcome.append(("stopped", error.message))
            except Exception as error:
                outcome.append(("failed", first_line(error)))
            finally:
                self._runner.registry.close()

        thread = threading.Thread(target=work, daemon=True)
        thread.start()
        while thread.is_alive():
            thread.join(LOOK)
            # Ray sends something into the generator, which a list behind `yield from` would refuse
            for event in (*self._told.events(), *self._written()):  # noqa: UP028
                yield event
        yield outcome[0]

    def _written(self) -> Iterator[Event]:
        """Yields the checkpoints that were written or removed since the last look."""
        now, before = self._looked(), self._times
        for name in before.keys() - now.keys():
            yield "checkpoint", name, None
        for name, time in now.items():
            if before.get(name) != time and (self._checkpoints / name).stat().st_size <= LARGEST:
                with contextlib.suppress(FileNotFoundError):
                    yield "checkpoint", name, (self._checkpoints / name).read_bytes()
        self._times = now

    def _looked(self) -> dict[str, int]:
        found = {}
        for file in self._checkpoints.glob("*.safetensors"):
            with contextlib.suppress(FileNotFoundError):
                found[file.name] = file.stat().st_mtime_ns
        return found

    def pid(self) -> int:
        """Returns the number of its process."""
        return os.getpid()

    def stop(self) -> None:
        """Lets trainings end at their next step."""
        self._told.stopped = True

    def close(self) -> None:
        """Removes its folder."""
        shutil.rmtree(self._folder, ignore_errors=True)


class _Told(Listener):
    """Gathers what a listener is told; of several steps between two looks the last."""

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Event] = queue.SimpleQueue()

    def start(self, step: int, total: int) -> None:
        self._queue.put(("start", step, total))

    def note(self, text: str) -> None:
        self._queue.put(("note", text))

    def unfinished(self, text: str) -> None:
        self._queue.put(("unfinished", text))

    def step(self, step: int, loss: float, rows_per_second: float) -> None:
        self._queue.put(("step", step, loss, rows_per_second))

    def events(self) -> list[Event]:
        """Returns what came since the last look."""
        found: list[Event] = []
        while not self._queue.empty():
            event = self._queue.get()
            if found and found[-1][0] == event[0] == "step":
                found.pop()
            found.append(event)
        return found


def _named_in(plan: Plan) -> list[str]:
    """Returns the records that a plan names, with their kinds."""
    kinds = {kind: "attention" if kind == "attention" else "prompt" for _, _, kind in plan.prepared}
    refs = [f"prompt:{ref}" for named in plan.sources.values() for ref in named]
    refs += [f"{kinds[kind]}:{ref}" for (_, _, kind), ref in plan.prepared.items()]
    return [*refs, *([f"prompt:{plan.init_from}"] if plan.init_from else [])]


def share_of(workers: int) -> Share:
    """Connects to Ray and returns what each of so many actors gets of the cluster.

    Raises:
        AttemptError: Ray is not installed, or the cluster has too few processors.
    """
    ray = connected_ray()
    machines = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    processors = [int(machine.get("CPU", 0)) for machine in machines]
    gpus = [int(machine.get("GPU", 0)) for machine in machines]
    # an actor is on one machine: what counts is how many shares fit on each
    most = next((n for n in range(max(processors, default=0), 0, -1) if sum(c // n for c in processors) >= workers), 0)
    if not most:
        raise AttemptError(
            f"the Ray cluster has {sum(processors)} processors, too few for {workers} workers", "Give fewer --workers."
        )
    if not sum(gpus):
        return Share(most, 0)
    together = -(-workers // sum(gpus))  # actors on a GPU, at the most
    return Share(most, round(1 / together, 4) if together > 1 else 1)


def connected_ray() -> Any:
    """Returns the library, connected to the cluster of RAY_ADDRESS, else to one of this machine.

    Raises:
        AttemptError: Ray is not installed.
    """
    try:
        import ray
    except ImportError as error:
        raise AttemptError("Ray is not installed", "pip install 'attempt-cli[ray]'") from error
    if not ray.is_initialized():
        ray.init(log_to_driver=False, include_dashboard=False, logging_level=logging.ERROR)
    return ray
