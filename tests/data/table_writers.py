"""Every kind of writer of the three tables, by name: each takes a folder."""

import bz2
import csv
import decimal
import gzip
import io

import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
from three_tables import ROWS

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
