"""What a ranker reads of requests and candidates, worked by hand on four items in the plane."""

import types

import numpy as np
import pandas as pd
import pytest

from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.ranking.columns import CandidateColumns
from twotower.ranking.inputs import NUMBERS
from twotower.retrieval.candidates import Candidates

ITEMS = pd.DataFrame(
    {
        "item_id": ["a", "b", "c", "d"],
        "genres": [("x",), ("x", "y"), ("y",), ()],
        "year": [1990, 1995, 2000, -1],
    }
)
ROWS = pd.DataFrame(
    {
        "user_id": ["u", "u", "v", "v"],
        "item_id": ["a", "b", "a", "c"],
        "timestamp": [1, 2, 3, 4],
        "rating": np.float32([5, 1, 4, 2]),
    }
)
USERS = pd.DataFrame({"user_id": ["u", "v"], "age": ["18", "25"]})
DATASET = Dataset("four", ROWS, ITEMS, USERS)
VECTORS = np.float32([[1, 0], [0, 1], [-1, 0], [0, -1]])
MODEL = types.SimpleNamespace(keys=np.arange(4), vectors=VECTORS, catalogue=DATASET.catalogue)
# Everything but the last row, which stands for a test row, may be learned from.
TRAIN = np.array([0, 1, 2])


def fitted(fields=("age", "genres")) -> CandidateColumns:
    return CandidateColumns.fit(DATASET, TRAIN, MODEL, ["one", "two"], fields)


def candidates(rows, **columns) -> Candidates:
    """Lists of keys with scores 3, 2, 1; the source `one` found all in this order, `two` the first
    of each row."""
    keys = np.array(rows)
    rank = np.broadcast_to(np.arange(1, keys.shape[1] + 1), keys.shape)
    scores = (4.0 - rank).astype(np.float32)
    first = rank == 1
    return Candidates(
        keys,
        scores,
        np.full(len(keys), keys.shape[1]),
        {
            "one_rank": rank.astype(np.int32),
            "one_score": scores,
            "two_rank": np.where(first, 1, 0).astype(np.int32),
            "two_score": np.where(first, np.float32(7), np.nan),
            **columns,
        },
    )


def number(found: dict, name: str) -> list[list[float]]:
    return found[NUMBERS][..., fitted().numbers.index(name)].round(4).tolist()


def requests(history=("a", "b"), ratings=(5, 1), **more) -> Requests:
    return Requests.of(DATASET.catalogue, [history], ratings=[ratings], **more)


def test_numbers_by_hand():
    found = fitted()(requests(), candidates([[2, 3, 0]]))
    assert number(found, "behind_best") == [[0, -1, -2]]
    assert number(found, "one_log_rank")[0] == pytest.approx([0, np.log(2), np.log(3)], abs=1e-4)
    # Scores 3, 2, 1 have the mean 2 and the deviation sqrt(2 / 3).
    assert number(found, "one_z")[0] == pytest.approx([1.2247, 0, -1.2247], abs=1e-3)
    assert (
        number(found, "two_score")[0][0] == 7 and np.isnan(number(found, "two_score")[0][1:]).all()
    )
    # Training rows of c, d and a: none, none, two.
    assert number(found, "rows")[0] == pytest.approx([0, 0, np.log(3)], abs=1e-4)
    # Ratings 5 and 4 of a, five rows of the mean 10 / 3.
    assert number(found, "mean_rating")[0][2] == pytest.approx((9 + 50 / 3) / 7, abs=1e-4)
    assert np.isnan(number(found, "year")[0][1])
    # The history is of 1990 and 1995.
    assert number(found, "year_gap")[0][0] == 7.5
    assert number(found, "user_rating")[0] == [3, 3, 3]
    # a was rated 2 above the user's mean and b 2 below: x in both, y in b alone. Three events of
    # nothing pull towards 0.
    assert number(found, "genre_rating")[0] == pytest.approx([-2 / 4, 0, 0], abs=1e-4)
    # c is opposite to a and at a right angle to b; a is itself in the history.
    assert number(found, "similarity")[0] == pytest.approx([0, 0, 1], abs=1e-4)
    weights = np.exp(np.array([1, 0]) / 0.2)
    expected = (weights * [2, -2]).sum() / weights.sum()
    assert number(found, "similar_rating")[0][2] == pytest.approx(expected, abs=1e-4)


