"""One dataset, written by every kind of writer: the same fingerprint, or one clear error."""

import bz2
import csv
import decimal
import gzip
import io
import shutil
import uuid

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from twotower.data import files, tables
from twotower.data.dataset import Dataset

NAN = float("nan")
TIMES = [1704067200, 1704067209, 1704070800]
# The rows as plain Python, None where nothing is known.
ROWS = {
    "interactions": {
        "user_id": [7, 7, 12],
        "item_id": ["b", "a", "a"],
        "timestamp": TIMES,
        "rating": [4.1, None, 2.5],
        "event": ["watch", None, "skip"],
        "search_text": ["NA, é", None, 'a "b"\nc'],
        "session": ["s1", None, "x"],
    },
    "items": {
        "item_id": ["a", "b", "c"],
        "title": ["Café, the", None, "2001"],
        "genres": [["Drama", "Children's"], None, ["War"]],
        "year": [1999, None, -750],
        "released": [-86400, None, 946684800],
        "maker": [12, None, 7],
        "stars": [0.1, None, 3.25],
        "pages": [120, None, 99],
        "is_new": [True, None, False],
        "seen": [1500000000, None, 1500000001],
        "audio": [[0.5, -2.0], None, [1e-3, 3.0]],
        "tags": [["x, y", "z"], None, ["w"]],
        "nothing": [None, None, None],
    },
    "users": {"user_id": [12, 7], "age": [25, None], "zip": ["01234", None]},
}
EXPECTED = Dataset(
    "expected",
    pd.DataFrame(
        {
            "user_id": ["7", "7", "12"],
            "item_id": ["b", "a", "a"],
            "timestamp": np.int64(TIMES),
            "rating": np.float32([4.1, NAN, 2.5]),
            "event": ["watch", "", "skip"],
            "search_text": ["NA, é", "", 'a "b"\nc'],
            "session": ["s1", "", "x"],
        }
    ),
    pd.DataFrame(
        {
            "item_id": ["a", "b", "c"],
            "title": ["Café, the", "", "2001"],
            "genres": [("Drama", "Children's"), (), ("War",)],
            "year": [1999.0, NAN, -750.0],
            "released": [-86400.0, NAN, 946684800.0],
            "maker": ["12", "", "7"],
            "stars": [0.1, NAN, 3.25],
            "pages": [120, NAN, 99],
            "is_new": ["true", "", "false"],
            "seen": [1500000000.0, NAN, 1500000001.0],
            "audio": list(np.float32([[0.5, -2], [NAN, NAN], [1e-3, 3]])),
            "tags": [("x, y", "z"), (), ("w",)],
        }
    ),
    pd.DataFrame({"user_id": ["12", "7"], "age": ["25", ""], "zip": ["01234", ""]}),
)
STRINGS = ("item_id", "event", "search_text", "session", "title", "zip")
INTEGERS = ("user_id", "year", "maker", "pages", "age")
DATES = ("timestamp", "released", "seen")


def arrow(table, **types):
    """The rows as an Arrow table; `types` by the kind of column, or by its name."""
    columns = {}
    for name, values in ROWS[table].items():
        kind = (
            "strings" if name in STRINGS else "integers" if name in INTEGERS
            else "dates" if name in DATES else name
        )  # fmt: skip
        wanted = types.get(name, types.get(kind))
        if wanted is None:
            columns[name] = pa.array(values)
        elif callable(wanted):
            columns[name] = wanted(pa.array(values))
        elif pa.types.is_decimal(wanted):
            numbers = [None if v is None else decimal.Decimal(str(v)) for v in values]
            columns[name] = pa.array(numbers, wanted)
        elif pa.types.is_timestamp(wanted):
            columns[name] = pa.array(values, pa.timestamp("s")).cast(pa.timestamp(wanted.unit))
            columns[name] = columns[name].cast(wanted)
        else:
            columns[name] = (
                pa.array(values).cast(wanted) if kind != "tags" else pa.array(values, wanted)
            )
    return pa.table(columns)


def parquet(options=None, **types):
    """A writer of three Parquet files."""

    def write(folder):
        for table in ROWS:
            pq.write_table(arrow(table, **types), folder / f"{table}.parquet", **(options or {}))

    return write


