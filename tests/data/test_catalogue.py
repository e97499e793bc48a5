"""Catalogue: keys, conditions, and items behind the first ones."""

import datetime
import decimal

import numpy as np
import pandas as pd
import pytest
from test_dataset import NAN, make

from twotower.data.catalogue import Catalogue


def test_catalogue_keys_and_ids():
    catalogue = make().catalogue
    assert len(catalogue) == 3
    assert catalogue.keys.tolist() == [0, 1, 2]
    assert catalogue.keys_of([["c", "x"], ["", "a"]]).tolist() == [[2, -1], [-1, 0]]
    assert catalogue.ids_of(np.array([[2, -1], [0, 1]])).tolist() == [["c", ""], ["a", "b"]]
    assert catalogue.keys_of([]).shape == catalogue.ids_of([]).shape == (0,)


def test_unknown_ids_are_named_beside_one_that_is_known():
    """A number is no id, and a spreadsheet makes 7 of "07"."""
    catalogue = Catalogue(pd.DataFrame({"item_id": ["07", "8"]}))
    for given in (8, "7"):
        with pytest.raises(ValueError, match=rf"items \[{given!r}\] .*ids are texts such as '07'"):
            catalogue.require_keys([given])


@pytest.mark.parametrize("keys", [np.array([True, False, True]), np.array([1.7]), ["1"]])
def test_keys_are_integers(keys):
    """A mask of all items would be taken for the keys 0 and 1."""
    with pytest.raises(ValueError, match="keys must be integers; got"):
        make().catalogue.ids_of(keys)


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


@pytest.mark.parametrize("missing", [None, NAN, 0, pd.NA])
def test_a_missing_number_lies_in_no_range(missing):
    catalogue = make(items={"year": [1990, missing, 2010], "stars": [1.5, None, 2]}).catalogue
    assert catalogue.where(year=(None, 2000)).tolist() == [0]
    assert catalogue.where(year=(-5000, None)).tolist() == [0, 2]
    assert catalogue.where(year=(None, None)).tolist() == [0, 2]
    assert catalogue.where(stars=(None, 1.7)).tolist() == [0]
    assert catalogue.where(year=[1990, 0]).tolist() == catalogue.where(year=1990).tolist() == [0]


def test_where_of_tags_and_text():
    catalogue = make(items={"tags": [["x", "y"], None, ["z"]]}).catalogue
    assert catalogue.where(tags="x").tolist() == [0]
    assert catalogue.where(tags=["y", "z"]).tolist() == [0, 2]
    with pytest.raises(ValueError, match=r"title holds no numbers, so .* cannot be a range"):
        catalogue.where(title=("A", "M"))


def test_where_of_an_unknown_column():
    with pytest.raises(ValueError, match="no column 'maker'"):
        make().catalogue.where(maker="x")


def test_extend_keeps_keys():
    catalogue = make().catalogue.extend(pd.DataFrame({"item_id": ["z"], "title": ["New"]}))
    assert catalogue.keys_of(["a", "c", "z"]).tolist() == [0, 2, 3]
    # The new item tells neither year nor genres: it matches no condition on them.
    assert catalogue.where(genres="Drama").tolist() == [0, 2]
    assert catalogue.where(year=(None, 2005)).tolist() == [0, 1]
    # What it does not tell has the form of what is missing.
    assert catalogue.items["genres"][3] == () and np.isnan(catalogue.items["year"][3])
    with pytest.raises(ValueError, match="row 3: item_id is 'a', which stands in an earlier row"):
        make().catalogue.extend(pd.DataFrame({"item_id": ["a"]}))


MIXED = {
    "active": [True, None, False],
    "code": pd.array([2**60, None, 7], "Int64"),
    "width": [7.5, None, 12.0],
    "premiere": pd.to_datetime(["2011-01-01", None, "2012-01-01"]),
    "released": pd.to_datetime(["2011-01-01", None, "2012-01-01"]),
    "maker": [7, None, 12],
    "ranks": [["1"], None, ["3"]],
    "sound": [[1.0, 2.0], None, [3.0, 4.0]],
    "note": [None, None, None],
}


