"""Estimates uncertainty: intervals of one score, of a mean over seeds, and of a paired difference."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

RESAMPLES = 1000
CONFIDENCE = 0.95


def proportion_interval(hits: int, n: int) -> tuple[float, float]:
    """Computes Wilson's 95 % interval of a proportion; unlike the normal one it holds near 0 and 1 and for few rows."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(metric: Callable[[list[int]], float], n: int, seed: int = 0) -> tuple[float, float]:
    """Computes the percentile bootstrap's 95 % interval of any metric of n rows.

    Args:
        metric: the metric over the rows with these numbers (a row may occur more than once).
        n: the number of rows.
        seed: the seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    values = [metric(generator.integers(0, n, n).tolist()) for _ in range(RESAMPLES)]
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return float(low), float(high)


def mean_interval(values: Sequence[float]) -> tuple[float, float | None]:
    """Computes the mean of a few runs and its 95 % interval's half width (Student's t); None for a single run."""
    mean = sum(values) / len(values)
    if len(values) < 2:
        return mean, None
    from scipy.stats import t

    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))
    return mean, float(t.ppf((1 + CONFIDENCE) / 2, len(values) - 1)) * spread / math.sqrt(len(values))


def paired_difference(a: Sequence[float], b: Sequence[float]) -> tuple[float, float | None]:
    """Computes the mean of a - b over the same seeds and rows, and the half width of its 95 % interval.

    Raises:
        ValueError: the lengths differ.
    """
    return mean_interval([x - y for x, y in zip(a, b, strict=True)])


# the normal quantiles of a two-sided test at 5 % and of a power of 80 %
_Z_TEST, _Z_POWER = 1.959964, 0.841621
# with at least this many discordant rows chi-square is as good as the exact binomial
CHI_SQUARE_FROM = 25


@dataclass(frozen=True)
class PairedTest:
    """A test of the difference of two models on the same rows.

    Args:
        name: the test, in words.
        difference: the first's score minus the second's.
        interval: its 95 % interval.
        p: the two-sided p-value: how often a difference at least this large occurs by chance if there is none.
        smallest: the smallest true difference that this many rows detect in 80 % of samples (two-sided, 5 %); None
            where they would not detect even the largest.
    """

    name: str
    difference: float
    interval: tuple[float, float]
    p: float
    smallest: float | None

    def record(self) -> dict[str, Any]:
        """Returns the difference as runs and JSON hold it."""
        return {
            "difference": round(self.difference, 6),
            "interval": [round(bound, 6) for bound in self.interval],
            "p": float(f"{self.p:.4g}"),
            "test": self.name,
            "smallest_difference": None if self.smallest is None else round(self.smallest, 6),
        }


def mcnemar(only_first: int, only_second: int, n: int) -> PairedTest:
    """Runs McNemar's test of two models that are right or wrong on the same n rows.

    The p-value is the exact binomial one for few discordant rows, else that of chi-square with continuity correction.
    The interval is Wald's with Bonett and Price's (2012) adjustment, which also holds for few rows. It does not invert
    the test: near 5 % the two may disagree.

    Args:
        only_first, only_second: the discordant rows: those that only the first, or only the second, has right.
        n: the number of all rows.
    """
    from scipy.stats import binomtest, chi2

    discordant = only_first + only_second
    if discordant < CHI_SQUARE_FROM:
        name, p = "McNemar, exact", float(binomtest(only_first, discordant).pvalue) if discordant else 1.0
    else:
        statistic = (max(abs(only_first - only_second) - 1, 0)) ** 2 / discordant
        name, p = "McNemar, chi-square with continuity correction", float(chi2.sf(statistic, 1))
    first, second = (only_first + 1) / (n + 2), (only_second + 1) / (n + 2)
    half = _Z_TEST * math.sqrt((first + second - (first - second) ** 2) / (n + 2))
    low, high = max(first - second - half, -1.0), min(first - second + half, 1.0)
    return PairedTest(
        name, (only_first - only_second) / n, (low, high), p, smallest_difference_of_shares(discordant / n, n)
    )


def smallest_difference_of_shares(discordance: float, n: int) -> float | None:
    """Computes the smallest difference of two shares that n rows detect with 80 % power, by Connor's (1987) formula.

    δ·√n = z_test·√ψ + z_power·√(ψ - δ²), where ψ is the discordance. A difference cannot be larger than the
    discordance: where δ would be, ψ is δ.

    Args:
        discordance: the share of rows that only one of the two has right.
        n: the number of rows.

    Returns:
        δ in (0, 1], or None where n rows cannot detect any difference.
    """
    from scipy.optimize import brentq

    def excess(delta: float) -> float:
        psi = max(discordance, delta)
        return delta * math.sqrt(n) - _Z_TEST * math.sqrt(psi) - _Z_POWER * math.sqrt(max(psi - delta**2, 0.0))

    if excess(1.0) <= 0:
        return None
    # without discordance the excess is also 0 at 0: the search starts where it is certainly negative
    return float(brentq(excess, 1 / n, 1.0))


def paired_bootstrap(difference: Callable[[list[int]], float], n: int, seed: int = 0) -> PairedTest:
    """Runs the paired percentile bootstrap of any two scores of the same n rows (or groups of rows).

    Args:
        difference: the first's score minus the second's over the rows with these numbers (a row may occur more than
            once, then for both).
        n: the number of rows, or of groups that are drawn whole.
        seed: the seed of the resampling.
    """
    generator = np.random.default_rng(seed)
    values = np.array([difference(generator.integers(0, n, n).tolist()) for _ in range(RESAMPLES)])
    low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    # the sample itself is counted as a resample, so that p is never 0
    beyond = min((values <= 0).sum(), (values >= 0).sum()) + 1
    p = min(1.0, 2 * float(beyond) / (RESAMPLES + 1))
    error = float(values.std(ddof=1))
    smallest = (_Z_TEST + _Z_POWER) * error if error > 0 else None
    name = f"paired bootstrap, {RESAMPLES:,} resamples"
    return PairedTest(name, difference(list(range(n))), (float(low), float(high)), p, smallest)
