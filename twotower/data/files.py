"""Reads Parquet, CSV or TSV, one file or a folder of part files, as one Arrow table.

Whichever program wrote the files, the table has few types. Text is `large_string`, whole numbers
are integers, other numbers floats, dates stay dates or timestamps, and lists are `large_list`. Of
CSV and TSV every column is text. An error names the file, and the line (CSV, TSV) or the row
(Parquet, counted from 0).
"""

import bz2
import csv
import dataclasses
import io
import itertools
import lzma
import pathlib
import urllib.parse
import zlib
from collections.abc import Callable, Iterator

import numpy as np
import pyarrow as pa
import pyarrow.csv
import pyarrow.parquet

# First bytes of compressed files, and what unpacks one stream of them.
COMPRESSED = {
    b"\x1f\x8b": lambda: zlib.decompressobj(16 + zlib.MAX_WBITS),  # gzip with its checksum
    b"BZh": bz2.BZ2Decompressor,
    b"\xfd7zXZ\x00": lambda: lzma.LZMADecompressor(lzma.FORMAT_XZ),
}
# Bytes that are unpacked at once.
CHUNK_SIZE = 2**20
# Endings of the files that count in a folder.
ENDINGS = (".parquet", ".pq", ".csv", ".tsv")
# Entries of a folder which show that its files are not the table, and why.
_REPLACED = "some of its files were replaced by others; write the table as plain Parquet"
REFUSED = {
    "_temporary": "whoever writes it has not finished",
    "_delta_log": _REPLACED,
    ".hoodie": _REPLACED,
    "metadata/*.metadata.json*": _REPLACED,  # Iceberg
}
# How Hive and Spark write a missing value: in text files, and as the name of a folder.
NULL, NULL_FOLDER = "\\N", "__HIVE_DEFAULT_PARTITION__"
BOM = b"\xef\xbb\xbf"
# Bytes that Arrow parses at once. No record may be longer.
BLOCK_SIZE = 2**26


@dataclasses.dataclass(frozen=True)
class Source:
    """A table that was read, and where its rows came from.

    Attributes:
        table: All rows.
        is_text: Whether the files are CSV or TSV, so that numbers and dates are still text.
        parts: Path and number of rows of each file, in the order of the table.
    """

    table: pa.Table
    is_text: bool
    parts: list[tuple[pathlib.Path, int]]

    def where(self, row: int | None) -> str:
        """File and line (Parquet: file and row) of a row of the table; the first file if None."""
        if row is None:
            return str(self.parts[0][0])
        ends = np.cumsum([num_rows for _, num_rows in self.parts])
        part = int(np.searchsorted(ends, row, side="right"))
        path, num_rows = self.parts[part]
        row -= int(ends[part]) - num_rows
        if not self.is_text:
            return f"{path}, row {row}"
        records = _records(_bytes_of(path), _delimiter(path))
        line, _ = next(itertools.islice(records, row + 1, None))  # behind the header
        return f"{path}, line {line}"


