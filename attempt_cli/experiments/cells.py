"""One cell of a comparison: one method, one task, one seed; the same rows and the same steps for every method."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace

from attempt_cli.artefacts import bare, load_prompt, versions
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.backbones.prompted import PromptedModel
from attempt_cli.data.rows import Rows
from attempt_cli.data.task import Example, Task
from attempt_cli.errors import unknown_name
from attempt_cli.evaluation.evaluate import evaluate
from attempt_cli.evaluation.predict import predict
from attempt_cli.evaluation.statistics import mean_interval, paired_difference
from attempt_cli.training.config import TrainingConfig
from attempt_cli.training.loop import Listener, TrainingStoppedError
from attempt_cli.training.recipes import Request, train_prompt
from registry import Prompt, Registry

# what a comparison can hold; the first two train nothing
METHODS = ("none", "source", "prompt-tuning", "spot", "attempt")
FROM_SOURCES = ("source", "spot", "attempt")


@dataclass(frozen=True)
class Cell:
    """The result of one method with one seed on one task.

    Args:
        method: a name in METHODS.
        score: the task's first metric on the test rows.
        interval: its 95 % interval over rows.
        n: test rows.
        prompt: what was evaluated: a prompt's or a composition's full name, or "no prompt".
        steps: optimiser steps; 0 where nothing was trained.
        attention: mean weights, sources first, the target last.
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


