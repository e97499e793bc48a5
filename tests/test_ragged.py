"""Ragged against plain lists of lists."""

import doctest

import numpy as np
import pytest

from twotower import ragged as ragged_module
from twotower.ragged import Ragged

ROWS = [[7, 8, 9], [], [5], [], [6, 4]]


@pytest.fixture
def ragged():
    return Ragged.from_rows(ROWS)


def lists(ragged):
    return [row.tolist() for row in ragged]


def test_rows_lengths_and_index(ragged):
    assert lists(ragged) == ROWS
    assert len(ragged) == 5
    assert ragged.offsets.tolist() == [0, 3, 3, 4, 4, 6]
    assert ragged.lengths.tolist() == [3, 0, 1, 0, 2]
    assert ragged.row_index.tolist() == [0, 0, 0, 2, 4, 4]
    assert ragged[-1].tolist() == [6, 4]
    assert ragged[-2].tolist() == []
    for row in (5, -6):
        with pytest.raises(IndexError, match=f"no row {row} of 5"):
            ragged[row]


def test_no_rows_and_rows_of_nothing():
    assert lists(Ragged.from_rows([])) == []
    assert lists(Ragged.empty(2)) == [[], []]
    assert Ragged.empty(2).to_dense(-1).shape == (2, 0)
    assert lists(Ragged.empty(3).take([2, 0])) == [[], []]
    assert lists(Ragged.empty(2).last(4)) == [[], []]
    assert lists(Ragged.group(np.empty(0, int), np.empty(0, int), 2)) == [[], []]
    assert Ragged.empty(0).to_dense(-1).shape == (0, 0)
    # Nothing to pad: the fill's type does not matter.
    assert Ragged.empty(2).to_dense(np.nan).shape == (2, 0)


def test_group_keeps_the_order_inside_a_row():
    grouped = Ragged.group(np.array([5, 1, 9, 2]), np.array([2, 0, 2, 0]), 4)
    assert lists(grouped) == [[1, 2], [], [5, 9], []]
    with pytest.raises(ValueError, match="row 4 does not exist among 4 rows"):
        Ragged.group(np.array([5]), np.array([4]), 4)


def test_take_by_index_mask_slice_and_repeat(ragged):
    assert lists(ragged.take(np.array([4, 0, 0]))) == [[6, 4], [7, 8, 9], [7, 8, 9]]
    assert lists(ragged.take(np.array([-1, 1]))) == [[6, 4], []]
    assert lists(ragged.take(ragged.lengths > 0)) == [[7, 8, 9], [5], [6, 4]]
    assert lists(ragged.take(slice(1, 3))) == [[], [5]]
    assert lists(ragged.take(np.array([], int))) == []


def test_last(ragged):
    assert lists(ragged.last(2)) == [[8, 9], [], [5], [], [6, 4]]
    assert lists(ragged.last(0)) == [[], [], [], [], []]
    assert lists(ragged.last(9)) == ROWS


def test_to_dense(ragged):
    # Padded on the right to the longest row, or to the width asked for.
    assert ragged.to_dense(-1).tolist() == [
        [7, 8, 9],
        [-1, -1, -1],
        [5, -1, -1],
        [-1, -1, -1],
        [6, 4, -1],
    ]
    assert ragged.to_dense(0, width=4).shape == (5, 4)
    with pytest.raises(ValueError, match="3 values does not fit into width 2"):
        ragged.to_dense(-1, width=2)


def test_to_dense_of_strings_keeps_them_whole():
    objects = Ragged.from_rows([["longest"], ["a", "b"]], object)
    assert objects.to_dense("").tolist() == [["longest", ""], ["a", "b"]]


def test_a_fill_that_the_values_cannot_hold_is_refused():
    # int64 would turn NaN into a number, and "<U1" would cut "none" to "n".
    with pytest.raises(ValueError, match="cannot hold"):
        Ragged.from_rows([[1], []]).to_dense(np.nan)
    with pytest.raises(ValueError, match="cannot hold"):
        Ragged(np.array(["a", "b"]), [0, 2, 2]).to_dense("none")


@pytest.mark.parametrize(
    ("offsets", "message"),
    [
        ([], "start at 0"),
        ([1, 3], "start at 0"),
        ([[0, 3]], "start at 0"),
        ([0, 2], "ascend to the 3 values; they end at 2"),
        ([0, 4], "they end at 4"),
        ([0, 2, 1, 3], "ascend"),
    ],
)
def test_offsets_that_do_not_fit(offsets, message):
    with pytest.raises(ValueError, match=message):
        Ragged(np.array([1, 2, 3]), np.array(offsets))


def test_against_lists_at_random():
    rng = np.random.default_rng(0)
    for _ in range(50):
        rows = [rng.integers(99, size=n).tolist() for n in rng.integers(5, size=rng.integers(9))]
        ragged, length = Ragged.from_rows(rows), int(rng.integers(1, 5))
        assert lists(ragged) == rows
        assert lists(ragged.last(length)) == [row[-length:] for row in rows]
        if rows:
            chosen = rng.integers(len(rows), size=6)
            assert lists(ragged.take(chosen)) == [rows[row] for row in chosen]


def test_the_example_in_the_docstring():
    assert doctest.testmod(ragged_module) == (0, 3)


def test_ranges_by_hand():
    ranges = Ragged.ranges(np.array([5, 9, 0]), np.array([2, 0, 3]))
    assert [row.tolist() for row in ranges] == [[5, 6], [], [0, 1, 2]]
    assert len(Ragged.ranges(np.array([], np.int64), np.array([], np.int64))) == 0


NO_INTEGERS = {
    "floats": [1.5, 2.0],
    "text": ["1", "2"],
    "booleans": [True, False],
    "objects": np.array([1, 2], object),
    "too large": np.array([2**64 - 1, 1], np.uint64),
}


@pytest.mark.parametrize("kind", NO_INTEGERS)
def test_what_is_no_integer_is_not_made_one(kind):
    values = NO_INTEGERS[kind]
    with pytest.raises(ValueError, match=r"values must (be integers|fit int64); got"):
        Ragged.from_rows([[3], values])
    with pytest.raises(ValueError, match=r"lengths must (be integers|fit int64); got"):
        Ragged.from_lengths(np.arange(3), values)
    with pytest.raises(ValueError, match=r"offsets must (be integers|fit int64); got"):
        Ragged(np.arange(2), values)


def test_integers_of_other_types():
    # 2**53 + 1 is the least integer that no float64 holds.
    rows = [np.array([2**53 + 1], np.uint64), [], np.array([5, 4], ">i2"), {7}, range(2)]
    ragged = Ragged.from_rows(rows)
    assert lists(ragged) == [[2**53 + 1], [], [5, 4], [7], [0, 1]]
    assert ragged.values.dtype == ragged.offsets.dtype == np.int64
    with pytest.raises(ValueError, match="values must fit int8; got 5 to 300"):
        Ragged.from_rows([[300, 5]], np.int8)


@pytest.mark.parametrize("values", [np.array(3), np.zeros((2, 2))], ids=["0-d", "2-d"])
def test_values_stand_one_after_another(values):
    with pytest.raises(ValueError, match=r"values must be \[num_values\].*; got \("):
        Ragged(values, np.array([0, 2]))