def read(path: pathlib.Path) -> Source:
    """A file, or a folder of part files as Spark writes one, in the order of their names.

    In a folder, files and folders whose names begin with `_` or `.` do not count (`_SUCCESS`), nor
    do checksums (`.crc`); any other file must be a part. A folder called `event=watch` gives its
    files a column `event`.

    Raises:
        FileNotFoundError: No such file, or a folder without part files.
        ValueError: A file that cannot be read, a file in a folder that is no part, or parts with
            different columns.
    """
    paths = list(_files_in(path)) if path.is_dir() else [path]
    others = [part for part in paths if path.is_dir() and not _is_part(part)]
    if len(paths) == len(others) or not path.exists():
        raise FileNotFoundError(f"no file or folder of {', '.join(ENDINGS)} files {str(path)!r}.")
    if others:
        raise ValueError(
            f"{others[0]} is no {', '.join(ENDINGS)} file (packed or not: .gz, .bz2, .xz), which "
            "all parts of a table are. Convert it; or, if it is no part, move it away or give it a "
            "name that begins with _."
        )
    kinds = [_is_parquet(part) for part in paths]
    if len(set(kinds)) > 1:
        raise ValueError(
            f"{path} holds Parquet ({paths[kinds.index(True)]}) and text "
            f"({paths[kinds.index(False)]}): parts of one table are of one kind."
        )
    tables = [
        _of_folders(_parquet(part) if kinds[0] else _text(part), part.relative_to(path))
        for part in paths
    ]
    for part, table in zip(paths, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            raise ValueError(
                f"{part} has the columns {table.column_names}, and {paths[0]} has "
                f"{tables[0].column_names}: parts of one table have the same ones. (A folder of "
                "three tables has interactions.parquet, items.parquet and users.parquet.)"
            )
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{path}: its parts differ: {error}.") from error
    return Source(
        table, not kinds[0], [(p, t.num_rows) for p, t in zip(paths, tables, strict=True)]
    )


def _files_in(folder: pathlib.Path) -> Iterator[pathlib.Path]:
    """The files of a folder and its folders in the order of their names, without hidden ones."""
    for pattern, problem in REFUSED.items():
        if found := next(folder.glob(pattern), None):
            raise ValueError(f"{folder} holds {found.relative_to(folder)}: {problem}.")
    for path in sorted(folder.iterdir()):
        # Spark's rule: `_x=1` is a folder of the column `_x`.
        hidden = path.name.startswith(".") or (path.name.startswith("_") and "=" not in path.name)
        if hidden or path.suffix == ".crc":
            continue
        if path.is_symlink() and not path.is_file():
            raise ValueError(
                f"{path} is a link to {path.readlink()}, which is no file. In a folder of parts "
                "only links to files are followed: put the folder or file itself there."
            )
        if path.is_dir():
            yield from _files_in(path)
        else:
            yield path


def _is_part(path: pathlib.Path) -> bool:
    name = path.name.lower()
    for ending in (".gz", ".bz2", ".xz"):
        name = name.removesuffix(ending)
    return path.is_file() and name.endswith(ENDINGS)


def _is_parquet(path: pathlib.Path) -> bool:
    with open(path, "rb") as file:
        return path.suffix in (".parquet", ".pq") or file.read(4) == b"PAR1"


def _of_folders(table: pa.Table, path: pathlib.Path) -> pa.Table:
    """The table with a column for each folder `name=value` that the file lies in."""
    for folder in path.parts[:-1]:
        name, equals, value = folder.partition("=")
        if equals and name not in table.column_names:
            value = None if value == NULL_FOLDER else urllib.parse.unquote(value)
            table = table.append_column(
                name, pa.repeat(pa.scalar(value, pa.large_string()), table.num_rows)
            )
    return table


def _parquet(path: pathlib.Path) -> pa.Table:
    try:
        # In nanoseconds, the INT96 times that Spark used to write would overflow past 2262.
        with pyarrow.parquet.ParquetFile(path, coerce_int96_timestamp_unit="us") as file:
            table = file.read()
        # pandas describes an index that is a range in the metadata and does not write it.
        for index in (table.schema.pandas_metadata or {}).get("index_columns", ()):
            if isinstance(index, dict) and index["name"] is not None:
                values = range(index["start"], index["stop"], index["step"])
                table = table.append_column(index["name"], pa.array(values, pa.int64()))
    except (pa.ArrowException, OSError, ValueError, KeyError) as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}. Is it whole?") from error
    _check_names(path, table.column_names)
    # Indexes without a name are row numbers of pandas.
    table = table.drop_columns([n for n in table.column_names if n.startswith("__index_level_")])
    return pa.table({name: _plain(table[name], name, path) for name in table.column_names})


def _plain(array: pa.ChunkedArray, name: str, path: pathlib.Path) -> pa.ChunkedArray:
    """A column cast to one of the table's few types."""
    try:
        wanted = _plain_type(array.type)
    except TypeError as error:
        raise ValueError(
            f"{path}: {name} is of the type {array.type}, which no column can have. Leave it out, "
            "or write its parts as columns."
        ) from error
    if "list_view" in str(array.type) or "uuid" in str(array.type):
        # pyarrow 26 loses entries when it casts list views, and cannot cast a UUID to text.
        values = array.to_pylist()
        if wanted == pa.large_string():
            values = [None if value is None else str(value) for value in values]
        array = pa.chunked_array([pa.array(values, wanted)])
    try:
        array = array.cast(wanted)
    except pa.ArrowInvalid as error:
        values = array.to_pylist()
        singly = (pa.array([value], array.type) for value in values)  # slices keep all values
        row = next(row for row, one in enumerate(singly) if not _can_cast(one, wanted))
        raise ValueError(
            f"{path}, row {row}: {name} is {values[row]!r}, which is not text in UTF-8."
        ) from error
    return _decimal(array) if pa.types.is_decimal(wanted) else array


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type to cast to; decimals stay. Raises TypeError for no text, number, time or list."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        return pa.large_string() if "uuid" in str(kind) else _plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if hasattr(kind, "value_field") and not types.is_map(kind):
        inner = _plain_type(kind.value_type)
        return pa.large_list(pa.float64() if types.is_decimal(inner) else inner)
    if types.is_float16(kind):
        return pa.float32()
    if types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    if str(kind).startswith(("string", "large_string", "binary", "large_binary", "fixed_size_bin")):
        return pa.large_string()
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_floating)
    plain += (types.is_date, types.is_timestamp, types.is_decimal)
    if any(is_plain(kind) for is_plain in plain):
        return kind
    raise TypeError(kind)


