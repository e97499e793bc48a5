"""Inputs of the towers: columns of items as of a time, and what a query says of its user."""

import dataclasses

import numpy as np
import pytest
from six_ratings import NAN, by_hand

from twotower.data.inputs import DAY, ItemInputs, QueryInputs
from twotower.data.splits import make_split


def test_popularity_as_of_a_time():
    inputs = ItemInputs(by_hand(), np.arange(6), ["popularity"])

    def popularity(key, time):
        return inputs.as_of(np.array([key]), np.array([time]))["popularity"][0]

    # log((n + 1) / (N + 5)): times 10, 20 (three rows), 30, 40; a row of that very time is later.
    for key, time, n, total in [
        (0, 5, 0, 0),  # before everything
        (0, 10, 0, 0),
        (0, 20, 1, 1),
        (0, 21, 2, 4),
        (1, 30, 1, 4),
        (1, 31, 2, 5),
        (3, 40, 0, 5),
        (3, 41, 1, 6),
        (3, 10**9, 1, 6),  # long after everything
        (4, 41, 0, 6),  # never trained
    ]:
        assert popularity(key, time) == pytest.approx(np.log((n + 1) / (total + 5))), (key, time)
    # Without a time: as of the end of training, all rows counted.
    last = inputs(np.arange(5))["popularity"]
    np.testing.assert_allclose(last, np.log(np.array([3, 3, 2, 2, 1]) / 11), rtol=1e-6)
    assert last.dtype == np.float32


