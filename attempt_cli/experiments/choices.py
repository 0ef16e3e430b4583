"""What a cell trains on: its rows, which every method shares, its sources, its start and its settings."""

from __future__ import annotations

import contextlib
import random
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch

from attempt_cli.artefacts import load_prompt
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.catalogue import load_task
from attempt_cli.data.fewshot import few_shot
from attempt_cli.data.rows import Rows, examples_sha256, load_examples
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.inside import prompt_cosines
from attempt_cli.evaluation.prediction import PromptedTask, predict_many, same_reading, text_likelihoods
from attempt_cli.experiments.cells import CellSpec
from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_cli.experiments.plan import Plan
from attempt_cli.keys import content_key
from attempt_cli.training.config import TrainingConfig, make_config
from attempt_cli.training.methods import find_method
from attempt_cli.training.presets import settings_for, train_limit
from attempt_cli.training.request import Request, TaskRows
from attempt_registry import Prompt, Registry

LONGEST_NAME = 60  # of a training on several tasks: each task's own name follows it
ROWS_FOR_CHOICE = 200  # training rows that the best source is chosen by, at most
SEARCHED = 1 / 5  # of the steps: the prompt that is compared with the sources. The paper's 4 % of few steps is nothing


@dataclass(frozen=True)
class Search:
    """What a search for the start of a training has found.

    Args:
        found: the source to start from.
        steps: that it took.
        seconds: that it took.
    """

    found: Prompt
    steps: int
    seconds: float


# rows by task, split, limit and seed
Loaded = dict[tuple[str, str, int | None, int], Rows]