def pandas_frames(change=None):
    """A writer by way of pandas, which makes floats of whole numbers with a gap."""

    def write(folder):
        for table, columns in ROWS.items():
            frame = pd.DataFrame(columns)
            frame = frame if change is None else change(frame)
            frame.to_parquet(folder / f"{table}.parquet")

    return write


def cell(value, null="", lists=repr):
    if isinstance(value, list):
        return lists(value)
    return null if value is None else str(value)


def text_of(table, null="", lists=repr, newline="\n", dates=str, **csv_options):
    """A table as delimited text."""
    buffer = io.StringIO()
    writer = csv.writer(buffer, lineterminator=newline, **csv_options)
    writer.writerow(ROWS[table])
    columns = [
        [dates(v) if name in DATES and v is not None else cell(v, null, lists) for v in values]
        for name, values in ROWS[table].items()
    ]
    writer.writerows(zip(*columns, strict=True))
    return buffer.getvalue()


def text(name="{}.csv", encode=lambda text: text.encode(), **options):
    """A writer of three text files."""

    def write(folder):
        for table in ROWS:
            (folder / name.format(table)).write_bytes(encode(text_of(table, **options)))

    return write


def pandas_csv(folder):
    for table, columns in ROWS.items():
        pd.DataFrame(columns).to_csv(folder / f"{table}.csv")  # with row numbers, without a name


def spark(folder):
    """Parts of a row each, and what Spark leaves beside them; times of the old type."""
    for table in ROWS:
        parts = folder / f"{table}.parquet"
        parts.mkdir()
        whole = arrow(table, dates=pa.timestamp("us"))
        for row in range(whole.num_rows):
            name = f"part-{row:05d}-4c1e.c000.snappy.parquet"
            part = pa.table({n: whole[n][row : row + 1] for n in whole.column_names})
            pq.write_table(part, parts / name, use_deprecated_int96_timestamps=True)
            (parts / f".{name}.crc").write_bytes(b"crc\0")
        (parts / "_SUCCESS").touch()
        (parts / "._SUCCESS.crc").write_bytes(b"crc\0")


def spark_csv(folder):
    for table in ROWS:
        (folder / table).mkdir()
        lines = text_of(table, newline="\r\n").partition("\r\n")
        (folder / table / "part-00000-4c1e.csv.gz").write_bytes(
            gzip.compress((lines[0] + "\r\n").encode())
        )
        (folder / table / "part-00001-4c1e.csv").write_text("".join(lines), "utf-8", newline="")
        (folder / table / "_SUCCESS").touch()


def json_list(values):
    return "[" + ", ".join('"' + v + '"' if isinstance(v, str) else str(v) for v in values) + "]"


def iso(seconds):
    return str(pd.Timestamp(seconds, unit="s"))


def zoned(seconds):
    return pd.Timestamp(seconds, unit="s", tz="Europe/Paris").isoformat()


def encoded(array):
    return array.dictionary_encode()


