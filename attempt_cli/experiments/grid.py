"""A grid of cells: the specification of each, the plan that all share, and the runner that fills them."""

from __future__ import annotations

import hashlib
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
from attempt_cli.experiments.cells import Cell, TaskContext, drawn_rows, finished_cells
from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_cli.experiments.subjects import Workshop
from attempt_cli.keys import content_key
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import make_config
from attempt_cli.training.loop import Listener
from attempt_cli.training.presets import settings_for, train_limit
from attempt_registry import Prompt, Registry


@dataclass(frozen=True)
class CellSpec:
    """Specifies a cell; a training on several tasks fills one for each.

    Args:
        tasks: the task's name; several names where the tasks are trained together.
        method: a name in METHODS.
        seed: of the training, and of the rows where they are drawn.
        backbone: as the user named it.
        k: how many training rows are drawn; None takes the task's training split.
        sources: how many source prompts are used, in their order; None uses all.
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
        """The names of the tasks, joined by "+"."""
        return "+".join(self.tasks)

    @property
    def affinity(self) -> tuple[str, tuple[str, ...]]:
        """Backbone and tasks: cells that share them share weights and rows, so one worker fills them in a row."""
        return self.backbone, self.tasks


@dataclass(frozen=True)
class CellResult:
    """The outcome of a cell's specification.

    Args:
        cells: one for each task; none where something was prepared for targets.
        artefact: the full name of the source prompt, the attention or the prompt of all sources that was trained.
    """

    cells: tuple[Cell, ...] = ()
    artefact: str | None = None


@dataclass(frozen=True)
class Plan:
    """Holds what all cells of a grid share; it can be sent to other processes.

    Args:
        registry: the registry's folder.
        data_dir: rows in the hub's layout.
        tasks: by name.
        sources: full names of the source prompts, by backbone and task.
        prepared: full names of what was trained on the source tasks, by backbone, task and kind (a name in
            `methods.PREPARED`).
        source_settings: settings of trainings on source tasks, where they differ.
        init_from: the prompt that trainings start from instead of the best source.
        settings: the fields of `TrainingConfig` that were given.
        preset: the name of settings by task and method; those that were given come first.
        limit: the most test rows of a task, a random sample.
        train_limit: the most training rows of a task, a random sample by seed.
        per_class: k rows of every class, not k in total.
        device, dtype: of the backbones.
        input_cache: bytes of each worker for keys and values of inputs; 0 for none.
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
    """Fills cells one after the other; keeps what the next may need: the backbone, the tasks' rows and contexts.

    Args:
        plan: what all cells share.
    """

    def __init__(self, plan: Plan) -> None:
        self.plan = plan
        self.registry = Registry.open(plan.registry)
        self.finished = finished_cells(self.registry) if plan.resume else {}
        self._backbones: dict[str, FrozenBackbone | AttemptError] = {}
        self._affinity: tuple[str, tuple[str, ...]] | None = None
        self._rows: dict[tuple[str, str, int | None, int], Rows] = {}
        self._contexts: dict[CellSpec, TaskContext] = {}

    def run(self, spec: CellSpec, listener: Listener | None = None) -> CellResult:
        """Fills the cells of a specification, or takes them from the finished ones.

        Raises:
            AttemptError: something that the cell needs is missing or does not fit.
            TrainingStoppedError: stopped by a signal; the checkpoint is written.
        """
        if spec.affinity != self._affinity:  # keeps rows of one affinity: they may be hundreds of thousands
            self._affinity = spec.affinity
            self._rows.clear()
            self._contexts.clear()
        if spec.kind in PREPARED:
            return CellResult(artefact=self._prepared(spec, listener))
        trains = [self._train_rows(task, spec) for task in spec.tasks]
        contexts = [self._context(task, spec, train) for task, train in zip(spec.tasks, trains, strict=True)]
        if METHODS[spec.method].together:
            return CellResult(tuple(cells_together(contexts, spec.method, trains, spec.seed, listener)))
        (context,), (train,) = contexts, trains
        cell = context.cell(spec.method, train, spec.seed, listener)
        return CellResult((cell,), cell.prompt if spec.kind == "source" else None)

    def close(self) -> None:
        """Closes the registry."""
        self.registry.close()

    def _context(self, name: str, spec: CellSpec, train: Rows) -> TaskContext:
        """Returns what the cells of a task share: all but the method and the seed."""
        plan, task = self.plan, self.plan.tasks[name]
        shared = CellSpec((name,), "", 0, spec.backbone, spec.k, spec.sources, spec.kind)
        if shared not in self._contexts:
            backbone = self._backbone(spec.backbone)
            sources = self._sources(spec, name) if spec.kind == "target" else ()
            start = self.registry.prompt(plan.init_from) if plan.init_from and spec.kind == "target" else None
            prior = plan.prepared.get((spec.backbone, name, "attention"))
            given = self._given(spec.kind, [*sources, *([start] if start else [])])
            self._contexts[shared] = TaskContext(
                registry=self.registry,
                backbone=backbone,
                task=task,
                test=self._limited(name, "test", plan.limit),
                config=make_config(None, compile=False, **given),  # times and memory of cells are compared
                sources=sources,
                init_from=start,
                name=name if spec.k is None else f"{name}-{spec.k}-shot",
                command=plan.command,
                tags=plan.tags,
                validation=self._validation(name, spec),
                k=spec.k,
                kind=spec.kind,
                settings=lambda method: self._by_preset(given, name, method, spec.kind, len(train.examples)),
                resume=plan.resume,
                finished=self.finished,
                attention_from=self.registry.attention(prior) if prior else None,
                generic={
                    kind: self.registry.prompt(ref)
                    for kind in PREPARED
                    if kind != "attention" and (ref := plan.prepared.get((spec.backbone, name, kind)))
                },
                data_dir=plan.data_dir,
                train_limit=plan.train_limit,
            )
        return self._contexts[shared]

    def _sources(self, spec: CellSpec, task: str) -> tuple[Prompt, ...]:
        named = self.plan.sources.get((spec.backbone, task), ())
        return tuple(self.registry.prompt(ref) for ref in named[: spec.sources])

    def _given(self, kind: str, prompts: Sequence[Prompt]) -> dict[str, Any]:
        """Returns the given settings; the prompt length is that of the prompts that are mixed or started from."""
        settings = self.plan.settings if kind == "target" else {**self.plan.settings, **self.plan.source_settings}
        return {**settings, **({"prompt_length": prompts[0].length} if prompts else {})}

    def _by_preset(self, given: Mapping[str, Any], task: str, method: str, kind: str, rows: int) -> dict[str, Any]:
        """Returns the preset's settings that were not given; a given budget replaces the preset's."""
        preset = settings_for(self.plan.preset, task=task, method=method, kind=kind, rows=rows)
        budget = {"epochs"} if "steps" in given else set()
        return {name: value for name, value in preset.items() if name not in given and name not in budget}

    def _prepared(self, spec: CellSpec, listener: Listener | None) -> str:
        """Trains what targets start from on their source tasks; with `resume` the registry's is taken, by its key."""
        plan, sources = self.plan, self._sources(spec, spec.task)
        tasks = [load_task(name) for name in dict.fromkeys(prompt.task for prompt in sources)]
        given = self._given("source", sources)
        preset = self._by_preset(given, tasks[0].name, "attempt", "source", 0)
        config = make_config(None, **{**preset, **given, "method": "attempt", "seed": spec.seed, "compile": False})
        if spec.kind != "attention":
            method = "mpt" if spec.kind == "factored" else "prompt-tuning"
            config = config.model_copy(update={"method": method})
        if config.placement is None:
            config = config.model_copy(update={"placement": sources[0].placement})
        backbone = self._backbone(spec.backbone)
        rows = [
            load_examples(task, "train", data_dir=plan.data_dir, limit=plan.train_limit, seed=spec.seed).sha256
            for task in tasks
        ]
        identity = {
            "kind": spec.kind,
            "backbone": [backbone.fingerprint, str(backbone.dtype)],
            "tasks": [task_fields(task) for task in tasks],
            "rows": rows,
            "sources": [prompt.sha256 for prompt in sources] if spec.kind == "attention" else [],
            "config": config.model_dump(),
        }
        key = content_key(identity)
        if plan.resume:
            for run in self.registry.runs(reverse=True):
                if run.settings.get("prepared") == key:
                    return str(run.numbers["made"])
        shop = Workshop(self.registry, backbone, plan.command, plan.tags, plan.resume, plan.data_dir, plan.train_limit)
        name = "prior" if spec.kind == "attention" else "all-sources"
        made = shop.prepare(spec.kind, tasks, name, config, sources, listener)
        self.registry.add_run(
            command=plan.command,
            settings={"prepared": key, "training": config.model_dump(exclude_none=True)},
            rows={},
            seed=spec.seed,
            budget={},
            numbers={"made": made},
            versions=versions(),
            duration=0.0,
            inputs=[f"{'attention' if spec.kind == 'attention' else 'prompt'}:{made}"],
        )
        return made

    def _backbone(self, name: str) -> FrozenBackbone:
        """Loads the backbone, once; one that cannot be loaded is not tried again for every cell."""
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

    def _train_rows(self, name: str, spec: CellSpec) -> Rows:
        """Returns the rows that a cell trains on: drawn by its seed, or the training split (a sample by the seed)."""
        if spec.k is not None:
            pool = self._limited(name, "train", None)
            return drawn_rows(pool, self.plan.tasks[name], spec.k, per_class=self.plan.per_class, seed=spec.seed)
        limits = [limit for limit in (self.plan.train_limit, train_limit(self.plan.preset, name)) if limit]
        return self._limited(name, "train", min(limits, default=None), spec.seed)

    def _validation(self, name: str, spec: CellSpec) -> Rows | None:
        """Returns the rows that choose the checkpoint: the task's validation rows; None where rows were drawn."""
        if spec.k is not None or self.plan.settings.get("eval_every") == 0:
            return None
        try:
            return self._limited(name, "validation", int(self.plan.settings.get("eval_rows", 200)))
        except AttemptError:
            if self.plan.settings.get("eval_every") is not None:
                raise
            return None  # a folder may hold training and test rows only: the last step counts

    def _limited(self, name: str, split: str, limit: int | None, seed: int = 0) -> Rows:
        """Loads a split's rows, once; with a limit, a random sample by the seed."""
        key = (name, split, limit, seed if limit else 0)
        if key not in self._rows:
            self._rows[key] = load_examples(
                self.plan.tasks[name], split, data_dir=self.plan.data_dir, limit=limit, seed=seed
            )
        return self._rows[key]