class Choices:
    """Chooses what cells are trained on and scored on, and keeps it for the next cell of the same tasks.

    Args:
        plan: what all cells share.
        registry: the plan's, open.
    """

    def __init__(self, plan: Plan, registry: Registry) -> None:
        self.plan = plan
        self.registry = registry
        self._affinity: tuple[str, tuple[str, ...]] | None = None
        self._rows: Loaded = {}
        self._best: dict[tuple[str, ...], Prompt] = {}

    def turn_to(self, spec: CellSpec) -> None:
        """Drops what was kept for other tasks: their rows may be hundreds of thousands."""
        if spec.affinity != self._affinity:
            self._affinity = spec.affinity
            self._rows.clear()
            self._best.clear()

    def needed(self, specs: Sequence[CellSpec]) -> Loaded:
        """Loads the rows that cells need, for a worker that may have none; what is missing the worker tells itself."""
        for spec in specs:
            self.turn_to(spec)
            with contextlib.suppress(AttemptError):
                if spec.kind in PREPARED:
                    self.preparation(spec)
                    continue
                for one in self.rows(spec):
                    self.test_rows(one.task)
        return dict(self._rows)

    def keep(self, spec: CellSpec, rows: Loaded) -> None:
        """Takes rows that `needed` has loaded elsewhere, for cells of this one's tasks."""
        self.turn_to(spec)
        self._rows.update(rows)

    def rows(self, spec: CellSpec) -> list[TaskRows]:
        """Chooses the rows of a cell: the same for every method.

        Training rows are drawn by the seed, or the training split (a sample of it by the seed). The last step counts
        where rows are drawn; else validation rows choose the checkpoint, where the task has some.
        """
        return [self._task_rows(self.plan.tasks[name], spec) for name in spec.tasks]

    def test_rows(self, task: Task) -> Rows:
        """Chooses the rows that every model of a task is scored on."""
        return self._load(task, "test", self.plan.limit)

    def request(
        self, spec: CellSpec, rows: Sequence[TaskRows], backbone: FrozenBackbone, search: Search | None = None
    ) -> Request:
        """Returns the training of a cell: with the preset's settings, the sources and the start of its method.

        Args:
            search: has found the start, and used a part of the steps.
        """
        plan, method, target = self.plan, METHODS[spec.method], spec.kind == "target"
        sources = self.sources(spec) if target else ()
        named = self.registry.prompt(plan.init_from) if plan.init_from and target else None
        config = self._config(spec, [*sources, *([named] if named else [])], rows[0], method.settings)

        def best(one: TaskRows) -> Prompt:
            return self.best_source(backbone, one, sources, config.max_length)

        starts: list[Prompt | None] = [None] * len(rows)
        if method.source in PREPARED:
            refs = [plan.prepared.get((spec.backbone, one.task.name, str(method.source))) for one in rows]
            starts = [self.registry.prompt(ref) if ref else None for ref in refs]
        elif search is not None:
            starts = [search.found]
            steps = config.total_steps(len(rows[0].train.examples)) - search.steps
            config = config.model_copy(update={"steps": steps, "epochs": None})
        elif method.source == "random":
            starts = [random.Random(spec.seed).choice(sources)] * len(rows)
        elif method.source is not None and named is not None:
            starts = [named] * len(rows)
        elif method.source is not None and sources:
            starts = [best(one) for one in rows]
        mixed = sources if method.mixes == "all" else ()
        if method.mixes == "best":
            mixed = (best(rows[0]),)
        prior = plan.prepared.get((spec.backbone, spec.tasks[0], "attention")) if method.prior else None
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

    def search(self, spec: CellSpec, rows: TaskRows) -> Request:
        """Returns the short training of a target prompt that is compared with the sources (Vu et al. 2022).

        It starts from the words that the first source started from: prompts of one start differ by their tasks.

        Raises:
            AttemptError: a single step leaves nothing to search with.
        """
        sources = self.sources(spec)
        config = self._config(spec, sources, rows, {"method": "prompt-tuning"})
        total = config.total_steps(len(rows.train.examples))
        if total < 2:
            raise AttemptError(
                f"{spec.method} takes a part of the steps to search, and there is one", "Give more --steps."
            )
        update = {
            "steps": max(1, round(total * SEARCHED)),
            "epochs": None,
            "eval_every": 0,
            "seed": sources[0].seed or 0,
        }
        return Request(
            tasks=(replace(rows, validation=None),),
            name=f"{self._name(spec)}-search",
            config=config.model_copy(update=update),
            tags=self.plan.tags,
        )

    def nearest(self, prompt: Prompt, sources: Sequence[Prompt]) -> Prompt:
        """Returns the source whose mean token has the largest cosine with that of a prompt."""
        own, *others = (
            torch.from_numpy(np.array(self.registry.prompt_tensor(one))).double() for one in (prompt, *sources)
        )
        cosines = [prompt_cosines(other, own)[0] for other in others]
        return sources[max(range(len(sources)), key=cosines.__getitem__)]

    def preparation(self, spec: CellSpec) -> Request:
        """Returns the training on the source tasks of a target that makes what it starts from."""
        sources = self.sources(spec)
        tasks = [load_task(name) for name in dict.fromkeys(prompt.task for prompt in sources)]
        own = replace(spec, tasks=tuple(task.name for task in tasks), method="attempt", k=None)
        rows = [self._task_rows(task, own) for task in tasks]
        prior = spec.kind == "attention"
        method = {"attention": "attempt", "factored": "mpt"}.get(spec.kind, "prompt-tuning")
        return Request(
            tasks=tuple(rows),
            name="prior" if prior else "all-sources",
            config=self._config(own, sources, rows[0], {"method": method}),
            kind="source",
            keep="attention" if prior else "shared",
            sources=sources if prior else (),
            tags=self.plan.tags,
        )

    def sources(self, spec: CellSpec) -> tuple[Prompt, ...]:
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

    def in_chat(self, spec: CellSpec, prompts: Sequence[Prompt] = ()) -> bool:
        """Tells whether a cell reads inside the chat template: as is asked for, else as its prompts or the sources."""
        asked = self.plan.settings.get("chat_template")
        if asked is None:
            sources = self.plan.sources.get((spec.backbone, spec.tasks[0]), ())[:1]
            asked = any(prompt.chat_template for prompt in (*prompts, *map(self.registry.prompt, sources)))
        return bool(asked)

    def best_source(
        self, backbone: FrozenBackbone, rows: TaskRows, sources: Sequence[Prompt], max_length: int | None
    ) -> Prompt:
        """Returns the source that, untrained, gives the training rows' targets the highest likelihood.

        It is looked for once.

        Args:
            backbone: what the sources are for.
            rows: of many training rows a sample decides.
            sources: the prompts to choose from.
            max_length: input tokens of a row; the task's own limit without it.
        """
        if len(sources) == 1:
            return sources[0]
        key = (rows.train.sha256, *(prompt.ref for prompt in sources))
        if key not in self._best:
            examples = rows.train.examples
            if len(examples) > ROWS_FOR_CHOICE:
                examples = random.Random(0).sample(examples, ROWS_FOR_CHOICE)

            models = [load_prompt(self.registry, backbone, prompt).model for prompt in sources]
            fit = [0.0] * len(sources)
            if rows.task.is_classification:
                for places in same_reading(models):
                    asked = [PromptedTask(models[place], rows.task) for place in places]
                    for place, found in zip(places, predict_many(asked, examples, max_length=max_length), strict=True):
                        likelihoods = [row.log_likelihood for row in found.rows if row.log_likelihood is not None]
                        fit[place] = sum(likelihoods) / len(likelihoods)
            else:
                fit = text_likelihoods(models, rows.task, examples, max_length)
            self._best[key] = sources[max(range(len(sources)), key=fit.__getitem__)]
        return self._best[key]

    def _task_rows(self, task: Task, spec: CellSpec) -> TaskRows:
        plan = self.plan
        if spec.k is not None:
            pool = self._load(task, "train", None)
            rows = few_shot(
                pool.examples, spec.k, per_class=plan.per_class, label_count=len(task.label_words), seed=spec.seed
            )
            balanced = ", class-balanced" if task.is_classification else ""
            origin = f"{pool.origin}, {len(rows)} of these by seed {spec.seed}{balanced}"
            return TaskRows(task, Rows(rows, origin, examples_sha256(rows)), sampled=True)
        limits = [limit for limit in (plan.train_limit, train_limit(plan.preset, task.name)) if limit]
        limit = min(limits, default=None)
        train = self._load(task, "train", limit, spec.seed)
        validation = None
        if plan.settings.get("eval_every") != 0:
            try:
                validation = self._load(task, "validation", int(plan.settings.get("eval_rows", 200)))
            except AttemptError:  # a folder may hold training and test rows only
                if plan.settings.get("eval_every") is not None:
                    raise
        return TaskRows(task, train, validation, sampled=limit is not None)

    def _load(self, task: Task, split: str, limit: int | None, seed: int = 0) -> Rows:
        key = (task.name, split, limit, seed if limit else 0)
        if key not in self._rows:
            self._rows[key] = load_examples(task, split, data_dir=self.plan.data_dir, limit=limit, seed=seed)
        return self._rows[key]

    def _config(
        self, spec: CellSpec, prompts: Sequence[Prompt], rows: TaskRows, own: Mapping[str, Any]
    ) -> TrainingConfig:
        """Returns the settings of a training: the method's own, else those that were given, else the preset's.

        The length is that of the prompts that are mixed or started from; of several tasks each has the steps that it
        would have alone.
        """
        plan = self.plan
        kind = "target" if spec.kind == "target" else "source"
        given = {**plan.settings, **(plan.source_settings if kind == "source" else {}), **dict(spec.swept)}
        if kind == "target" and spec.method in plan.rates:
            given[METHODS[spec.method].rate] = plan.rates[spec.method]
        if prompts:
            given["prompt_length"] = prompts[0].length
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
        settings["chat_template"] = self.in_chat(spec, prompts)
        config = make_config(None, **settings)
        if len(spec.tasks) > 1 and config.epochs is None:
            config = config.model_copy(update={"steps": config.total_steps(0) * len(spec.tasks)})
        return config

    def _name(self, spec: CellSpec) -> str:
        """Returns the name that a training is kept under: short enough for the tasks' names behind it."""
        drawn = "" if spec.k is None else f"-{spec.k}{'-per-class' if self.plan.per_class else ''}-shot"
        drawn += "-sweep" if spec.swept else ""
        name = "+".join(f"{task}{drawn}" for task in spec.tasks)
        name = name if spec.kind == "source" else f"{name}-{spec.method}"
        if len(spec.tasks) == 1 or len(name) <= LONGEST_NAME:
            return name
        return f"{name[: LONGEST_NAME - 9]}-{content_key({'name': name})[:8]}"
