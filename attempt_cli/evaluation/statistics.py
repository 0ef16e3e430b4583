"""How sure a number is: intervals of one score, of a mean over seeds, and of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


def proportion_interval(hits: int, n: int) -> tuple[float, float]:
    """Wilson's 95 % interval of a proportion; unlike the normal one it holds near 0 and 1 and for few rows."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(metric: Callable[[list[int]], float], n: int, seed: int = 0) -> tuple[float, float]:
    """The percentile bootstrap's 95 % interval of any metric of n rows.

    Args:
        metric: the metric over the rows with these numbers (a row may come more than once).
        n: the number of rows.
        seed: of the resampling.
    """
    generator = np.random.default_rng(seed)
    values = [metric(generator.integers(0, n, n).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """The mean of a few runs and the half width of its 95 % interval (Student's t); no width for a single run."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None]:
    """The mean of a - b over the same seeds and rows, and the half width of its 95 % interval.

    Raises:
        ValueError: not equally many of both.
    """
    return mean_interval([x - y for x, y in zip(a, b, strict=True)])
