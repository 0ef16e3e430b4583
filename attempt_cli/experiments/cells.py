"""Fills the cells of a comparison: a method, a task, a seed; the same rows and steps for every method."""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from attempt_cli.artefacts import bare, load_prompt, versions
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.example import Example
from attempt_cli.data.fewshot import few_shot
from attempt_cli.data.fields import task_fields
from attempt_cli.data.rows import Rows, examples_sha256
from attempt_cli.data.task import Task
from attempt_cli.evaluation.evaluate import Evaluation, evaluate
from attempt_cli.evaluation.pairing import per_row
from attempt_cli.evaluation.prediction import encode_examples, predict
from attempt_cli.evaluation.record import rows_record
from attempt_cli.experiments.methods import METHODS, PREPARED
from attempt_cli.experiments.subjects import Parts, Subject, Workshop, as_it_stands
from attempt_cli.keys import content_key
from attempt_cli.prompted import PromptedModel
from attempt_cli.training.config import PLACED_BEFORE, TrainingConfig
from attempt_cli.training.loop import Listener, TrainingStoppedError
from attempt_registry import Attention, Prompt, Registry, Run

ROWS_FOR_CHOICE = 200  # training rows that the best source is chosen by, at most


@dataclass(frozen=True)
class Cell:
    """Holds the result of one method with one seed on one task.

    Args:
        method: a name in METHODS.
        score: the task's first metric on the test rows.
        interval: its 95 % interval over rows.
        n: test rows.
        prompt: the full name of the evaluated prompt or composition, or "no prompt".
        steps: optimiser steps; 0 where nothing was trained.
        attention: mean weights, sources first, the target last (its own weight, before the 1 of equation 4 is added).
        backbone: the backbone's name.
        k: training rows where they were drawn (few-shot), else None.
        sources: how many source prompts could be used; None where the method uses none.
        trained_parameters: the number of trained parameters.
        peak_memory: the most bytes in use during training, where they were measured.
        seconds: the duration of training and evaluation.
        key: a hash of everything that the result depends on.
    """

    task: str
    method: str
    seed: int
    score: float
    interval: tuple[float, float]
    n: int
    prompt: str
    steps: int
    attention: dict[str, float] | None = None
    backbone: str = ""
    k: int | None = None
    sources: int | None = None
    trained_parameters: int = 0
    peak_memory: int | None = None
    seconds: float = 0.0
    key: str = ""


