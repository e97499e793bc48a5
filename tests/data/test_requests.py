"""Requests from ids, and the columns of users whom the data does not have."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.data import requests as requests_module
from twotower.data.catalogue import Catalogue
from twotower.data.dataset import Dataset
from twotower.data.inputs import QueryInputs
from twotower.data.requests import Requests, encoded
from twotower.ragged import Ragged

CATALOGUE = Catalogue(pd.DataFrame({"item_id": ["10", "20", "30"]}))


def test_ids_become_keys_and_what_was_seen_is_excluded():
    requests = Requests.of(
        CATALOGUE, [["30", "10"], []], exclude=[["20"], ["30"]], ratings=[[5, 1], []]
    )
    assert [row.tolist() for row in requests.history] == [[2, 0], []]
    assert [row.tolist() for row in requests.exclude] == [[2, 0, 1], [2]]
    assert requests.history_rating.values.tolist() == [5, 1]
    assert requests.history_time.values.tolist() == [-1, -1] and requests.time.tolist() == [-1, -1]
    assert requests.texts("search_text").tolist() == ["", ""]


@pytest.mark.parametrize(
    "given, message",
    [
        ({"history": [["30", "x"]]}, r"\['x'\] are not in the catalogue"),
        ({"history": ["30"]}, "got the text '30'"),
        ({"history": [[]], "times": [[3]]}, "history_time must have the offsets of history"),
        ({"history": [[]], "exclude": [["10"], []]}, "exclude has 2 rows for 1 requests"),
        ({"history": [[]], "user_id": ["a", "b"]}, "history has 1 rows for 2 requests"),
        ({"history": [[]], "context": {"device": ["tv", "tv"]}}, "device has 2 rows for 1"),
        # Two letters of one text, for two requests.
        ({"history": [[], []], "context": {"device": "tv"}}, "device takes a list .* got 'tv'"),
        ({"history": [[], []], "user_id": "u1"}, "user_id takes a list of strings"),
    ],
)
def test_columns_that_do_not_fit(given, message):
    with pytest.raises(ValueError, match=message):
        Requests.of(CATALOGUE, given.pop("history"), **given)


def test_the_context_tells_of_users_whom_the_data_does_not_have():
    dataset = tiny.dataset()
    column = next(name for name in dataset.users if name != "user_id")
    known = dataset.users["user_id"][0]
    requests = Requests.of(
        dataset.catalogue, [[], []], user_id=[known, "nobody"], context={column: ["a", "b"]}
    )
    found = QueryInputs(dataset, [column])(requests)[column]
    assert found.tolist() == [dataset.users[column][0], "b"]
    assert isinstance(found, np.ndarray)


def test_batches_whose_padded_histories_are_large_are_split():
    catalogue = Catalogue(pd.DataFrame({"item_id": ["a", "b"]}))
    requests = Requests.of(catalogue, [["a"], ["b"] * 9, [], ["a"]])
    # Three at once; nine columns, so that 18 cells hold two requests, and 5 cells hold one.
    assert [len(part) for part in requests.batches(3, cells=18)] == [2, 1, 1]
    assert [len(part) for part in requests.batches(3, cells=5)] == [1, 1, 1, 1]
    assert [len(part) for part in requests.batches(3)] == [3, 1]


def test_vectors_are_computed_for_histories_of_like_length_a_few_at_a_time(monkeypatch):
    monkeypatch.setattr(requests_module, "QUERIES", 2)
    monkeypatch.setattr(requests_module, "CELLS", 3)
    requests = Requests.of(CATALOGUE, [["10", "20", "30"], ["20"], [], ["30", "30"], ["10"]])
    asked = []

    def sums(part: Requests) -> np.ndarray:
        asked.append(part.history.lengths.tolist())
        return np.array([[row.sum(), len(row)] for row in part.history], np.float32)

    vectors = encoded(requests, sums, 2)
    assert vectors.tolist() == [[3, 3], [1, 1], [0, 0], [4, 2], [0, 1]]
    assert asked == [[0, 1], [1], [2], [3]]  # two requests of two events would have four cells
    assert encoded(requests.take(np.array([], int)), sums, 2).shape == (0, 2)


def test_the_query_tower_reads_no_items_that_its_data_does_not_have():
    items = pd.DataFrame({"item_id": ["a", "b"]})
    events = pd.DataFrame({"user_id": ["u"], "item_id": ["a"], "timestamp": [1]})
    users = pd.DataFrame({"user_id": ["u"]})
    inputs = QueryInputs(Dataset("", events, items, users), ["history", "history_time"])
    requests = Requests.of(Catalogue(items), [["a", "b"], []], times=[[5, 6], []])
    later = Ragged.from_rows([[2**40, 1], []])  # a catalogue has grown since
    found = inputs(dataclasses.replace(requests, history=later))
    assert found["history"].tolist() == [["b"], [""]]
    assert found["history_time"].tolist() == [[6], [-1]]
