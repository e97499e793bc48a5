"""Own files: what each column becomes, and every refused value."""

import datetime

import numpy as np
import pandas as pd
import pytest
from small_tables import NEW_YEAR

from twotower.data import tables


@pytest.fixture
def csv_files(tmp_path):
    """Three CSV files with what people really write."""
    (tmp_path / "plays.csv").write_text(
        "user_id,item_id,timestamp,rating,event,note\n"
        "007,5,2024-01-01,4.5,watch,12\n"
        "7,05,2024-01-01T01:00:00+01:00,,,x\n"
        "7,5,2024-01-01 00:00:10,NaN,impression,\n",
        "utf-8",
    )
    (tmp_path / "films.csv").write_text(
        "item_id,title,genres,year,released,stars\n"
        '5,"Café, the",Drama|War,1999,1990-01-01,2.5\n'
        "05,NA,,,0,\n",
        "utf-8",
    )
    (tmp_path / "people.csv").write_text("user_id,age,zip\n7,25,01234\n007,,NA\n", "utf-8")
    return [tmp_path / name for name in ("plays.csv", "films.csv", "people.csv")]


def test_csv(csv_files):
    dataset = tables.read_tables(*csv_files)
    assert dataset.name == "tables/plays"
    frame = dataset.interactions
    # Midnight of the new year, the same moment in Paris, and ten seconds later.
    assert frame["timestamp"].tolist() == [NEW_YEAR, NEW_YEAR, NEW_YEAR + 10]
    assert frame["timestamp"].dtype == np.int64
    assert frame["user_id"].tolist() == ["007", "7", "7"]
    assert frame["item_id"].tolist() == ["5", "05", "5"]
    np.testing.assert_array_equal(frame["rating"], np.float32([4.5, np.nan, np.nan]))
    assert frame["rating"].dtype == np.float32
    assert frame["event"].tolist() == ["watch", "", "impression"]
    assert dataset.positive.tolist() == [True, True, False]
    assert frame["note"].tolist() == ["12", "x", ""]  # not all numbers, so none is
    items = dataset.items
    assert items["title"].tolist() == ["Café, the", "NA"]
    assert items["genres"].tolist() == [("Drama", "War"), ()]
    np.testing.assert_array_equal(items["year"], [1999, np.nan])
    # 20 years with 5 leap days.
    assert items["released"].tolist() == [(20 * 365 + 5) * 86_400, 0]
    np.testing.assert_array_equal(items["stars"], [2.5, np.nan])
    assert dataset.users.to_dict("list") == {
        "user_id": ["7", "007"],
        "age": ["25", ""],
        "zip": ["01234", "NA"],
    }


def test_without_items_and_users_they_are_known_by_id(csv_files):
    dataset = tables.read_tables(csv_files[0], name="mine")
    assert dataset.name == "mine"
    assert dataset.items.to_dict("list") == {"item_id": ["5", "05"], "title": ["5", "05"]}
    assert dataset.users.to_dict("list") == {"user_id": ["007", "7"]}


