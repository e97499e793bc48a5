"""Columns of text: the kinds that they become, and what is refused."""

import numpy as np
import pandas as pd
import pytest
from small_tables import NAN, films, write

from twotower.data import tables
from twotower.data.summary import summarise


@pytest.mark.parametrize(
    ("column", "texts", "message"),
    [
        ("genres", ["War", "[{'id': 1, 'name': 'War'}]"], "line 3: genres is .*give names alone"),
        *(
            ("genres", ["War", text], "line 3: genres is .*list.*as JSON")
            for text in (
                "['Children's', 'War']",
                "['a', 'b'",
                "['a', 'b' 'c']",
                "['a' b]",
                "['a' 'b']",
                "['a' 'b' ... 'y' 'z']",
                "{Action,Comedy}",
                "[a,, b]",
                "[1,5 2,5]",
                "[datetime.date(2011, 8, 20)]",
                "[Decimal('1.5')]",
                "[a]|[b]",
                "deque(['a'])",
                "[a;b]",
                "{Action,Comedy",
                '{"a": 1}',
                "[" * 3000 + "]" * 3000,
            )
        ),
        ("genres", ["War", "[['a'], ['b']]"], "line 3: genres is .*list"),
        ("genres", ["War", '[["a"], ["b"]]'], "line 3: genres is .*not a list of text"),
        ("genres", ["War", "[b'a']"], "line 3: genres is .*not a list of text"),
        ("audio", ["[1. 2.]", "[0.5 1. ... 3.]"], "line 3: audio is .*as JSON"),
        *(
            ("audio", ["[1.0, 2.0]", text], "line 3: audio is .*list.*as JSON")
            for text in (
                "[1,5 2,5]",
                "[1.0 --]",
                "[1,, 2]",
                "[1;2]",
                "[1.0, 2.0",
                "[1.0, x]",
                "[1.0 2.0, 3.0]",
                "[np.float64(1.0), np.float64(x)]",
            )
        ),
        ("audio", ["[[1, 2], [3, 4]]", "[[1, 2], [3, 4]]"], "line 2: audio .*not a list of num"),
        ("audio", ["[1.0, 2.0]", "['x', 'y']"], "line 3: audio is .*not a list of numbers"),
        ("audio", ["[1, 2]", "[1, 2, 3]"], "line 3: audio is .*of length 2"),
        ("stars", ["1", "inf"], "line 3: stars is inf; numbers must be finite"),
        *(
            ("released", ["2011-08-20", text], f"line 3: released is '{text}', not .*ISO 8601")
            for text in ("now", "today", " NOW ", "Today", "tomorrow", "10:30")
        ),
    ],
)
def test_refused_columns_of_text(tmp_path, column, texts, message):
    with pytest.raises(ValueError, match=f"films.csv, {message}"):
        films(tmp_path, column, texts)


@pytest.mark.parametrize(
    "texts",
    [
        ["[0.5, -2]", "[NaN, 1e3]"],
        ["[NaN, 1e3]", "[0.5, -2.]"],
        ["[nan 1.e+03]", "[ 0.5 -2. ]"],
        ["[np.float64(0.5), np.float64(-2.0)]", "[np.float64(nan), np.float64(1000.0)]"],
        ["[np.float32(0.5), numpy.int64(-2)]", "[None, 1000]"],
        ["[0.5, -2,]", "[null, 1000]"],
    ],
)
def test_vectors_written_as_text(tmp_path, texts):
    vectors = np.stack(films(tmp_path, "audio", texts))
    assert vectors.dtype == np.float32
    row = 0 if texts[0] == "[NaN, 1e3]" or texts[0].startswith("[nan") else 1
    np.testing.assert_array_equal(vectors[1 - row], [0.5, -2])
    np.testing.assert_array_equal(vectors[row], [NAN, 1000])


@pytest.mark.parametrize(
    ("column", "texts", "values"),
    [
        ("own", ["[1st edition]", "[2nd edition]"], ["[1st edition]", "[2nd edition]"]),
        ("own", ["[1] Smith", "[2] Jones"], ["[1] Smith", "[2] Jones"]),
        ("own", ["(1999)", "(2000)"], ["(1999)", "(2000)"]),
        ("own", ["(1,234)", "(5,678)"], ["(1,234)", "(5,678)"]),
        ("own", ["(555) 1234", "(555) 1235"], ["(555) 1234", "(555) 1235"]),
        ("own", ['{"a": 1}', '{"a": 2}'], ['{"a": 1}', '{"a": 2}']),
        ("own", ["[]", "['a', 'b{']"], [(), ("a", "b{")]),
        ("code", ["01234", "5"], ["01234", "5"]),  # a code: as a number it would lose its zero
        ("code", ["0.5", "0"], [0.5, 0.0]),
        ("code", ["12", "x"], ["12", "x"]),
        ("code", ["9223372036854775807", "1"], ["9223372036854775807", "1"]),
        ("code", ["True", "FALSE"], ["true", "false"]),
        ("code", ["2024-01-01", "n/a"], [1704067200.0, NAN]),
        ("code", ["2024-01-01", "2024-13-01"], ["2024-01-01", "2024-13-01"]),
        ("code", ["NA", ""], ["NA", ""]),
        ("code", ["[deleted]", "[x]"], ["[deleted]", "[x]"]),
        ("maker", ["25.0", ""], ["25", ""]),  # as pandas writes whole numbers with a gap
        ("title", ["25.0", "true"], ["25.0", "true"]),
        # Beside dates, a year is a year and not a second of 1970.
        ("released", ["1995", "2011-08-20"], [788918400, 1313798400]),
        ("released", ["20110820", "2011-08"], [1313798400, 1312156800]),
        ("released", ["NaT", "0"], [NAN, 0.0]),
        ("year", ["1999.0", "None"], [1999.0, NAN]),
        ("year", [" +1999 ", "0"], [1999.0, NAN]),
    ],
)
def test_kinds_of_text_columns(tmp_path, column, texts, values):
    found = films(tmp_path, column, texts).tolist()
    assert [type(value) for value in found] == [type(value) for value in values]
    for value, expected in zip(found, values, strict=True):
        np.testing.assert_array_equal(value, expected)


