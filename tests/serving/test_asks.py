"""Requests in ids become columns of keys, and each keeps its own."""

import numpy as np
import pandas as pd
import pytest

from twotower.data.catalogue import Catalogue
from twotower.serving import schemas
from twotower.serving.asks import Ask, FieldError, requests_of, row_of
from twotower.serving.bodies import ask_of
from twotower.serving.sessions import Deed, Session

CATALOGUE = Catalogue(pd.DataFrame({"item_id": ["a", "b", "c", "new"], "year": [1, 2, 3, 4]}))


def rows(*asks):
    """The model knows the first three items, and `b` is out of service."""
    return [row_of(ask, CATALOGUE, 3, np.array([1])) for ask in asks]


def test_what_the_model_does_not_know_is_excluded_and_named():
    (row,) = rows(Ask(history=["new", "c", "zzz"], times=[5, 6, 7], exclude=["a", "yyy"]))
    assert row.unknown == ["new", "zzz"] and row.history.tolist() == [2]
    assert row.times.tolist() == [6] and np.isnan(row.ratings).all()
    # The item of the history and the new one, the exclusion, and what is out of service.
    assert sorted(row.exclude.tolist()) == [0, 1, 2, 3]


def test_conditions_exclude_what_they_do_not_allow():
    (row,) = rows(Ask(where={"year": {"from": 3}}))
    assert {*row.exclude.tolist()} == {0, 1}
    for where in ({"year": {}}, {"year": {"since": 3}}, {"colour": "red"}, {"year": "old"}):
        with pytest.raises(FieldError) as error:
            rows(Ask(where=where))
        assert error.value.field.startswith("filters")


@pytest.mark.parametrize(
    "times, history, merged_times",
    [
        # The session has an event before the history, one between its two, and one as late as its
        # last, which stands behind that.
        ([20, 30], ["first", "a", "between", "b", "last"], [10, 20, 25, 30, 30]),
        # Where a time is missing, the order of the two is not known.
        ([20, -1], ["a", "b", "first", "between", "last"], [20, -1, 10, 25, 30]),
        (None, ["a", "b", "first", "between", "last"], [-1, -1, 10, 25, 30]),
    ],
)
def test_events_of_the_session_join_the_history_by_time(times, history, merged_times):
    deeds = [Deed("first", "like", 10), Deed("between", "click", 25), Deed("last", "watch", 30)]
    body = schemas.Recommend(user_id="u", history=["a", "b"], times=times)
    ask = ask_of(body, Session.of(deeds), None)
    assert ask.history == history and ask.times == merged_times


def test_columns_of_several_requests():
    asks = [
        Ask("u", ["a"], context={"device": "tv"}, objective_weights={"like": 0.5}),
        Ask(),
        Ask(objective_weights={"relevance": 1.0}),
    ]
    requests = requests_of(asks, rows(*asks))
    assert requests.history.lengths.tolist() == [1, 0, 0]
    assert requests.context["device"].tolist() == ["tv", "", ""]
    # The second says nothing of its weights: NaN, for the ranker's own.
    np.testing.assert_equal(requests.objectives["like"], [0.5, np.nan, 0.0])
    np.testing.assert_equal(requests.objectives["relevance"], [0.0, np.nan, 1.0])
