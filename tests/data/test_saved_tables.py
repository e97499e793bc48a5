"""Tables that are saved: the round trip through Parquet keeps the fingerprint."""

import numpy as np
import pandas as pd
import pytest

from twotower.data import movielens, tables
from twotower.data.dataset import Dataset


def test_round_trip_keeps_the_fingerprint(tmp_path):
    vectors = np.random.default_rng(0).normal(size=(3, 16)).astype(np.float32)
    dataset = Dataset(
        "made",
        pd.DataFrame(
            {
                "user_id": ["u", "v", "u"],
                "item_id": ["b", "a", "a"],
                "timestamp": np.int64([9, 3, 9]),
                "rating": np.float32([1, np.nan, 2.5]),
                "event": ["watch", "", "skip"],
                "search_text": ["é", "", "NA"],
            }
        ),
        pd.DataFrame(
            {
                "item_id": ["a", "b", "c"],
                "genres": [("x", "y"), (), ("x",)],
                "year": np.int64([1990, 0, 5]),
                "score": [0.1, np.nan, 3.0],
                "audio": list(vectors),
            }
        ),
        pd.DataFrame({"user_id": ["u", "v"], "zip": ["01", ""]}),
    )
    tables.save(dataset, tmp_path / "new" / "folder")
    loaded = tables.read_tables(tmp_path / "new" / "folder")
    assert loaded.fingerprint() == dataset.fingerprint()
    assert loaded.items["genres"].tolist() == [("x", "y"), (), ("x",)]
    np.testing.assert_array_equal(np.stack(loaded.items["audio"]), vectors)
    assert loaded.interactions["item_id"].tolist() == ["b", "a", "a"]
    with pytest.raises(ValueError, match="brings its own"):
        tables.read_tables(tmp_path / "new" / "folder", items=tmp_path / "items.csv")


@pytest.mark.parametrize("choice", [{}, {"min_rating": 4}, {"events": "click=1"}])
def test_data_without_times_have_none_when_they_are_read_again(tmp_path, choice):
    """Row numbers would be read as seconds in 1970, which a +time protocol accepts."""
    rows = "a,x,5,click\nb,y,1,skip\na,y,4,click\nb,x,5,click\n"
    (tmp_path / "log.csv").write_text("user_id,item_id,rating,event\n" + rows)
    dataset = tables.read_tables(tmp_path / "log.csv", **choice)
    tables.save(dataset, tmp_path / "saved")
    loaded = tables.read_tables(tmp_path / "saved")
    assert not dataset.has_times and not loaded.has_times
    assert loaded.fingerprint() == dataset.fingerprint()
    assert loaded.timestamps.tolist() == [0, 1, 2, 3][: len(dataset.interactions)]


def test_without_times_the_rows_are_in_their_order():
    rows = pd.DataFrame({"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "timestamp": [3, 3, 9]})
    items, users = pd.DataFrame({"item_id": ["a", "b"]}), pd.DataFrame({"user_id": ["u"]})
    dataset = Dataset("made", rows, items, users, has_times=False)
    assert dataset.timestamps.tolist() == [0, 1, 2]
    with pytest.raises(ValueError, match=r"interactions, row 1: timestamp is 3, less than .* row"):
        Dataset("made", rows[::-1], items, users, has_times=False)


def test_round_trip_of_movielens(small_100k_dir, tmp_path):
    with pytest.warns(UserWarning):
        dataset = movielens.load("movielens/100k", small_100k_dir)
    tables.save(dataset, tmp_path / "saved")
    assert tables.read_tables(tmp_path / "saved").fingerprint() == dataset.fingerprint()
