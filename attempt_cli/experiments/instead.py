"""What users do instead of training a prompt: an instruction, solved rows in the context, a probe."""

from __future__ import annotations

import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from attempt_cli.artefacts import bare
from attempt_cli.backbones.base import FrozenBackbone
from attempt_cli.data.example import Example
from attempt_cli.data.fewshot import few_shot
from attempt_cli.data.rows import Rows
from attempt_cli.data.scoring import score
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.evaluate import Evaluation, evaluate, score_interval
from attempt_cli.evaluation.in_context import Told, demonstrated, instructed, orders
from attempt_cli.evaluation.prediction import Reading
from attempt_cli.evaluation.probe import check_probed, fit_probe
from attempt_cli.training.request import TaskRows

ORDERS = 4  # of demonstrations: their order alone moves a score by points
MOST_SHOWN = 32  # rows that are demonstrations where more are there to train on


@dataclass(frozen=True)
class Asked:
    """What a method that trains nothing in the model is asked.

    Args:
        backbone: the frozen model.
        rows: the task and its training rows.
        test: the rows to predict.
        seed: of the training rows, and of the demonstrations' orders.
        reading: how rows are read.
        chat_template: whether the model reads inside its chat template.
    """

    backbone: FrozenBackbone
    rows: TaskRows
    test: Rows
    seed: int
    reading: Reading
    chat_template: bool

    @property
    def max_length(self) -> int | None:
        """The longest input in tokens; None takes the task's own limit."""
        return self.reading.get("max_length")


@dataclass(frozen=True)
class Answered:
    """How it was answered.

    Args:
        name: the model, in words.
        results: an evaluation for each order of demonstrations; one where there are none.
        extra_tokens: tokens that a query is longer by.
        trained_parameters: of the probe.
        training_seconds: of the probe.
    """

    name: str
    results: Sequence[Evaluation]
    extra_tokens: int = 0
    trained_parameters: int = 0
    training_seconds: float = 0.0

    @property
    def score(self) -> float:
        """The mean over orders."""
        return sum(one.score for one in self.results) / len(self.results)

    @property
    def interval(self) -> tuple[float, float]:
        """The mean of the orders' intervals over rows."""
        lows, highs = zip(*(one.interval for one in self.results), strict=True)
        return sum(lows) / len(lows), sum(highs) / len(highs)


@dataclass(frozen=True)
class Instead:
    """A way to answer without training a prompt.

    Args:
        answer: answers.
        check: refuses a task that it cannot answer, before anything is loaded.
        depends_on: what its result depends on besides task, test rows, backbone and limits: "train" rows, "seed".
    """

    answer: Callable[[Asked], Answered]
    check: Callable[[Task], object] = lambda task: None
    depends_on: tuple[str, ...] = ()

    def identity(self, rows: TaskRows, seed: int) -> dict[str, Any]:
        """Returns what its result depends on, for the key of a cell."""
        there = {"train": rows.train.sha256, "seed": seed}
        return {name: there[name] for name in self.depends_on}


def _instruction(asked: Asked) -> Answered:
    told = instructed(asked.backbone, asked.rows.task, chat_template=asked.chat_template)
    return Answered("the instruction", [_evaluated(asked, told)], told.tokens)


def _icl(asked: Asked) -> Answered:
    tolds = [
        demonstrated(
            asked.backbone,
            asked.rows.task,
            own,
            max_length=asked.max_length,
            chat_template=asked.chat_template,
        )
        for own in orders(shown_rows(asked.rows, asked.seed), ORDERS, asked.seed)
    ]
    shown = sorted({told.shown for told in tolds})
    name = f"{shown[0]}{f' to {shown[-1]}' if len(shown) > 1 else ''} solved rows, seed {asked.seed}"
    tokens = round(sum(told.tokens for told in tolds) / len(tolds))
    return Answered(name, [_evaluated(asked, told) for told in tolds], tokens)


def _probe(asked: Asked) -> Answered:
    task, examples = asked.rows.task, asked.test.examples
    model = bare(asked.backbone, chat_template=asked.chat_template).model
    probe = fit_probe(model, task, asked.rows.train.examples, asked.max_length)
    found = probe.predict(examples)
    result = Evaluation(
        score(task, found.texts, examples), score_interval(task, found.texts, examples), len(examples), found
    )
    return Answered(f"a probe, seed {asked.seed}", [result], 0, probe.parameters, probe.seconds)


def shown_rows(rows: TaskRows, seed: int) -> Sequence[Example]:
    """Returns the rows that are demonstrations: all training rows, or a sample of many, balanced where that can be."""
    examples = rows.train.examples
    if len(examples) <= MOST_SHOWN:
        return examples
    try:
        return few_shot(examples, MOST_SHOWN, per_class=False, label_count=len(rows.task.label_words), seed=seed)
    except AttemptError:  # a class of few rows
        return random.Random(seed).sample(examples, MOST_SHOWN)


def _evaluated(asked: Asked, told: Told) -> Evaluation:
    return evaluate(told.model, asked.rows.task, asked.test.examples, **asked.reading)


INSTEAD: dict[str, Instead] = {
    "instruction": Instead(_instruction, lambda task: task.instructions),
    "icl": Instead(_icl, depends_on=("train", "seed")),
    "probe": Instead(_probe, check_probed, ("train",)),
}