@pytest.mark.parametrize(
    ("conditions", "keys"),
    [
        ({"active": True}, [0]),
        ({"active": np.bool_(False)}, [2]),
        ({"active": [True, False]}, [0, 2]),
        ({"active": "true"}, [0]),
        ({"code": 2**60}, [0]),
        ({"code": [np.int64(7), str(2**60)]}, [0, 2]),
        ({"code": 7.0}, [2]),
        ({"maker": {7, 13}}, [0]),
        ({"width": decimal.Decimal("7.5")}, [0]),
        ({"width": (decimal.Decimal(8), np.inf)}, [2]),
        ({"released": pd.Timestamp("2011-01-01")}, [0]),
        ({"released": datetime.date(2012, 1, 1)}, [2]),
        ({"released": [np.datetime64("2011-01-01"), 1325376000]}, [0, 2]),
        ({"released": (pd.Timestamp("2011-06-01"), None)}, [2]),
        ({"released": (None, datetime.datetime(2011, 6, 1))}, [0]),
        ({"premiere": pd.Timestamp("2012-01-01", tz="UTC")}, [2]),
        ({"year": range(1985, 1995)}, [0]),
        ({"year": np.array([1990, 2010])}, [0, 2]),
        ({"year": pd.Series([2010], [7])}, [2]),
        ({"year": 10**30}, []),
        ({"ranks": 3}, [2]),
        ({"title": ""}, []),
        ({"note": 5}, []),
    ],
)
def test_where_takes_what_the_column_was_made_of(conditions, keys):
    assert make(items=MIXED).catalogue.where(**conditions).tolist() == keys


@pytest.mark.parametrize(
    ("conditions", "message"),
    [
        ({"year": "1999"}, "year holds numbers; got '1999', which is none"),
        ({"year": [1990, "1999"]}, "year holds numbers; got '1999', which is none"),
        ({"year": True}, "year holds numbers; got True"),
        ({"year": None}, "year is compared with None"),
        ({"year": [NAN]}, "year is compared with nan"),
        ({"title": None}, "title is compared with None"),
        ({"year": (2000,)}, r"year.*\(2000,\) is no range.*\(low, high\)"),
        ({"year": (1, 2, 3)}, r"year.*\(1, 2, 3\) is no range"),
        ({"year": ("1990", None)}, "year holds numbers; got '1990'"),
        ({"year": (NAN, None)}, "year is compared with nan"),
        ({"year": [[1990]]}, r"year holds numbers; got \[1990\]"),
        ({"released": "2011-01-01"}, "released holds numbers; got '2011-01-01'.*pd.Timestamp"),
        ({"genres": 5}, "genres holds text such as 'War'; got 5"),
        ({"genres": None}, "genres is compared with None"),
        ({"genres": ["War", 5]}, "genres holds text such as 'War'; got 5"),
        ({"title": 5}, "title holds text such as 'One'; got 5"),
        ({"title": [True]}, "title holds text such as 'One'; got True"),
        ({"title": b"One"}, "title holds text such as 'One'; got b'One'"),
        ({"active": 1}, "active holds text such as 'true'; got 1"),
        ({"code": b"7"}, "code holds text such as '1152921504606846976'; got b'7'"),
        ({"title": pd.Timestamp("2011-01-01")}, "title holds text such as 'One'; got Timestamp"),
        ({"sound": [1.0, 2.0]}, "sound holds vectors, which no condition"),
    ],
)
def test_where_refuses_other_types(conditions, message):
    with pytest.raises(ValueError, match=message):
        make(items=MIXED).catalogue.where(**conditions)


def test_where_of_no_items():
    assert Catalogue(make().items[:0]).where(title="x", year=(None, 2000)).tolist() == []


