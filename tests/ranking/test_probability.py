"""Probabilities from scores, and how far they are from the shares that are observed."""

import numpy as np
import pytest

from twotower.ranking.probability import Probability, binned, calibration_error


def test_calibration_error_by_hand():
    bins = binned(np.array([0.2, 0.2, 0.9, 0.9]), np.array([0, 0, 1, 1]))
    assert calibration_error(bins) == pytest.approx(0.15)
    # Bins of a 15th: .5 and .9 lie apart. (|1 - 2 * .5| + |2 - 2 * .9|) / 4 = .05
    parts = [binned(np.array([0.5, p]), np.array([label, 1])) for p, label in ((0.9, 0), (0.9, 1))]
    assert calibration_error(sum(parts)) == pytest.approx(0.05)
    # 1 belongs to the last bin. All wrong: the error is the whole probability.
    assert calibration_error(binned(np.ones(3), np.zeros(3))) == 1


def test_a_probability_rises_and_stays_within_the_labels():
    rng = np.random.default_rng(0)
    scores = rng.normal(size=4000)
    truth = 1 / (1 + np.exp(-scores))
    curve = Probability.fit(scores, rng.random(4000) < truth)
    assert np.abs(curve(scores) - truth).mean() < 0.03
    assert (np.diff(curve(np.linspace(-9, 9, 50))) >= 0).all()
    for scores in ((1.0, 0.0), (0.0, np.nan)):
        with pytest.raises(ValueError, match="ascending"):
            Probability(scores, (0.1, 0.2))
    for wrong in (((0.0, 1.0), (0.9, 0.1)), ((np.nan,), (0.5,))):
        with pytest.raises(ValueError, match="ascend"):
            Probability(*wrong)