@dataclass(frozen=True)
class Bench:
    """What all cells of a task share.

    Args:
        registry, backbone: where prompts are kept, and what they are for.
        task: the task.
        test: the test rows.
        config: steps, batch, learning rates.
        sources: the source prompts.
        init_from: the prompt that SPoT and ATTEMPT start from; None takes the best source on the training rows.
        name: the stem of the prompts' names.
        command: as it was typed.
        tags: for the registry.
        note: is told warnings of a training.
        untrained: evaluations of what does not depend on a seed, kept so that they are made once.
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
    note: Callable[[str], None] = print
    untrained: dict[str, Cell] = field(default_factory=dict)

    def run(self, methods: Sequence[str], train: Rows, seed: int, listener: Listener | None = None) -> list[Cell]:
        """All methods on the same training rows with the same steps."""
        best = None
        if self.sources and ("source" in methods or (self.init_from is None and {"spot", "attempt"} & set(methods))):
            best = best_source(self.registry, self.backbone, self.task, train.examples, self.sources, self.config)
        return [self._cell(method, train, seed, best, listener) for method in methods]

    def _cell(self, method: str, train: Rows, seed: int, best: Prompt | None, listener: Listener | None) -> Cell:
        if method in ("none", "source"):
            if best is None or method == "none":
                loaded = bare(self.backbone)
            else:
                loaded = load_prompt(self.registry, self.backbone, best)
            key = loaded.name
            if key not in self.untrained:
                self.untrained[key] = self._scored(method, seed, loaded.model, key, 0, train, loaded.inputs)
            return replace(self.untrained[key], seed=seed)
        request = Request(
            task=self.task,
            kind="target",
            name=f"{self.name}-{method}",
            config=self.config.model_copy(update={"method": method, "seed": seed}),
            sources=self.sources if method == "attempt" else (),
            init_from=None if method == "prompt-tuning" else self.init_from or best,
            train_rows=train,
            command=self.command,
            tags=self.tags,
        )
        try:
            outcome = train_prompt(self.registry, self.backbone, request, listener=listener)
        except TrainingStoppedError as error:
            raise TrainingStoppedError(
                f"{error.message.split(';')[0]} of {request.name}", "What was finished is in the registry."
            ) from None
        assert outcome is not None
        for warning in outcome.trained.warnings:
            self.note(f"Warning: {request.name}, seed {seed}: {warning}")
        made = [f"prompt:{outcome.prompt}", *([f"composition:{outcome.composition}"] if outcome.composition else [])]
        name = outcome.composition or outcome.prompt
        return self._scored(method, seed, outcome.model, name, outcome.trained.state.step, train, made)

    def _scored(
        self, method: str, seed: int, model: PromptedModel, name: str, steps: int, train: Rows, inputs: Sequence[str]
    ) -> Cell:
        """Scores a model on the test rows and keeps the result."""
        result = evaluate(
            model, self.task, self.test.examples, max_length=self.config.max_length, max_tokens=self.config.max_tokens
        )
        weights = result.mean_attention
        names = [*(prompt.ref for prompt in self.sources), "target"]
        attention = None if weights is None else dict(zip(names, weights, strict=True))
        cell = Cell(self.task.name, method, seed, result.score, result.interval, result.n, name, steps, attention)
        self.registry.add_run(
            command=self.command,
            settings={"method": method, "training": self.config.model_dump(exclude_none=True)},
            rows={
                "train": {"origin": train.origin, "sha256": train.sha256, "rows": [e.row for e in train.examples]},
                "test": {"origin": self.test.origin, "sha256": self.test.sha256, "n": result.n},
            },
            seed=seed,
            budget={"steps": steps},
            numbers={**asdict(cell), "metrics": result.metrics},
            versions=versions(),
            duration=result.predictions.seconds,
            inputs=inputs,
        )
        return cell


def best_source(
    registry: Registry,
    backbone: FrozenBackbone,
    task: Task,
    examples: Sequence[Example],
    sources: Sequence[Prompt],
    config: TrainingConfig,
) -> Prompt:
    """The source that, as it stands, gives these rows' targets the highest likelihood (for free text: best score).

    Only training rows are looked at, never the test.
    """
    if len(sources) == 1:
        return sources[0]

    def fit(prompt: Prompt) -> float:
        model = load_prompt(registry, backbone, prompt).model
        said = predict(model, task, examples, max_length=config.max_length)
        likelihoods = [row.log_likelihood for row in said.rows if row.log_likelihood is not None]
        if likelihoods:
            return sum(likelihoods) / len(likelihoods)
        return evaluate(model, task, examples, max_length=config.max_length).score

    return max(sources, key=fit)


def check_methods(methods: Sequence[str]) -> None:
    """Refuses unknown methods.

    Raises:
        AttemptError: naming the method.
    """
    for method in methods:
        if method not in METHODS:
            raise unknown_name("method", method, METHODS, "attempt fewshot --help")


@dataclass(frozen=True)
class Row:
    """A method's result over seeds.

    Args:
        mean, width: mean score and the half width of its 95 % interval over seeds (None for a single seed, and where
            nothing was trained: the same number many times is no interval).
        scores: by seed.
        difference, difference_width: against prompt tuning with the same seeds; None for itself or where it is missing.
    """

    task: str
    method: str
    mean: float
    width: float | None
    scores: list[float]
    steps: int
    n: int
    difference: float | None = None
    difference_width: float | None = None
    attention: dict[str, float] | None = None


def summarise(cells: Sequence[Cell], against: str = "prompt-tuning") -> list[Row]:
    """Mean and interval over seeds of every task and method, and the paired difference against one method."""
    rows = []
    for task in dict.fromkeys(cell.task for cell in cells):
        of_task = [cell for cell in cells if cell.task == task]
        base = {cell.seed: cell.score for cell in of_task if cell.method == against}
        for method in dict.fromkeys(cell.method for cell in of_task):
            group = [cell for cell in of_task if cell.method == method]
            mean, width = mean_interval([cell.score for cell in group])
            if len({cell.prompt for cell in group}) == 1:
                width = None
            row = Row(
                task, method, mean, width, [cell.score for cell in group], max(c.steps for c in group), group[0].n
            )
            if method != against and all(cell.seed in base for cell in group):
                gap, gap_width = paired_difference([cell.score for cell in group], [base[c.seed] for c in group])
                row = replace(row, difference=gap, difference_width=gap_width)
            mixtures = [cell.attention for cell in group if cell.attention is not None]
            if mixtures:
                mean_weights = {name: sum(m[name] for m in mixtures) / len(mixtures) for name in mixtures[0]}
                row = replace(row, attention=mean_weights)
            rows.append(row)
    return rows
