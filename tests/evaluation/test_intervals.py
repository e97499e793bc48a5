"""Intervals against hand-worked values and simulation."""

import numpy as np
import pytest

from twotower.evaluation.intervals import interval, paired_difference, share_interval


def test_interval_by_hand():
    # Values 1, 2, 3, 6: mean 3, squared residuals 4 + 1 + 0 + 9 = 14, variance of the mean
    # 4/3 * 14 / 16 = 1.166667, standard error 1.080123.
    found = interval([1, 2, 3, 6])
    assert found["mean"] == 3
    assert found["low"] == pytest.approx(3 - 1.959964 * 1.080123, abs=1e-5)
    assert found["high"] == pytest.approx(3 + 1.959964 * 1.080123, abs=1e-5)
    # As two clusters {1, 2} and {3, 6}: residuals -3 and 3, variance 2 * 18 / 16 = 2.25, se 1.5.
    found = interval([1, 2, 3, 6], clusters=np.array([5, 5, 8, 8]))
    assert found["high"] == pytest.approx(3 + 1.959964 * 1.5)


def test_share_interval_by_hand():
    # 3 of 10: variance .3 * .7 / 9, as of n = 9 cases. 1.959964^2 / 9 = .426829. The middle is
    # (.3 + .213414) / 1.426829 = .359829, half the width sqrt(.426829 * .21 + .213414^2) / 1.426829
    # = .257681.
    found = share_interval([1] * 3 + [0] * 7)
    expected = {"mean": 0.3, "low": 0.359829 - 0.257681, "high": 0.359829 + 0.257681}
    assert found == pytest.approx(expected, abs=1e-5)
    # 0 of 10: up to z^2 / (10 + z^2) = 3.841459 / 13.841459.
    assert share_interval([0] * 10) == pytest.approx(
        {"mean": 0.0, "low": 0.0, "high": 0.277533}, abs=1e-5
    )
    # 10 of 10, of 5 users: from 5 / (5 + z^2) on.
    found = share_interval([1] * 10, clusters=np.repeat(np.arange(5), 2))
    assert found == pytest.approx({"mean": 1.0, "low": 5 / 8.841459, "high": 1.0}, abs=1e-5)
    # Weights 3 and 1 are 16 / 10 equal ones.
    found = share_interval([0, 0], weights=[3, 1])
    assert found["high"] == pytest.approx(3.841459 / (1.6 + 3.841459), abs=1e-5)
    # Users that are all alike, but not at an end; a single one.
    assert share_interval([0.5] * 4) == {"mean": 0.5, "low": 0.5, "high": 0.5}
    assert share_interval([1.0])["low"] is None
    # An ndcg of 1 that is a rounded quotient.
    assert share_interval([1.0000000000000002, 1.0, 1.0])["high"] == 1.0
    for wrong in ([0.5, 1.5], [-0.1, 0.2], [np.nan, 0.5]):
        with pytest.raises(ValueError, match="shares lie within 0 and 1"):
            share_interval(wrong)


def test_share_intervals_stay_within_0_and_1_and_agree_with_the_plain_ones_of_many_cases():
    rng = np.random.default_rng(0)
    for _ in range(300):
        size, chance = rng.integers(2, 30), rng.choice([0.0, 0.02, 0.5, 0.97, 1.0])
        values = rng.binomial(3, chance, size) / 3
        found = share_interval(values, rng.integers(1, 9, size), rng.integers(0, 9, size))
        if found["low"] is not None:
            assert 0 <= found["low"] <= found["mean"] <= found["high"] <= 1
    values = rng.random(6000) < 0.48
    plain, share = interval(values), share_interval(values)
    assert share == pytest.approx(plain, abs=5e-5)


def test_interval_of_a_single_user_is_open():
    assert interval([0.5, 1.0], clusters=np.array([0, 0])) == {
        "mean": 0.75,
        "low": None,
        "high": None,
    }


def test_interval_of_nothing_is_refused():
    with pytest.raises(ValueError, match="got 0 values"):
        interval([])


def test_paired_difference_by_hand():
    # Differences .1, .1, .4: mean .2, residuals -.1, -.1, .2: variance 3/2 * .06 / 9 = .01.
    found = paired_difference([0.5, 0.9, 0.5], [0.4, 0.8, 0.1])
    assert found["mean"] == pytest.approx(0.2)
    assert found["low"] == pytest.approx(0.2 - 0.1959964)
    # Of shares: 1 and 0 have the mean .5 and the standard error .5, and cannot differ by 1.48.
    found = paired_difference([1, 1], [0, 1], largest=1.0)
    assert found == {"mean": 0.5, "low": pytest.approx(0.5 - 0.979982), "high": 1.0}
    with pytest.raises(ValueError, match="3 and 2"):
        paired_difference([1, 2, 3], [1, 2])


def test_paired_difference_is_sharper_than_two_intervals():
    rng = np.random.default_rng(0)
    hard = rng.random(500)
    a, b = hard + 0.02 + rng.normal(0, 0.02, 500), hard
    paired = paired_difference(a, b)
    assert paired["low"] > 0  # and yet the two intervals overlap
    assert interval(a)["low"] < interval(b)["high"]


def covered(draw, truth: float, runs: int = 600) -> float:
    """Share of simulated intervals that hold the truth."""
    found = [draw(np.random.default_rng(seed)) for seed in range(runs)]
    return np.mean([bounds["low"] <= truth <= bounds["high"] for bounds in found])


def test_intervals_cover_the_truth():
    # 600 runs: 95% +- 3 standard errors is .923 to .977.
    def proportions(rng):
        return interval(rng.random(150) < 0.3)

    assert 0.92 < covered(proportions, 0.3) < 0.98


def test_share_intervals_cover_rare_hits():
    def plain(rng):
        return interval(rng.random(60) < 0.03)

    def wilson(rng):
        return share_interval(rng.random(60) < 0.03)

    assert covered(plain, 0.03) < 0.87  # often there is no hit, and no width
    assert covered(wilson, 0.03) > 0.93


def clustered_draw(rng):
    """Users with 1 to 20 cases and a taste each; hits .4 on average over cases."""
    sizes = rng.integers(1, 21, 120)
    taste = np.repeat(rng.choice([0.1, 0.7], 120), sizes)
    return (rng.random(len(taste)) < taste).astype(float), np.repeat(np.arange(120), sizes)


def test_clustered_intervals_cover_where_plain_ones_do_not():
    def clustered(rng):
        values, users = clustered_draw(rng)
        return interval(values, clusters=users)

    def plain(rng):
        return interval(clustered_draw(rng)[0])

    assert 0.915 < covered(clustered, 0.4) < 0.98
    assert covered(plain, 0.4) < 0.75  # cases of a user are no independent draws


def test_ratio_intervals_cover_recall_micro():
    # Users with few targets are found worse: hits .3 of 2, .6 of 10; over targets
    # (.3 * 2 + .6 * 10) / 12 = .55.
    def micro(rng):
        targets = rng.choice([2, 10], 200)
        hits = rng.binomial(targets, np.where(targets == 2, 0.3, 0.6))
        return interval(hits / targets, weights=targets)

    assert 0.92 < covered(micro, 0.55) < 0.98
