"""Intervals against numbers computed by hand."""

from __future__ import annotations

import math

import pytest

from attempt_cli.evaluation.statistics import (
    bootstrap_interval,
    mean_interval,
    paired_difference,
    proportion_interval,
)

Z = 1.959963985


@pytest.mark.parametrize(("hits", "n"), [(8, 10), (0, 10), (10, 10), (153, 200), (1, 1)])
def test_wilson_s_interval(hits: int, n: int) -> None:
    share = hits / n
    centre = (share + Z**2 / (2 * n)) / (1 + Z**2 / n)
    width = Z / (1 + Z**2 / n) * math.sqrt(share * (1 - share) / n + Z**2 / (4 * n**2))
    assert proportion_interval(hits, n) == pytest.approx((centre - width, centre + width), abs=1e-9)
    low, high = proportion_interval(hits, n)
    assert -1e-12 <= low <= share <= high + 1e-12 <= 1 + 2e-12


def test_the_mean_of_three_runs() -> None:
    # s = 0.05, t(0.975, 2) = 4.302653: 4.302653 * 0.05 / sqrt(3)
    mean, width = mean_interval([0.80, 0.90, 0.85])
    assert mean == pytest.approx(0.85)
    assert width == pytest.approx(0.124207, abs=1e-6)


def test_one_run_has_no_interval_and_equal_runs_one_of_no_width() -> None:
    assert mean_interval([0.7]) == (0.7, None)
    assert mean_interval([0.5, 0.5]) == (0.5, 0.0)


def test_a_paired_difference_is_narrower_than_the_two_means() -> None:
    a, b = [0.60, 0.70, 0.80], [0.55, 0.66, 0.74]
    # differences 0.05, 0.04, 0.06: mean 0.05, s = 0.01: 4.302653 * 0.01 / sqrt(3)
    mean, width = paired_difference(a, b)
    assert mean == pytest.approx(0.05)
    assert width == pytest.approx(0.0248414, abs=1e-6)
    assert mean_interval(a)[1] == pytest.approx(0.248414, abs=1e-5)
    assert paired_difference([0.5], [0.75]) == (-0.25, None)
    with pytest.raises(ValueError, match="shorter"):
        paired_difference(a, b[:2])


def test_the_bootstrap_of_a_mean_is_that_of_the_central_limit() -> None:
    values = [float(number % 4 == 0) for number in range(400)]  # mean 0.25, deviation 0.433

    def mean(rows: list[int]) -> float:
        return sum(values[row] for row in rows) / len(rows)

    low, high = bootstrap_interval(mean, 400)
    half = Z * math.sqrt(0.25 * 0.75 / 400)
    assert low == pytest.approx(0.25 - half, abs=0.006)
    assert high == pytest.approx(0.25 + half, abs=0.006)
    assert bootstrap_interval(mean, 400) == (low, high)  # seeded
    assert bootstrap_interval(mean, 400, seed=1) != (low, high)


def test_the_bootstrap_of_a_constant() -> None:
    assert bootstrap_interval(lambda rows: 0.5, 7) == (0.5, 0.5)
