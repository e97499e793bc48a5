"""Filters, each by hand."""

import numpy as np
import pandas as pd
import pytest
import tiny
from made_up_parts import Always, ask

from twotower.data.catalogue import Catalogue
from twotower.funnel.attributes import Attribute
from twotower.funnel.filters import (
    Available,
    Blocked,
    Filters,
    HoldOut,
    MinimumAge,
    Seen,
    Shown,
    fractions,
    is_among,
)
from twotower.ragged import Ragged

FILMS = Catalogue(
    pd.DataFrame(
        {
            "item_id": ["0", "1", "2", "3"],
            "genres": [("Horror",), ("Comedy",), ("Comedy", "Horror"), ()],
            "year": [1990, 2001, 2010, 1950],
        }
    )
)


def kept(some, requests, *keys) -> list[list[int]]:
    found = Always(*keys)(requests, 99)
    rows = Filters([some])(requests, found)
    return [row[:count].tolist() for row, count in zip(rows.keys, rows.counts)]


def test_what_was_seen_or_is_excluded_besides():
    requests = ask([1, 2], [], exclude=[["i7"], ["i9"]])
    assert kept(Seen(), requests, 7, 1, 9, 3) == [[9, 3], [7, 1, 3]]


def test_the_table_of_pairs_is_filled_in_parts(monkeypatch):
    monkeypatch.setattr("twotower.funnel.filters.CELLS", 20)
    keys = np.array([[4, 9], [9, -1], [0, 4]])
    among = is_among(keys, Ragged.from_rows([[9], [3], [0, 4]]))
    assert among.tolist() == [[False, True], [False, False], [True, True]]


def test_blocked_items_and_genres_are_a_users():
    some = Blocked.where(FILMS, {"u": {"genres": ["Horror"]}, "v": {"year": (2000, None)}})
    assert kept(some, ask([], [], [], user_id=["u", "v", "w"]), 3, 2, 1, 0) == [
        [3, 1],
        [3, 0],
        [3, 2, 1, 0],
    ]


def test_shown_too_often_without_a_click():
    some = Shown.count(["u", "u", "v", "u", "v"], np.array([1, 1, 1, 2, 3]), at_least=2)
    assert kept(some, ask([], [], user_id=["u", "v"]), 1, 2, 3) == [[2, 3], [1, 2, 3]]
    assert kept(Shown.count([], []), ask([]), 1) == [[1]]


@pytest.mark.parametrize(
    "users, keys, at_least, message",
    [
        (["u", "v"], [1], 1, r"a key for each; got 2 users and keys \[1\]"),
        (["u"], [1.5], 1, "keys must be integers"),
        (["u"], [1], 0, "at_least must be an integer of 1 or more; got 0"),
    ],
)
def test_impressions_that_cannot_be_counted(users, keys, at_least, message):
    with pytest.raises(ValueError, match=message):
        Shown.count(users, np.array(keys), at_least)


@pytest.mark.parametrize(
    "age, is_adult",
    [
        *(("18-24", True), ("56+", True), (" 21 - 30", True), ("25–34", True)),
        *(("14-18", False), ("16-", False), ("-20", False), ("20-old", False), ("nan", False)),
    ],
)
def test_the_lower_bound_of_an_age_counts(age, is_adult):
    some = MinimumAge(np.float32([18]))
    assert kept(some, ask([], context={"age": [age]}), 0) == [[0] if is_adult else []]


def test_only_what_is_available():
    assert kept(Available(np.array([5, 2])), ask([]), 2, 3, 5, 11) == [[2, 5]]
    with pytest.raises(ValueError, match="keys must be integers; got bool"):
        Available(np.array([True, False]))  # a mask would be the keys 0 and 1


def test_a_policy_by_age():
    rules = [(16, {"genres": ["Horror"]}), (12, {"year": (2000, None)})]
    ages = Attribute("age", np.array(["old", "young"]), np.array(["56", "14"]))
    some = MinimumAge.rule(FILMS, rules, ages)
    requests = ask(
        *[[]] * 5,
        user_id=["old", "young", "", "young", ""],
        context={"age": ["", "", "", "18", "n/a"]},
    )
    # Least ages: 16, 12, 16, 0; of an unknown item 18, of an unknown person 0.
    assert kept(some, requests, 0, 1, 2, 3, 8) == [
        [0, 1, 2, 3, 8], [1, 3], [3], [0, 1, 2, 3, 8], [3],
    ]  # fmt: skip


def test_a_hold_out_is_by_id_and_experiment():
    ids = [f"i{key}" for key in range(2000)]
    catalogue = Catalogue(pd.DataFrame({"item_id": ids}))
    some = HoldOut.of(catalogue, 0.2, "new titles")
    held = some.fraction < 0.2
    assert held.mean() == pytest.approx(0.2, abs=0.03)
    back = HoldOut.of(Catalogue(pd.DataFrame({"item_id": ids[::-1]})), 0.2, "new titles")
    assert ((back.fraction < 0.2)[::-1] == held).all()
    other = fractions(ids, "old titles") < 0.2
    assert (held & other).mean() == pytest.approx(0.04, abs=0.02)
    inside, outside = np.flatnonzero(held)[0], np.flatnonzero(~held)[0]
    assert kept(some, ask([]), inside, outside, 5000) == [[outside, 5000]]
    with pytest.raises(ValueError, match="within 0 and 1; got"):
        HoldOut.of(catalogue, 1.5, "x")


def test_a_rule_for_no_item_knows_none():
    # Of an unknown item the least age is 18, and no hash is known, so it is kept.
    empty = np.empty(0, np.float32)
    requests = ask([], [], context={"age": ["17", "18"]})
    assert kept(MinimumAge(empty), requests, 0, 5) == [[], [0, 5]]
    assert kept(HoldOut(empty, 0.5), requests, 0, 5) == [[0, 5], [0, 5]]


def test_filters_in_a_row_say_what_each_took():
    rules = Filters([Available(np.array([1, 2, 3])), Seen(), Shown.count(["u"] * 2, [3, 3], 2)])
    requests = ask([2], [1, 2], user_id=["u", "u"])
    found = Always(3, 2, 1, 9)(requests, 9)
    answer = rules.apply(requests, found)
    # The second request has only 3 left, which it was shown too often: it is shown again.
    assert answer.candidates.keys[:, :1].tolist() == [[1], [3]]
    assert answer.candidates.counts.tolist() == [1, 1]
    assert answer.lost == {"available": 2, "seen": 3, "shown": 1}
    assert answer.relaxed == {"shown": 1}


def test_attributes_come_from_the_context_or_the_user():
    dataset = tiny.dataset()
    column = next(name for name in dataset.users if name != "user_id")
    some = Attribute.of(dataset, column, short=lambda text: text[:1])
    user = dataset.users["user_id"][0]
    requests = ask([], [], user_id=[user, user], time=[-1, 7200], context={column: ["", "x"]})
    assert some(requests).tolist() == [dataset.users[column][0][:1], "x"]
    assert Attribute("hour")(requests).tolist() == ["", "2"]
    assert Attribute.of(dataset, "no such")(requests).tolist() == ["", ""]
