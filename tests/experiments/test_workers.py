"""The workers of a grid: order, failures, workers that die, and processes that end with their parent."""

from __future__ import annotations

import os
import re
import signal
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from attempt_cli.data.catalogue import load_task
from attempt_cli.errors import AttemptError, first_line
from attempt_cli.experiments import ray_worker
from attempt_cli.experiments.cell_queue import CellQueue, GridResult, WorkerDiedError, fill
from attempt_cli.experiments.cells import Cell, CellResult, CellSpec, banks, finished_cells
from attempt_cli.experiments.plan import Plan
from attempt_cli.experiments.process_worker import ProcessWorker
from attempt_cli.experiments.ray_worker import RayWorker, Share, share_of
from attempt_cli.experiments.worker_pool import WorkerPool
from attempt_cli.listener import Listener
from attempt_cli.training.loop import TrainingStoppedError
from attempt_registry import Registry


def cell_spec(task: str, method: str = "none", seed: int = 0) -> CellSpec:
    return CellSpec((task,), method, seed, "tiny")


def result_for(spec: CellSpec) -> CellResult:
    return CellResult((Cell(spec.task, spec.method, spec.seed, 0.5, (0.4, 0.6), 10, "no prompt", 0),))


class Watching:
    """Records what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, CellSpec]] = []
        self.notes: list[object] = []
        self.thread = threading.current_thread()

    def __getattr__(self, name: str) -> Callable[..., None]:
        def note(*arguments: object) -> None:
            assert threading.current_thread() is self.thread  # a progress bar and SQLite belong to one thread
            if isinstance(arguments[0], CellSpec):
                self.told.append((name, arguments[0]))
            elif name == "note":
                self.notes += arguments

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
        if spec.method == "speaks" and listener is not None:
            listener.unfinished("a checkpoint is there")
            listener.note("other rows")
        time.sleep(0.02)
        return [result_for(spec)]

    def stop(self) -> None: ...

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


@pytest.mark.parametrize("workers", [0, 2])
def test_what_every_worker_has_to_say_is_told_once_and_checkpoints_are_not_told(workers: int) -> None:
    _, watching, _ = filled([cell_spec(task, "speaks") for task in "abc"], workers)
    assert watching.notes == ["other rows"]


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


@pytest.fixture
def ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """Ray on this machine, with two processors."""
    library = pytest.importorskip("ray")
    monkeypatch.setenv("PYTHONPATH", os.pathsep.join(path for path in sys.path if path))  # actors import this checkout
    library.init(num_cpus=2, include_dashboard=False, log_to_driver=False)
    yield library
    library.shutdown()


def numbers(result: GridResult) -> list[Cell]:
    # how many cells shared a pass is no number of theirs
    return [replace(cell, seconds=0.0, training_seconds=0.0, peak_memory=None, bank=1) for cell in result.cells]


def checkpoints(plan: Plan) -> list[Path]:
    return list((plan.registry / "checkpoints").glob("*.safetensors"))


@pytest.mark.slow
def test_two_ray_actors_give_the_numbers_of_this_process(plan: Plan, llama: Path, ray: Any, tmp_path: Path) -> None:
    source = CellSpec(("support-chats",), "prompt-tuning", 0, str(llama), kind="source", k=8)
    methods = ("prompt-tuning", "attempt", "lora", "none")
    specs = [CellSpec(("support-chats",), method, 0, str(llama), k=4) for method in methods]
    specs.append(CellSpec(("support-chats",), "prompt-tuning", 0, str(llama), k=10000))
    results, kept = [], list[CellSpec]()
    for pool in (WorkerPool(), WorkerPool(2, on_ray=True)):
        own = replace(plan, registry=tmp_path / f"of-{pool.workers}")
        first = pool.fill(own, [source], Watching(), lambda *_: None)
        made = first.results[source].artefact
        assert made == "support-chats-8-shot@1"
        own = replace(own, sources={(str(llama), "support-chats"): (made,)})
        results.append(pool.fill(own, specs, Watching(), lambda spec, *_: kept.append(spec)))
        with Registry.open(own.registry) as registry:
            assert not registry.verify()
            assert registry.prompt("support-chats-4-shot-attempt").parents == (made,)
            assert registry.composition("support-chats-4-shot-attempt").sources == (made,)
            assert sorted(cell.key for cell in finished_cells(registry).values()) == sorted(
                cell.key for cell in (*first.cells, *results[-1].cells)
            )
            runs = {run.numbers.get("prompt") for run in registry.runs()}
            assert {cell.prompt for cell in results[-1].cells} <= runs
        assert not checkpoints(own)
    here, there = results
    run = re.compile(r"run \d+")  # cells are recorded in the order in which they end
    plain = [[replace(cell, prompt=run.sub("run", cell.prompt)) for cell in numbers(one)] for one in results]
    assert plain[0] == plain[1]
    assert there.failures == here.failures
    assert kept == [*here.failures, *there.failures] == [specs[-1]] * 2


@pytest.mark.slow
def test_the_cell_of_a_killed_actor_goes_on_from_its_checkpoint(plan: Plan, llama: Path, ray: Any) -> None:
    plan = replace(plan, settings={"steps": 600, "eval_every": 20, "eval_rows": 1})
    spec = CellSpec(("support-chats",), "prompt-tuning", 0, str(llama))
    told = list[str]()
    killed = threading.Event()

    class Killing(Listener):
        def step(self, step: int, loss: float, rows_per_second: float) -> None:
            if not killed.is_set() and checkpoints(plan):
                killed.set()
                os.kill(ray.get(worker._actor.pid.remote()), signal.SIGKILL)

        def start(self, step: int, total: int) -> None:
            told.append(f"start {step > 0}")

        def note(self, text: str) -> None:
            told.append(text)

    worker = RayWorker(plan, Share(1, 0))
    try:
        (result,) = worker.run_many([spec], Killing())
    finally:
        worker.close()
    assert isinstance(result, CellResult)
    assert killed.is_set()
    assert [one for one in told if one.startswith("start")] == ["start False", "start True"]
    assert any("the Ray actor died" in one for one in told)
    (cell,) = result.cells
    assert cell.steps == 600
    with Registry.open(plan.registry) as registry:
        assert registry.prompt(cell.prompt).numbers["steps"] == 600
        assert len(list(registry.prompts())) == 1
    assert not checkpoints(plan)


@pytest.mark.slow
def test_an_actor_that_dies_again_and_again_is_a_failure(
    plan: Plan, llama: Path, ray: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = CellSpec(("support-chats",), "none", 0, str(llama), k=4)
    worker = RayWorker(plan, Share(1, 0))
    made = [worker._actor]
    start = worker._start

    def dies() -> None:
        start()
        made.append(worker._actor)
        ray.kill(worker._actor)

    monkeypatch.setattr(worker, "_start", dies)
    ray.kill(worker._actor)
    with pytest.raises(WorkerDiedError, match="the Ray actor died"):
        worker.run_many([spec])
    assert len(made) == 3
    worker.close()


@pytest.mark.slow
def test_ctrl_c_stops_ray_actors_with_their_checkpoints(plan: Plan, llama: Path, ray: Any) -> None:
    plan = replace(plan, settings={"steps": 100_000, "eval_every": 0}, bank=1)
    specs = [CellSpec(("support-chats",), "prompt-tuning", seed, str(llama), k=4) for seed in range(2)]

    class Interrupting(Watching):
        stopped = False

        def step(self, *_: object) -> None:
            if not self.stopped:
                self.stopped = True
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(TrainingStoppedError, match="what was finished is in the registry"):
        WorkerPool(2, on_ray=True).fill(plan, specs, Interrupting(), lambda *_: None)
    assert checkpoints(plan)

    class Begun(Listener):
        begun = 0

        def start(self, step: int, total: int) -> None:
            self.begun = max(self.begun, step)
            worker.stop()

    listener = Begun()
    for spec in specs:
        worker = RayWorker(replace(plan, resume=True), Share(1, 0))
        with pytest.raises(TrainingStoppedError):
            worker.run_many([spec], listener)
        worker.close()
    assert listener.begun > 0


def test_an_actor_s_share_fits_on_a_machine(monkeypatch: pytest.MonkeyPatch) -> None:
    def cluster(*machines: tuple[int, int]) -> None:
        nodes = [{"Alive": True, "Resources": {"CPU": float(cpus), "GPU": float(gpus)}} for cpus, gpus in machines]
        monkeypatch.setattr(ray_worker, "connected_ray", lambda: SimpleNamespace(nodes=lambda: nodes))

    cluster((8, 0), (8, 0))
    assert share_of(3) == Share(4, 0)  # not 5, of which each machine would hold one
    assert share_of(2) == Share(8, 0)
    cluster((16, 2))
    assert share_of(2) == Share(8, 1)
    assert share_of(3) == Share(5, 0.5)  # not 2/3, of which each GPU would hold one
    assert share_of(5) == Share(3, 0.3333)
    cluster((2, 0))
    with pytest.raises(AttemptError, match="2 processors, too few for 3 workers"):
        share_of(3)
