"""Dataset and Catalogue: what is refused, keys, filters, and what a fingerprint sees."""

import dataclasses
import datetime

import numpy as np
import pandas as pd
import pytest

from twotower.data.dataset import Dataset

NAN = float("nan")


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
        ({"items": {"item_id": ["a", "a", "c"]}}, "items, row 1: item_id is 'a', which .*earlier"),
        ({"users": {"user_id": ["u", "v", "v"]}}, "users, row 2: user_id is 'v', which .*earlier"),
        ({"items": {"item_id": ["a", "", "c"]}}, "items, row 1: item_id is empty"),
        ({"items": {"item_id": ["a", None, "c"]}}, "items, row 1: item_id is .*, not a string"),
        ({"items": {"item_id": [1, 2, 3]}}, "items, row 0: item_id is 1, not a string"),
        ({"items": {"item_id": ["a", "b", "d"]}}, "row 0: item_id is 'c', which 'items' does .*2"),
        ({"users": {"user_id": ["u", "x", "w"]}}, "row 0: user_id is 'v', which 'users' does .*2"),
        ({"interactions": {"timestamp": [2, 1.5, 3, 4]}}, "row 1: timestamp is 1.5, not whole sec"),
        ({"interactions": {"timestamp": [5, 1704067200000, 6, 7]}}, "row 1: .*milliseconds"),
        ({"interactions": {"timestamp": [5, 6, -(2**63), 7]}}, "row 2: timestamp is -9.*before"),
        ({"interactions": {"timestamp": [5, 6, None, 7]}}, "row 2: timestamp is missing"),
        ({"interactions": {"timestamp": ["5", "6", "7", "8"]}}, "row 0: timestamp is '5', not a n"),
        ({"interactions": {"timestamp": [20110820, 20110821, 20110822, 5]}}, "row 0: .*2011-08-20"),
        ({"interactions": {"event": ["buy", "", "", ""]}}, "row 0: event is 'buy', not one of"),
        ({"interactions": {"rating": [1, 2, -np.inf, 4]}}, "row 2: rating is -inf; .*finite"),
        (
            {"interactions": {"rating": pd.Series([1, 10**400, None, 4], dtype=object)}},
            "interactions, row 1: rating is 10.*finite",
        ),
        ({"items": {"released": [None, datetime.date(9999, 12, 31), None]}}, "row 1: .*year 5138"),
        ({"items": {"year": [1990, 1995.5, None]}}, "items, row 1: year is 1995.5, not a year"),
        ({"items": {"year": [1990, 1e30, None]}}, "items, row 1: year is 1e.30, not a year"),
        ({"items": {"released": [None, 5e14, 5]}}, "items, row 1: released is .*milliseconds"),
        ({"items": {"released": [1995, 2011, None]}}, "items, row 0: released is 1995.*date"),
        ({"items": {"title": ["a", b"b", "c"]}}, "items, row 1: title is b'b', not text.*decode"),
        ({"items": {"title": ["a", 7, "c"]}}, "items, row 1: title is 7, not text"),
        ({"items": {"genres": ["War|Drama", "", "x"]}}, "items, row 0: genres is .*, not a list"),
        (
            {"items": {"genres": [(b"War",), (), ()]}},
            "items, row 0: genres is .*, not a list of te",
        ),
        ({"items": {"sound": [(1.0,), None, (1.0, 2)]}}, "items, row 2: sound .*length 1"),
        ({"items": {"sound": [(1.0,), None, (np.inf,)]}}, "items, row 2: sound .*finite"),
        ({"items": {"sound": [(1.0,), None, (1e39,)]}}, "items, row 2: sound .*finite"),
        ({"items": {"sound": [((1.0,),), None, None]}}, "items, row 0: sound .*list of numbers"),
        ({"items": {"stars": [1.0, None, np.inf]}}, "items, row 2: stars is inf; .*finite"),
        ({"users": {"born": [{}, None, "1999"]}}, "users, row 0: born is {}, not text"),
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
    with pytest.raises(ValueError, match=rf"table '{table}' lacks \['{column}'\]") as error:
        Dataset("made", **frames)
    assert ("has_times=False" in str(error.value)) == (column == "timestamp")


@pytest.mark.parametrize(
    "times",
    [
        ["2024-01-01"] * 4,
        pd.period_range("2024-01-01", periods=4),
    ],
)
def test_times_of_another_type(times):
    problem = "not a number of seconds or a datetime; pd.to_datetime makes datetimes"
    with pytest.raises(ValueError, match=f"row 0: timestamp is .*2024-01-01'.*, {problem}"):
        make({"timestamp": times})


