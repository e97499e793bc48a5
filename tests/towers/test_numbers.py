"""Numbers, times and vectors as features, by hand and at the ends of what float32 has."""

import numpy as np
import pytest
from numbered_tables import NAN, floats, numbered, run, times

from twotower.tf import tf
from twotower.towers.numbers import Clock, Number, Vector


def test_number_is_piecewise_linear():
    # Bins 0-1, 1-3 and 3-7.
    feature = Number("year", [0, 1, 3, 7])
    found = run(feature, year=floats(-5, 0, 0.5, 2, 4, 7, 99, NAN))
    assert found.tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0.5, 0, 0, 0],
        [1, 0.5, 0, 0],  # (2 - 1) / 2
        [1, 1, 0.25, 0],  # (4 - 3) / 4
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 1],  # missing
    ]


def test_quantiles_of_a_number():
    # 0, 2, 4 without NaN: minimum, median, maximum.
    assert Number.fit("year", np.array([4, NAN, 0, 2]), num_bins=2).quantiles == (0, 2, 4)
    # Of 0, 0, 0, 8 minimum and median are equal: one bin is left.
    assert Number.fit("year", np.array([0, 0, 8, 0]), num_bins=2).quantiles == (0, 8)
    with pytest.raises(ValueError, match=r"year: .*\[5\.0\].*Is the column constant"):
        Number.fit("year", np.array([5, 5, 5]))
    with pytest.raises(ValueError, match="year: no value is known"):
        Number.fit("year", np.array([NAN, NAN]))
    with pytest.raises(ValueError, match="two or more quantiles"):
        Number("year", [2, 1])


def codes(values, num_bins=16):
    """What a Number makes of the values that it was fitted on."""
    feature = Number.fit("made", np.asarray(values), num_bins)
    return run(feature, made=tf.constant(np.asarray(values), tf.float32))


def test_quantiles_are_distinct_as_float32():
    # Between 2**30 and 2**31 float32 has every 128th whole number.
    for values in ([1.6e9, 1.6e9 + 1, 1.6e9 + 2], [2**24, 2**24 + 1]):
        with pytest.raises(ValueError, match=r"made: .*float32 cannot tell .* apart.*[Ss]ubtract"):
            codes(values)
        with pytest.raises(ValueError, match=r"made: .*ascending"):
            Number("made", values)
    # Two of the three are one there: a bin is left.
    assert codes([1.6e9, 1.6e9 + 1, 1.6e9 + 128]).tolist() == [[0, 0], [0, 0], [1, 0]]
    # What a processor takes for zero has no code of its own, and no NaN either.
    assert np.isfinite(codes([0, 1e-44])).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by TensorFlow, to infinity
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Infinite, in float32 or at all: past the last quantile, or before the first.
        ([0, 1, np.inf, -np.inf], [0, 1, 1, 0]),
        ([0, 1, 1e300, -1e300], [0, 1, 1, 0]),
        # A difference that float32 has no number for: too large, too small.
        ([-3e38, 0, 3e38], [0, 0.5, 1]),
        ([0, 1e-30], [0, 1]),
        ([True, False], [1, 0]),
        (np.array([2**63, 0], np.uint64), [1, 0]),
    ],
)
def test_numbers_at_the_ends_of_what_there_is(values, expected):
    found = codes(values, num_bins=1)
    assert np.allclose(found[:, 0], expected) and (found[:, 1] == 0).all()


def test_clock():
    feature = Clock("time", dim=2)
    numbered(feature.hour)
    numbered(feature.weekday)
    # 2001-09-09 01:46:40 UTC was a Sunday (6 from Monday); 1970-01-01 00:00 a Thursday (3), four
    # days later minus a second is Sunday 23:59:59 and then it is Monday. Not told: 24 and 7.
    found = run(feature, time=times(1_000_000_000, 0, 345_599, 345_600, -1))
    assert found[:, [1, 3]].tolist() == [[1, 6], [0, 3], [23, 6], [0, 0], [24, 7]]


def test_vector_with_nan_is_zeros_and_a_flag():
    found = run(Vector("sound", 2), sound=floats([1, -2], [3, NAN], [0, np.inf]))
    assert found.tolist() == [[1, -2, 0], [0, 0, 1], [0, 0, 1]]
    for values in ([[1.0, 2.0], [3.0]], [["a"]], [[]], [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"sound: .* of one length"):
            Vector.fit("sound", values)
    with pytest.raises(ValueError, match="sound: no value is known"):
        Vector.fit("sound", [[NAN, 1.0]])


def test_what_no_training_value_lacked_reads_as_usual_where_it_is_missing():
    # The flag of a missing value has a weight, which only missing values of training can move.
    for values, missing in (([4, 0, 1], [1, 0, 0]), ([4, 0, 1, NAN], [0, 0, 1])):
        feature = Number.fit("year", np.array(values), num_bins=2)
        assert run(feature, year=floats(1.75, NAN)).tolist() == [[1, 0.25, 0], missing]
    # The median 1 above; of vectors the mean.
    for values, missing in (
        ([[1, 2], [3, 6]], [2, 4, 0]),
        ([[1, 2], [NAN, 6]], [0, 0, 1]),
    ):
        feature = Vector.fit("sound", np.float32(values))
        assert run(feature, sound=floats([5, 5], [NAN, NAN])).tolist() == [[5, 5, 0], missing]
