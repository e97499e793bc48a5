"""Histories as bags of events, by hand: the mean, ratings, both ways to it, and dropout."""

import numpy as np
import pytest
from numbered_tables import NAN, floats, numbered, run, strings

from twotower.tf import tf
from twotower.towers.history import bag as history
from twotower.towers.history.bag import MeanHistory
from twotower.towers.history.config import MeanConfig


def mean_history(**options):
    """Over items a, b, c, which are rows 2, 3, 4; 0 is padding, 1 unknown."""
    config = MeanConfig(dim=2, **{"dropout": 0.0, **options})
    feature = MeanHistory("past", ["a", "b", "c"], config)
    numbered(feature.table)
    if config.ratings:
        numbered(feature.rating_table)
    return feature


# a, b and c | b, an unknown item and b again | nothing | only an unknown item.
EVENTS = strings(["a", "b", "c"], ["b", "?", "b"], ["", "", ""], ["?", "", ""])


@pytest.mark.parametrize("training", [False, True])
def test_mean_history_by_hand(training):
    # Sums [90, 9] of three, [60, 6] of two known ones, nothing, nothing.
    mean = run(mean_history(power=1.0), training, past=EVENTS)
    np.testing.assert_allclose(mean, [[30, 3], [30, 3], [0, 0], [0, 0]], rtol=1e-6)
    root = run(mean_history(power=0.5), training, past=EVENTS)
    expected = [[90 / 3**0.5, 9 / 3**0.5], [60 / 2**0.5, 6 / 2**0.5], [0, 0], [0, 0]]
    np.testing.assert_allclose(root, expected, rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_ratings_bag_by_hand(training):
    # First: mean (5 + 1) / 2 = 3, c has no rating: 2 a - 2 b = [-20, -2]; of three events, power
    # 1: a third. Second: the unknown item's rating does not count, both b's are at the mean 4.
    ratings = floats([5, 1, NAN], [4, 1, 4], [NAN, NAN, NAN], [5, NAN, NAN])
    feature = mean_history(power=1.0, ratings=True)
    found = run(feature, training, past=EVENTS, past_rating=ratings)
    np.testing.assert_allclose(found[:, :2], [[30, 3], [30, 3], [0, 0], [0, 0]], rtol=1e-6)
    expected = [[-20 / 3, -2 / 3], [0, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(found[:, 2:], expected, rtol=1e-6)


@pytest.mark.parametrize("num_cases, length", [(1, 1), (1, 3), (40, 30)])
@pytest.mark.parametrize("training", [False, True])
def test_both_ways_to_a_bag_are_equal(monkeypatch, num_cases, length, training):
    rng = np.random.default_rng(0)
    vocabulary = [f"i{item}" for item in range(20)]
    ids = np.array(["", "?", *vocabulary], object)[rng.integers(0, 22, (num_cases, length))]
    raw = {
        "past": tf.constant(ids, tf.string),
        "past_rating": floats(*rng.integers(1, 6, (num_cases, length)).tolist()),
    }
    feature = MeanHistory("past", vocabulary, MeanConfig(dim=4, dropout=0.0, ratings=True))
    counted = run(feature, training, **raw)
    monkeypatch.setattr(history, "COUNT_MATRIX_LIMIT", 0)
    gathered = run(feature, training, **raw)
    # Outside training fewer than 11 events are gathered in either case: half of the 22 rows.
    np.testing.assert_allclose(counted, gathered, atol=1e-5)
    assert counted.shape == (num_cases, 8)


def test_both_ways_have_the_same_gradient(monkeypatch):
    feature = mean_history()

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(feature(feature.encode({"past": EVENTS}), training=True) ** 2)
        return tf.convert_to_tensor(tape.gradient(loss, feature.table.embeddings)).numpy()

    counted = gradient()
    monkeypatch.setattr(history, "COUNT_MATRIX_LIMIT", 0)
    np.testing.assert_allclose(gradient(), counted, rtol=1e-5)
    # Rows of padding and of unknown items never learn.
    assert (counted[:2] == 0).all() and (counted[2:] != 0).all()


def test_history_dropout_thins_training_only():
    tf.random.set_seed(2)
    feature = mean_history(power=0.0, dropout=0.4)
    events = tf.repeat(strings(["a"]), 4000)[None, :]
    # Row a is [20, 2], the sum of all 8000. Of n kept ones it is 2 n / .6, on average the same:
    # standard error of n / 4000 .0077, over .6 and four times .052.
    assert 0.001 < abs(run(feature, training=True, past=events)[0, 1] / 8000 - 1.0) < 0.052
    assert run(feature, past=events)[0, 1] == 8000


def test_nobody_has_a_history():
    # All cases of a batch are new: the padded width is 0.
    assert (run(mean_history(), past=tf.zeros([2, 0], tf.string)) == 0).all()


def test_a_history_has_the_length_of_the_table_that_it_shares():
    table = tf.keras.layers.Embedding(2, 6)
    assert MeanHistory("history", ["a"], MeanConfig(), table).dim == 6
    assert MeanHistory("history", ["a"], MeanConfig()).dim == 256
    with pytest.raises(ValueError, match=r"dim 256 cannot share .* whose length is 6"):
        MeanHistory("history", ["a"], MeanConfig(dim=256), table)
