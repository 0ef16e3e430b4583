"""Estimates uncertainty: intervals of one score, of a mean over seeds, and of a paired difference."""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

RESAMPLES = 1000
# the acceleration of BCa takes one value of the metric for each row that is left out; beyond this many rows it is next
# to nothing (it falls with the root of the rows), and is not computed
MOST_LEFT_OUT = 1000
CONFIDENCE = 0.95


def proportion_interval(hits: int, n: int) -> tuple[float, float]:
    """Computes Wilson's 95 % interval of a proportion; unlike the normal one it holds near 0 and 1 and for few rows."""
    from scipy.stats import binomtest

    interval = binomtest(hits, n).proportion_ci(CONFIDENCE, method="wilson")
    return float(interval.low), float(interval.high)


def bootstrap_interval(metric: Callable[[list[int]], float], n: int, seed: int = 0) -> tuple[float, float]:
    """Computes the bootstrap's 95 % interval of any metric of n rows.

    It is BCa, corrected for bias and acceleration (Efron 1987), of at most 1,000 rows, else the percentile interval.
    Where BCa is not defined (all resamples are on one side of the metric, or no row changes it) it is the percentile
    interval, too; of a single row it is the metric alone.

    Args:
        metric: the metric over the rows with these numbers (a row may occur more than once).
        n: the number of rows.
        seed: the seed of the resampling.
    """
    return _bootstrap(metric, n, seed)[0]


def _bootstrap(
    statistic: Callable[[list[int]], float], n: int, seed: int
) -> tuple[tuple[float, float], np.ndarray[Any, np.dtype[np.float64]]]:
    """Returns the interval of `bootstrap_interval`, and the statistic of every resample."""
    from scipy.stats import bootstrap

    if n < 2:
        alone = statistic(list(range(n)))
        return (alone, alone), np.full(RESAMPLES, alone)
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")  # of degenerate cases, which are defined below
        found = bootstrap(
            (np.arange(n),),
            lambda rows: statistic(rows.tolist()),
            n_resamples=RESAMPLES,
            vectorized=False,
            batch=max(1, 1_000_000 // n),  # the row numbers of all resamples at once would be gigabytes
            confidence_level=CONFIDENCE,
            method="BCa" if n <= MOST_LEFT_OUT else "percentile",
            rng=np.random.default_rng(seed),
        )
    values = np.asarray(found.bootstrap_distribution, np.float64)
    low, high = found.confidence_interval
    if not (math.isfinite(low) and math.isfinite(high)):
        low, high = np.quantile(values, [(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2])
    return (float(low), float(high)), values


def holm(ps: Sequence[float]) -> list[float]:
    """Adjusts the p-values of several comparisons by Holm's (1979) step-down method.

    Among comparisons whose adjusted p is below 5 % there is a false one in at most 5 % of tables, however they depend
    on each other.

    Returns:
        The adjusted p-values, in the order of the given ones; none is smaller than its own.
    """
    adjusted, largest = [0.0] * len(ps), 0.0
    for rank, number in enumerate(sorted(range(len(ps)), key=ps.__getitem__)):
        largest = max(largest, min(1.0, (len(ps) - rank) * ps[number]))
        adjusted[number] = largest
    return adjusted


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


def paired_p(a: Sequence[float], b: Sequence[float]) -> float | None:
    """Computes the two-sided p-value of Student's paired t-test over the same seeds.

    Returns:
        p; 1 where all differences are zero; None for a single seed, and where all differences are the same other
        number, because nothing then says how much of it is chance.

    Raises:
        ValueError: the lengths differ.
    """
    gaps = [x - y for x, y in zip(a, b, strict=True)]
    mean, width = mean_interval(gaps)
    if width is None:
        return None
    if max(gaps) - min(gaps) < 1e-12:
        return 1.0 if abs(mean) < 1e-12 else None
    from scipy.stats import t

    degrees = len(gaps) - 1
    error = width / float(t.ppf((1 + CONFIDENCE) / 2, degrees))
    return float(2 * t.sf(abs(mean) / error, degrees))


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
        p_holm: the p-value adjusted for all comparisons of one table; None where it stands alone.
    """

    name: str
    difference: float
    interval: tuple[float, float]
    p: float
    smallest: float | None
    p_holm: float | None = None

    def record(self) -> dict[str, Any]:
        """Returns the difference as runs and JSON hold it."""
        return {
            "difference": round(self.difference, 6),
            "interval": [round(bound, 6) for bound in self.interval],
            "p": float(f"{self.p:.4g}"),
            **({} if self.p_holm is None else {"p_holm": float(f"{self.p_holm:.4g}")}),
            "test": self.name,
            "smallest_difference": None if self.smallest is None else round(self.smallest, 6),
        }


def adjusted(tests: Sequence[PairedTest | None]) -> list[PairedTest | None]:
    """Returns the tests of a table with their p-values adjusted by `holm`; a test that stands alone as it is."""
    ps = [test.p for test in tests if test is not None]
    if len(ps) < 2:
        return list(tests)
    found = iter(holm(ps))
    return [None if test is None else replace(test, p_holm=next(found)) for test in tests]


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
    """Runs the paired bootstrap of any two scores of the same n rows (or groups of rows).

    The interval is that of `bootstrap_interval`; the p-value is twice the share of resamples beyond zero. Near 5 %
    the two may disagree.

    Args:
        difference: the first's score minus the second's over the rows with these numbers (a row may occur more than
            once, then for both).
        n: the number of rows, or of groups that are drawn whole.
        seed: the seed of the resampling.
    """
    interval, values = _bootstrap(difference, n, seed)
    # the sample itself is counted as a resample, so that p is never 0
    beyond = min((values <= 0).sum(), (values >= 0).sum()) + 1
    p = min(1.0, 2 * float(beyond) / (RESAMPLES + 1))
    error = float(values.std(ddof=1))
    smallest = (_Z_TEST + _Z_POWER) * error if error > 0 else None
    name = f"paired bootstrap, {RESAMPLES:,} resamples"
    return PairedTest(name, difference(list(range(n))), interval, p, smallest)
