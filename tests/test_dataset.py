"""Dataset and Catalogue: what is refused, keys, filters, and what a fingerprint sees."""

import doctest

import numpy as np
import pandas as pd
import pytest

from twotower.data import dataset as dataset_module
from twotower.data.dataset import Dataset


def make(interactions=None, items=None, users=None):
    """Three users, three items ("b" unused), four interactions; arguments replace columns."""
    tables = {
        "interactions": {
            "user_id": ["v", "u", "u", "v"],
            "item_id": ["c", "a", "c", "a"],
            "timestamp": [40, 10, 30, 10],
        },
        "items": {
            "item_id": ["a", "b", "c"],
            "title": ["One", "Two", "One"],
            "year": [1990, 2000, 2010],
            "genres": [("War", "Drama"), (), ("Drama",)],
        },
        "users": {"user_id": ["u", "v", "w"]},
    }
    changes = {"interactions": interactions, "items": items, "users": users}
    frames = {
        name: pd.DataFrame({**columns, **(changes[name] or {})}) for name, columns in tables.items()
    }
    return Dataset("made", **frames)


def test_rows_and_keys():
    dataset = make()
    assert dataset.item_keys.tolist() == [2, 0, 2, 0]
    assert dataset.user_rows.tolist() == [1, 0, 0, 1]
    assert dataset.timestamps.tolist() == [40, 10, 30, 10]  # file order stays
    assert (
        dataset.item_keys.dtype == dataset.user_rows.dtype == dataset.timestamps.dtype == np.int64
    )


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"items": {"item_id": ["a", "a", "c"]}}, "'a' stands twice in 'items'"),
        ({"users": {"user_id": ["u", "v", "v"]}}, "'v' stands twice in 'users'"),
        ({"items": {"item_id": ["a", "", "c"]}}, "an empty item_id in 'items'"),
        ({"items": {"item_id": ["a", None, "c"]}}, "'items' is not a string"),
        ({"items": {"item_id": [1, 2, 3]}}, "item_id 1 in 'items' is not a string"),
        ({"items": {"item_id": ["a", "b", "d"]}}, "2 interactions name .*'c' for one"),
        ({"users": {"user_id": ["u", "x", "w"]}}, "2 interactions name .*'v' for one"),
        ({"interactions": {"timestamp": [1.5, 2, 3, 4]}}, "whole seconds .* got float64"),
        ({"interactions": {"event": ["buy", "", "", ""]}}, r"unknown events \['buy'\]"),
    ],
)
def test_refused_data(changes, message):
    with pytest.raises(ValueError, match=message):
        make(**changes)


@pytest.mark.parametrize(
    ("table", "column"), [("interactions", "timestamp"), ("items", "item_id"), ("users", "user_id")]
)
def test_missing_columns(table, column):
    dataset = make()
    frames = {name: getattr(dataset, name) for name in ("interactions", "items", "users")}
    frames[table] = frames[table].drop(columns=column)
    with pytest.raises(ValueError, match=rf"table '{table}' lacks \['{column}'\]"):
        Dataset("made", **frames)


def test_positive():
    assert make().positive.tolist() == [True] * 4
    assert make({"event": ["", None, "click", "watch"]}).positive.tolist() == [True] * 4
    # A like or share tells more of a watch that has a row of its own.
    events = ["impression", "skip", "like", "share"]
    assert make({"event": events}).positive.tolist() == [False] * 4


def test_no_interactions():
    nothing = pd.DataFrame({"user_id": [], "item_id": [], "timestamp": np.empty(0, np.int64)})
    full = make()
    dataset = Dataset("made", nothing, full.items, full.users)
    assert dataset.item_keys.shape == dataset.user_rows.shape == dataset.positive.shape == (0,)
    assert dataset.fingerprint() != full.fingerprint()


def test_a_frames_index_does_not_matter():
    plain = make()
    shuffled = Dataset(
        "made",
        *(getattr(plain, n).set_index(pd.Index([9] * len(getattr(plain, n))))
          for n in ("interactions", "items", "users")),
    )  # fmt: skip
    assert shuffled.item_keys.tolist() == plain.item_keys.tolist()
    assert shuffled.positive.tolist() == plain.positive.tolist()
    assert shuffled.fingerprint() == plain.fingerprint()


