"""A grid of cells: what is asked for, what all cells share, and who fills them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

from attempt_cli.artefacts import remember_backbone, versions
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.cells import Bench, Cell, drawn_rows, finished_cells
from attempt_cli.training.config import make_config
from attempt_cli.training.loop import Listener
from attempt_cli.training.presets import settings_for, train_limit
from registry import Registry


@dataclass(frozen=True)
class Ask:
    """A cell that is to be filled.

    Args:
        task: the task's name.
        method: a name in METHODS.
        seed: of training, and of the rows where they are drawn.
        backbone: as the user named it.
        k: how many training rows are drawn; None takes the task's training split.
        sources: use the first so many source prompts; None uses all.
        kind: "target", or "source" for a prompt that others start from.
    """

    task: str
    method: str
    seed: int
    backbone: str
    k: int | None = None
    sources: int | None = None
    kind: str = "target"

    def __str__(self) -> str:
        parts = [self.task, self.method]
        parts += [f"k={self.k}"] if self.k is not None else []
        parts += [f"t={self.sources}"] if self.sources is not None else []
        return " ".join([*parts, f"seed {self.seed}"])

    @property
    def room(self) -> tuple[str, str]:
        """Asks of one room share a backbone and rows: they follow each other on one worker."""
        return self.backbone, self.task


@dataclass(frozen=True)
class Plan:
    """What all cells of a grid share; it can be sent to other processes.

    Args:
        registry: the registry's folder.
        data_dir: rows in the hub's layout.
        tasks: by name.
        sources: full names of the source prompts for a backbone and a task.
        init_from: the prompt that trainings start from instead of the best source.
        settings: those of `TrainingConfig` that were given.
        preset: settings that differ by task and method, where none were given.
        limit: test rows, a random sample of each task.
        train_limit: training rows, a random sample by seed.
        per_class: k rows of every class, not k in total.
        device, dtype: of the backbones.
        input_cache: bytes for inputs that were read, of every worker; 0 for none.
        command: as it was typed.
        tags: for what is trained.
        resume: take finished cells from the registry, and unfinished trainings from their checkpoints.
    """

    registry: Path
    tasks: Mapping[str, Task]
    data_dir: Path | None = None
    sources: Mapping[tuple[str, str], tuple[str, ...]] = field(default_factory=dict)
    init_from: str | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
    preset: str | None = None
    limit: int | None = None
    train_limit: int | None = None
    per_class: bool = False
    device: str | None = None
    dtype: str | None = None
    input_cache: int = 0
    command: str = ""
    tags: tuple[str, ...] = ()
    resume: bool = False


class Runner:
    """Fills cells one after the other; keeps what the next may need: the backbone, the task's rows, its bench.

    Args:
        plan: what all cells share.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.registry = Registry.open(plan.registry)
        self.finished = finished_cells(self.registry) if plan.resume else {}
        self._backbones: dict[str, FrozenBackbone | AttemptError] = {}
        self._room: tuple[str, str] | None = None
        self._rows: dict[tuple[str, int | None, int], Rows] = {}
        self._benches: dict[Ask, Bench] = {}

    def run(self, ask: Ask, listener: Listener | None = None) -> Cell:
        """The cell's result; made now unless it is among the finished.

        Raises:
            AttemptError: what the cell needs is not there or does not fit.
            TrainingStoppedError: stopped by a signal; the checkpoint is written.
        """
        if ask.room != self._room:  # one task's rows at a time: they may be hundreds of thousands
            self._room = ask.room
            self._rows.clear()
            self._benches.clear()
        train = self._train_rows(ask)
        return self._bench(ask, train).cell(ask.method, train, ask.seed, listener)

    def close(self) -> None:
        """Closes the registry."""
        self.registry.close()

    def _bench(self, ask: Ask, train: Rows) -> Bench:
        plan, task = self.plan, self.plan.tasks[ask.task]
        # what a bench depends on: not the method, and the seed only where it chooses rows that are looked at
        shared = Ask(ask.task, "", 0, ask.backbone, ask.k, ask.sources, ask.kind)
        if shared not in self._benches:
            backbone = self._backbone(ask.backbone)
            named = plan.sources.get(ask.room, ()) if ask.kind == "target" else ()
            sources = tuple(self.registry.prompt(ref) for ref in named[: ask.sources])
            given = dict(plan.settings)
            if sources:
                given["prompt_length"] = sources[0].length
            elif ask.kind == "target" and plan.init_from:
                given["prompt_length"] = self.registry.prompt(plan.init_from).length

            def by_method(method: str) -> dict[str, Any]:
                preset = settings_for(
                    plan.preset, task=ask.task, method=method, kind=ask.kind, rows=len(train.examples)
                )
                budget = {"epochs"} if "steps" in given else set()
                return {name: value for name, value in preset.items() if name not in given and name not in budget}

            self._benches[shared] = Bench(
                registry=self.registry,
                backbone=backbone,
                task=task,
                test=self._limited(ask.task, "test", plan.limit),
                config=make_config(None, **given),
                sources=sources,
                init_from=self.registry.prompt(plan.init_from) if plan.init_from else None,
                name=ask.task if ask.k is None else f"{ask.task}-{ask.k}-shot",
                command=plan.command,
                tags=plan.tags,
                validation=self._validation(ask),
                k=ask.k,
                kind=ask.kind,
                settings=by_method,
                resume=plan.resume,
                finished=self.finished,
            )
        return self._benches[shared]

    def _backbone(self, name: str) -> FrozenBackbone:
        """The backbone, loaded once; one that cannot be loaded is not tried for every cell."""
        if name not in self._backbones:
            self._backbones.clear()  # one at a time in memory
            try:
                loaded = load_backbone(name, device=self.plan.device, dtype=self.plan.dtype)
                if self.plan.input_cache:
                    loaded.input_cache = InputCache(self.plan.input_cache, pin=loaded.device.type == "cuda")
                remember_backbone(self.registry, loaded)
                self._backbones[name] = loaded
            except AttemptError as error:
                self._backbones[name] = error
        found = self._backbones[name]
        if isinstance(found, AttemptError):
            raise found
        return found

    def _train_rows(self, ask: Ask) -> Rows:
        """The rows that a cell trains on: drawn by its seed, or the training split (a sample of it by the seed)."""
        task = self.plan.tasks[ask.task]
        if ask.k is not None:
            return drawn_rows(
                self._limited(ask.task, "train", None), task, ask.k, per_class=self.plan.per_class, seed=ask.seed
            )
        limits = [limit for limit in (self.plan.train_limit, train_limit(self.plan.preset, ask.task)) if limit]
        return self._limited(ask.task, "train", min(limits, default=None), ask.seed)

    def _validation(self, ask: Ask) -> Rows | None:
        """What chooses the checkpoint: nothing where rows were drawn, else the task's validation rows, if there are."""
        if ask.k is not None or self.plan.settings.get("eval_every") == 0:
            return None
        try:
            return self._limited(ask.task, "validation", int(self.plan.settings.get("eval_rows", 200)))
        except AttemptError:
            if self.plan.settings.get("eval_every") is not None:
                raise
            return None  # a folder may hold training and test rows only: the last step is kept, and the run says so

    def _limited(self, task: str, split: str, limit: int | None, seed: int = 0) -> Rows:
        key = (split, limit, seed if limit else 0)
        if key not in self._rows:
            self._rows[key] = load_examples(
                self.plan.tasks[task], split, data_dir=self.plan.data_dir, limit=limit, seed=seed
            )
        return self._rows[key]


def record_failure(registry: Registry, command: str, ask: Ask, error: str, seconds: float) -> None:
    """Keeps that a cell failed, and why, as a run."""
    registry.add_run(
        command=command,
        settings={"method": ask.method, "failed": asdict(ask)},
        rows={},
        seed=ask.seed,
        budget={},
        numbers={"failed": error},
        versions=versions(),
        duration=seconds,
    )