WRITERS = {
    "Parquet": parquet(),
    "large_string": parquet(strings=pa.large_string()),
    "string_view": parquet(strings=pa.string_view()),
    "bytes": parquet(strings=pa.binary()),
    "large_binary": parquet(strings=pa.large_binary()),
    "binary_view": parquet(strings=pa.binary_view()),
    "dictionary": parquet(strings=encoded, integers=encoded),
    "dictionary of bytes": parquet(strings=lambda a: a.cast(pa.binary()).dictionary_encode()),
    "text for numbers": parquet(
        integers=pa.string(),
        pages=pa.int32(),
        rating=pa.string(),
        dates=pa.string(),
        seen=pa.int64(),
    ),
    "decimal": parquet(
        integers=pa.decimal128(38, 0),
        rating=pa.decimal128(5, 1),
        stars=pa.decimal256(40, 8),
        timestamp=pa.decimal128(38, 0),
    ),
    "small numbers": parquet(
        integers=pa.int16(),
        rating=pa.float32(),
        stars=pa.float32(),
        released=pa.float64(),
    ),
    "unsigned": parquet(user_id=pa.uint64(), timestamp=pa.uint32(), pages=pa.uint8()),
    "lists": parquet(
        audio=pa.large_list(pa.float32()),
        genres=pa.large_list(pa.large_string()),
        tags=pa.list_(pa.dictionary(pa.int32(), pa.string())),
    ),
    "list views": parquet(
        genres=lambda a: pa.array(a.to_pylist(), pa.list_view(pa.string_view())),
        tags=pa.large_list_view(pa.string()),
    ),
    "fixed lists": parquet(audio=pa.list_(pa.float64(), 2), genres=pa.list_(pa.binary())),
    "lists of decimals": parquet(
        audio=lambda a: pa.array(
            [v if v is None else [decimal.Decimal(str(x)) for x in v] for v in a.to_pylist()],
            pa.list_(pa.decimal128(9, 4)),
        )
    ),
    "int96": parquet({"use_deprecated_int96_timestamps": True}, dates=pa.timestamp("ns")),
    "pages": parquet({"data_page_version": "2.0", "compression": "zstd", "row_group_size": 1}),
    **{
        f"timestamp {unit} {zone}": parquet(dates=pa.timestamp(unit, zone))
        for unit, zone in (
            ("s", None),
            ("ms", None),
            ("us", None),
            ("ns", None),
            ("s", "+05:30"),
            ("ms", "Europe/Paris"),
            ("us", "UTC"),
            ("ns", "America/New_York"),
        )
    },
    "pandas": pandas_frames(),
    "pandas objects": pandas_frames(
        lambda frame: frame.astype({n: object for n in frame if n in STRINGS})
    ),
    "pandas categories": pandas_frames(
        lambda frame: frame.astype({n: "category" for n in frame if n in STRINGS or n in INTEGERS})
    ),
    "pandas nullable": pandas_frames(lambda frame: frame.convert_dtypes()),
    "pandas index": pandas_frames(lambda frame: frame.set_index(frame.columns[0])),
    "pandas row numbers": pandas_frames(
        lambda frame: frame.set_axis(range(5, 5 + len(frame))).rename(index={5: 9})
    ),
    "pandas CSV": pandas_csv,
    "CSV": text(),
    "TSV": text("{}.tsv", delimiter="\t"),
    "TSV, packed": text("{}.tsv.gz", lambda text: gzip.compress(text.encode()), delimiter="\t"),
    "CSV, quoted": text(quoting=csv.QUOTE_ALL),
    "CSV, Windows": text(encode=lambda text: b"\xef\xbb\xbf" + text.encode(), newline="\r\n"),
    "CSV, old Mac": text(newline="\r"),
    "CSV, spaces in the header": text(encode=lambda text: text.replace(",", " , ", 2).encode()),
    "CSV, empty lines": text(encode=lambda text: b"\n\r\n" + text.encode() + b"\n\n"),
    "CSV, no last newline": text(encode=lambda text: text.encode()[:-1]),
    "CSV, gzip": text("{}.csv.gz", lambda text: gzip.compress(text.encode())),
    "semicolons": text(delimiter=";"),
    "bars": text("{}.txt", delimiter="|"),
    "CSV, bz2": text("{}.csv.bz2", lambda text: bz2.compress(text.encode())),
    "CSV, Hive's nulls": text(null="\\N"),
    "CSV, JSON lists": text(lists=json_list),
    "CSV, dates": text(dates=iso),
    "CSV, dates with a zone": text(dates=zoned),
    "Spark": spark,
    "Spark's CSV": spark_csv,
}


def singly(value):
    """A number in the precision that counts."""
    return np.float32(value) if isinstance(value, float) else value


def load_all(folder):
    """The three tables, whatever their files are called."""
    paths = {table: next(folder.glob(f"{table}*")) for table in ROWS}
    return tables.read_tables(**paths)


@pytest.mark.parametrize("writer", WRITERS)
def test_one_fingerprint(writer, tmp_path):
    WRITERS[writer](tmp_path)
    found = load_all(tmp_path)
    for table in ROWS:
        frame, expected = getattr(found, table), getattr(EXPECTED, table)
        for column in expected:
            for value, other in zip(frame[column], expected[column], strict=True):
                np.testing.assert_array_equal(singly(value), singly(other), column)
        assert set(frame.columns) - set(expected.columns) <= {"nothing"}
    assert found.fingerprint() == EXPECTED.fingerprint()


