"""Computes the metrics of GLUE, SuperGLUE and MRQA with scikit-learn and scipy; nothing is downloaded."""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Callable, Sequence
from dataclasses import dataclass

from attempt_cli.data.answers import best_exact_match, best_f1
from attempt_cli.data.example import Example

Predictions = Sequence[str]
Examples = Sequence[Example]
Words = Sequence[str]
UNREADABLE_SCORE = -1.0


@dataclass(frozen=True)
class Metric:
    """A function (predictions, examples, label words) -> number, and the targets it is made for.

    Args:
        function: the metric.
        needs: "labels", "two labels" or "text".
        per_row: the value of each row, if the metric is their mean.
    """

    function: Callable[[Predictions, Examples, Words], float]
    needs: str
    per_row: Callable[[Predictions, Examples, Words], list[float]] | None = None

    def __call__(self, predictions: Predictions, examples: Examples, words: Words) -> float:
        return self.function(predictions, examples, words)


def accuracy_rows(predictions: Predictions, examples: Examples, words: Words) -> list[float]:
    """Gives 1 for each row whose prediction equals the target (apart from spaces around it), else 0."""
    return [
        float(predicted.strip() == example.target) for predicted, example in zip(predictions, examples, strict=True)
    ]


def f1(predictions: Predictions, examples: Examples, words: Words) -> float:
    """Computes F1 of the second label (label 1 is positive, as in GLUE); 0.0 without a true positive.

    A prediction that is none of the label words counts as the wrong label of the two.
    """
    from sklearn.metrics import f1_score

    predicted, true = _label_indices(predictions, examples, words)
    return float(f1_score(true, predicted, pos_label=1, average="binary", zero_division=0))


def f1_macro(predictions: Predictions, examples: Examples, words: Words) -> float:
    """Averages every label's F1, as SuperGLUE does for CommitmentBank; a label never true or predicted counts 0.

    A prediction that is none of the label words is wrong for every label.
    """
    from sklearn.metrics import f1_score

    predicted, true = _label_indices(predictions, examples, words)
    labels = list(range(len(words)))
    return float(f1_score(true, predicted, labels=labels, average="macro", zero_division=0))


def matthews(predictions: Predictions, examples: Examples, words: Words) -> float:
    """Computes the Matthews correlation in [-1, 1]; 0.0 when all predictions or all targets are the same.

    A prediction that is none of the label words counts as the wrong one of two labels, and as an extra label otherwise.
    """
    from sklearn.metrics import matthews_corrcoef

    predicted, true = _label_indices(predictions, examples, words)
    if len(set(predicted)) < 2 or len(set(true)) < 2:
        return 0.0
    return float(matthews_corrcoef(true, predicted))


def pearson(predictions: Predictions, examples: Examples, words: Words) -> float:
    """Computes the Pearson correlation in [-1, 1]; 0.0 when one side is constant or there are fewer than two rows.

    A prediction that is not a number counts as -1.0, below every score of STS-B (as in T5's evaluation).
    """
    from scipy.stats import pearsonr

    return _correlation(pearsonr, predictions, examples)


def spearman(predictions: Predictions, examples: Examples, words: Words) -> float:
    """Computes the Spearman rank correlation in [-1, 1]; constant sides and unreadable numbers as in `pearson`."""
    from scipy.stats import spearmanr

    return _correlation(spearmanr, predictions, examples)


def squad_f1_rows(predictions: Predictions, examples: Examples, words: Words) -> list[float]:
    """Gives each row the highest word F1 over its accepted answers, by SQuAD's (and ReCoRD's) normalisation."""
    return [best_f1(predicted, example.references) for predicted, example in zip(predictions, examples, strict=True)]


def squad_em_rows(predictions: Predictions, examples: Examples, words: Words) -> list[float]:
    """Gives 1 for each row whose prediction is an accepted answer by SQuAD's (and ReCoRD's) normalisation, else 0."""
    return [
        best_exact_match(predicted, example.references)
        for predicted, example in zip(predictions, examples, strict=True)
    ]


def multirc_em(predictions: Predictions, examples: Examples, words: Words) -> float:
    """Computes the share of questions all of whose answers are judged correctly (rows of a group are one question)."""
    groups: dict[str | None, list[float]] = defaultdict(list)
    for right, example in zip(accuracy_rows(predictions, examples, words), examples, strict=True):
        groups[example.group].append(right)
    return _mean([min(rights) for rights in groups.values()])


def _mean_of(per_row: Callable[[Predictions, Examples, Words], list[float]], needs: str) -> Metric:
    """Makes the metric that is the mean of a value for each row."""
    return Metric(lambda predictions, examples, words: _mean(per_row(predictions, examples, words)), needs, per_row)


METRICS: dict[str, Metric] = {
    "accuracy": _mean_of(accuracy_rows, "labels"),
    "f1": Metric(f1, "two labels"),
    "f1_macro": Metric(f1_macro, "labels"),
    "matthews": Metric(matthews, "labels"),
    "pearson": Metric(pearson, "text"),
    "spearman": Metric(spearman, "text"),
    "squad_f1": _mean_of(squad_f1_rows, "text"),
    "squad_em": _mean_of(squad_em_rows, "text"),
    "record_f1": _mean_of(squad_f1_rows, "text"),
    "record_em": _mean_of(squad_em_rows, "text"),
    "multirc_f1a": Metric(f1, "two labels"),
    "multirc_em": Metric(multirc_em, "labels"),
}


def read_number(text: str) -> float:
    """Reads a text as a number; -1.0 when it is none (also for "nan" and "inf")."""
    try:
        number = float(text.strip())
    except ValueError:
        return UNREADABLE_SCORE
    return number if math.isfinite(number) else UNREADABLE_SCORE


def _label_indices(predictions: Predictions, examples: Examples, words: Words) -> tuple[list[int], list[int]]:
    index = {word: number for number, word in enumerate(words)}
    true = [index[example.target] for example in examples]
    predicted = [index.get(text.strip(), -1) for text in predictions]
    if len(index) == 2:
        predicted = [1 - truth if guess == -1 else guess for guess, truth in zip(predicted, true, strict=True)]
    return predicted, true


def _correlation(function: Callable[..., object], predictions: Predictions, examples: Examples) -> float:
    predicted = [read_number(text) for text in predictions]
    true = [read_number(example.target) for example in examples]
    if len(set(predicted)) < 2 or len(set(true)) < 2:
        return 0.0
    number = float(function(predicted, true)[0])  # type: ignore[index]
    return number if math.isfinite(number) else 0.0


def _mean(values: Sequence[float]) -> float:
    return math.fsum(values) / len(values)