def cells_together(
    contexts: Sequence[TaskContext], method: str, trains: Sequence[Rows], seed: int, listener: Listener | None
) -> list[Cell]:
    """Trains all tasks at once and returns a cell for each.

    Args:
        contexts: one for each task; they share a backbone, and where their settings differ, the first one's count.
        method: one that trains targets together.
        trains: training rows of each task.
        seed: of the training.
        listener: follows the training.
    """
    # one set of sources for all targets: those of each that are no target's own task
    common = [prompt for prompt in contexts[0].sources if all(prompt in context.sources for context in contexts)]
    if not common and METHODS[method].uses_sources:
        raise AttemptError(
            "every source prompt belongs to one of the targets that are trained together",
            "Train source prompts of other tasks, or name fewer targets with --tasks.",
        )
    contexts = [replace(context, sources=tuple(common), _best={}) for context in contexts]
    parts = [context.parts(method, train, seed) for context, train in zip(contexts, trains, strict=True)]
    alone = [context.key(method, train, part) for context, train, part in zip(contexts, trains, parts, strict=True)]
    keys = [f"{hashlib.sha256(' '.join([own, *alone]).encode()).hexdigest()[:16]}" for own in alone]
    found = [context.found(key, method, seed) for context, key in zip(contexts, keys, strict=True)]
    if all(cell is not None for cell in found):
        return [cell for cell in found if cell is not None]
    name = f"{'+'.join(context.name for context in contexts)}-{method}"
    looks = any(context.validation is not None for context in contexts)
    results = []

    def on_trained(model: PromptedModel) -> None:
        for index, (context, part) in enumerate(zip(contexts, parts, strict=True)):
            results.append(context.evaluated(model, part.config, 0 if model.tuned is not None else index))

    subjects = contexts[0].workshop.train_together(
        [context.task for context in contexts], _short(name), () if looks else trains, parts, listener, on_trained
    )
    cells = []
    try:
        for context, key, train, subject, result in zip(contexts, keys, trains, subjects, results, strict=True):
            context.warn(f"{name}, seed {seed}", subject, listener)
            cells.append(context.scored(method, seed, key, train, subject, result))
    finally:
        subjects[0].model.release()
    return cells


def _short(name: str, most: int = 60) -> str:
    """Shortens a name that would be too long for the registry, which appends the tasks' names."""
    return name if len(name) <= most else f"{name[: most - 9]}-{hashlib.sha256(name.encode()).hexdigest()[:8]}"


def record_failure(registry: Registry, command: str, spec: CellSpec, error: str, seconds: float) -> None:
    """Records as a run that a cell failed, and why."""
    registry.add_run(
        command=command,
        settings={"method": spec.method, "failed": asdict(spec)},
        rows={},
        seed=spec.seed,
        budget={},
        numbers={"failed": error},
        versions=versions(),
        duration=seconds,
    )