def _can_cast(array: pa.Array | pa.ChunkedArray, wanted: pa.DataType) -> bool:
    try:
        array.cast(wanted)
    except pa.ArrowInvalid:
        return False
    return True


def _decimal(array: pa.ChunkedArray) -> pa.ChunkedArray:
    """int64 if all values are whole (text if they are too long for int64), else float64."""
    try:
        whole = array.cast(pa.decimal256(76, 0))
    except pa.ArrowInvalid:
        # Through text, because Arrow's own cast is sometimes off by the last bit.
        return array.cast(pa.large_string()).cast(pa.float64())
    return whole.cast(pa.int64() if _can_cast(whole, pa.int64()) else pa.large_string())


def _bytes_of(path: pathlib.Path) -> bytes:
    """The bytes of a file, unpacked if it is compressed."""
    data = path.read_bytes()
    for magic, new_stream in COMPRESSED.items():
        if data.startswith(magic):
            return _unpacked(path, data, new_stream)
    return data


def _unpacked(path: pathlib.Path, data: bytes, new_stream: Callable) -> bytes:
    """All streams of a compressed file, one after another; zeros may lie between them.

    `decompress` of bz2 and lzma drops what follows the first stream, where it is damaged.
    """
    stream, start, parts = new_stream(), 0, []
    try:
        for place in range(0, len(data), CHUNK_SIZE):
            chunk = data[place : place + CHUNK_SIZE]
            while chunk:
                if stream.eof:
                    length, chunk = len(chunk), chunk.lstrip(b"\0")
                    place += length - len(chunk)
                    if not chunk:
                        break
                    stream, start = new_stream(), place
                parts.append(stream.decompress(chunk))
                place += len(chunk) - len(stream.unused_data)
                chunk = stream.unused_data
        if not stream.eof:
            raise EOFError("the file ends inside it")
    except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
        raise ValueError(
            f"{path} cannot be unpacked from byte {start} on, where a whole compressed stream "
            f"should begin: {error}. Is the file whole? Copy or download it again."
        ) from error
    return b"".join(parts)


def _delimiter(path: pathlib.Path) -> str:
    return "\t" if ".tsv" in path.suffixes else ","


def _text(path: pathlib.Path) -> pa.Table:
    """All columns as text; only `NULL` is read as missing."""
    data = _bytes_of(path)
    delimiter = _delimiter(path)
    # Arrow would read an empty line before the header as the header, and needs a newline at the end
    # of a file that has only a header.
    body = data.removeprefix(BOM).lstrip(b"\r\n") + b"\n"
    if not body.strip():
        raise ValueError(f"{path} cannot be read: it is empty.")
    if b'"' in body:  # Arrow reads on past a quote that is not closed
        _check(path, data, delimiter)
    try:
        _, names = next(_records(data, delimiter))
        columns = [str(number) for number in range(len(names))]
        types = dict.fromkeys(columns, pa.large_string())
        table = pyarrow.csv.read_csv(
            pa.BufferReader(body),
            pyarrow.csv.ReadOptions(
                column_names=columns, skip_rows_after_names=1, block_size=BLOCK_SIZE
            ),
            pyarrow.csv.ParseOptions(delimiter=delimiter, newlines_in_values=True),
            pyarrow.csv.ConvertOptions(
                column_types=types, null_values=[NULL], strings_can_be_null=True
            ),
        )
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        _check(path, data, delimiter)
        raise ValueError(f"{path} cannot be read as CSV: {error}.") from error
    names = [name.strip() for name in names]
    named = [number for number, name in enumerate(names) if name]  # without pandas' row numbers
    names = [names[number] for number in named]
    _check_names(path, names)
    return table.select(named).rename_columns(names)


def _records(data: bytes, delimiter: str, strict: bool = False) -> Iterator[tuple[int, list[str]]]:
    """The first line (counted from 1) and the fields of each record; empty lines are skipped."""
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8-sig", newline="")
    reader = csv.reader(text, delimiter=delimiter, strict=strict)
    line = 1
    for fields in reader:
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _check(path: pathlib.Path, data: bytes, delimiter: str) -> None:
    """Raises for the first line that is not UTF-8, has too many or few fields, or an open quote."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not text in UTF-8: {error}. Save the file as UTF-8, unpacked."
        ) from error
    line, width = 0, None
    try:
        for line, fields in _records(data, delimiter, strict=True):
            width = width or len(fields)
            if len(fields) != width:
                raise ValueError(
                    f"{path}, line {line}: {len(fields)} fields, where the header has {width}: "
                    f"{fields}. Is the line cut off, or a text with {delimiter!r} not in quotes?"
                )
    except csv.Error as error:
        raise ValueError(
            f"{path}: the record after line {line} has a quote that is not closed ({error})."
        ) from error


def _check_names(path: pathlib.Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{path} has two columns named {name!r}. Rename or drop one of them.")
