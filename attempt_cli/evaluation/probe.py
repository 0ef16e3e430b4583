"""A linear probe: logistic regression, of numbers ridge regression, on the frozen model's last state of an input."""

from __future__ import annotations

import math
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from attempt_cli.backbones.batches import by_length
from attempt_cli.data.example import Example
from attempt_cli.data.task import Task
from attempt_cli.errors import AttemptError
from attempt_cli.evaluation.prediction import MAX_TOKENS, Predictions, RowPrediction, encode_examples
from attempt_cli.prompted import PromptedModel

Numbers = np.ndarray[Any, Any]
STRENGTHS = np.logspace(-4, 4, 9)  # C of logistic regression, 1 / alpha of ridge: cross-validation chooses
FOLDS = 5
CORRELATIONS = {"pearson", "spearman"}  # the metrics of a task whose target is a number


@dataclass(frozen=True)
class Probe:
    """A fitted probe.

    Args:
        model: the frozen model, without a prompt.
        task: what it was fitted for.
        regression: scikit-learn's pipeline.
        parameters: the numbers it has: d·c + c for c label words, d + 1 for a number.
        seconds: reading the training rows and fitting, cross-validation included.
        max_length: input tokens of a row; None takes the task's own limit.
    """

    model: PromptedModel
    task: Task
    regression: Any
    parameters: int
    seconds: float
    max_length: int | None

    def predict(self, examples: Sequence[Example]) -> Predictions:
        """Predicts rows: label words with their probabilities, or numbers as text."""
        began = time.monotonic()
        states, truncated = last_states(self.model, self.task, examples, self.max_length)
        if not self.task.is_classification:
            rows = [RowPrediction(f"{value:.3f}") for value in self.regression.predict(states)]
            return Predictions(rows, time.monotonic() - began, truncated)
        words = self.task.label_words
        found = np.zeros((len(examples), len(words)))  # a label without a training row has probability 0
        found[:, self.regression.classes_] = self.regression.predict_proba(states)
        rows = [
            RowPrediction(
                words[int(own.argmax())],
                tuple(own.tolist()),
                None if example.label is None else math.log(max(own[example.label], 1e-12)),
            )
            for own, example in zip(found, examples, strict=True)
        ]
        return Predictions(rows, time.monotonic() - began, truncated)


def check_probed(task: Task) -> None:
    """Refuses a task that has neither label words nor a number as its target.

    Raises:
        AttemptError: it is generated text.
    """
    if not task.is_classification and not CORRELATIONS & set(task.metrics):
        raise AttemptError(
            f"a probe predicts labels and numbers, and the answers of {task.name} are free text",
            "Leave `probe` out of --methods for this task.",
        )


def fit_probe(model: PromptedModel, task: Task, examples: Sequence[Example], max_length: int | None = None) -> Probe:
    """Fits a probe on training rows; cross-validation on these rows alone chooses the strength of its penalty.

    Args:
        model: the frozen model without a prompt, outside or inside of its chat template.
        task: with label words, or a number as its target.
        examples: the training rows.
        max_length: input tokens of a row; None takes the task's own limit.

    Raises:
        AttemptError: the task is generated text, all rows have one label, or a target is no number.
    """
    check_probed(task)
    began = time.monotonic()
    states, _ = last_states(model, task, examples, max_length)
    regression = classifier(states, [e.label for e in examples]) if task.is_classification else _ridge(states, examples)
    parameters = probe_parameters(model.backbone.width, len(task.label_words))
    return Probe(model, task, regression, parameters, time.monotonic() - began, max_length)


def probe_parameters(width: int, labels: int) -> int:
    """Counts d·c + c for c label words, d + 1 where there are none and the target is a number."""
    return (width + 1) * max(1, labels)


def last_states(
    model: PromptedModel, task: Task, examples: Sequence[Example], max_length: int | None = None
) -> tuple[Numbers, int]:
    """Returns the last hidden state of each row's last token, [n, d], and how many rows were cut."""
    encoded = encode_examples(model, task, examples, max_length)
    backbone, found = model.backbone, np.zeros((len(encoded), model.backbone.width), np.float32)
    lengths = [len(row.input_ids) for row in encoded]
    for places in by_length(lengths, 0, MAX_TOKENS, least=backbone.least_positions):
        found[places] = backbone.states([encoded[place] for place in places])[:, 0].cpu().numpy()
    return found, sum(row.truncated > 0 for row in encoded)


def classifier(states: Numbers, labels: Sequence[int | None]) -> Any:
    """Fits logistic regression on standardised states; C by cross-validated likelihood.

    A class of one row cannot be cross-validated: C is 1, then.

    Raises:
        AttemptError: all rows have one label.
    """
    from sklearn.linear_model import LogisticRegression
    from sklearn.model_selection import GridSearchCV, StratifiedKFold
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    counts = Counter(labels)
    if len(counts) < 2:
        raise AttemptError("a probe needs training rows of two labels at least", "Give a larger -k.")
    pipeline = make_pipeline(StandardScaler(), LogisticRegression(max_iter=2000))
    folds = min(FOLDS, *counts.values())
    if folds < 2:
        return pipeline.fit(states, labels)
    search = GridSearchCV(
        pipeline,
        {"logisticregression__C": STRENGTHS},
        scoring="neg_log_loss",
        cv=StratifiedKFold(folds, shuffle=True, random_state=0),
    )
    return search.fit(states, labels).best_estimator_


def _ridge(states: Numbers, examples: Sequence[Example]) -> Any:
    from sklearn.linear_model import RidgeCV
    from sklearn.pipeline import make_pipeline
    from sklearn.preprocessing import StandardScaler

    numbers = []
    for example in examples:
        try:
            numbers.append(float(example.target))
        except ValueError:
            raise AttemptError(
                f"a probe of numbers cannot learn from row {example.row + 1}: its target is '{example.target}'",
                "Leave `probe` out of --methods for this task.",
            ) from None
    return make_pipeline(StandardScaler(), RidgeCV(1 / STRENGTHS)).fit(states, numbers)