def test_typed_columns_of_users_in_csv_and_parquet(tmp_path):
    """pandas writes whole numbers with a gap as floats: 25.0 means 25. Dates have no time."""
    people = pd.DataFrame(
        {
            "user_id": ["u", "v", "w"],
            "age": [25, None, 7],
            "height": [1.5, None, 2],
            "born": [datetime.date(1980, 1, 1), None, datetime.date(1600, 2, 29)],
            "postcode": [1234, 99, 12000],
        }
    )
    (tmp_path / "plays.csv").write_text("user_id,item_id,timestamp\nu,a,5\n")
    people.to_csv(tmp_path / "people.csv", index=False)
    people.to_parquet(tmp_path / "people.parquet")
    for name in ("people.csv", "people.parquet"):
        assert tables.read_tables(tmp_path / "plays.csv", users=tmp_path / name).users.to_dict(
            "list"
        ) == {
            "user_id": ["u", "v", "w"],
            "age": ["25", "", "7"],
            "height": ["1.5", "", "2.0"],
            "born": ["1980-01-01", "", "1600-02-29"],
            "postcode": ["1234", "99", "12000"],
        }


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("timestamp", "yesterday", "timestamp is 'yesterday', not whole seconds .*ISO"),
        ("timestamp", "", "timestamp is missing"),
        ("timestamp", "1704067200000", "timestamp is 1704067200000.0.*milliseconds"),
        ("timestamp", "1704067200.5", "timestamp is 1704067200.5, not whole seconds"),
        ("timestamp", "-9223372036854775808", "timestamp is -9.2.*e.18, before 1970"),
        ("timestamp", "-1", "timestamp is -1.0, before 1970"),
        ("rating", "good", "rating is 'good', not a number"),
        ("rating", "inf", "rating is inf; numbers must be finite"),
        ("rating", "1e39", "rating is 1e.39; numbers must be finite"),
        ("rating", "4,5", "rating is '4,5', not a number"),
        ("value", "-Infinity", "value is -inf; numbers must be finite"),
        ("user_id", "", "user_id is missing"),
        ("event", "bought", "event is 'bought', not one of"),
    ],
)
def test_refused_values(tmp_path, column, value, message):
    frame = pd.DataFrame(
        {
            "user_id": ["u", "u"],
            "item_id": "i",
            "timestamp": "5",
            "rating": "1",
            "value": "",
            "event": "",
            "search_text": ["two\nlines", ""],
        }
    )
    frame.loc[1, column] = value
    frame.to_csv(tmp_path / "plays.csv", index=False)
    frame.to_parquet(tmp_path / "plays.parquet")
    # The header, then a record of two lines, then the wrong one.
    for name, where in (("plays.csv", "line 4"), ("plays.parquet", "row 1")):
        with pytest.raises(ValueError, match=f"{name}, {where}: {message}"):
            tables.read_tables(tmp_path / name)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"item_id": [1.0, np.nan]}, "row 1: item_id is missing"),
        ({"item_id": [1.0, 2.0]}, "films.parquet: item_id holds double such as 1.0"),
        ({"item_id": ["a", "a"]}, "row 1: item_id is 'a', which stands in an earlier row"),
        (
            {"item_id": ["a", "b"], "image": [[1.0], [1.0, 2.0]]},
            "row 1: image .*a vector of length 1",
        ),
        ({"item_id": ["a", "b"], "image": [[1.0], [np.inf]]}, "row 1: image .*must be finite"),
        ({"item_id": ["a", "b"], "year": ["1990", "new"]}, "row 1: year is 'new', not a number"),
        ({"item_id": ["a", "b"], "year": [1990, 1e30]}, "row 1: year is 1e.30, not a year"),
        ({"item_id": ["a", "b"], "year": [1990, 1990.5]}, "row 1: year is 1990.5, not a year"),
        ({"item_id": ["a", "b"], "year": [1990, np.inf]}, "row 1: year is inf; numbers must be f"),
        ({"item_id": ["a", "b"], "stars": [np.inf, 1]}, "row 0: stars is inf; numbers must be f"),
        ({"item_id": ["a", "b"], "released": [5, -(2**63)]}, "row 1: released is -9.*seconds"),
        (
            {"item_id": ["a", "b"], "released": [20110820, 1995]},
            "row 0: released is 20110820.*date",
        ),
        ({"item_id": ["a", "b"], "maker": [{"name": "x"}, None]}, "maker is of the type struct"),
        ({"id": ["a", "b"]}, r"lacks \['item_id'\]; it has \['id'\]. Say which"),
    ],
)
def test_refused_items(tmp_path, columns, message):
    pd.DataFrame(columns).to_parquet(tmp_path / "films.parquet")
    (tmp_path / "plays.csv").write_text("user_id,item_id,timestamp\nu,a,5\n")
    with pytest.raises(ValueError, match=message):
        tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.parquet")


def test_items_and_users_that_the_tables_lack(csv_files):
    csv_files[1].write_text("item_id,title,year\n5,Five,1999\n")
    csv_files[2].write_text("user_id,age\n7,25\n8,30\n")
    dataset = tables.read_tables(*csv_files)
    assert dataset.items["title"].tolist() == ["Five", "05"]
    np.testing.assert_array_equal(dataset.items["year"], [1999, np.nan])
    assert dataset.users.to_dict("list") == {"user_id": ["7", "8", "007"], "age": ["25", "30", ""]}
    assert dataset.notes == (
        "1 of 2 items of the interactions have no row in their table, such as '05'",
        "1 of 2 users of the interactions have no row in their table, such as '007'",
    )


@pytest.mark.parametrize("name", ["plays.parquet", "plays.csv"])
def test_files_that_are_missing_empty_or_cut(tmp_path, name):
    path = tmp_path / name
    with pytest.raises(FileNotFoundError, match=f"no file .*{name}'"):
        tables.read_tables(path)
    path.write_bytes(b"")
    with pytest.raises(ValueError, match=f"{name} cannot be read"):
        tables.read_tables(path)
    frame = pd.DataFrame({"user_id": ["ü"], "item_id": ["i"], "timestamp": [5]})
    if name.endswith("csv"):
        path.write_bytes(frame.to_csv(index=False).encode("latin-1"))
        message = f"{name}, line 2 is not text in UTF-8"
    else:
        frame.to_parquet(path)
        path.write_bytes(path.read_bytes()[:-10])
        message = f"{name} cannot be read as Parquet"
    with pytest.raises(ValueError, match=message):
        tables.read_tables(path)


def test_a_home_is_expanded_and_an_address_is_refused(csv_files, tmp_path, monkeypatch):
    home = tmp_path / "home"
    home.mkdir()
    monkeypatch.setenv("HOME", str(home))
    monkeypatch.chdir(home)
    dataset = tables.read_tables(*csv_files)
    tables.save(dataset, "~/d")
    assert [path.name for path in home.iterdir()] == ["d"]
    assert tables.read_tables("~/d").fingerprint() == dataset.fingerprint()
    for call in (lambda path: tables.save(dataset, path), tables.read_tables):
        with pytest.raises(ValueError, match="is an address"):
            call("s3://bucket/d")
    assert [path.name for path in home.iterdir()] == ["d"]