# Two ways to write one table: with None or another library's missing value, and in its form.
@pytest.mark.parametrize(
    ("table", "column", "given", "form"),
    [
        ("items", "title", ["One", None, "One"], ["One", "", "One"]),
        ("items", "title", pd.Categorical(["One", None, "One"]), ["One", "", "One"]),
        ("items", "maker", [7, None, 12], ["7", "", "12"]),
        ("items", "maker", [7.5, None, 12.0], ["7.5", "", "12.0"]),
        ("items", "year", [1990, None, 2010], [1990.0, NAN, 2010.0]),
        ("items", "year", [1990, 0, 2010], [1990.0, NAN, 2010.0]),
        ("items", "year", pd.array([1990, None, 2010], "Int64"), [1990.0, NAN, 2010.0]),
        ("items", "released", [5, None, -9], [5.0, NAN, -9.0]),
        ("items", "released", pd.to_datetime(["1970-01-02T00", None, "1969-12-31T23"]),
         [86400.0, NAN, -3600.0]),
        ("items", "genres", [["War", None, ""], None, ("A",)], [("War",), (), ("A",)]),
        ("items", "genres", [(np.str_("War"),), (), ()], [("War",), (), ()]),
        ("items", "genres", [{"b", "a"}, NAN, [1234567]], [("a", "b"), (), ("1234567",)]),
        ("items", "sound", [None, [1, 2], [None, 2.5]], [[NAN, NAN], [1.0, 2.0], [NAN, 2.5]]),
        ("items", "tags", [None, ["x", NAN], []], [(), ("x",), ()]),
        ("items", "stars", pd.array([1, None, 3], "Int64"), [1.0, NAN, 3.0]),
        ("items", "stars", [1, 2, 3], [1, 2, 3]),
        ("items", "barcode", pd.array([2**60 + 1, None, 5], "Int64"), [str(2**60 + 1), "", "5"]),
        ("items", "is_new", pd.array([True, None, False], "boolean"), ["true", "", "false"]),
        ("items", "note", [None, None, None], ["", "", ""]),
        ("users", "age", [25.0, None, 31.0], ["25", "", "31"]),
        ("users", "is_new", [True, False, None], ["true", "false", ""]),
        ("users", "since", [datetime.date(1970, 1, 2), None, None],
         ["1970-01-02T00:00:00Z", "", ""]),
        ("interactions", "event", ["click", None, NAN, ""], ["click", "", "", ""]),
        ("interactions", "rating", pd.array([1, None, 3, 4], "Int32"), [1.0, NAN, 3.0, 4.0]),
        ("interactions", "timestamp", [40.0, 10.0, 30.0, 10.0], [40, 10, 30, 10]),
    ],
)  # fmt: skip
def test_missing_has_one_form(table, column, given, form):
    before = pd.Series(given, name=column)
    found = make(**{table: {column: given}})
    values = getattr(found, table)[column]
    for value, expected in zip(values, form, strict=True):
        assert type(value) is type(expected) or isinstance(expected, list)
        np.testing.assert_array_equal(value, expected)
    if isinstance(form[0], list):
        assert values[0].dtype == np.float32
    # In its form already, it stays; and the series that was given is as it was.
    assert make(**{table: {column: form}}).fingerprint() == found.fingerprint()
    pd.testing.assert_series_equal(before, pd.Series(given, name=column))


def test_two_columns_of_one_name():
    items = make().items
    twice = pd.concat([items, items[["year"]]], axis=1)
    with pytest.raises(ValueError, match=r"items have two columns named 'year'"):
        dataclasses.replace(make(), items=twice)


def test_fingerprint_of_the_first_data():
    """Bundles hold fingerprints: those of data in which nothing was missing must not move."""
    expected = "8c62c424452286f5d862ff358257bc2cd7c65b17c40c21cf476f8a80f35dd4ed"
    assert make({"rating": np.float32([1, 2.5, NAN, 4])}).fingerprint() == expected


def test_fingerprint_of_numbers_is_of_their_values():
    whole = make(items={"stars": [1, 2, 3]}).fingerprint()
    assert make(items={"stars": [1.0, 2.0, 3.0]}).fingerprint() == whole
    assert make(items={"stars": np.int8([1, 2, 3])}).fingerprint() == whole
    assert make(items={"stars": [1.0, 2.0, NAN]}).fingerprint() != whole
    zero = make(items={"stars": [0.1, 0.0, NAN]}).fingerprint()
    assert make(items={"stars": [np.float32(0.1), -0.0, -NAN]}).fingerprint() == zero
    assert make(items={"stars": [0.1001, 0.0, NAN]}).fingerprint() != zero
    # A column of which nothing is known is not a column.
    assert make(items={"stars": [NAN] * 3, "maker": [""] * 3}).fingerprint() == make().fingerprint()


def test_positive():
    assert make().positive.tolist() == [True] * 4
    assert make({"event": ["", None, "click", "watch"]}).positive.tolist() == [True] * 4
    events = ["impression", "skip", "impression", "skip"]
    assert make({"event": events}).positive.tolist() == [False] * 4


@pytest.mark.parametrize(
    ("rows", "positive"),
    [
        # A log of likes and shares alone: the first one of each user and item counts.
        ("u a 1 like, u b 2 share, v a 3 like", [True, True, True]),
        ("u a 1 like, u a 2 share, u a 3 like", [True, False, False]),
        ("u a 3 like, u a 1 share", [False, True]),
        # An opinion of what was clicked or watched before is not a second target.
        ("u a 1 watch, u a 2 like, u b 3 like, v a 2 like", [True, False, True, True]),
        ("u a 1 click, u a 2 share", [True, False]),
        # In one second, as in one body, the order of the rows says nothing.
        ("u a 5 like, u a 5 watch", [False, True]),
        # A watch that comes later takes nothing back.
        ("u a 1 like, u a 2 watch", [True, True]),
        ("u a 1 skip, u a 2 impression, u a 3 like", [False, False, True]),
    ],
)
def test_a_like_or_share_is_positive_where_nothing_came_before_it(rows, positive):
    users, items, times, events = zip(*(row.split() for row in rows.split(", ")))
    frame = pd.DataFrame({"user_id": users, "item_id": items, "timestamp": [*map(int, times)]})
    made = Dataset("made", frame.assign(event=events), make().items, make().users)
    assert made.positive.tolist() == positive
    # Rows that are not positives, and rows that come later, change nothing.
    kept = frame.assign(event=events)[made.positive]
    assert Dataset("made", kept, make().items, make().users).positive.all()
    early = frame.assign(event=events)[made.timestamps <= 1]
    alone = Dataset("made", early, make().items, make().users).positive
    assert alone.tolist() == made.positive[made.timestamps <= 1].tolist()


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