def test_fingerprint_sees_values_and_order_alone():
    base = make().fingerprint()
    assert make().fingerprint() == base
    reversed_columns = make()
    reversed_columns = Dataset(
        "another name", *(getattr(reversed_columns, n).iloc[:, ::-1]
                          for n in ("interactions", "items", "users")),
    )  # fmt: skip
    assert reversed_columns.fingerprint() == base
    changed = [
        make({"timestamp": [40, 10, 30, 11]}),
        make({"item_id": ["c", "c", "a", "a"]}),
        make(items={"genres": [("Drama", "War"), (), ("Drama",)]}),
        make(items={"title": ["One", "Two", "one"]}),
        make(users={"user_id": ["u", "v", "x"]}),
        make({"rating": np.float32([1, 2, 3, 4])}),
    ]
    prints = {dataset.fingerprint() for dataset in changed}
    assert len(prints) == len(changed)
    assert base not in prints


def test_fingerprint_sees_every_digit_of_a_vector():
    # str() of an array rounds to 8 digits and leaves out the middle of a long one.
    vectors = np.zeros((3, 2000))
    other = vectors.copy()
    other[1, 1000] = 1e-12
    base = make(items={"audio": list(vectors)}).fingerprint()
    assert make(items={"audio": list(vectors.copy())}).fingerprint() == base
    assert make(items={"audio": list(other)}).fingerprint() != base


def test_fingerprint_is_of_the_strings_whatever_holds_them():
    objects = make(items={"title": np.array(["One", "Two", "One"], object)})
    strings = make(items={"title": pd.array(["One", "Two", "One"], "string")})
    assert objects.fingerprint() == strings.fingerprint() == make().fingerprint()


def test_catalogue_keys_and_ids():
    catalogue = make().catalogue
    assert len(catalogue) == 3
    assert catalogue.keys.tolist() == [0, 1, 2]
    assert catalogue.keys_of([["c", "x"], ["", "a"]]).tolist() == [[2, -1], [-1, 0]]
    assert catalogue.ids_of(np.array([[2, -1], [0, 1]])).tolist() == [["c", ""], ["a", "b"]]
    assert catalogue.keys_of([]).shape == catalogue.ids_of([]).shape == (0,)


@pytest.mark.parametrize("key", [3, -2])
def test_a_key_of_another_catalogue(key):
    with pytest.raises(ValueError, match=f"key {key} is not of this catalogue of 3"):
        make().catalogue.ids_of(np.array([0, key]))


@pytest.mark.parametrize(
    ("conditions", "keys"),
    [
        ({}, [0, 1, 2]),
        ({"title": "One"}, [0, 2]),
        ({"year": (1995, 2010)}, [1, 2]),
        ({"year": (None, 1990)}, [0]),
        ({"year": [2010, 1990]}, [0, 2]),
        ({"genres": "Drama"}, [0, 2]),
        ({"genres": ["War", "Western"]}, [0]),
        ({"genres": ("War", "Western")}, [0]),
        ({"genres": []}, []),
        ({"genres": "Drama", "year": (2000, None)}, [2]),
    ],
)
def test_where(conditions, keys):
    found = make().catalogue.where(**conditions)
    assert found.tolist() == keys
    assert found.dtype == np.int64


def test_where_of_an_unknown_column():
    with pytest.raises(ValueError, match="no column 'maker'"):
        make().catalogue.where(maker="x")


def test_extend_keeps_keys():
    catalogue = make().catalogue.extend(pd.DataFrame({"item_id": ["z"], "title": ["New"]}))
    assert catalogue.keys_of(["a", "c", "z"]).tolist() == [0, 2, 3]
    # The new item tells neither year nor genres: it matches no condition on them.
    assert catalogue.where(genres="Drama").tolist() == [0, 2]
    assert catalogue.where(year=(None, 2005)).tolist() == [0, 1]
    with pytest.raises(ValueError, match="'a' stands twice"):
        catalogue.extend(pd.DataFrame({"item_id": ["a"]}))


def test_the_example_in_the_docstring():
    assert doctest.testmod(dataset_module) == (0, 4)
