"""Genres as numbers and as text: the names that they give, and what gives none."""

import decimal

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import films, plays

from twotower.data import tables


def items_of(folder, **columns):
    pq.write_table(plays(), folder / "plays.parquet")
    pq.write_table(pa.table({"item_id": ["a", "b", "c"], **columns}), folder / "films.parquet")
    return tables.read_tables(folder / "plays.parquet", folder / "films.parquet").items


@pytest.mark.parametrize(
    ("values", "genres"),
    [
        (pa.array([1, None, 3]), [("1",), (), ("3",)]),
        (pa.array([2**53 + 1, 0, 3], pa.uint64()), [("9007199254740993",), ("0",), ("3",)]),
        (pa.array([1.0, None, 3.0]), [("1",), (), ("3",)]),  # whole, with a gap, by pandas
        (pa.array([1, None, 3], pa.int8()).dictionary_encode(), [("1",), (), ("3",)]),
        (pa.array([decimal.Decimal("1.00"), None, decimal.Decimal(3)]), [("1",), (), ("3",)]),
        (pa.nulls(3), [(), (), ()]),
    ],
)
def test_genres_that_are_plain_numbers(values, genres, tmp_path):
    """As a text file gives them: each number is the name of a genre."""
    assert items_of(tmp_path, genres=values)["genres"].tolist() == genres
    texts = ["" if value is None else str(value) for value in values.to_pylist()]
    (tmp_path / "films.csv").write_text(
        "item_id,genres\n" + "".join(f"{i},{t}\n" for i, t in zip("abc", texts, strict=True))
    )
    if values.type != pa.decimal128(3, 2):
        found = tables.read_tables(tmp_path / "plays.parquet", tmp_path / "films.csv").items
        assert found["genres"].tolist() == genres


@pytest.mark.parametrize(
    "values",
    [
        pa.array([None, 1, 2], pa.date32()),
        pa.array([None, 1, 2], pa.timestamp("s")),
        pa.array([None, True, False]),
        pa.array([None, 1.5, 2.0]),
    ],
)
def test_genres_that_are_no_names(values, tmp_path):
    with pytest.raises(ValueError, match=r"films.parquet, row 1: genres is .*, not a list"):
        items_of(tmp_path, genres=values)


@pytest.mark.parametrize(
    ("texts", "genres"),
    [
        (["Action|Drama", "War"], [("Action", "Drama"), ("War",)]),
        (["Action, Drama", "War"], [("Action", "Drama"), ("War",)]),
        (["Action;Sci, Fi", "War"], [("Action", "Sci, Fi"), ("War",)]),
        (["Sci, Fi", "War|Drama"], [("Sci, Fi",), ("War", "Drama")]),
        (["['Action', 'Drama']", "[]"], [("Action", "Drama"), ()]),
        (["('Action', 'Drama')", "()"], [("Action", "Drama"), ()]),
        (["set()", "{'Action'}"], [(), ("Action",)]),  # as Python writes sets
        (["{'Action'}", "('War',)"], [("Action",), ("War",)]),
        (['["Action", null, "\\u00e9"]', '["Children\'s"]'], [("Action", "é"), ("Children's",)]),
        (["['Action', None, \"Children's\"]", ""], [("Action", "Children's"), ()]),
        (["[28, 12]", " War "], [("28", "12"), ("War",)]),
        (["|War||", "(none)"], [("War",), ("(none)",)]),
        (["None", "nan"], [(), ()]),
        (["NULL", "Drama, N/A"], [(), ("Drama", "N/A")]),
        (["[np.int64(1), np.int64(2)]", "[np.str_('A, b')]"], [("1", "2"), ("A, b",)]),
        (["(1, 2)", "(9007199254740993,)"], [("1", "2"), ("9007199254740993",)]),
    ],
)
def test_genres_written_as_text(tmp_path, texts, genres):
    assert films(tmp_path, "genres", texts).tolist() == genres
