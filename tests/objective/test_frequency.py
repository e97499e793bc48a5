"""Streaming frequencies: against counts, in batches, after a restart, among collisions."""

import numpy as np
import pytest

from twotower.objective.frequency import StreamingFrequency


def stream(num_items=500, num_examples=200_000, seed=0):
    """Keys drawn by a power law, and the probability of each."""
    rng = np.random.default_rng(seed)
    p = 1 / np.arange(1, num_items + 1)
    p /= p.sum()
    return rng.choice(num_items, num_examples, p=p), p


def fed(estimator, keys, size=4096):
    for start in range(0, len(keys), size):
        estimator.update(keys[start : start + size])
    return estimator


def median_error(estimator, keys, least=50):
    """Relative, over items seen `least` times or more, against their counts."""
    count = np.bincount(keys)
    some = np.flatnonzero(count >= least)
    share = count[some] / len(keys)
    return np.median(np.abs(estimator.probability(some) - share) / share)


def test_by_hand():
    # Item 7 at times 1, 3 and 4: gaps 1, 2, 1, of which each counts a third.
    one = StreamingFrequency(64)
    one.update(np.array([7, 1, 7, 7]))
    assert one.probability(np.array([7]))[0] == pytest.approx(3 / 4)
    # With a rate of 1/2 from the second gap on: 1, then (1 + 2) / 2, then (1.5 + 1) / 2.
    half = StreamingFrequency(64, rate=0.5)
    half.update(np.array([7, 1, 7, 7]))
    assert half.probability(np.array([7]))[0] == pytest.approx(1 / 1.25)
    # Item 1 at time 2. An item never seen is taken for half as frequent as one seen once in 4.
    assert one.probability(np.array([1, 5])).tolist() == pytest.approx([1 / 2, 1 / 8])
    assert StreamingFrequency(8).probability(np.array([3])).tolist() == [1.0]


@pytest.mark.parametrize("size", [1, 7, 1000, 4096])
def test_batches_change_nothing(size):
    keys = stream(50, 3000)[0]
    one, other = (StreamingFrequency(200, rate=0.1) for _ in range(2))
    fed(one, keys, len(keys))
    fed(other, keys, size)
    some = np.arange(50)
    np.testing.assert_allclose(other.probability(some), one.probability(some), rtol=1e-6)


def test_near_the_counts_and_far_when_batches_are_counted():
    keys, _ = stream()
    assert median_error(fed(StreamingFrequency(2000), keys), keys) < 0.1
    # As the paper counts time: an item of every batch has a gap of 1 whatever its share is.
    batches = StreamingFrequency(2000)
    for number, start in enumerate(range(0, len(keys), 4096), 1):
        present = np.unique(keys[start : start + 4096])
        batches.update(present, np.full(len(present), number))
    some = np.arange(500)
    share = np.bincount(keys, minlength=500) / len(keys)
    # The probability of being in a batch, an example's share of it.
    found = batches.probability(some) / 4096
    assert np.median(np.abs(found - share) / share) > 0.2


def test_follows_a_drift():
    estimator = StreamingFrequency(100)
    rng = np.random.default_rng(0)
    for p in ([0.9, 0.1], [0.1, 0.9]):
        fed(estimator, rng.choice(2, 20_000, p=p))
        np.testing.assert_allclose(estimator.probability(np.arange(2)), p, rtol=0.25)


def test_more_hash_functions_help_against_collisions():
    keys, _ = stream()
    keys = keys * 7919 + 10**12  # ids, not rows of a table
    one, three = (fed(StreamingFrequency(700, num), keys) for num in (1, 3))
    ids, count = np.unique(keys, return_counts=True)
    share = count / len(keys)
    errors = [np.abs(e.probability(ids) - share) / share for e in (one, three)]
    assert np.quantile(errors[1], 0.8) < 0.5 * np.quantile(errors[0], 0.8)


@pytest.mark.parametrize("num", [300, 1000, 3883])
@pytest.mark.parametrize("buckets_per_item", [1, 2, 4])
def test_keys_in_a_row_spread_over_any_number_of_buckets(num, buckets_per_item):
    # Keys of a catalogue are consecutive. A random function would fill this share of n buckets:
    expected = 1 - np.exp(-1 / buckets_per_item)
    for buckets in range(num * buckets_per_item - 3, num * buckets_per_item + 4):
        for row in StreamingFrequency(buckets, 4)._buckets(np.arange(num)):
            assert row.min() >= 0 and row.max() < buckets
            assert len(np.unique(row)) / buckets > 0.7 * expected, buckets


def test_survives_a_restart(tmp_path):
    keys, _ = stream(50, 4000)
    whole = fed(StreamingFrequency(300), keys)
    fed(StreamingFrequency(300), keys[:1700]).save(tmp_path / "counts")
    again = fed(StreamingFrequency(300).load(tmp_path / "counts"), keys[1700:])
    some = np.arange(60)
    np.testing.assert_allclose(again.probability(some), whole.probability(some), rtol=1e-6)
    assert again.time == whole.time == 4000
    for other in (StreamingFrequency(301), StreamingFrequency(300, 3)):
        with pytest.raises(ValueError, match=r"holds \(2, 300\).*expected"):
            other.load(tmp_path / "counts")


@pytest.mark.parametrize("sizes", [(0, 2, 0.1), (9, 0, 0.1), (9, 5, 0.1), (9, 2, 0.0), (9, 2, 1.1)])
def test_sizes_that_make_no_sense(sizes):
    with pytest.raises(ValueError, match="num_buckets of 1 or more"):
        StreamingFrequency(*sizes)


def test_bad_streams():
    estimator = StreamingFrequency(9)
    estimator.update(np.array([], int))
    assert estimator.time == 0
    with pytest.raises(ValueError, match="integers"):
        estimator.update(np.array([1.5]))
    estimator.update(np.array([1, 2]))
    with pytest.raises(ValueError, match=r"integers; got \(2,\) float64"):
        estimator.probability([1.7, 2.2])
    with pytest.raises(ValueError, match="times must be integers; got float64"):
        estimator.update(np.array([1, 2]), [2.5, np.nan])
    for times in ([1, 3], [4, 3], [3]):
        with pytest.raises(ValueError, match="2 times, ascending from 2"):
            estimator.update(np.array([1, 2]), np.array(times))


def test_on_movielens(ml_1m_dir):
    """The bar: a median relative error of 10% at most on items seen 50 times or more."""
    from twotower.data import load_dataset

    keys = load_dataset("movielens/1m", ml_1m_dir).item_keys
    keys = keys[np.random.default_rng(42).permutation(len(keys))[:800_167]]
    assert median_error(fed(StreamingFrequency(4 * 3706), keys), keys) < 0.03