def test_what_is_saved_is_loaded_again(tmp_path):
    parquet()(tmp_path)
    tables.save(load_all(tmp_path), tmp_path / "saved")
    assert tables.read_tables(tmp_path / "saved").fingerprint() == EXPECTED.fingerprint()


def test_folders_named_by_a_value(tmp_path):
    """A folder for each event, as Hive and Spark's partitionBy write them."""
    parquet()(tmp_path)
    whole = arrow("interactions")
    (tmp_path / "interactions.parquet").unlink()
    # By name, the missing event comes first, then skip and watch.
    for row, event in ((0, "watch"), (1, "__HIVE_DEFAULT_PARTITION__"), (2, "skip")):
        part = tmp_path / "interactions" / "year=2024" / f"event={event}"
        part.mkdir(parents=True)
        pq.write_table(whole.slice(row, 1).drop_columns("event"), part / "part-0.parquet")
    found = load_all(tmp_path)
    assert found.interactions["event"].tolist() == ["", "skip", "watch"]
    assert found.interactions["year"].tolist() == ["2024"] * 3
    ordered = found.interactions.drop(columns="year").iloc[[2, 0, 1]]
    assert Dataset("", ordered, found.items, found.users).fingerprint() == EXPECTED.fingerprint()


@pytest.mark.parametrize("writer", ["CSV", "CSV, quoted", "Parquet", "list views"])
@pytest.mark.parametrize(
    "num_damages", [pytest.param(10), pytest.param(500, marks=pytest.mark.slow)]
)
def test_a_damaged_file_is_read_or_named(writer, num_damages, tmp_path):
    """Bits flipped, bytes cut out, put in or cut off: a table, or a ValueError with the file."""
    WRITERS[writer](tmp_path)
    rng = np.random.default_rng(num_damages)
    for _ in range(num_damages):
        path = next(tmp_path.glob(f"{rng.choice(list(ROWS))}*"))
        whole = path.read_bytes()
        data, place = bytearray(whole), int(rng.integers(len(whole)))
        damage = rng.integers(4)
        if damage == 0:
            data[place] ^= 1 << int(rng.integers(8))
        elif damage == 1:
            del data[place : place + int(rng.integers(1, 5))]
        elif damage == 2:
            data[place:place] = bytes([rng.choice(list(b',"\n\r\\\0\xff 0|['))])
        else:
            del data[place:]
        path.write_bytes(data)
        try:
            load_all(tmp_path)
        except ValueError as error:
            assert str(tmp_path) in str(error)
        path.write_bytes(whole)


def plays(**columns):
    base = {"user_id": ["u", "v"], "item_id": ["a", "b"], "timestamp": [5, 6]}
    return pa.table({**base, **columns})