def test_age_as_of_a_time():
    inputs = ItemInputs(by_hand(), np.arange(6), ["age"])
    day = int(DAY)
    # First rows at 10, 20, 20, 40; item 4 has none and counts from the end of training, 41.
    keys = np.array([0, 1, 2, 3, 4, 4, 3])
    times = np.array([10 + day, 20 + day // 2, 20, 40 + 3 * day, 41 + day, 5, 7])
    found = inputs.as_of(keys, times)["age"]
    np.testing.assert_allclose(found, [1, 0.5, 0, 3, 1, 0, 0], rtol=1e-6)
    assert inputs.as_of(keys, times).keys() == {"age"}
    # Where the release is known, from there, whatever was watched when.
    dataset = by_hand()
    items = dataset.items.assign(released=[10, 10 + day, 10, 10, 10 + 9 * day])
    inputs = ItemInputs(dataclasses.replace(dataset, items=items), np.arange(6), ["age"])
    found = inputs.as_of(np.array([0, 1, 4]), np.full(3, 10 + 3 * day))["age"]
    np.testing.assert_allclose(found, [3, 2, 0], rtol=1e-6)
    # Where it is not, from the first row, as above.
    items = dataset.items.assign(released=[10, NAN, 10, 10, NAN])
    inputs = ItemInputs(dataclasses.replace(dataset, items=items), np.arange(6), ["age"])
    found = inputs.as_of(np.array([0, 1, 4]), np.full(3, 20 + 3 * day))["age"]
    np.testing.assert_allclose(found, [3 + 10 / day, 3, 3 - 21 / day], rtol=1e-6)


def test_columns_of_items():
    dataset = by_hand()
    items = dataset.items.assign(
        genres=[("b", "a"), (), ("a",), (), ("c", "d")],
        year=[1990, 1991, 1992, 1993, 1994],
        sound=[np.full(2, n) for n in range(5)],
    )
    dataset = dataclasses.replace(dataset, items=items)
    inputs = ItemInputs(dataset, np.arange(6), ["item_id", "genres", "year", "sound", "age"])
    found = inputs(np.array([3, 0]))
    assert found["item_id"].tolist() == ["m3", "m0"]
    assert found["genres"].tolist() == [["", ""], ["b", "a"]]
    assert found["year"].tolist() == [1993, 1990] and found["year"].dtype == np.float32
    assert found["sound"].tolist() == [[3, 3], [0, 0]]
    assert set(found) == {"item_id", "genres", "year", "sound", "age"}


def test_what_items_lack_is_missing_in_the_inputs():
    """The same values that the signature of the item tower takes for missing."""
    dataset = by_hand()
    items = dataset.items.assign(
        title=[None, "One", "Two", None, ""],
        genres=[None, ["a", None], [], ["b"], None],
        year=[1990, None, 0, NAN, 1994],
        sound=[None, [1.0, 2.0], None, [3.0, 4.0], NAN],
        released=[None, 5, None, None, None],
    )
    dataset = dataclasses.replace(dataset, items=items)
    found = ItemInputs(dataset, np.arange(6), ["title", "genres", "year", "sound", "released"])
    found = found(np.arange(5))
    assert found["title"].tolist() == ["", "One", "Two", "", ""]
    assert found["genres"].tolist() == [[""], ["a"], [""], ["b"], [""]]
    np.testing.assert_array_equal(found["year"], np.float32([1990, NAN, NAN, NAN, 1994]))
    nothing = [NAN, NAN]
    np.testing.assert_array_equal(found["sound"], [nothing, [1, 2], nothing, [3, 4], nothing])
    np.testing.assert_array_equal(found["released"], [NAN, 5, NAN, NAN, NAN])
    assert {values.dtype for name, values in found.items() if name not in ("title", "genres")} == {
        np.dtype(np.float32)
    }
    users = dataset.users.assign(age=[25.0, None, 31.0][: len(dataset.users)])
    dataset = dataclasses.replace(dataset, users=users)
    cases = make_split(dataset, "loo", "test").cases.take([0, 0])
    cases = dataclasses.replace(cases, user_id=dataset.users["user_id"].to_numpy(object)[:2])
    assert QueryInputs(dataset, ["age"])(cases)["age"].tolist() == ["25", ""]


@pytest.mark.parametrize("name", ["age", "popularity"])
def test_a_column_of_items_with_the_name_of_a_computed_input(name):
    dataset = by_hand()
    dataset = dataclasses.replace(dataset, items=dataset.items.assign(**{name: np.arange(5.0)}))
    ItemInputs(dataset, np.arange(6), ["item_id"])  # nobody asks for it
    with pytest.raises(ValueError, match=rf"items have the columns \['{name}'\].*item_{name}"):
        ItemInputs(dataset, np.arange(6), ["item_id", name])


@pytest.mark.parametrize("name", ["history", "history_time", "history_rating", "time"])
def test_a_column_of_users_with_the_name_of_a_computed_input(name):
    dataset = by_hand()
    users = dataset.users.assign(**{name: "x"})
    dataset = dataclasses.replace(dataset, users=users)
    QueryInputs(dataset, ["user_id"])
    with pytest.raises(ValueError, match=rf"users have the columns \['{name}'\].*user_{name}"):
        QueryInputs(dataset, ["user_id", name])


@pytest.mark.parametrize("name", ["device", "country", "search_text"])
def test_a_column_of_users_with_the_name_of_one_of_interactions(name):
    """The tower read that of the users, and the request's own never reached it."""
    dataset = by_hand()
    users = dataset.users.assign(**{name: "x"})
    alone = dataclasses.replace(dataset, users=users)
    assert QueryInputs(alone, ["user_id", name]).users[name].tolist() == ["x", "x", "x", ""]
    # As long as the interactions say the same, or nothing, it does not matter which is read.
    same = dataclasses.replace(by_hand(**{name: ["x"] * 5 + [""]}), users=users)
    assert QueryInputs(same, ["user_id", name]).users[name].tolist() == ["x", "x", "x", ""]
    twins = dataclasses.replace(by_hand(**{name: ["x"] * 5 + ["y"]}), users=users)
    QueryInputs(twins, ["user_id"])
    with pytest.raises(ValueError, match=rf"users have the columns \['{name}'\].*user_{name}"):
        QueryInputs(twins, ["user_id", name])


def test_query_inputs_raw_and_encoded():
    dataset = by_hand(device=["tv"] * 6)
    users = dataset.users.assign(gender=["F", "M", ""])
    dataset = dataclasses.replace(dataset, users=users)
    cases = make_split(dataset, "loo", "test").cases
    # One question: a saw 0, 1, 2 at 10, 20, 20. Then one of a stranger.
    cases = cases.take([0, 0])
    cases = dataclasses.replace(cases, user_id=np.array(["a", "stranger"], object))
    names = ["user_id", "gender", "history", "history_time", "history_rating", "time", "device"]
    raw = QueryInputs(dataset, names)
    found = raw(cases)
    assert list(found) == names
    assert found["user_id"].tolist() == ["a", "stranger"]
    assert found["gender"].tolist() == ["F", ""]
    assert found["history"].tolist() == [["m0", "m1", "m2"]] * 2
    assert found["history_time"].tolist() == [[10, 20, 20]] * 2
    np.testing.assert_array_equal(found["history_rating"], [[5, NAN, 3]] * 2)
    assert found["time"].tolist() == [-1, -1] and found["device"].tolist() == ["tv", "tv"]

    def length(name, strings):
        """Stands in for a vocabulary: the length of the string, 0 for a missing one."""
        return np.char.str_len(strings)

    encoded = raw.encoded(length)(cases)
    assert encoded["user_id"].tolist() == [1, 0]  # "a", and a stranger is missing
    assert encoded["gender"].tolist() == [1, 0]
    assert encoded["history"].tolist() == [[2, 2, 2]] * 2
    assert raw(cases)["gender"].tolist() == ["F", ""]  # the raw one is as it was
    with pytest.raises(ValueError, match=r"no such query inputs: \['colour'\]; there are"):
        QueryInputs(dataset, ["history", "colour"])
