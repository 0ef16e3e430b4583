"""Says how far the probabilities of labels can be trusted, and which labels are taken for which."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

BINS = 10


@dataclass(frozen=True)
class Calibration:
    """The probabilities and the labels of a classification.

    Args:
        ece: the expected calibration error of the most probable label, in [0, 1]: the mean distance of confidence and
            accuracy in ten bins of equal width, weighted by their rows.
        brier: the mean squared distance of the probabilities from the right label's 0s and 1s, summed over labels: in
            [0, 2], and 0 where all certainty is right.
        confusion: right label word -> predicted label word -> rows.
    """

    ece: float
    brier: float
    confusion: Mapping[str, Mapping[str, int]]

    def record(self) -> dict[str, Any]:
        """Returns it as runs and JSON hold it."""
        return {
            "ece": round(self.ece, 6),
            "brier": round(self.brier, 6),
            "confusion": {right: dict(row) for right, row in self.confusion.items()},
        }


def calibration(
    words: Sequence[str], labels: Sequence[int], probabilities: Sequence[Sequence[float]]
) -> Calibration | None:
    """Computes the calibration of predictions.

    Args:
        words: the label words.
        labels: the right label of each row, as its place in `words`.
        probabilities: of the label words, for each row.

    Returns:
        The calibration; None without rows.
    """
    if not labels:
        return None
    import numpy as np

    found = np.asarray(probabilities, np.float64)
    predicted, confidence = found.argmax(1), found.max(1)
    right = predicted == np.asarray(labels)
    # the last bin holds 1, too
    bins = np.minimum((confidence * BINS).astype(int), BINS - 1)
    ece = sum(abs(float((right[bins == one] - confidence[bins == one]).sum())) for one in set(bins.tolist()))
    brier = float(((found - np.eye(len(words))[np.asarray(labels)]) ** 2).sum(1).mean())
    counts = np.zeros((len(words), len(words)), int)
    np.add.at(counts, (np.asarray(labels), predicted), 1)
    confusion = {word: dict(zip(words, row, strict=True)) for word, row in zip(words, counts.tolist(), strict=True)}
    return Calibration(ece / len(labels), brier, confusion)