REFUSED = {
    "a gap in ids": (plays(user_id=pa.array([1, None])), "row 1: user_id is missing"),
    "no ids": (plays(user_id=pa.nulls(2)), "row 0: user_id is missing"),
    "float ids": (plays(user_id=pa.array([1.0, 2.0])), "user_id holds double such as 1.0; ids"),
    "decimal ids": (
        plays(user_id=pa.array([decimal.Decimal("1.5"), decimal.Decimal("2")])),
        "user_id holds double such as 1.5; ids must",
    ),
    "dates for ids": (plays(user_id=pa.array([1, 2], pa.date32())), "user_id holds date32"),
    "bytes that are no text": (
        plays(item_id=pa.array([b"a", b"\xe9"])),
        "item_id is of the type binary.*not UTF-8",
    ),
    "bytes in lists": (
        plays(tags=pa.array([None, [b"\xe9"]])),
        "tags is of the type list<.*not UTF-8",
    ),
    "no time": (plays(timestamp=pa.array([5, None])), "row 1: timestamp is missing"),
    "milliseconds": (plays(timestamp=pa.array([5, 1704067200000])), "row 1: .*milliseconds"),
    "dates as numbers": (plays(timestamp=pa.array([20240101, 20240102])), "row 0: .*reads as a d"),
    "time of day": (
        plays(timestamp=pa.array([1, 2], pa.time32("ms"))),
        r"timestamp is of the type time32\[ms\], which no column can have",
    ),
    "a duration": (
        plays(value=pa.array([1, 2], pa.duration("s"))),
        "value is of the type duration",
    ),
    "records": (plays(more=pa.array([{"a": 1}, None])), "more is of the type struct<a: int64>"),
    "a map": (
        plays(more=pa.array([[("a", 1)], None], pa.map_(pa.string(), pa.int64()))),
        "type map",
    ),
    "truth for numbers": (plays(rating=pa.array([None, True])), "row 1: rating is True, not a num"),
    "words for numbers": (plays(rating=pa.array(["4", "x"])), "row 1: rating is 'x', not a number"),
    "infinity": (
        plays(rating=pa.array([NAN, np.inf])),
        "row 1: rating is inf; numbers must be fin",
    ),
    "infinity in a list": (
        plays(v=pa.array([[1.0], [np.inf]])),
        "row 1: v is .*inf.*must be finite",
    ),
    "vectors of two lengths": (plays(v=pa.array([[1.0], [1.0, 2.0]])), "row 1: v is .*of length 1"),
    "matrices": (plays(v=pa.array([[[1.0]], [[1.0, 2.0]]])), "row [01]: v is .*list of numbers"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_refused_parquet(case, tmp_path):
    table, message = REFUSED[case]
    pq.write_table(table, tmp_path / "plays.parquet")
    with pytest.raises(ValueError, match=f"plays.parquet.*{message}"):
        tables.read_tables(tmp_path / "plays.parquet")
    # The third part of a folder: its rows are counted by themselves.
    folder = tmp_path / "folder"
    folder.mkdir()
    empty = table.slice(0, 0)
    pq.write_table(empty, folder / "part-0.parquet")
    pq.write_table(empty, folder / "part-1.parquet")
    pq.write_table(table, folder / "part-2.parquet")
    file = "part-2" if message.startswith("row") else "part-."
    with pytest.raises(ValueError, match=f"{file}.parquet.*{message}"):
        tables.read_tables(folder)


HEAD = b"user_id,item_id,timestamp,device\n"
REFUSED_TEXT = {
    "a field too many": (
        HEAD + b"u,a,5,tv\nu,a,5,tv,x\n",
        "line 3: 5 fields, where the fi.*has 4",
    ),
    "a field too few": (
        HEAD + b"u,a,5,tv\n\nu,a,5\n",
        "line 4: 3 fields, where the fi.*has 4",
    ),
    "every row one more": (HEAD + b"u,a,5,tv,x\n" * 3, "line 2: 5 fields"),
    "behind a text of lines": (HEAD + b'u,a,5,"t\r\nv"\nu,a\n', "line 4: 2 fields"),
    "an open quote": (HEAD + b'u,a,5,"tv\nu,a,5,tv\n', "record after line 1 has a quote that is n"),
    "two open quotes": (
        HEAD + b'u,a,5,"tv\nu,a,5,tv\nu,a,5,"tv\n',
        "record after line 1 has a quote that is n",
    ),
    "Latin-1": (HEAD + b"u,a,5,tv\nu,a,5,\xe9\n", "line 3 is not text in UTF-8"),
    "UTF-16": ((HEAD + b"u,a,5,tv\n").decode().encode("utf-16"), "line 1 is not text in UTF-8"),
    "an archive": (b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xff", "line 1 is not text in UTF-8"),
    "nothing": (b"", "it is empty"),
    "nothing but lines": (b"\xef\xbb\xbf\r\n\n", "it is empty"),
    "half an archive": (gzip.compress(HEAD * 99)[:-9], "cannot be unpacked"),
    "two names": (b"user_id,item_id,timestamp,user_id\nu,a,5,v\n", "two columns named 'user_id'"),
    "no header": (
        b"u,a,5,tv\nv,b,6,tv\n",
        r"lacks .*'user_id=1,item_id=2'",
    ),
    "a gap": (HEAD + b"u,a,5,tv\n\\N,a,5,tv\n", "line 3: user_id is missing"),
    "the moment of loading": (
        HEAD + b"u,a,2011-08-20,tv\nu,a,now,tv\n",
        "line 3: .*is 'now', not w",
    ),
    "today alone": (HEAD + b"u,a,today,tv\n", "line 2: timestamp is 'today', not whole seconds"),
    "a far date": (HEAD + b"u,a,9999-12-31,tv\n", "line 2: timestamp is .*year 5138"),
    "a late value": (HEAD + b'u,a,5,"x\ny"\n\nu,a,soon,tv\n', "line 5: timestamp is 'soon'"),
}


@pytest.mark.parametrize("case", REFUSED_TEXT)
def test_refused_text(case, tmp_path):
    data, message = REFUSED_TEXT[case]
    (tmp_path / "plays.csv").write_bytes(data)
    with pytest.raises(ValueError, match=f"plays.csv.*{message}"):
        tables.read_tables(tmp_path / "plays.csv")


@pytest.mark.parametrize("module", [gzip, bz2])
def test_a_file_of_several_streams(module, tmp_path):
    """As Hadoop, pbzip2 and `cat` write them: each is read, or the file is refused."""
    path = tmp_path / "plays.csv"
    first, second = module.compress(HEAD + b"u,a,5,tv\n"), module.compress(b"v,b,6,tv\n" * 99)
    path.write_bytes(first + second)
    assert len(tables.read_tables(path).interactions) == 100
    middle = bytearray(second)
    middle[20] ^= 1
    for damaged in (middle, second[:-5], second[:3], second + b"left over", b"v,b,6,tv\n"):
        path.write_bytes(first + damaged)
        with pytest.raises(ValueError, match=r"plays.csv cannot be unpacked"):
            tables.read_tables(path)


def test_a_file_longer_than_arrow_parses_at_once(tmp_path, monkeypatch):
    """Blocks end inside records, and inside a text of several lines."""
    text()(tmp_path)
    monkeypatch.setattr(files, "BLOCK_SIZE", 130)
    assert load_all(tmp_path).fingerprint() == EXPECTED.fingerprint()


def test_a_header_alone_is_a_table_without_rows(tmp_path):
    for data in (HEAD, HEAD[:-1]):
        (tmp_path / "plays.csv").write_bytes(data)
        assert len(tables.read_tables(tmp_path / "plays.csv").interactions) == 0


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder of \.parquet.*nowhere"):
        tables.read_tables(tmp_path / "nowhere")
    folder = tmp_path / "plays"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    (folder / "README.md").write_text("x")
    with pytest.raises(ValueError, match=r"README.md is no .*begins with _"):
        tables.read_tables(folder)
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file or folder of .*plays"):
        tables.read_tables(folder)
    pq.write_table(plays(), folder / "part-0.parquet")
    assert len(tables.read_tables(folder).interactions) == 2
    pq.write_table(plays(device=pa.array(["tv", None])), folder / "part-1.parquet")
    with pytest.raises(
        ValueError, match=r"part-1.parquet has the columns .*'device'\], and .*part-0"
    ):
        tables.read_tables(folder)
    pq.write_table(plays(timestamp=pa.array(["5", "6"])), folder / "part-1.parquet")
    with pytest.raises(ValueError, match=r"plays: its parts differ: .*timestamp"):
        tables.read_tables(folder)
    (folder / "part-1.parquet").unlink()
    (folder / "part-1.csv").write_bytes(HEAD)
    with pytest.raises(ValueError, match=r"part-0.parquet is Parquet, and .*part-1.csv is text"):
        tables.read_tables(folder)
    (folder / "part-1.csv").unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_temporary/0", "holds _temporary: .*not finished"),
        ("_delta_log/0.json", "holds _delta_log: .*as plain Parquet"),
        (".hoodie/x", "holds .hoodie: .*as plain Parquet"),
        ("metadata/v2.metadata.json", "holds metadata/v2.metadata.json: .*as plain Parquet"),
        ("metadata/0-4c1e.gz.metadata.json", "holds metadata/0-4c1e.*: .*as plain Parquet"),
    ],
)
def test_tables_that_are_more_than_their_files(name, message, tmp_path):
    for folder in (tmp_path, tmp_path / "day=1", tmp_path / "day=1" / "hour=2"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
        pq.write_table(plays(), folder / "part-0.parquet")
        with pytest.raises(ValueError, match=f"{folder} {message}"):
            tables.read_tables(tmp_path)
        shutil.rmtree((folder / name).parent)


def test_no_part_of_a_folder_is_passed_over(tmp_path):
    folder, elsewhere = tmp_path / "plays", tmp_path / "elsewhere"
    (folder / "day=1").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "day=1" / "p0.csv").write_bytes(HEAD + b"u,a,5,tv\n")
    (elsewhere / "p1.csv").write_bytes(HEAD + b"v,b,6,tv\n")
    for name in ("p2", "p3.csv.lz4", "p5.csv.tmp", "day=1/p7"):
        (folder / name).write_bytes(HEAD)
        with pytest.raises(ValueError, match=f"{folder / name} is no .*begins with _"):
            tables.read_tables(folder)
        (folder / name).unlink()
    # Links to files are read, as is the folder itself by way of a link.
    (folder / "day=1" / "p1.csv").symlink_to(elsewhere / "p1.csv")
    (tmp_path / "link").symlink_to(folder)
    for name in ("_SUCCESS", ".p0.csv.crc", "p0.csv.crc", "_old/p.csv", ".old/p.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    # A column may begin with _, as Spark has it.
    (folder / "_day=2").mkdir()
    (folder / "_day=2" / "p2.csv").write_bytes(HEAD + b"w,c,7,tv\n")
    with pytest.raises(ValueError, match=r"p2.csv has .*'_day'"):
        tables.read_tables(folder)
    shutil.rmtree(folder / "_day=2")
    for path in (folder, tmp_path / "link"):
        assert tables.read_tables(path).interactions["user_id"].tolist() == ["u", "v"]


def test_parts_may_lack_values_of_a_column(tmp_path):
    """A part in which a column is all missing has it in another type."""
    pq.write_table(plays(rating=pa.nulls(2), device=pa.nulls(2)), tmp_path / "part-0.parquet")
    pq.write_table(
        plays(rating=pa.array([3, None]), device=pa.array([b"tv", None])),
        tmp_path / "part-1.parquet",
    )
    found = tables.read_tables(tmp_path).interactions
    np.testing.assert_array_equal(found["rating"], [NAN, NAN, 3, NAN])
    assert found["device"].tolist() == ["", "", "tv", ""]


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


def test_uuids_and_long_numbers_are_ids(tmp_path):
    ids = [uuid.UUID(int=5), uuid.UUID(int=2**100)]
    numbers = pa.array([decimal.Decimal(10**25), decimal.Decimal(3)], pa.decimal128(30, 0))
    table = plays(user_id=pa.array([i.bytes for i in ids], pa.uuid()), item_id=numbers)
    pq.write_table(table, tmp_path / "plays.parquet")
    found = tables.read_tables(tmp_path / "plays.parquet").interactions
    assert found["user_id"].tolist() == [str(i) for i in ids]
    assert found["item_id"].tolist() == ["10000000000000000000000000", "3"]


@pytest.mark.parametrize(
    ("texts", "genres"),
    [
        (["Action|Drama", "War"], [("Action", "Drama"), ("War",)]),
        (["Action, Drama", "War"], [("Action", "Drama"), ("War",)]),
        (["Action;Sci, Fi", "War"], [("Action", "Sci, Fi"), ("War",)]),
        (["Sci, Fi", "War|Drama"], [("Sci, Fi",), ("War", "Drama")]),
        (["['Action', 'Drama']", "[]"], [("Action", "Drama"), ()]),
        (["('Action', 'Drama')", "()"], [("Action", "Drama"), ()]),
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
    with open(tmp_path / "films.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["item_id", "genres"], ["a", texts[0]], ["b", texts[1]]])
    pq.write_table(plays(), tmp_path / "plays.parquet")
    found = tables.read_tables(tmp_path / "plays.parquet", tmp_path / "films.csv")
    assert found.items["genres"].tolist() == genres


def films(folder, column, texts):
    with open(folder / "films.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["item_id", column], *zip("ab", texts, strict=True)])
    pq.write_table(plays(), folder / "plays.parquet")
    return tables.read_tables(folder / "plays.parquet", folder / "films.csv").items[column]


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