@pytest.mark.parametrize(
    "texts",
    [
        ["1.1", "1.10", "2"],
        ["1.0", "2.0", "10.0"],
        ["1e3", "1000", "1E3"],
        ["+491", "491", "0491"],
        ["True", "true", "False"],
        ["1980-01-01", "1980-01-01T00:00:00", "1980-01-01 00:00"],
        ["[1]", "['1']", "[1, 2]"],
        [" 5 ", "5", "NA"],
        ["inf", "nan", "None"],
    ],
)
def test_columns_of_text_are_as_written(tmp_path, texts):
    """What users are known by, device, country and maker: no two texts become one."""
    plays = {"user_id": ["u", "v", "w"], "item_id": ["a", "b", "c"], "timestamp": [5, 6, 7]}
    frames = {
        "plays": pd.DataFrame({**plays, "device": texts, "country": texts}),
        "films": pd.DataFrame({"item_id": plays["item_id"], "maker": texts}),
        "people": pd.DataFrame({"user_id": plays["user_id"], "app": texts, "born": texts}),
    }
    found = []
    for ending in ("csv", "parquet"):
        paths = [tmp_path / f"{name}.{ending}" for name in frames]
        for frame, path in zip(frames.values(), paths, strict=True):
            getattr(frame, f"to_{ending}")(path, index=False)
        found.append(tables.read_tables(*paths))
        assert found[-1].interactions[["device", "country"]].to_numpy().T.tolist() == [texts] * 2
        assert found[-1].items["maker"].tolist() == texts
        assert found[-1].users[["app", "born"]].to_numpy().T.tolist() == [texts] * 2
    assert found[0].fingerprint() == found[1].fingerprint()


def test_decimal_commas_are_refused(tmp_path):
    (tmp_path / "plays.csv").write_text("user_id;item_id;rating\nu;a;4\nu;b;4,5\n")
    with pytest.raises(ValueError, match=r"line 3: rating is '4,5', not a number .*4.5"):
        tables.read_tables(tmp_path / "plays.csv")
    (tmp_path / "plays.csv").write_text("user_id;item_id\nu;a\n")
    (tmp_path / "films.csv").write_text("item_id;price\na;4\nb;4,5\n")
    with pytest.raises(ValueError, match="line 3: price is '4,5', a number with a decimal comma"):
        tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.csv")
    (tmp_path / "films.csv").write_text("item_id;tags\na;4\nb;4,5\nc;4,5,6\n")  # no numbers
    dataset = tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.csv")
    assert dataset.items["tags"].tolist() == ["4", "4,5", "4,5,6"]


def test_bytes_as_python_writes_them(tmp_path):
    """As `tfds.as_dataframe(...).to_csv()` writes texts. A value that is none keeps its column."""
    plays = "user_id,item_id,timestamp\nb'u',b'a',5\nb'v',b'b',6\n"
    rows = [r"b'a',b'Am\xc3\xa9lie',b'x'", r"b'b',b'It\'s',x"]
    write(tmp_path, plays__csv=plays, films__csv="\n".join(["item_id,title,maker", *rows]))
    dataset = tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.csv")
    assert dataset.interactions["user_id"].tolist() == ["u", "v"]
    assert dataset.items["item_id"].tolist() == ["a", "b"]
    assert dataset.items["title"].tolist() == ["Amélie", "It's"]
    assert dataset.items["maker"].tolist() == ["b'x'", "x"]
    note = "items: decoded item_id, title, which the file has as Python's bytes"
    assert note in str(summarise(dataset))


def test_bytes_that_are_no_utf_8_stay_as_written(tmp_path):
    texts = [r"b'Am\xe9lie'", "b'x'"]
    assert films(tmp_path, "title", texts).tolist() == texts


def test_bytes_as_text_of_parquet(tmp_path):
    """As `frame.astype(str).to_parquet()` writes what `tfds.as_dataframe` gives."""
    plays = {"user_id": ["b'u'", "b'v'"], "item_id": ["b'a'", "b'b'"], "timestamp": [5, 6]}
    titles = {"item_id": ["a", "b"], "title": [r"b'Am\xc3\xa9lie'", "b'x'"]}
    for name, columns in (("plays", plays), ("films", titles)):
        pd.DataFrame(columns).to_parquet(tmp_path / f"{name}.parquet")
    dataset = tables.read_tables(tmp_path / "plays.parquet", tmp_path / "films.parquet")
    assert dataset.interactions["item_id"].tolist() == ["a", "b"]
    assert dataset.items["title"].tolist() == ["Amélie", "x"]
    assert "interactions: decoded user_id, item_id," in str(summarise(dataset))


@pytest.mark.parametrize("other", ["b'a'", 'b"a"', r"b'\xe9'"])
def test_ids_of_which_some_are_bytes(tmp_path, other):
    """Else the user would be two."""
    write(tmp_path, plays__csv=f"user_id,item_id,timestamp\na,x,5\n{other},x,6\n")
    with pytest.raises(ValueError, match=r"line 3: user_id is .* as Python writes bytes"):
        tables.read_tables(tmp_path / "plays.csv")
