"""Steck's formula by hand."""

import numpy as np
import pytest
from small_lists import TAGS, ask, listed, shown

from twotower.reranking.calibration import Calibration


def test_divergence_by_hand():
    # p of items x, x, y is (2/3, 1/3, 0). With alpha .01, of a list of x and y:
    # q~ = .99 * (1/2, 1/2) + .01 * p = (.501667, .498333), and the divergence
    # 2/3 * ln(.666667 / .501667) + 1/3 * ln(.333333 / .498333) = .055528.
    # Of x alone: q~ = (.996667, .003333), 2/3 * -.402126 + 1/3 * 4.605170 = 1.266973.
    requests = ask([0, 1, 2], [0, 1, 2])
    found = Calibration(TAGS, 0.5).divergence(requests, np.array([[0, 2, -1], [0, 1, 3]]))
    np.testing.assert_allclose(found, [0.055528, 1.266973], atol=2e-6)
    # An item of n genres is 1 / n of each: (x, y), (y, z) and one without.
    shares = Calibration(TAGS, 0.5).target(ask([4, 5, 3], []))
    np.testing.assert_allclose(shares, [[0.25, 0.5, 0.25], [0, 0, 0]])


def test_genres_come_in_the_proportions_of_the_history():
    # Behind 0 (x): another x keeps 1.266973, y makes it .055528. With weight .5 the gains are
    # .5 * .631 - .5 * 1.267 = -.318 and .5 * .5 - .5 * .056 = .222; with weight .05
    # .95 * .631 - .05 * 1.267 = .536 and .95 * .5 - .05 * .056 = .472.
    lists = listed([0, 1, 2])
    assert shown(Calibration(TAGS, 0.5)(ask([0, 1, 2]), lists)) == [[0, 2, 1]]
    assert shown(Calibration(TAGS, 0.05)(ask([0, 1, 2]), lists)) == [[0, 1, 2]]
    # For the genres alone, twice as many x as y.
    lists = listed([2, 5, 6, 0, 4, 1])
    assert shown(Calibration(TAGS, 1, length=3)(ask([0, 1, 2]), lists)) == [[4, 0, 2, 5, 6, 1]]


def test_every_position_looks_at_the_whole_list_before_it():
    rng = np.random.default_rng(0)
    for _ in range(5):
        keys, history = rng.permutation(8), rng.integers(8, size=6).tolist()
        stage, chosen = Calibration(TAGS, 0.7), []

        def gain(key, keys=keys, history=history, stage=stage, chosen=chosen):
            relevance = 1 / np.log2(2 + keys.tolist().index(key))
            found = stage.divergence(ask(history), np.array([[*chosen, key]]))
            return 0.3 * relevance - 0.7 * found[0]

        while len(chosen) < 8:
            chosen.append(max((key for key in keys.tolist() if key not in chosen), key=gain))
        assert shown(stage(ask(history), listed(keys))) == [chosen]


def test_a_history_that_says_nothing_leaves_the_order():
    lists = listed([2, 5, 0], [0, 1, 2])
    assert shown(Calibration(TAGS, 0.9)(ask([], [3]), lists)) == shown(lists)


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": float("nan")}, "weight must lie within 0 and 1"),
        ({"alpha": 0}, "alpha must lie between 0 and 1; got 0"),
        ({"alpha": float("nan")}, "alpha"),
        ({"tags": np.zeros((0, 3))}, "an item and a tag at least"),
        ({"length": 0}, "length"),
    ],
)
def test_settings_that_mean_nothing(settings, message):
    with pytest.raises(ValueError, match=message):
        Calibration(**{"tags": TAGS, "weight": 0.5, **settings})
