"""Who fills a grid: order, failures, workers that die, and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from attempt_cli.data.catalogue import load_task
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cells import Cell
from attempt_cli.experiments.grid import Ask, Plan, Result
from attempt_cli.experiments.workers import Filled, ProcessWorker, Waiting, WorkerDiedError, fill
from attempt_cli.training.loop import Listener, TrainingStoppedError


def ask(task: str, method: str = "none", seed: int = 0) -> Ask:
    return Ask((task,), method, seed, "tiny")


def result_for(asked: Ask) -> Result:
    return Result((Cell(asked.task, asked.method, asked.seed, 0.5, (0.4, 0.6), 10, "no prompt", 0),))


class Watching:
    """Notes what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Ask]] = []
        self.thread = threading.current_thread()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*arguments: object) -> None:
            assert threading.current_thread() is self.thread  # a progress bar and SQLite belong to one thread
            if isinstance(arguments[0], Ask):
                self.told.append((name, arguments[0]))

        return note


class Scripted:
    """A worker that does what the method of a cell says."""

    hired = 0

    def __init__(self) -> None:
        type(self).hired += 1
        self.ran = 0

    def run(self, asked: Ask, listener: Listener | None = None) -> Result:
        self.ran += 1
        if asked.method == "fails":
            raise AttemptError("no rows\nand more", "hint")
        if asked.method == "dies":
            raise WorkerDiedError("the worker process ended by signal SIGKILL")
        if asked.method == "stops":
            raise TrainingStoppedError("stopped")
        time.sleep(0.02)
        return result_for(asked)

    def close(self) -> None: ...


def filled(asks: list[Ask], workers: int, **options: bool) -> tuple[Filled, Watching, list[tuple[Ask, str]]]:
    watching, kept = Watching(), list[tuple[Ask, str]]()
    Scripted.hired = 0
    result = fill(asks, Scripted, watching, lambda a, e, s: kept.append((a, e)), workers=workers, **options)
    return result, watching, kept


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_cell_that_fails_is_noted_and_the_others_go_on(workers: int) -> None:
    asks = [ask("a"), ask("a", "fails"), ask("b"), ask("b", "fails", 1), ask("c")]
    result, watching, kept = filled(asks, workers)
    assert result.results == {asked: result_for(asked) for asked in (asks[0], asks[2], asks[4])}
    assert [cell.task for cell in result.cells] == ["a", "b", "c"]  # in the order of the asks
    assert result.failures == {asks[1]: "no rows", asks[3]: "no rows"}
    assert sorted(kept, key=str) == sorted(result.failures.items(), key=str)
    assert sorted(name for name, _ in watching.told) == ["began"] * 5 + ["done"] * 3 + ["failed"] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_ends_the_grid(workers: int) -> None:
    with pytest.raises(TrainingStoppedError, match="what was finished is in the registry") as stop:
        filled([ask("a"), ask("a", "stops"), *(ask("a", seed=seed) for seed in range(1, 50))], workers)
    assert "--resume" in str(stop.value.hint)


def test_a_worker_that_died_is_replaced() -> None:
    result, _, _ = filled([ask("a"), ask("a", "dies"), ask("a", seed=1), ask("a", seed=2)], 1)
    assert len(result.cells) == 3
    assert Scripted.hired == 2
    assert list(result.failures.values()) == ["the worker process ended by signal SIGKILL"]


def test_fresh_workers_have_one_cell_each() -> None:
    filled([ask("a", seed=seed) for seed in range(3)], 1, fresh=True)
    assert Scripted.hired == 3


def test_a_worker_stays_on_its_task_and_others_take_other_tasks() -> None:
    asks = [ask("a"), ask("a", seed=1), ask("b"), ask("b", seed=1), ask("c")]
    waiting = Waiting(asks)
    first, second = waiting.take(None), waiting.take(None)
    assert (first, second) == (asks[0], asks[2])  # not two workers on one task while others wait
    assert waiting.take(first) == asks[1]
    assert waiting.take(second) == asks[3]
    assert waiting.take(asks[1]) == asks[4]
    assert waiting.take(asks[3]) is None
    assert waiting.take(asks[4]) is None


def test_the_first_line_names_the_type_of_a_foreign_error() -> None:
    assert first_line(AttemptError("no rows\nmore", "hint")) == "no rows"
    assert first_line(ValueError("shape\nmore")) == "ValueError: shape"
    assert first_line(MemoryError()) == "MemoryError"


# --- processes


@pytest.fixture
def plan(tmp_path: Path, llama: Path) -> Plan:
    tasks = {name: load_task(name) for name in ("support-chats",)}
    return Plan(registry=tmp_path / "kept", tasks=tasks, limit=6, device="cpu", dtype="float32", settings={"steps": 3})


def test_a_process_fills_cells_and_passes_failures_on(plan: Plan, llama: Path) -> None:
    worker = ProcessWorker(plan, 1)
    try:
        (cell,) = worker.run(Ask(("support-chats",), "none", 0, str(llama), k=4)).cells
        assert (cell.n, cell.prompt, cell.k) == (6, "no prompt", 4)
        with pytest.raises(AttemptError, match="5000 are wanted"):
            worker.run(Ask(("support-chats",), "none", 0, str(llama), k=10000))
        (again,) = worker.run(Ask(("support-chats",), "none", 1, str(llama), k=4)).cells  # it goes on
        assert (again.score, again.seed) == (cell.score, 1)
        pid = worker._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            worker.run(Ask(("support-chats",), "none", 2, str(llama), k=4))
    finally:
        worker.close()
