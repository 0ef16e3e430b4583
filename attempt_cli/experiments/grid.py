"""A grid of cells: what is asked for, what all cells share, and who fills them."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from attempt_cli.artefacts import remember_backbone, versions
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fields import task_fields
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.experiments.cells import Bench, Cell, drawn_rows, finished_cells
from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_cli.experiments.subjects import Workshop
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import make_config
from attempt_cli.training.loop import Listener
from attempt_cli.training.presets import settings_for, train_limit
from attempt_registry import Prompt, Registry


@dataclass(frozen=True)
class Ask:
    """A cell that is to be filled; of a training on several tasks a cell for each.

    Args:
        tasks: the task's name; several where they are trained together.
        method: a name in METHODS.
        seed: of training, and of the rows where they are drawn.
        backbone: as the user named it.
        k: how many training rows are drawn; None takes the task's training split.
        sources: use the first so many source prompts; None uses all.
        kind: "target"; "source" for a prompt that others start from; a name in `methods.PREPARED` for what is trained
            on the source tasks of a target before it.
    """

    tasks: tuple[str, ...]
    method: str
    seed: int
    backbone: str
    k: int | None = None
    sources: int | None = None
    kind: str = "target"

    def __str__(self) -> str:
        what = {
            "source": "source",
            "attention": "attention prior for",
            "shared": "one prompt of the sources for",
            "factored": "one prompt under factors of the sources for",
        }
        parts = [*([what[self.kind]] if self.kind in what else []), self.task]
        parts += [self.method] if self.kind == "target" else []
        parts += [f"k={self.k}"] if self.k is not None else []
        parts += [f"t={self.sources}"] if self.sources is not None else []
        return " ".join([*parts, f"seed {self.seed}"])

    @property
    def task(self) -> str:
        """The tasks in one word."""
        return "+".join(self.tasks)

    @property
    def room(self) -> tuple[str, tuple[str, ...]]:
        """Asks of one room share a backbone and rows: they follow each other on one worker."""
        return self.backbone, self.tasks


@dataclass(frozen=True)
class Result:
    """What came of an ask.

    Args:
        cells: a cell a task; none where something was prepared.
        made: the full name of a source prompt, of an attention, or of a prompt of all sources.
    """

    cells: tuple[Cell, ...] = ()
    made: str | None = None


@dataclass(frozen=True)
class Plan:
    """What all cells of a grid share; it can be sent to other processes.

    Args:
        registry: the registry's folder.
        data_dir: rows in the hub's layout.
        tasks: by name.
        sources: full names of the source prompts for a backbone and a task.
        prepared: full names of what was trained on them, for a backbone, a task and a kind in
            `methods.PREPARED`.
        source_settings: what differs for trainings on source tasks.
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
    prepared: Mapping[tuple[str, str, str], str] = field(default_factory=dict)
    source_settings: Mapping[str, Any] = field(default_factory=dict)
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
        self._room: tuple[str, tuple[str, ...]] | None = None
        self._rows: dict[tuple[str, str, int | None, int], Rows] = {}
        self._benches: dict[Ask, Bench] = {}

    def run(self, ask: Ask, listener: Listener | None = None) -> Result:
        """The cells' results; made now unless they are among the finished.

        Raises:
            AttemptError: what the cell needs is not there or does not fit.
            TrainingStoppedError: stopped by a signal; the checkpoint is written.
        """
        if ask.room != self._room:  # one room's rows at a time: they may be hundreds of thousands
            self._room = ask.room
            self._rows.clear()
            self._benches.clear()
        if ask.kind in PREPARED:
            return Result(made=self._prepared(ask, listener))
        trains = [self._train_rows(task, ask) for task in ask.tasks]
        benches = [self._bench(task, ask, train) for task, train in zip(ask.tasks, trains, strict=True)]
        if METHODS[ask.method].together:
            return Result(tuple(cells_together(benches, ask.method, trains, ask.seed, listener)))
        (bench,), (train,) = benches, trains
        cell = bench.cell(ask.method, train, ask.seed, listener)
        return Result((cell,), cell.prompt if ask.kind == "source" else None)

    def close(self) -> None:
        """Closes the registry."""
        self.registry.close()

    def _bench(self, name: str, ask: Ask, train: Rows) -> Bench:
        """What the cells of a task share: all but the method and the seed."""
        plan, task = self.plan, self.plan.tasks[name]
        shared = Ask((name,), "", 0, ask.backbone, ask.k, ask.sources, ask.kind)
        if shared not in self._benches:
            backbone = self._backbone(ask.backbone)
            sources = self._sources(ask, name) if ask.kind == "target" else ()
            start = self.registry.prompt(plan.init_from) if plan.init_from and ask.kind == "target" else None
            prior = plan.prepared.get((ask.backbone, name, "attention"))
            given = self._given(ask.kind, [*sources, *([start] if start else [])])
            self._benches[shared] = Bench(
                registry=self.registry,
                backbone=backbone,
                task=task,
                test=self._limited(name, "test", plan.limit),
                config=make_config(None, compile=False, **given),  # times and memory of cells are compared
                sources=sources,
                init_from=start,
                name=name if ask.k is None else f"{name}-{ask.k}-shot",
                command=plan.command,
                tags=plan.tags,
                validation=self._validation(name, ask),
                k=ask.k,
                kind=ask.kind,
                settings=lambda method: self._by_preset(given, name, method, ask.kind, len(train.examples)),
                resume=plan.resume,
                finished=self.finished,
                attention_from=self.registry.attention(prior) if prior else None,
                generic={
                    kind: self.registry.prompt(ref)
                    for kind in PREPARED
                    if kind != "attention" and (ref := plan.prepared.get((ask.backbone, name, kind)))
                },
                data_dir=plan.data_dir,
                train_limit=plan.train_limit,
            )
        return self._benches[shared]

    def _sources(self, ask: Ask, task: str) -> tuple[Prompt, ...]:
        named = self.plan.sources.get((ask.backbone, task), ())
        return tuple(self.registry.prompt(ref) for ref in named[: ask.sources])

    def _given(self, kind: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """The settings that were given; the length is that of the prompts that are mixed or started from."""
        settings = self.plan.settings if kind == "target" else {**self.plan.settings, **self.plan.source_settings}
        return {**settings, **({"prompt_length": prompts[0].length} if prompts else {})}

    def _by_preset(self, given: Mapping[str, Any], task: str, method: str, kind: str, rows: int) -> dict[str, Any]:
        """What the preset says where nothing was given; a budget that is given replaces the preset's."""
        preset = settings_for(self.plan.preset, task=task, method=method, kind=kind, rows=rows)
        budget = {"epochs"} if "steps" in given else set()
        return {name: value for name, value in preset.items() if name not in given and name not in budget}

    def _prepared(self, ask: Ask, listener: Listener | None) -> str:
        """What is trained on the source tasks of a target, once: it is named by all that it depends on."""
        sources = self._sources(ask, ask.task)
        tasks = [load_task(name) for name in dict.fromkeys(prompt.task for prompt in sources)]
        given = self._given("source", sources)
        preset = self._by_preset(given, tasks[0].name, "attempt", "source", 0)
        config = make_config(None, **{**preset, **given, "method": "attempt", "seed": ask.seed, "compile": False})
        if ask.kind != "attention":
            method = "mpt" if ask.kind == "factored" else "prompt-tuning"
            config = config.model_copy(update={"method": method})
        if config.placement is None:
            config = config.model_copy(update={"placement": sources[0].placement})
        backbone = self._backbone(ask.backbone)
        rows = [
            load_examples(task, "train", data_dir=self.plan.data_dir, limit=self.plan.train_limit, seed=ask.seed).sha256
            for task in tasks
        ]
        identity = {
            "kind": ask.kind,
            "backbone": [backbone.fingerprint, str(backbone.dtype)],
            "tasks": [task_fields(task) for task in tasks],
            "rows": rows,
            "sources": [prompt.sha256 for prompt in sources] if ask.kind == "attention" else [],
            "config": config.model_dump(),
        }
        key = hashlib.sha256(json.dumps(identity, sort_keys=True, default=str).encode()).hexdigest()[:16]
        if self.plan.resume:
            for run in self.registry.runs(reverse=True):
                if run.settings.get("prepared") == key:
                    return str(run.numbers["made"])
        shop = Workshop(
            self.registry,
            backbone,
            self.plan.command,
            self.plan.tags,
            self.plan.resume,
            self.plan.data_dir,
            self.plan.train_limit,
        )
        name = "prior" if ask.kind == "attention" else "all-sources"
        made = shop.prepare(ask.kind, tasks, name, config, sources, listener)
        self.registry.add_run(
            command=self.plan.command,
            settings={"prepared": key, "training": config.model_dump(exclude_none=True)},
            rows={},
            seed=ask.seed,
            budget={},
            numbers={"made": made},
            versions=versions(),
            duration=0.0,
            inputs=[f"{'attention' if ask.kind == 'attention' else 'prompt'}:{made}"],
        )
        return made

    def _backbone(self, name: str) -> FrozenBackbone:
        """The backbone, loaded once; one that cannot be loaded is not tried for every cell."""
        if name not in self._backbones:
            self._backbones.clear()  # one at a time in memory
            try:
                loaded = load_backbone(name, device=self.plan.device, dtype=self.plan.dtype)
                if self.plan.input_cache:
                    loaded.input_cache = InputCache(self.plan.input_cache, pin_memory=loaded.device.type == "cuda")
                remember_backbone(self.registry, loaded)
                self._backbones[name] = loaded
            except AttemptError as error:
                self._backbones[name] = error
        found = self._backbones[name]
        if isinstance(found, AttemptError):
            raise found
        return found

    def _train_rows(self, name: str, ask: Ask) -> Rows:
        """The rows that a cell trains on: drawn by its seed, or the training split (a sample of it by the seed)."""
        if ask.k is not None:
            pool = self._limited(name, "train", None)
            return drawn_rows(pool, self.plan.tasks[name], ask.k, per_class=self.plan.per_class, seed=ask.seed)
        limits = [limit for limit in (self.plan.train_limit, train_limit(self.plan.preset, name)) if limit]
        return self._limited(name, "train", min(limits, default=None), ask.seed)

    def _validation(self, name: str, ask: Ask) -> Rows | None:
        """What chooses the checkpoint: nothing where rows were drawn, else the task's validation rows, if there are."""
        if ask.k is not None or self.plan.settings.get("eval_every") == 0:
            return None
        try:
            return self._limited(name, "validation", int(self.plan.settings.get("eval_rows", 200)))
        except AttemptError:
            if self.plan.settings.get("eval_every") is not None:
                raise
            return None  # a folder may hold training and test rows only: the last step is kept

    def _limited(self, name: str, split: str, limit: int | None, seed: int = 0) -> Rows:
        key = (name, split, limit, seed if limit else 0)
        if key not in self._rows:
            self._rows[key] = load_examples(
                self.plan.tasks[name], split, data_dir=self.plan.data_dir, limit=limit, seed=seed
            )
        return self._rows[key]


def cells_together(
    benches: Sequence[Bench], method: str, trains: Sequence[Rows], seed: int, listener: Listener | None
) -> list[Cell]:
    """A cell a task of one training on all of them.

    Args:
        benches: of the tasks; they share backbone and settings, and where they share them not, the first one's count.
        method: one that trains targets together.
        trains: training rows of each.
        seed: of the training.
        listener: is told every step.
    """
    # one set of sources for all: of each target's own, those that no target was trained on
    common = [prompt for prompt in benches[0].sources if all(prompt in bench.sources for bench in benches)]
    if not common and METHODS[method].uses_sources:
        raise AttemptError(
            "every source prompt is of one of the targets that are trained together",
            "Train source prompts of other tasks, or name fewer targets with --tasks.",
        )
    benches = [replace(bench, sources=tuple(common), _best={}) for bench in benches]
    parts = [bench.parts(method, train, seed) for bench, train in zip(benches, trains, strict=True)]
    alone = [bench.key(method, train, part) for bench, train, part in zip(benches, trains, parts, strict=True)]
    keys = [f"{hashlib.sha256(' '.join([own, *alone]).encode()).hexdigest()[:16]}" for own in alone]
    found = [bench.found(key, method, seed) for bench, key in zip(benches, keys, strict=True)]
    if all(cell is not None for cell in found):
        return [cell for cell in found if cell is not None]
    name = f"{'+'.join(bench.name for bench in benches)}-{method}"
    looks = any(bench.validation is not None for bench in benches)
    results = []

    def look(model: PromptedModel) -> None:
        for index, (bench, part) in enumerate(zip(benches, parts, strict=True)):
            results.append(bench.evaluated(model, part.config, 0 if model.tuned is not None else index))

    subjects = benches[0].workshop.train_together(
        [bench.task for bench in benches], _short(name), () if looks else trains, parts, listener, look
    )
    cells = []
    try:
        for bench, key, train, subject, result in zip(benches, keys, trains, subjects, results, strict=True):
            bench.warn(f"{name}, seed {seed}", subject, listener)
            cells.append(bench.scored(method, seed, key, train, subject, result))
    finally:
        subjects[0].model.release()
    return cells


def _short(name: str, most: int = 60) -> str:
    """A name that is not too long for the registry, which puts the tasks' own behind it."""
    return name if len(name) <= most else f"{name[: most - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


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
