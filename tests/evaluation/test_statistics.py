"""Intervals against numbers computed by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from attempt_cli.evaluation.calibration import calibration
from attempt_cli.evaluation.statistics import (
    adjusted,
    bootstrap_interval,
    holm,
    mcnemar,
    mean_interval,
    paired_bootstrap,
    paired_difference,
    paired_p,
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


def test_the_paired_bootstrap_of_a_mean_is_that_of_the_central_limit(monkeypatch: pytest.MonkeyPatch) -> None:
    gaps = [(-1.0, 0.0, 0.0, 1.0, 1.0)[number % 5] for number in range(500)]  # mean 0.2, deviation 0.748

    def gap(rows: list[int]) -> float:
        return sum(gaps[row] for row in rows) / len(rows)

    test = paired_bootstrap(gap, 500)
    error = math.sqrt(0.56 / 500)
    assert test.difference == pytest.approx(0.2)
    assert test.p == pytest.approx(2 / 1001)  # no resample is beyond zero, and p is still not zero
    assert test.smallest == pytest.approx((Z + 0.841621) * error, rel=0.08)
    monkeypatch.setattr("attempt_cli.evaluation.statistics.RESAMPLES", 8000)  # BCa's ends are far out in the tails
    interval = paired_bootstrap(gap, 500).interval
    assert interval == pytest.approx((0.2 - Z * error, 0.2 + Z * error), abs=0.008)


def test_the_paired_bootstrap_of_no_difference() -> None:
    test = paired_bootstrap(lambda rows: 0.0, 9)
    assert (test.p, test.interval, test.smallest) == (1.0, (0.0, 0.0), None)


def test_the_bootstrap_of_a_skewed_metric_leans_to_its_long_side() -> None:
    values = np.random.default_rng(1).lognormal(0, 1, 60).tolist()

    def mean(rows: list[int]) -> float:
        return float(sum(values[row] for row in rows) / len(rows))

    low, high = bootstrap_interval(mean, 60)
    centre = mean(list(range(60)))
    assert high - centre > 1.2 * (centre - low)


def test_the_bootstrap_where_bca_is_not_defined() -> None:
    assert bootstrap_interval(lambda rows: 0.25, 1) == (0.25, 0.25)
    # one row is left out of no resample's maximum: all resamples are on one side
    low, high = bootstrap_interval(lambda rows: float(max(rows) >= 0), 5)
    assert (low, high) == (1.0, 1.0)
    assert paired_bootstrap(lambda rows: 0.5, 1).interval == (0.5, 0.5)


def test_the_bootstrap_of_many_rows_is_the_percentile_interval_and_fast() -> None:
    calls = 0

    def share(rows: list[int]) -> float:
        nonlocal calls
        calls += 1
        return sum(row % 2 for row in rows) / len(rows)

    low, high = bootstrap_interval(share, 2000)
    assert calls <= 1002  # no row is left out on its own
    assert low < 0.5 < high


def test_holm_by_hand() -> None:
    # in order .01, .02, .03, .04: 4 · .01, 3 · .02, then 2 · .03 and 1 · .04 are raised to what is before them
    assert holm([0.04, 0.01, 0.03, 0.02]) == pytest.approx([0.06, 0.04, 0.06, 0.06])
    assert holm([0.9, 0.8]) == [1.0, 1.0]
    assert holm([0.03]) == [0.03]
    assert holm([]) == []


def test_several_tests_of_a_table_are_adjusted_and_one_alone_is_not() -> None:
    first, second = mcnemar(8, 2, 100), mcnemar(5, 5, 100)
    found = adjusted([first, None, second])
    assert found[1] is None
    assert [test.p_holm for test in found if test] == pytest.approx([2 * first.p, 1.0])
    assert adjusted([None, first]) == [None, first]
    assert "p_holm" not in first.record()
    assert found[0] is not None
    assert found[0].record()["p_holm"] == pytest.approx(2 * first.p, rel=1e-3)


def test_the_paired_t_test_by_hand() -> None:
    # differences 0.05, 0.04, 0.06: t = 0.05 / (0.01 / sqrt(3)) = 8.660 on two degrees of freedom
    t = 0.05 / (0.01 / math.sqrt(3))
    by_hand = 1 - t / math.sqrt(t**2 + 2)  # the closed form for two degrees of freedom
    assert paired_p([0.60, 0.70, 0.80], [0.55, 0.66, 0.74]) == pytest.approx(by_hand)
    assert paired_p([0.5], [0.4]) is None
    assert paired_p([0.5, 0.6], [0.5, 0.6]) == 1.0
    assert paired_p([0.5, 0.6], [0.4, 0.5]) is None  # the same difference twice: nothing says what is chance


def test_calibration_by_hand() -> None:
    words = ("no", "yes")
    found = calibration(words, [0, 1, 1, 0], [(0.9, 0.1), (0.2, 0.8), (0.7, 0.3), (1.0, 0.0)])
    assert found is not None
    # bins: .9 and 1.0 share one with both right (gap .1), .8 is right (gap .2), .7 is wrong (gap .7)
    assert found.ece == pytest.approx((0.1 + 0.2 + 0.7) / 4)
    assert found.brier == pytest.approx((2 * 0.01 + 2 * 0.04 + 2 * 0.49 + 0) / 4)
    assert found.confusion == {"no": {"no": 2, "yes": 0}, "yes": {"no": 1, "yes": 1}}
    assert calibration(words, [], []) is None
    sure = calibration(words, [0, 1], [(1.0, 0.0), (0.0, 1.0)])
    assert sure is not None
    assert (sure.ece, sure.brier) == (0, 0)
