"""Times of own data: their units, and those that are not seconds."""

import pandas as pd
import pytest
from small_tables import NEW_YEAR, write

from twotower.data import splits, tables
from twotower.data.summary import summarise


@pytest.mark.parametrize(
    ("unit", "texts"),
    [
        ("s", ["1704067200.9", "1704067201"]),
        ("ms", ["1704067200999", "1704067201000"]),
        ("us", ["1704067200999999", "1.704067201e15"]),
        ("ns", ["1704067200999000000", "1704067201000000000"]),
        ("dayfirst", ["1/1/2024", "01.01.2024 00:00:01"]),
        ("monthfirst", ["01-01-2024", "1/1/2024T00:00:01"]),
        ("%d %b %Y at %H.%M.%S", ["01 Jan 2024 at 00.00.00", "1 Jan 2024 at 00.00.01"]),
    ],
)
def test_units_of_times(tmp_path, unit, texts):
    frame = pd.DataFrame({"user_id": "u", "item_id": ["a", "b"], "day": texts})
    frame.to_csv(tmp_path / "r.csv", index=False)
    frame.to_parquet(tmp_path / "r.parquet")
    for name in ("r.csv", "r.parquet"):
        found = tables.read_tables(tmp_path / name, columns={"timestamp": f"day:{unit}"})
        expected = [NEW_YEAR, NEW_YEAR + (texts[1] != "01-01-2024")]
        assert found.interactions["timestamp"].tolist() == expected


def test_day_and_month_are_not_mixed_up(tmp_path):
    text = "user_id,item_id,timestamp\nu,a,2/3/2024\nu,b,13/3/2024\n"
    write(tmp_path, r__csv=text)
    found = tables.read_tables(tmp_path / "r.csv", columns="timestamp=timestamp:dayfirst")
    # Days of the year: 31 + 29 + 2 for 2 March, 11 more for the 13th; the first is day 0.
    days = (found.interactions["timestamp"] - NEW_YEAR) / 86_400
    assert days.tolist() == [61, 72]
    for unit, problem in (("monthfirst", "'13/3/2024'"), ("%Y-%m-%d", "'2/3/2024'")):
        with pytest.raises(ValueError, match=f"r.csv, line [23]: timestamp is {problem}, not"):
            tables.read_tables(tmp_path / "r.csv", columns=f"timestamp=timestamp:{unit}")
    with pytest.raises(ValueError, match=r"r.csv: timestamp has the format '%Q': 'Q' is a bad"):
        tables.read_tables(tmp_path / "r.csv", columns="timestamp=timestamp:%Q")
    with pytest.raises(ValueError, match=r"line 2: .*not a number of ms"):
        tables.read_tables(tmp_path / "r.csv", columns="timestamp=timestamp:ms")


def test_without_timestamps_the_order_counts(tmp_path):
    write(tmp_path, r__csv="user_id,item_id\n" + "u,a\nu,b\nv,b\nu,c\nv,a\nv,c\n")
    dataset = tables.read_tables(tmp_path / "r.csv")
    assert dataset.interactions["timestamp"].tolist() == [0, 1, 2, 3, 4, 5]
    assert not dataset.has_times
    summary = summarise(dataset)
    assert summary.first is None
    assert "no timestamps: the order of the rows stands for time" in str(summary)
    # The last row of u asks for c, that of v too.
    split = splits.make_split(dataset, "loo", "test")
    assert dataset.catalogue.ids_of(split.cases.targets.values).tolist() == ["c", "c"]
    with pytest.raises(ValueError, match=r"has no timestamps.* Take loo"):
        splits.make_split(dataset, "loo+time")


@pytest.mark.parametrize(
    ("value", "message"),
    [
        ("-1500", "timestamp is '-1500' ms, before 1970"),
        ("1" + 17 * "0", "timestamp is '1000+' ms, past the year 5138: is it written in a finer"),
    ],
)
def test_a_time_out_of_range_is_shown_as_the_file_has_it(tmp_path, value, message):
    write(tmp_path, r__csv=f"user_id,item_id,timestamp\nu,a,1500\nu,b,{value}\n")
    with pytest.raises(ValueError, match=rf"r.csv, line 3: {message}"):
        tables.read_tables(tmp_path / "r.csv", columns="timestamp=timestamp:ms")


@pytest.mark.parametrize("columns", [None, "timestamp=timestamp:ms"])
def test_times_that_a_spreadsheet_has_shortened(tmp_path, columns):
    write(tmp_path, r__csv="user_id,item_id,timestamp\nu,a,1.70407E+12\n")
    with pytest.raises(ValueError, match=r"line 2: timestamp is '1.70407E\+12', which a spreadsh"):
        tables.read_tables(tmp_path / "r.csv", columns=columns)


def test_times_that_all_lie_in_1970(tmp_path):
    """Such as days of a spreadsheet, or hours: the order is right, and ages are not."""
    write(tmp_path, r__csv="user_id,item_id,timestamp\nu,a,45292\nu,b,45293\n")
    note = "all times lie in 1970: if they are no seconds, say what they are"
    assert note in str(summarise(tables.read_tables(tmp_path / "r.csv")))
    write(tmp_path, r__csv=f"user_id,item_id,timestamp\nu,a,45292\nu,b,{NEW_YEAR}\n")
    assert note not in str(summarise(tables.read_tables(tmp_path / "r.csv")))


def test_release_times_that_all_lie_in_1970(tmp_path):
    """Days as 20082011 (20 August 2011) are not dates that are refused, since some are seconds."""
    write(tmp_path, r__csv=f"user_id,item_id,timestamp\nu,a,{NEW_YEAR}\nu,b,{NEW_YEAR}\n")
    note = "all times of released lie in 1970: if they are no seconds, say what they are"
    for first, is_noted in (("20082011", True), (str(NEW_YEAR), False), ("-5", False)):
        write(tmp_path, i__csv=f"item_id,released\na,{first}\nb,21081995\nc,\n")
        dataset = tables.read_tables(tmp_path / "r.csv", tmp_path / "i.csv")
        assert (note in str(summarise(dataset))) == is_noted
