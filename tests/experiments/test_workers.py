"""The workers of a grid: order, failures, workers that die, and processes that end with their parent."""

from __future__ import annotations

import os
import signal
import sys
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path

import pytest

from attempt_cli.data.catalogue import load_task
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments.cell_queue import CellQueue, GridResult, WorkerDiedError, fill
from attempt_cli.experiments.cells import Cell, CellResult, CellSpec, banks
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.process_worker import ProcessWorker
from attempt_cli.experiments.ray_worker import RayWorker
from attempt_cli.experiments.worker_pool import WorkerPool
from attempt_cli.listener import Listener
from attempt_cli.training.loop import TrainingStoppedError


def cell_spec(task: str, method: str = "none", seed: int = 0) -> CellSpec:
    return CellSpec((task,), method, seed, "tiny")


def result_for(spec: CellSpec) -> CellResult:
    return CellResult((Cell(spec.task, spec.method, spec.seed, 0.5, (0.4, 0.6), 10, "no prompt", 0),))


class Watching:
    """Records what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, CellSpec]] = []
        self.thread = threading.current_thread()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*arguments: object) -> None:
            assert threading.current_thread() is self.thread  # a progress bar and SQLite belong to one thread
            if isinstance(arguments[0], CellSpec):
                self.told.append((name, arguments[0]))

        return note


class Scripted:
    """A worker that does what the method of a cell says."""

    made = 0

    def __init__(self) -> None:
        type(self).made += 1
        self.ran = 0

    def run_many(self, specs: Sequence[CellSpec], listener: Listener | None = None) -> list[CellResult | AttemptError]:
        (spec,) = specs
        self.ran += 1
        if spec.method == "fails":
            raise AttemptError("no rows\nand more", "hint")
        if spec.method == "dies":
            raise WorkerDiedError("the worker process ended by signal SIGKILL")
        if spec.method == "stops":
            raise TrainingStoppedError("stopped")
        time.sleep(0.02)
        return [result_for(spec)]

    def close(self) -> None: ...


def filled(
    specs: list[CellSpec], workers: int, **options: bool
) -> tuple[GridResult, Watching, list[tuple[CellSpec, str]]]:
    watching, kept = Watching(), list[tuple[CellSpec, str]]()
    Scripted.made = 0
    result = fill(specs, Scripted, watching, lambda a, e, s: kept.append((a, e)), workers=workers, **options)
    return result, watching, kept


@pytest.mark.parametrize("workers", [0, 1, 2, 3])
def test_a_cell_that_fails_is_noted_and_the_others_continue(workers: int) -> None:
    specs = [cell_spec("a"), cell_spec("a", "fails"), cell_spec("b"), cell_spec("b", "fails", 1), cell_spec("c")]
    result, watching, kept = filled(specs, workers)
    assert result.results == {spec: result_for(spec) for spec in (specs[0], specs[2], specs[4])}
    assert [cell.task for cell in result.cells] == ["a", "b", "c"]  # in the order of the specs
    assert result.failures == {specs[1]: "no rows", specs[3]: "no rows"}
    assert sorted(kept, key=str) == sorted(result.failures.items(), key=str)
    assert sorted(name for name, _ in watching.told) == ["began"] * 5 + ["done"] * 3 + ["failed"] * 2


@pytest.mark.parametrize("workers", [0, 2])
def test_a_stop_ends_the_grid(workers: int) -> None:
    with pytest.raises(TrainingStoppedError, match="what was finished is in the registry") as stop:
        filled(
            [cell_spec("a"), cell_spec("a", "stops"), *(cell_spec("a", seed=seed) for seed in range(1, 50))], workers
        )
    assert "--resume" in str(stop.value.hint)


def test_a_worker_that_died_is_replaced() -> None:
    result, _, _ = filled([cell_spec("a"), cell_spec("a", "dies"), cell_spec("a", seed=1), cell_spec("a", seed=2)], 1)
    assert len(result.cells) == 3
    assert Scripted.made == 2
    assert list(result.failures.values()) == ["the worker process ended by signal SIGKILL"]


def test_fresh_workers_have_one_cell_each() -> None:
    filled([cell_spec("a", seed=seed) for seed in range(3)], 1, fresh=True)
    assert Scripted.made == 3


def test_a_worker_stays_on_its_task_and_others_take_other_tasks() -> None:
    specs = [cell_spec("a"), cell_spec("a", seed=1), cell_spec("b"), cell_spec("b", seed=1), cell_spec("c")]
    cells = CellQueue([[spec] for spec in specs])
    first, second = cells.take(None), cells.take(None)
    assert (first, second) == ([specs[0]], [specs[2]])  # not two workers on one task while others wait
    assert cells.take(first) == [specs[1]]
    assert cells.take(second) == [specs[3]]
    assert cells.take([specs[1]]) == [specs[4]]
    assert cells.take([specs[3]]) is None
    assert cells.take([specs[4]]) is None


def test_prompts_of_one_task_are_a_bank_and_all_else_is_alone() -> None:
    methods = ["none", "prompt-tuning", "attempt", "dept", "lora", "spot"]
    specs = [cell_spec(task, method, seed) for task in "ab" for seed in (0, 1) for method in methods]
    prompts = ("prompt-tuning", "attempt", "spot")
    own = {task: [spec for spec in specs if spec.task == task and spec.method in prompts] for task in "ab"}
    alone = [[spec] for spec in specs if spec.method not in prompts]
    found = banks(specs, 4)
    assert [bank for bank in found if len(bank) > 1] == [own["a"][:4], own["a"][4:], own["b"][:4], own["b"][4:]]
    assert [bank for bank in found if len(bank) == 1] == alone
    assert banks(specs, 1) == [[spec] for spec in specs]


def test_a_failure_s_line_names_the_type_of_a_foreign_error() -> None:
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

    def run(spec: CellSpec) -> CellResult:
        (result,) = worker.run_many([spec])
        if isinstance(result, AttemptError):
            raise result
        return result

    try:
        (cell,) = run(CellSpec(("support-chats",), "none", 0, str(llama), k=4)).cells
        assert (cell.n, cell.prompt, cell.k) == (6, "no prompt", 4)
        with pytest.raises(AttemptError, match="5000 are wanted"):
            run(CellSpec(("support-chats",), "none", 0, str(llama), k=10000))
        (again,) = run(CellSpec(("support-chats",), "none", 1, str(llama), k=4)).cells  # the worker continues
        assert (again.score, again.seed) == (cell.score, 1)
        pid = worker._process.pid
        assert pid is not None
        os.kill(pid, signal.SIGKILL)
        with pytest.raises(WorkerDiedError, match="SIGKILL"):
            run(CellSpec(("support-chats",), "none", 2, str(llama), k=4))
    finally:
        worker.close()


# --- Ray


@pytest.mark.slow
def test_two_ray_actors_give_the_numbers_of_this_process(
    plan: Plan, llama: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    ray = pytest.importorskip("ray")
    specs = [CellSpec(("support-chats",), "prompt-tuning", 0, str(llama), k=k) for k in (4, 8, 10000)]
    here = WorkerPool().fill(plan, specs, Watching(), lambda *_: None)
    kept = list[CellSpec]()
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # actors import this checkout
    ray.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    try:
        elsewhere = replace(plan, registry=plan.registry.with_name("elsewhere"))
        there = WorkerPool(2, on_ray=True).fill(elsewhere, specs, Watching(), lambda spec, *_: kept.append(spec))
        worker = RayWorker(plan, 1)
        ray.kill(worker._actor)
        with pytest.raises(WorkerDiedError, match="the Ray actor died"):
            worker.run_many([specs[0]])
    finally:
        ray.shutdown()

    def numbers(result: GridResult) -> list[Cell]:
        # how many cells shared a pass is no number of theirs
        return [replace(cell, seconds=0.0, peak_memory=None, bank=1) for cell in result.cells]

    assert numbers(there) == numbers(here)
    assert [cell.k for cell in there.cells] == [4, 8]
    assert there.failures == here.failures
    assert kept == list(there.failures) == specs[2:]