def test_codes():
    found = fitted()(requests(user_id=["v"]), candidates([[1, 3, 0]]))
    assert found["age"].tolist() == [[2, 2, 2]]
    assert found["genres"].tolist() == [[[1, 2], [0, 0], [1, 0]]]
    unknown = fitted()(requests(context={"age": ["99"]}), candidates([[1, 3, 0]]))
    assert unknown["age"].tolist() == [[0, 0, 0]]
    fitted().inputs.check(found)


def test_nothing_is_learned_from_other_rows():
    """A test row leaves no trace: not in counts, not in ratings."""
    other = ROWS.copy()
    other.loc[3, ["item_id", "rating"]] = ["d", 5.0]
    changed = CandidateColumns.fit(
        Dataset("four", other, ITEMS, USERS), TRAIN, MODEL, ["one", "two"], ("age", "genres")
    )
    for name, values in fitted().arrays().items():
        np.testing.assert_array_equal(values, changed.arrays()[name])


def test_one_request_is_as_good_as_many():
    asked = Requests.of(DATASET.catalogue, [["a", "b"], [], ["c"]], user_id=["u", "", "v"])
    lists = candidates([[2, 3, 0], [0, 1, 2], [1, 0, 3]])
    together = fitted()(asked, lists)
    for row in range(3):
        alone = fitted()(asked.take(np.array([row])), lists.take(np.array([row])))
        for name, values in alone.items():
            np.testing.assert_allclose(together[name][[row]], values, atol=1e-6)
    assert np.isnan(number(together, "similarity")[1]).all()
    assert np.isnan(number(together, "user_rating")[1]).all()


def test_an_event_that_came_later_is_left_out():
    with_it = requests()
    later = Requests(
        with_it.user_id,
        type(with_it.history).from_rows([[0, 1, 9]]),
        type(with_it.history).from_rows([[-1, -1, -1]]),
        type(with_it.history).from_rows([[5, 1, 3]], np.float32),
        with_it.exclude,
        with_it.time,
    )
    lists = candidates([[2, 3, 0]])
    np.testing.assert_allclose(
        fitted()(later, lists)[NUMBERS], fitted()(with_it, lists)[NUMBERS], atol=1e-6
    )


def test_a_candidate_that_came_later_has_nothing_but_its_sources():
    """The others are read as ever: one new item must not cost a list its ranking."""
    found = fitted()(requests(), candidates([[9, 2, 4]]))
    fitted().inputs.check(found)
    assert found["genres"][0].tolist() == [[0, 0], [2, 0], [0, 0]]
    assert number(found, "rows")[0] == [0, 0, 0]
    for name in ("mean_rating", "year", "year_gap"):
        assert np.isnan(number(found, name)[0]).tolist() == [True, False, True]
    assert number(found, "similarity")[0] == [0, 0, 0]  # c is at a right angle to b
    assert number(found, "one_score")[0] == [3, 2, 1]
    plain = fitted()(requests(), candidates([[1, 2, 3]]))
    np.testing.assert_array_equal(found[NUMBERS][:, 1], plain[NUMBERS][:, 1])


def test_an_endless_rating_is_unknown():
    found = fitted()(requests(ratings=(np.inf, 1)), candidates([[2, 3, 0]]))
    unknown = fitted()(requests(ratings=(np.nan, 1)), candidates([[2, 3, 0]]))
    np.testing.assert_array_equal(found[NUMBERS], unknown[NUMBERS])


@pytest.mark.parametrize(
    "lists, message",
    [
        (candidates([[2, 1, 0]]).__class__.empty(1, 3), r"columns \['one_rank', 'one_score'"),
    ],
)
def test_candidates_that_cannot_be_read(lists, message):
    with pytest.raises(ValueError, match=message):
        fitted()(requests(), lists)


def test_a_field_that_the_data_lacks():
    with pytest.raises(ValueError, match=r"has the fields \['age', 'genres'\]; unknown \['zip'\]"):
        fitted(["zip"])