@dataclass(frozen=True)
class TaskContext:
    """Holds what all cells of a task share.

    Args:
        registry: holds the prompts and the runs.
        backbone: the model they belong to.
        task: the task.
        test: the test rows.
        config: steps, batch, learning rates.
        sources: the source prompts.
        init_from: the prompt that SPoT and ATTEMPT start from; None takes the best source on the training rows.
        name: the stem of the prompts' names.
        command: as it was typed.
        tags: for the registry.
        note: receives the warnings of a training; None leaves them to the listener.
        validation: the rows that choose the checkpoint; None takes the last step.
        k: the number of training rows where they are drawn, for the record.
        kind: "target", or "source" where prompts are trained for others to start from.
        settings: returns what a method changes in `config` on this task; the method's own settings override it.
        resume: continues unfinished trainings from their checkpoints.
        finished: cells that need not be filled again, by key; new ones are added.
        attention_from: the attention prior, for methods that start from it.
        generic: prompts that were trained on all source tasks, by what was prepared, for methods that start from one.
        data_dir: rows in the hub's layout.
        train_limit: the most training rows of a task.
    """

    registry: Registry
    backbone: FrozenBackbone
    task: Task
    test: Rows
    config: TrainingConfig
    sources: tuple[Prompt, ...]
    init_from: Prompt | None
    name: str
    command: str
    tags: tuple[str, ...] = ()
    note: Callable[[str], None] | None = None
    validation: Rows | None = None
    k: int | None = None
    kind: str = "target"
    settings: Callable[[str], dict[str, Any]] = lambda method: {}
    resume: bool = False
    finished: dict[str, Cell] = field(default_factory=dict)
    attention_from: Attention | None = None
    generic: Mapping[str, Prompt] = field(default_factory=dict)
    data_dir: Path | None = None
    train_limit: int | None = None
    _best: dict[str, Prompt] = field(default_factory=dict)

    @property
    def workshop(self) -> Workshop:
        """Makes and records its trainings."""
        return Workshop(
            self.registry, self.backbone, self.command, self.tags, self.resume, self.data_dir, self.train_limit
        )

    def run(self, methods: Sequence[str], train: Rows, seed: int, listener: Listener | None = None) -> list[Cell]:
        """Fills a cell for each method, on the same training rows with the same steps."""
        return [self.cell(method, train, seed, listener) for method in methods]

    def cell(self, method: str, train: Rows, seed: int, listener: Listener | None = None) -> Cell:
        """Fills one method's cell, or takes it from `finished`."""
        self._keep_test_inputs()
        parts = self.parts(method, train, seed)
        key = self.key(method, train, parts)
        if found := self.found(key, method, seed):
            return found
        if not METHODS[method].trains:
            as_is = (
                bare(self.backbone) if parts.start is None else load_prompt(self.registry, self.backbone, parts.start)
            )
            subject = as_it_stands(as_is, parts.config)
            return self.scored(method, seed, key, train, subject, self.evaluated(subject.model, parts.config))
        results: list[Evaluation] = []

        def on_trained(model: PromptedModel) -> None:
            results.append(self.evaluated(model, parts.config))

        name = self.name if self.kind == "source" else f"{self.name}-{method}"
        try:
            rows = (train, self.validation)
            subject = self.workshop.train_one(self.task, self.kind, name, rows, parts, listener, on_trained)
        except TrainingStoppedError as error:
            raise TrainingStoppedError(
                f"{error.message.split(';')[0]} of {name}", "What was finished is in the registry."
            ) from None
        try:
            self.warn(f"{name}, seed {seed}", subject, listener)
            return self.scored(method, seed, key, train, subject, results[0])
        finally:
            subject.model.release()

    def _keep_test_inputs(self) -> None:
        """Keeps the test inputs' keys and values for all models that are scored on them (prompts after the input)."""
        cache = self.backbone.input_cache
        if cache is not None and self.backbone.cache_bytes_per_token:
            plain, limit = PromptedModel(self.backbone), self.config.max_length
            cache.pin(
                f"{self.test.sha256} {limit}",
                lambda: encode_examples(plain, self.task, self.test.examples, limit),
                self.backbone.cache_bytes_per_token,
            )

    def found(self, key: str, method: str, seed: int) -> Cell | None:
        """Returns the finished cell of a key; what was not trained counts for every seed, k and number of sources."""
        cell = self.finished.get(key)
        return cell and replace(cell, seed=seed, k=self.k, sources=self._source_count(method))

    def warn(self, what: str, subject: Subject, listener: Listener | None) -> None:
        """Passes on the warnings of a training."""
        note = self.note or (listener.note if listener else lambda text: None)
        for warning in subject.warnings:
            note(f"Warning: {what}: {warning}")

    def best_source(self, train: Rows) -> Prompt:
        """Returns the source that fits these training rows best; they are scored once."""
        if train.sha256 not in self._best:
            examples = train.examples
            if len(examples) > ROWS_FOR_CHOICE:
                examples = random.Random(0).sample(examples, ROWS_FOR_CHOICE)
            self._best[train.sha256] = best_source(
                self.registry, self.backbone, self.task, examples, self.sources, self.config
            )
        return self._best[train.sha256]

    def parts(self, method: str, train: Rows, seed: int) -> Parts:
        """Returns the settings and records that the method's training on these rows starts from."""
        made = METHODS[method]
        config = self.config.model_copy(update={**self.settings(method), **made.settings, "seed": seed})
        if config.method in PLACED_BEFORE:
            config = config.model_copy(update={"placement": "before"})
        elif config.placement is None and self.sources:  # the sources' placement, for all methods alike
            config = config.model_copy(update={"placement": self.sources[0].placement})
        start = None
        if made.source in PREPARED:
            start = self.generic.get(made.source)
        elif made.source is not None and self.init_from is not None and made.source != "stands":
            start = self.init_from
        elif made.source is not None and self.sources:
            start = self.best_source(train)
        mixed: tuple[Prompt, ...] = ()
        if made.mixes is not None:
            mixed = self.sources if made.mixes == "all" else (self.best_source(train),)
        return Parts(config, start, mixed, self.attention_from if made.prior else None)

    def _source_count(self, method: str) -> int | None:
        return len(self.sources) if METHODS[method].uses_sources else None

    def key(self, method: str, train: Rows, parts: Parts, together: Sequence[str] = ()) -> str:
        """Hashes everything the result depends on; untrained, that includes no training rows, steps or seed.

        Args:
            together: the keys of the tasks that are trained with this one.
        """
        identity: dict[str, Any] = {
            "task": task_fields(self.task) | {"format": self.task.format},
            "test": self.test.sha256,
            "backbone": [self.backbone.fingerprint, str(self.backbone.dtype)],
            "start": parts.start.sha256 if parts.start else None,
            "max_length": parts.config.max_length,
        }
        if METHODS[method].trains:
            identity |= {
                "method": method,
                "kind": self.kind,
                "config": parts.config.model_dump(),
                "sources": [prompt.sha256 for prompt in parts.mixed],
                "attention": parts.attention.sha256 if parts.attention else None,
                "together": list(together),
                "train": train.sha256,
                "validation": self.validation.sha256 if self.validation else None,
            }
        return content_key(identity)

    def evaluated(self, model: PromptedModel, config: TrainingConfig, task_index: int = 0) -> Evaluation:
        """Scores a model on the test rows."""
        return evaluate(
            model,
            self.task,
            self.test.examples,
            task_index=task_index,
            max_length=config.max_length,
            max_tokens=config.max_tokens,
        )

    def scored(self, method: str, seed: int, key: str, train: Rows, subject: Subject, result: Evaluation) -> Cell:
        """Records a model's result on the test rows and returns its cell."""
        config = subject.config
        weights = result.mean_attention
        names = [*subject.sources, "target"]
        cell = Cell(
            task=self.task.name,
            method=method,
            seed=seed,
            score=result.score,
            interval=result.interval,
            n=result.n,
            prompt=subject.name,
            steps=subject.steps,
            attention=None if weights is None else dict(zip(names, weights, strict=True)),
            backbone=self.backbone.name,
            k=self.k,
            sources=self._source_count(method),
            trained_parameters=subject.trained_parameters,
            peak_memory=subject.numbers.get("peak_memory"),
            seconds=round(subject.numbers.get("seconds", 0.0) + result.predictions.seconds, 1),
            key=key,
        )
        self.registry.add_run(
            command=self.command,
            settings={
                "method": method,
                "cell": key,
                "training": config.model_dump(exclude_none=True),
                "task": task_fields(self.task),
                "format": self.task.format,
            },
            rows={
                "train": {"origin": train.origin, "sha256": train.sha256, "rows": [e.row for e in train.examples]},
                "test": rows_record(self.test),
            },
            seed=seed,
            budget={"steps": cell.steps},
            numbers={
                **asdict(cell),
                "metrics": result.metrics,
                "model": cell.prompt,
                "per_row": per_row(self.task, result.predictions.texts, self.test.examples).record(),
            },
            versions=versions(),
            duration=result.predictions.seconds,
            inputs=subject.inputs,
        )
        self.finished[key] = cell
        return cell