def test_extend_takes_what_the_columns_were_made_of():
    new = {"item_id": ["d", "e"], "active": [False, None], "code": [5, 2**61], "maker": [9, None]}
    new |= {"released": pd.to_datetime(["2020-01-01", None]), "ranks": [[7], None]}
    new |= {"premiere": pd.to_datetime(["2020-01-01", None]), "sound": [[5, 6], None]}
    new |= {"note": [1.5, None], "width": [None, decimal.Decimal("2.5")], "year": [2020, 0]}
    found = make(items=MIXED).catalogue.extend(pd.DataFrame(new))
    rows = found.items.iloc[3:].to_dict("list")
    expected = {"active": ["false", ""], "code": ["5", str(2**61)], "maker": ["9", ""]}
    expected |= {"released": [1577836800, NAN], "premiere": [1577836800, NAN]}
    expected |= {"ranks": [("7",), ()], "sound": [[5, 6], [NAN, NAN]], "year": [2020, NAN]}
    expected |= {"note": [1.5, NAN], "width": [NAN, 2.5], "title": ["", ""]}
    for column, values in expected.items():
        for value, wanted in zip(rows[column], values, strict=True):
            np.testing.assert_array_equal(value, wanted, err_msg=column)
    assert found.keys_of(["d", "e"]).tolist() == found.where(item_id=["d", "e"]).tolist() == [3, 4]


@pytest.mark.parametrize("how", ["extend", "updated"])
def test_further_items_give_the_table_that_all_items_would(how):
    """Columns of texts and tags are not cleaned anew; those that only one of the tables has are."""
    new = {"item_id": ["c" if how == "updated" else "d", "e"], "title": ["Three", None]}
    new |= {"genres": [["War", ""], None], "year": [2011, 2012], "labels": [["x"], None]}
    catalogue = make(items=MIXED | {"year": [1990, 1991, None]}).catalogue
    found = getattr(catalogue, how)(pd.DataFrame(new))
    pd.testing.assert_frame_equal(found.items, Catalogue(found.items).items)
    # An item without a year is replaced, and then no year is missing.
    assert found.items["year"].dtype == ("int64" if how == "updated" else "float64")
    assert found.items["genres"].iloc[-2:].tolist() == [("War",), ()]
    assert found.keys_of(new["item_id"]).tolist() == ([2, 3] if how == "updated" else [3, 4])


@pytest.mark.parametrize(
    ("new", "message"),
    [
        ({"item_id": [7]}, "items, row 0: item_id is 7, not a string"),
        ({"item_id": ["d", None]}, "items, row 1: item_id is .*, not a string"),
        ({"item_id": [""]}, "items, row 0: item_id is empty"),
        ({"item_id": ["d", "d"]}, "items, row 1: item_id is 'd', which stands in an earlier row"),
        ({"title": ["x"]}, r"lack 'item_id'; they have \['title'\]"),
        ({"item_id": ["d"], "year": ["2020"]}, "items, row 0: year is '2020', not a number"),
        ({"item_id": ["d"], "year": [1j]}, "items, row 0: year is 1j, not a number"),
        ({"item_id": ["d"], "width": ["wide"]}, "items, row 0: width is 'wide', not a number"),
        ({"item_id": ["d"], "width": [True]}, "items, row 0: width is True, not a number"),
        ({"item_id": ["d"], "width": [2**60]}, r"row 0: width is 1152921504606846976, .*2\*\*53"),
        ({"item_id": ["d"], "title": [["x"]]}, r"items, row 0: title is \['x'\], not text"),
        ({"item_id": ["d"], "genres": ["War"]}, "items, row 0: genres is 'War', not a list"),
        ({"item_id": ["d"], "sound": [[1.0]]}, "sound is array.*, not a vector of length 2"),
        ({"item_id": ["d"], 5: [1]}, "items have a column named 5, which is no text"),
    ],
)
def test_extend_refuses(new, message):
    with pytest.raises(ValueError, match=message):
        make(items=MIXED).catalogue.extend(pd.DataFrame(new))


def test_a_catalogue_checks_its_ids():
    with pytest.raises(ValueError, match="items, row 1: item_id is 7, not a string"):
        Catalogue(pd.DataFrame({"item_id": ["a", 7]}))
    with pytest.raises(ValueError, match="items have a column named 5, which is no text"):
        make(items={5: [1, 2, 3]})
