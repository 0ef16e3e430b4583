"""Intervals against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attempt_cli.evaluation.statistics import (
    bootstrap_interval,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_difference,
    proportion_interval,
    smallest_difference_of_shares,
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


def test_mcnemar_exact_by_hand() -> None:
    # 2 · (C(10,8) + C(10,9) + C(10,10)) / 2^10
    test = mcnemar(8, 2, 100)
    assert test.p == pytest.approx(2 * (45 + 10 + 1) / 1024)
    assert test.difference == pytest.approx(0.06)
    assert test.name == "McNemar, exact"
    assert mcnemar(2, 8, 100).p == test.p
    assert mcnemar(2, 8, 100).interval == pytest.approx((-test.interval[1], -test.interval[0]))


def test_mcnemar_with_many_discordant_rows_by_hand() -> None:
    # (|30 - 12| - 1)² / 42 = 6.880952 on one degree of freedom; Bonett and Price: (31 ∓ 13) / 279
    test = mcnemar(30, 12, 277)
    assert "chi-square" in test.name
    assert test.p == pytest.approx(math.erfc(math.sqrt(6.880952 / 2)), abs=1e-6)
    first, second = 31 / 279, 13 / 279
    half = Z * math.sqrt((first + second - (first - second) ** 2) / 279)
    assert test.interval == pytest.approx((first - second - half, first - second + half), abs=1e-6)


@pytest.mark.parametrize("counts", [(0, 0, 50), (1, 0, 1), (5, 5, 10), (13, 12, 25), (25, 0, 25)])
def test_mcnemar_at_its_borders(counts: tuple[int, int, int]) -> None:
    test = mcnemar(*counts)
    assert 0 <= test.p <= 1
    assert -1 <= test.interval[0] <= test.difference <= test.interval[1] <= 1
    if counts[0] == counts[1]:
        assert (test.p, test.difference) == (1, 0)


def test_the_smallest_difference_is_found_in_four_of_five_samples() -> None:
    n, discordance = 500, 0.2
    delta = smallest_difference_of_shares(discordance, n)
    assert delta is not None
    shares = [(discordance + delta) / 2, (discordance - delta) / 2, 1 - discordance]
    drawn = np.random.default_rng(0).multinomial(n, shares, 4000)
    # the normal test that the formula is of, without continuity correction
    found = [abs(b - c) / math.sqrt(b + c) > Z for b, c, _ in drawn]
    assert np.mean(found) == pytest.approx(0.8, abs=0.02)


def test_more_rows_show_smaller_differences() -> None:
    sizes = [smallest_difference_of_shares(0.3, n) for n in (20, 200, 2000)]
    assert sizes[0] is not None
    assert sizes[1] is not None
    assert sizes[2] is not None
    assert 1 > sizes[0] > sizes[1] > sizes[2] > 0
    assert smallest_difference_of_shares(0.3, 3) is None  # three rows prove nothing
    never = smallest_difference_of_shares(0.0, 100)
    assert never is not None
    assert never > 0.05  # no discordance was seen: a difference brings its own


def test_the_paired_bootstrap_of_a_mean_is_that_of_the_central_limit() -> None:
    gaps = [(-1.0, 0.0, 0.0, 1.0, 1.0)[number % 5] for number in range(500)]  # mean 0.2, deviation 0.748

    def gap(rows: list[int]) -> float:
        return sum(gaps[row] for row in rows) / len(rows)

    test = paired_bootstrap(gap, 500)
    error = math.sqrt(0.56 / 500)
    assert test.difference == pytest.approx(0.2)
    assert test.interval == pytest.approx((0.2 - Z * error, 0.2 + Z * error), abs=0.008)
    assert test.p == pytest.approx(2 / 1001)  # no resample is beyond nought, and p is still no nought
    assert test.smallest == pytest.approx((Z + 0.841621) * error, rel=0.08)


def test_the_paired_bootstrap_of_no_difference() -> None:
    test = paired_bootstrap(lambda rows: 0.0, 9)
    assert (test.p, test.interval, test.smallest) == (1.0, (0.0, 0.0), None)