def finished_cells(registry: Registry) -> dict[str, Cell]:
    """Reads the cells that the registry's runs hold, by key; of several with one key the newest."""
    return {
        run.settings["cell"]: cell
        for run in registry.runs()
        if "cell" in run.settings and (cell := cell_of(run)) is not None
    }


def cell_of(run: Run) -> Cell | None:
    """Returns the cell that a run recorded; None where the run is no cell's, or the cell failed."""
    if "score" not in run.numbers:
        return None
    numbers = {name: value for name, value in run.numbers.items() if name in Cell.__dataclass_fields__}
    return Cell(**{**numbers, "interval": tuple(numbers["interval"])})


def drawn_rows(pool: Rows, task: Task, k: int, *, per_class: bool, seed: int) -> Rows:
    """Draws k of a task's rows, balanced over its classes.

    Raises:
        AttemptError: there are fewer.
    """
    rows = few_shot(pool.examples, k, per_class=per_class, label_count=len(task.label_words), seed=seed)
    balanced = ", class-balanced" if task.is_classification else ""
    return Rows(rows, f"{pool.origin}, {len(rows)} of these by seed {seed}{balanced}", examples_sha256(rows))


def best_source(
    registry: Registry,
    backbone: FrozenBackbone,
    task: Task,
    examples: Sequence[Example],
    sources: Sequence[Prompt],
    config: TrainingConfig,
) -> Prompt:
    """Returns the source that, untrained, gives these rows' targets the highest likelihood (free text: best score).

    The rows are training rows, never the test's.
    """
    if len(sources) == 1:
        return sources[0]

    def fit(prompt: Prompt) -> float:
        model = load_prompt(registry, backbone, prompt).model
        predictions = predict(model, task, examples, max_length=config.max_length)
        likelihoods = [row.log_likelihood for row in predictions.rows if row.log_likelihood is not None]
        if likelihoods:
            return sum(likelihoods) / len(likelihoods)
        return evaluate(model, task, examples, max_length=config.max_length).score

    return max(sources, key=fit)
