"""Onboarding lists and exploration slots, worked by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from eight_films import DATASET, TRAIN, ask

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.funnel.cold_start import ExplorationSlots, most_popular, most_telling, picked
from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_SCORE, Candidates


def films(*liked: str) -> Dataset:
    """A user for each text, who likes the items that its letters name."""
    rows = [(f"u{user}", item) for user, items in enumerate(liked) for item in items]
    users, items = zip(*rows)
    return Dataset(
        "films",
        pd.DataFrame({"user_id": users, "item_id": items, "timestamp": 0}),
        pd.DataFrame({"item_id": sorted(set(items))}),
        pd.DataFrame({"user_id": sorted(set(users))}),
    )


def test_the_list_tells_more_than_what_all_like():
    # Everybody likes a, which says nothing (covariance 0). b and c are liked by the same users, d
    # by others: after b, of which c is a copy, d tells more than c.
    dataset = films("abc", "abc", "abc", "abcd", "ad", "a", "a", "a")
    rows = np.arange(len(dataset.interactions))
    assert most_popular(dataset, rows, 2).tolist() == [0, 1]
    assert most_telling(dataset, rows, 2, regularization=0.01).tolist() == [1, 3]


def test_gains_by_hand():
    # Two users, one likes a and b, the other c: all covariances are 1/2 or -1/2, and all gains
    # 3/4 / (1/2 + 1/2). So the first is taken, a, which leaves 1/4 of all: again equal gains.
    dataset = films("ab", "c")
    assert most_telling(dataset, np.arange(3), 3, regularization=0.5).tolist() == [0, 1, 2]
    assert most_telling(dataset, np.arange(3), 9, pool=2).tolist() in ([0, 1], [1, 0])
    with pytest.raises(ValueError, match="regularization must be positive"):
        most_telling(dataset, np.arange(3), regularization=0)


def test_rows_of_a_user_count_once():
    again = films("abbbbbb", "ab", "ac", "ac")
    once = films("ab", "ab", "ac", "ac")
    tell = [most_telling(d, np.arange(len(d.interactions)), 3).tolist() for d in (again, once)]
    assert tell[0] == tell[1]


def test_most_popular_is_at_most_what_there_is():
    assert most_popular(DATASET, TRAIN, 99).tolist() == [0, 1, 5, 2, 3, 4, 7]


def test_picks_are_those_of_the_history():
    requests = ask([5, 0, 3, 1], [], [2], user_id=["u1", "u2", "u3"], context={"age": list("123")})
    new = picked(requests, np.array([1, 0, 4, 5]), most=2)
    assert [row.tolist() for row in new.history] == [[1, 0], [], []]
    assert new.user_id.tolist() == ["", "", ""] and new.context["age"].tolist() == ["1", "2", "3"]
    assert [row.tolist() for row in new.exclude] == [[5, 0, 3, 1], [], [2]]


def test_picks_of_cases_keep_their_targets():
    asked = ask([5, 0], [1])
    fields = {field.name: getattr(asked, field.name) for field in dataclasses.fields(asked)}
    new = picked(EvalCases(**fields, targets=Ragged.from_rows([[2], [3, 4]])), np.array([0, 1]))
    assert [row.tolist() for row in new.history] == [[0], [1]]
    assert [row.tolist() for row in new.targets] == [[2], [3, 4]]


def listed(keys: list[list[int]], fresh: dict[int, float], scores=None) -> Candidates:
    """Lists of items, of which the source `fresh` found some, with these scores."""
    keys = np.array(keys)
    scores = -np.arange(keys.shape[1]) * np.ones(keys.shape) if scores is None else scores
    found = np.vectorize(lambda key: fresh.get(key, np.nan))(keys).astype(np.float32)
    columns = {"fresh_rank": (~np.isnan(found)).astype(np.int32), "fresh_score": found}
    counts = (keys >= 0).sum(1)
    scores = np.where(keys >= 0, scores, NO_SCORE).astype(np.float32)
    return Candidates(keys, scores, counts, columns)


def slots(counts: dict[int, int], **settings) -> ExplorationSlots:
    shown = np.zeros(20, np.int64)
    shown[list(counts)] = list(counts.values())
    return ExplorationSlots(shown, **settings)


def show(stage: ExplorationSlots, candidates: Candidates) -> list[list[int]]:
    found = stage(ask(*[[]] * len(candidates)), candidates)
    for row in range(len(found)):
        scores, keys = found.scores[row, : found.counts[row]], found.keys[row, : found.counts[row]]
        assert (scores[1:] <= scores[:-1]).all()
        # The columns went with their items.
        before = dict(zip(candidates.keys[row], candidates.columns["fresh_score"][row]))
        after = [before[key] for key in keys]
        np.testing.assert_array_equal(after, found.columns["fresh_score"][row, : len(keys)])
    np.testing.assert_array_equal(found.counts, candidates.counts)
    return found.keys.tolist()


def test_slots_take_the_best_fresh_items_from_behind():
    # Slots 2 and 4. 15 is fresher than 14, so it comes to slot 2, and what stood there shifts back.
    stage = slots({}, slots=(2, 4), until=5)
    assert show(stage, listed([[1, 2, 3, 4, 14, 15]], {14: 0.5, 15: 0.7})) == [[1, 15, 2, 14, 3, 4]]
    # One that stands before the slot by its score stays; the slot is for the next one.
    assert show(stage, listed([[15, 1, 2, 3, 14, 4]], {14: 0.5, 15: 0.7})) == [[15, 14, 1, 2, 3, 4]]


def test_items_shown_often_enough_need_no_slot():
    stage = slots({15: 5, 14: 4}, slots=(2,), until=5)
    lists = listed([[1, 2, 14, 15], [1, 2, 15, 3], [1, 14, -1, -1]], {14: 0.5, 15: 0.7})
    assert show(stage, lists) == [[1, 14, 2, 15], [1, 2, 15, 3], [1, 14, -1, -1]]
    stage.counts[14] += 1  # as the caller does after each answer
    assert show(stage, lists) == lists.keys.tolist()
    # An item that came after the counts were made has not been shown.
    assert show(stage, listed([[1, 2, 33]], {33: 0.1})) == [[1, 33, 2]]


def test_slots_behind_the_end_and_equal_scores():
    lists = listed([[1, 2, 3, 15]], {15: 1.0}, scores=np.float32([[2, 2, 2, 2]]))
    assert show(slots({}, slots=(9,)), lists) == lists.keys.tolist()
    found = slots({}, slots=(2,))(ask([]), lists)
    assert found.keys.tolist() == [[1, 15, 2, 3]]
    assert (np.diff(found.scores[0]) < 0).all() and found.scores[0, -1] > 1.999


def test_what_slots_refuse():
    with pytest.raises(ValueError, match="slots must ascend"):
        slots({}, slots=(15, 10))
    with pytest.raises(ValueError, match="no source 'new'"):
        slots({}, source="new")(ask([]), listed([[1]], {}))
    stage = slots({3: 7}, slots=(4,), until=8, source="new")
    again = ExplorationSlots.restore(stage.settings(), stage.arrays(), None)
    assert (again.settings(), again.counts.tolist()) == (stage.settings(), stage.counts.tolist())
