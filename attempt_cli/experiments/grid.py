"""A grid of cells: the specification of each, the plan that all share, and the runner that fills them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from attempt_cli.artefacts import bare, load_prompt, remember_backbone, versions
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.input_cache import InputCache
from attempt_cli.backbones.load import load_backbone
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fields import task_fields
from attempt_cli.data.rows import Rows, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.evaluate import Evaluation, evaluate
from attempt_cli.evaluation.prediction import encode_examples
from attempt_cli.evaluation.record import record_evaluation, rows_record
from attempt_cli.experiments.cells import Cell, best_source, drawn_rows, finished_cells
from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_cli.keys import content_key
from attempt_cli.listener import Listener
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import TrainingConfig, make_config
from attempt_cli.training.loop import TrainingStoppedError
from attempt_cli.training.methods import find_method
from attempt_cli.training.presets import settings_for, train_limit
from attempt_cli.training.request import Outcome, Request, TaskRows
from attempt_cli.training.run import train
from attempt_registry import Prompt, Registry

LONGEST_NAME = 60  # of a training on several tasks: each task's own name follows it


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
    """Fills cells one after the other; keeps the backbone and the rows, which the next cell may need.

    Every method of a comparison gets the rows that are chosen here, and looks at the same validation rows.

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
        self._best: dict[tuple[str, ...], Prompt] = {}

    def run(self, spec: CellSpec, listener: Listener | None = None) -> CellResult:
        """Returns the cell's results: those that are finished, else new ones.

        Raises:
            AttemptError: what the cell needs is missing or does not fit.
            TrainingStoppedError: stopped by a signal; the checkpoint is written.
        """
        if spec.affinity != self._affinity:  # rows of one affinity at a time: they may be hundreds of thousands
            self._affinity = spec.affinity
            self._rows.clear()
            self._best.clear()
        listener = listener or Listener()
        if spec.kind in PREPARED:
            return CellResult(artefact=self._prepared(spec, listener))
        rows = self.rows(spec)
        tests = [self.test_rows(name) for name in spec.tasks]
        if not METHODS[spec.method].trains:
            return CellResult((self._untrained(spec, rows[0], tests[0]),))
        cells = self._trained(spec, self._request(spec, rows), tests, listener)
        return CellResult(cells, cells[0].prompt if spec.kind == "source" else None)

    def close(self) -> None:
        """Closes the registry."""
        self.registry.close()

    def rows(self, spec: CellSpec) -> list[TaskRows]:
        """Chooses the rows of a cell: the same for every method.

        Training rows are drawn by the seed, or the training split (a sample of it by the seed). The last step counts
        where rows are drawn; else validation rows choose the checkpoint, where the task has some.
        """
        return [self._task_rows(self.plan.tasks[name], spec) for name in spec.tasks]

    def test_rows(self, task: str) -> Rows:
        """Chooses the rows that every model of a task is scored on."""
        return self._limited(task, "test", self.plan.limit)

    def use_backbone(self, name: str, backbone: FrozenBackbone) -> None:
        """Takes a backbone that is loaded already, under the name of the specifications."""
        self._backbones = {name: backbone}

    def _task_rows(self, task: Task, spec: CellSpec) -> TaskRows:
        plan = self.plan
        if spec.k is not None:
            pool = self._limited(task.name, "train", None, task=task)
            return TaskRows(
                task, drawn_rows(pool, task, spec.k, per_class=plan.per_class, seed=spec.seed), sampled=True
            )
        limits = [limit for limit in (plan.train_limit, train_limit(plan.preset, task.name)) if limit]
        limit = min(limits, default=None)
        train = self._limited(task.name, "train", limit, spec.seed, task=task)
        if plan.settings.get("eval_every") == 0:
            return TaskRows(task, train, sampled=limit is not None)
        try:
            eval_rows = int(plan.settings.get("eval_rows", 200))
            validation = self._limited(task.name, "validation", eval_rows, task=task)
        except AttemptError:
            if plan.settings.get("eval_every") is not None:
                raise
            return TaskRows(task, train, sampled=limit is not None)  # a folder may hold training and test rows only
        return TaskRows(task, train, validation, sampled=limit is not None)

    def _limited(self, name: str, split: str, limit: int | None, seed: int = 0, *, task: Task | None = None) -> Rows:
        key = (name, split, limit, seed if limit else 0)
        if key not in self._rows:
            task = task or self.plan.tasks[name]
            self._rows[key] = load_examples(task, split, data_dir=self.plan.data_dir, limit=limit, seed=seed)
        return self._rows[key]

    def _request(self, spec: CellSpec, rows: list[TaskRows]) -> Request:
        """Returns the training of a cell: with the preset's settings, the sources and the start of its method."""
        plan, method, backbone = self.plan, METHODS[spec.method], self._backbone(spec.backbone)
        target = spec.kind == "target"
        sources = self._sources(spec) if target else ()
        named = self.registry.prompt(plan.init_from) if plan.init_from and target else None
        config = self._config(spec, [*sources, *([named] if named else [])], rows[0], method.settings)
        starts: list[Prompt | None] = [None] * len(rows)
        if method.source in PREPARED:
            starts = [self._prepared_prompt(spec, one.task.name, str(method.source)) for one in rows]
        elif method.source is not None and named is not None:
            starts = [named] * len(rows)
        elif method.source is not None and sources:
            starts = [self._best_source(spec, one, sources, config.max_length) for one in rows]
        mixed: tuple[Prompt, ...] = ()
        if method.mixes == "all":
            mixed = sources
        elif method.mixes == "best":
            mixed = (self._best_source(spec, rows[0], sources, config.max_length),)
        prior = plan.prepared.get((spec.backbone, spec.tasks[0], "attention")) if method.prior else None
        remember_backbone(self.registry, backbone)
        return Request(
            tasks=tuple(rows),
            name=self._name(spec),
            config=config,
            kind=spec.kind,
            sources=mixed,
            init_from=tuple(starts),
            attention_from=self.registry.attention(prior) if prior else None,
            tags=plan.tags,
        )

    def _config(
        self, spec: CellSpec, prompts: Sequence[Prompt], rows: TaskRows, own: Mapping[str, Any]
    ) -> TrainingConfig:
        """Returns the settings of a training: the method's own, else those that were given, else the preset's.

        The length is that of the prompts that are mixed or started from; of several tasks each has the steps that it
        would have alone.
        """
        plan, count = self.plan, len(spec.tasks)
        given = dict(plan.settings if spec.kind == "target" else {**plan.settings, **plan.source_settings})
        if prompts:
            given["prompt_length"] = prompts[0].length
        kind = "target" if spec.kind == "target" else "source"
        preset = settings_for(
            plan.preset, task=rows.task.name, method=spec.method, kind=kind, rows=len(rows.train.examples)
        )
        if "steps" in given:  # a budget that is given replaces the preset's
            preset.pop("epochs", None)
        settings = {**preset, **given, **own, "seed": spec.seed, "compile": False}  # times of cells are compared
        placements = find_method(settings["method"]).placements
        if len(placements) == 1:
            settings["placement"] = placements[0]
        elif settings.get("placement") is None and prompts:  # where the sources stand, for all methods alike
            settings["placement"] = prompts[0].placement
        settings["chat_template"] = self._in_chat(spec, prompts)
        config = make_config(None, **settings)
        if count > 1 and config.epochs is None:
            config = config.model_copy(update={"steps": config.total_steps(0) * count})
        return config

    def _sources(self, spec: CellSpec) -> tuple[Prompt, ...]:
        """Returns the source prompts of a cell: of several targets those that no target was trained on.

        Raises:
            AttemptError: there is none, and the method needs some.
        """
        own = [self.plan.sources.get((spec.backbone, name), ())[: spec.sources] for name in spec.tasks]
        common = tuple(ref for ref in own[0] if all(ref in refs for refs in own))
        if not common and len(spec.tasks) > 1 and METHODS[spec.method].uses_sources:
            raise AttemptError(
                "every source prompt is of one of the targets that are trained together",
                "Train source prompts of other tasks, or name fewer targets with --tasks.",
            )
        return tuple(self.registry.prompt(ref) for ref in common)

    def _best_source(
        self, spec: CellSpec, rows: TaskRows, sources: tuple[Prompt, ...], max_length: int | None
    ) -> Prompt:
        """Returns the source that fits the training rows best, looked for once."""
        key = (rows.train.sha256, *(prompt.ref for prompt in sources))
        if key not in self._best:
            backbone = self._backbone(spec.backbone)
            self._best[key] = best_source(self.registry, backbone, rows.task, rows.train, sources, max_length)
        return self._best[key]

    def _prepared_prompt(self, spec: CellSpec, task: str, kind: str) -> Prompt | None:
        ref = self.plan.prepared.get((spec.backbone, task, kind))
        return self.registry.prompt(ref) if ref else None

    def _name(self, spec: CellSpec) -> str:
        """Returns the name that a training is kept under: short enough for the tasks' names behind it."""
        drawn = "" if spec.k is None else f"-{spec.k}{'-per-class' if self.plan.per_class else ''}-shot"
        name = "+".join(f"{task}{drawn}" for task in spec.tasks)
        name = name if spec.kind == "source" else f"{name}-{spec.method}"
        if len(spec.tasks) == 1 or len(name) <= LONGEST_NAME:
            return name
        return f"{name[: LONGEST_NAME - 9]}-{content_key({'name': name})[:8]}"

    def _untrained(self, spec: CellSpec, rows: TaskRows, test: Rows) -> Cell:
        """Scores the bare backbone or the best source as it stands: that depends on no steps and no seed."""
        backbone = self._backbone(spec.backbone)
        sources = self._sources(spec) if METHODS[spec.method].uses_sources else ()
        max_length = self.plan.settings.get("max_length")
        start = self._best_source(spec, rows, sources, max_length) if sources else None
        if start is None:
            loaded = bare(backbone, chat_template=self._in_chat(spec))
        else:
            loaded = load_prompt(self.registry, backbone, start)
        identity = {
            "task": task_fields(rows.task) | {"format": rows.task.format},
            "test": test.sha256,
            "backbone": [backbone.fingerprint, str(backbone.dtype)],
            "start": start.sha256 if start else None,
            "max_length": max_length,
        }
        if loaded.model.frame is not None:
            identity["chat_template"] = loaded.model.frame.text
        key = content_key(identity)
        if found := self._found(key, spec):
            return found
        config = make_config(None, **{name: value for name, value in self.plan.settings.items() if "max_" in name})
        result = self._scored(loaded.model, rows.task, test, config)
        cell = self._cell(spec, rows, result, key=key, prompt=loaded.name)
        return self._kept(cell, rows, test, result, config, loaded.inputs)

    def _in_chat(self, spec: CellSpec, prompts: Sequence[Prompt] = ()) -> bool:
        """Tells whether a cell reads inside the chat template: as is asked for, else as its prompts or the sources."""
        asked = self.plan.settings.get("chat_template")
        if asked is None:
            sources = self.plan.sources.get((spec.backbone, spec.tasks[0]), ())[:1]
            asked = any(prompt.chat_template for prompt in (*prompts, *map(self.registry.prompt, sources)))
        return bool(asked)

    def _trained(self, spec: CellSpec, request: Request, tests: list[Rows], listener: Listener) -> tuple[Cell, ...]:
        """Trains a cell's model, or that of several tasks, and scores it on the test rows of each task."""
        backbone = self._backbone(spec.backbone)
        own = request.key(backbone)
        keys = [
            content_key({"training": own, "method": spec.method, "task": rows.task.name, "test": test.sha256})
            for rows, test in zip(request.tasks, tests, strict=True)
        ]
        found = [self._found(key, spec) for key in keys]
        if all(found):
            return tuple(cell for cell in found if cell is not None)
        results: list[Evaluation] = []

        def score(model: PromptedModel) -> None:
            for number, (rows, test) in enumerate(zip(request.tasks, tests, strict=True)):
                results.append(self._scored(model, rows.task, test, request.config, request.task_index(number)))

        try:
            outcome = train(
                self.registry,
                backbone,
                request,
                command=self.plan.command,
                resume=self.plan.resume,
                listener=listener,
                on_trained=score,
            )
        except TrainingStoppedError as error:
            raise TrainingStoppedError(
                f"{error.message.split(';')[0]} of {request.name}", "What was finished is in the registry."
            ) from None
        assert outcome is not None
        try:
            for warning in outcome.trained.warnings:
                listener.note(f"Warning: {request.name}, seed {spec.seed}: {warning}")
            return tuple(
                self._kept(
                    self._cell(spec, rows, result, key=key, outcome=outcome),
                    rows,
                    test,
                    result,
                    request.config,
                    inputs_of(outcome, rows.task.name),
                )
                for rows, test, key, result in zip(request.tasks, tests, keys, results, strict=True)
            )
        finally:
            outcome.release()

    def _scored(
        self, model: PromptedModel, task: Task, test: Rows, config: TrainingConfig, task_index: int = 0
    ) -> Evaluation:
        """Scores a model on the test rows, which are read once for all models whose prompts stand after the input."""
        backbone, limit = model.backbone, config.max_length
        if backbone.input_cache is not None and model.placement == "after":
            backbone.input_cache.pin(
                f"{test.sha256} {limit} {model.prompt_length} {model.around}",
                lambda: encode_examples(model, task, test.examples, limit),
                backbone.cache_bytes_per_token,
            )
        return evaluate(
            model, task, test.examples, task_index=task_index, max_length=limit, max_tokens=config.max_tokens
        )

    def _cell(
        self,
        spec: CellSpec,
        rows: TaskRows,
        result: Evaluation,
        *,
        key: str,
        prompt: str = "",
        outcome: Outcome | None = None,
    ) -> Cell:
        """Returns the cell of a score; of a training on several tasks each has its share of steps and time."""
        weights, count = result.mean_attention, len(spec.tasks)
        numbers = outcome.trained.numbers if outcome else {}
        names = [*(source.ref for source in outcome.request.sources), "target"] if outcome else []
        return Cell(
            task=rows.task.name,
            method=spec.method,
            seed=spec.seed,
            score=result.score,
            interval=result.interval,
            n=result.n,
            prompt=model_name(outcome, rows.task.name) if outcome else prompt,
            steps=round(outcome.trained.state.step / count) if outcome else 0,
            attention=None if weights is None else dict(zip(names, weights, strict=True)),
            backbone=self._backbone(spec.backbone).name,
            k=spec.k,
            sources=self._source_count(spec),
            trained_parameters=round(outcome.parameters_per_task) if outcome else 0,
            peak_memory=numbers.get("peak_memory"),
            seconds=round(numbers.get("seconds", 0.0) / count + result.predictions.seconds, 1),
            key=key,
        )

    def _kept(
        self,
        cell: Cell,
        rows: TaskRows,
        test: Rows,
        result: Evaluation,
        config: TrainingConfig,
        inputs: Sequence[str],
    ) -> Cell:
        """Records a cell, with the rows that were trained on."""
        record_evaluation(
            self.registry,
            rows.task,
            test,
            result,
            {**asdict(cell), "metrics": result.metrics, "model": cell.prompt},
            command=self.plan.command,
            seed=cell.seed,
            settings={"method": cell.method, "cell": cell.key, "training": config.model_dump(exclude_none=True)},
            budget={"steps": cell.steps},
            other_rows={"train": rows_record(rows.train)},
            inputs=inputs,
        )
        self.finished[cell.key] = cell
        return cell

    def _found(self, key: str, spec: CellSpec) -> Cell | None:
        """Returns the finished cell of a key; an untrained one counts for every seed and number of rows and sources."""
        cell = self.finished.get(key)
        return cell and replace(cell, seed=spec.seed, k=spec.k, sources=self._source_count(spec))

    def _source_count(self, spec: CellSpec) -> int | None:
        return len(self._sources(spec)) if METHODS[spec.method].uses_sources else None

    def _prepared(self, spec: CellSpec, listener: Listener) -> str:
        """Trains on the source tasks of a target what it starts from, once; its key is a hash of all it depends on.

        Returns:
            The full name of the attention (the prior), or of the prompt of all source tasks.
        """
        sources, backbone = self._sources(spec), self._backbone(spec.backbone)
        tasks = [load_task(name) for name in dict.fromkeys(prompt.task for prompt in sources)]
        own = replace(spec, tasks=tuple(task.name for task in tasks), method="attempt", k=None)
        rows = [self._task_rows(task, own) for task in tasks]
        method = {"attention": "attempt", "factored": "mpt"}.get(spec.kind, "prompt-tuning")
        request = Request(
            tasks=tuple(rows),
            name="prior" if spec.kind == "attention" else "all-sources",
            config=self._config(own, sources, rows[0], {"method": method}),
            kind="source",
            keep="attention" if spec.kind == "attention" else "shared",
            sources=sources if spec.kind == "attention" else (),
            tags=self.plan.tags,
        )
        key = request.key(backbone)
        if self.plan.resume:
            for run in self.registry.runs(reverse=True):
                if run.settings.get("prepared") == key:
                    return str(run.numbers["made"])
        outcome = train(
            self.registry,
            backbone,
            request,
            command=self.plan.command,
            resume=self.plan.resume,
            listener=listener,
        )
        assert outcome is not None
        made = outcome.attention if spec.kind == "attention" else outcome.prompt
        assert made is not None
        self.registry.add_run(
            command=self.plan.command,
            settings={"prepared": key, "training": request.config.model_dump(exclude_none=True)},
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
        """Returns the backbone, loaded once; one that cannot be loaded is not tried again for every cell."""
        if name not in self._backbones:
            self._backbones.clear()  # one at a time in memory
            try:
                loaded = load_backbone(name, device=self.plan.device, dtype=self.plan.dtype)
                if self.plan.input_cache:
                    pin_memory = loaded.device.type == "cuda"
                    loaded.input_cache = InputCache(self.plan.input_cache, pin_memory=pin_memory)
                self._backbones[name] = loaded
            except AttemptError as error:
                self._backbones[name] = error
        found = self._backbones[name]
        if isinstance(found, AttemptError):
            raise found
        return found


def check_rows(plan: Plan, specs: Sequence[CellSpec]) -> None:
    """Looks for the rows of all cells before the first of them is filled.

    Args:
        plan: what the cells share.
        specs: the cells. A source is scored nowhere beyond its own rows, and needs what a target needs.

    Raises:
        AttemptError: naming every task and split whose rows cannot be found.
    """
    problems: list[AttemptError] = []
    for name in dict.fromkeys(name for spec in specs for name in spec.tasks):
        for split in ("train", "test"):
            try:
                load_examples(plan.tasks[name], split, data_dir=plan.data_dir, limit=1)
            except AttemptError as error:
                problems.append(error)
    if problems:
        texts = dict.fromkeys(error.message for error in problems)
        raise AttemptError("rows of this grid are missing:\n  " + "\n  ".join(texts), problems[0].hint)


def model_name(outcome: Outcome, task: str) -> str:
    """Returns the full name of what a training left for a task; its run where nothing is kept."""
    if not outcome.prompts:
        return f"{outcome.request.name} (run {outcome.run})"
    prompt = outcome.prompts[task]
    if len(outcome.rows) > 1:
        return f"{prompt} of {outcome.composition}"
    return outcome.composition or prompt


def inputs_of(outcome: Outcome, task: str) -> list[str]:
    """Returns what a task's score used, as runs name it."""
    prompts = [f"prompt:{outcome.prompts[task]}"] if outcome.prompts else []
    return [*prompts, *([f"composition:{outcome.composition}"] if outcome.composition else [])]


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
