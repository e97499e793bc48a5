"""Examples: what a training query may see, by hand."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny
from asked import asked, by_item
from six_ratings import NAN, ROWS, by_hand, examples_of, whole

from twotower.data.dataset import Dataset
from twotower.data.examples import Examples, ExamplesConfig


@pytest.mark.parametrize("batch_size", [1, 2, 100])
def test_before_is_strictly_the_earlier_rows(batch_size):
    examples = examples_of("before", batch_size=batch_size)
    # Row 2 is before row 3 though both are of time 20; never the other way round.
    assert by_item(asked(examples, 0), "history") == {
        ("a", 0): [],
        ("a", 1): [0],
        ("a", 2): [0, 1],
        ("a", 3): [0, 1, 2],
        ("b", 0): [],
        ("b", 1): [0],
    }
    assert by_item(asked(examples, 0), "history_time")["a", 3] == [10, 20, 20]
    ratings = by_item(asked(examples, 0), "history_rating")["a", 3]
    np.testing.assert_array_equal(ratings, [5, NAN, 3])
    # Whatever the config says, each example has a query of its own here.
    assert not examples.shared and examples.alone


@pytest.mark.parametrize("history", ["before", "others"])
def test_own_is_all_that_the_user_trains_with(history):
    known = by_item(asked(examples_of(history, batch_size=2), 0), "known_positives")
    assert {user: keys for (user, _), keys in known.items()} == {"a": [0, 1, 2, 3], "b": [0, 1]}
    assert len(known) == 6


def test_rows_that_do_not_train_are_in_no_history():
    dataset = by_hand()
    split = dataclasses.replace(whole(dataset, "before"), train=np.array([0, 1, 3, 5]))
    examples = Examples(dataset, split, ExamplesConfig())
    assert by_item(asked(examples, 0), "history") == {
        ("a", 0): [],
        ("a", 2): [0],
        ("a", 3): [0, 2],
        ("b", 1): [],
    }
    assert by_item(asked(examples, 0), "known_positives")["a", 0] == [0, 2, 3]


@pytest.mark.parametrize("history, expected", [("before", [1, 2]), ("others", [1, 2])])
def test_max_history_keeps_the_last_events(history, expected):
    examples = examples_of(history, targets_per_query=1, max_history=2)
    # Of the items 0, 1, 2 before (or beside) item 3; a's own positives stay all four.
    assert by_item(asked(examples, 0), "history")["a", 3] == expected
    assert by_item(asked(examples, 0), "history_time")["a", 3] == [20, 20]
    assert by_item(asked(examples, 0), "known_positives")["a", 3] == [0, 1, 2, 3]
    # Shorter ones stay as they are.
    assert by_item(asked(examples, 0), "history")["b", 1] == [0]


def test_context_and_time_belong_to_one_example():
    device = ["tv", "web", "phone", "tv", "web", ""]
    dataset = by_hand(device=device)
    told = by_item(asked(examples_of("before", dataset, "loo+time"), 0), "request_time")
    assert told == {(user, item): time for user, item, time, _ in ROWS}
    assert set(by_item(asked(examples_of("before", dataset), 0), "request_time").values()) == {-1}
    for history, targets in (("before", 8), ("others", 1)):
        examples = examples_of(history, dataset, targets_per_query=targets)
        found = by_item(asked(examples, 0), "context")
        assert [found[user, item]["device"] for user, item, _, _ in ROWS] == device
    # Several targets share the query: it cannot have the context of each.
    shared = by_item(asked(examples_of("others", dataset, targets_per_query=2), 0), "context")
    assert {context["device"] for context in shared.values()} == {""}


@pytest.mark.parametrize(
    ("field", "value", "least"),
    [
        ("batch_size", 0, 1),
        ("targets_per_query", 0, 1),
        ("max_history", -1, 0),
        ("stratify", -1, 0),
    ],
)
def test_sizes_have_a_least_value(field, value, least):
    with pytest.raises(ValueError, match=f"{field} must be {least} or more; got {value}"):
        examples_of("before", **{field: value})


def test_whole_histories_are_all_training_rows():
    made = tiny.dataset()
    split = tiny.split("loo")
    examples = Examples(made, split, ExamplesConfig())
    cases = examples.whole_histories()
    assert len(cases) == len(made.users) and (cases.time == -1).all()
    for row in (0, 7, 100):
        rows = split.train[made.user_rows[split.train] == row]
        rows = rows[np.argsort(made.timestamps[rows], kind="stable")]
        assert cases.history[row].tolist() == made.item_keys[rows].tolist()
        assert cases.history_time[row].tolist() == made.timestamps[rows].tolist()
    short = Examples(made, split, ExamplesConfig(max_history=3)).whole_histories()
    assert short.history[7].tolist() == cases.history[7].tolist()[-3:]


def test_passed_over_by_hand():
    # User a was shown 1, 2, 3 and 4: took 1 and, later, 3; 4 came after the last training row.
    # User b only took. User c has no training row at all.
    interactions = pd.DataFrame(
        {
            "user_id": ["a", "a", "a", "a", "a", "a", "b", "c"],
            "item_id": ["1", "1", "2", "3", "3", "4", "2", "1"],
            "timestamp": [10, 11, 12, 13, 20, 30, 5, 5],
            "event": [
                "impression",
                "watch",
                "skip",
                "impression",
                "click",
                "impression",
                "watch",
                "impression",
            ],
        }
    )
    items = pd.DataFrame({"item_id": list("1234"), "title": list("1234")})
    users = pd.DataFrame({"user_id": list("abc")})
    made = Dataset("passed", interactions, items, users)
    train = np.flatnonzero(np.isin(made.interactions["event"], ["watch", "click"]))
    split = dataclasses.replace(tiny.split("loo"), train=train)
    found = Examples(made, split, ExamplesConfig()).passed_over()
    assert [made.items["item_id"].to_numpy()[row].tolist() for row in found] == [["2"], [], []]
    # Without events there is nothing to pass over.
    plain = Dataset("plain", interactions.drop(columns="event"), items, users)
    split = dataclasses.replace(split, train=np.arange(8))
    assert len(Examples(plain, split, ExamplesConfig()).passed_over().values) == 0
