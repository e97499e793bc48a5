"""Reads Parquet, CSV, TSV and other text files, one or several, as one Arrow table.

Whichever program wrote the files, the table has few types. Text is `large_string`, whole numbers
are integers, other numbers floats, dates stay dates or timestamps, and lists are `large_list`. Of
text files every column is text. An error names the file, and the line (text files) or the row
(Parquet, counted from 0).
"""

import dataclasses
import json
import pathlib
import urllib.parse
from collections.abc import Iterator, Sequence

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet

from twotower.data import text_files
from twotower.data.text_files import TextFormat

# Endings of the files that count in a folder, and of packed ones.
ENDINGS = (".parquet", ".pq", ".csv", ".tsv", ".txt")
PACKED_ENDINGS = (".gz", ".bz2", ".zst")
# Entries of a folder which show that its files are not the table, and why.
_REPLACED = "some of its files were replaced by others; write the table as plain Parquet"
REFUSED = {
    "_temporary": "whoever writes it has not finished",
    "_delta_log": _REPLACED,
    ".hoodie": _REPLACED,
    "metadata/*.metadata.json*": _REPLACED,  # Iceberg
}
# Entry of a Parquet file's metadata: a JSON list of sentences, which become notes of the dataset.
NOTES = b"twotower.notes"
# How Hive and Spark write a missing value as the name of a folder.
NULL_FOLDER = "__HIVE_DEFAULT_PARTITION__"


@dataclasses.dataclass(frozen=True)
class Source:
    """A table that was read, and where its rows came from.

    Attributes:
        table: All rows.
        text: How the files are written; None of Parquet. Numbers and dates of text files are text.
        parts: Path and number of rows of each file, in the order of the table.
        notes: The sentences that Parquet files have under `NOTES`, each once.

    >>> path = pathlib.Path("ratings.parquet")
    >>> Source(pa.table({"rating": [3, 5]}), text=None, parts=[(path, 2)]).where(1)
    'ratings.parquet, row 1'
    """

    table: pa.Table
    text: TextFormat | None
    parts: list[tuple[pathlib.Path, int]]
    notes: Sequence[str] = ()

    def where(self, row: int | None) -> str:
        """File and line (Parquet: file and row) of a row of the table; the first file if None."""
        if row is None:
            return str(self.parts[0][0])
        ends = np.cumsum([num_rows for _, num_rows in self.parts])
        part = int(np.searchsorted(ends, row, side="right"))
        path, num_rows = self.parts[part]
        row -= int(ends[part]) - num_rows
        if self.text is None:
            return f"{path}, row {row}"
        return f"{path}, line {text_files.line_of(path, self.text, row)}"


def read(paths: pathlib.Path | Sequence[pathlib.Path], text: TextFormat) -> Source:
    """A file, several, or a folder of part files as Spark writes one, in the order of their names.

    In a folder, files and folders whose names begin with `_` or `.` do not count (`_SUCCESS`), nor
    do checksums (`.crc`); any other file must be a part. A folder called `event=watch` gives its
    files a column `event`.

    Raises:
        FileNotFoundError: No such file, or a folder without part files.
        ValueError: A file that cannot be read, a file in a folder that is not a part, or parts with
            different columns.
    """
    given = [paths] if isinstance(paths, pathlib.Path) else list(paths)
    parts = [(root, part) for root in given for part in _files_of(root)]
    is_parquet = [_is_parquet(part) for _, part in parts]
    if len(set(is_parquet)) > 1:
        raise ValueError(
            f"{parts[is_parquet.index(True)][1]} is Parquet, and "
            f"{parts[is_parquet.index(False)][1]} is text: parts of one table are of one kind."
        )
    form = None if is_parquet[0] else text
    tables = [
        _of_folders(_parquet(part) if form is None else _text(part, form), part.relative_to(root))
        for root, part in parts
    ]
    for (_, part), table in zip(parts, tables, strict=True):
        if set(table.column_names) != set(tables[0].column_names):
            raise ValueError(
                f"{part} has the columns {table.column_names}, and {parts[0][1]} has "
                f"{tables[0].column_names}: parts of one table have the same ones. If "
                "they are different tables, name them: interactions=FILE, items=FILE, users=FILE."
            )
    try:
        table = pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowInvalid, pa.ArrowTypeError) as error:
        raise ValueError(f"{given[0]}: its parts differ: {error}.") from error
    metadata = [table.schema.metadata or {} for table in tables]
    notes = [note for entries in metadata for note in json.loads(entries.get(NOTES, b"[]"))]
    return Source(
        table,
        form,
        [(part, t.num_rows) for (_, part), t in zip(parts, tables, strict=True)],
        [*dict.fromkeys(notes)],
    )


def _files_of(path: pathlib.Path) -> list[pathlib.Path]:
    """The file itself, or the part files of a folder."""
    if path.is_file():
        return [path]
    parts = list(_files_in(path)) if path.is_dir() else []
    for part in parts:
        require_part(part)
    if not parts:
        raise FileNotFoundError(f"no file or folder of {', '.join(ENDINGS)} files {str(path)!r}.")
    return parts


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
        if path.is_dir():
            yield from _files_in(path)
        else:
            yield path


def is_part(path: pathlib.Path) -> bool:
    """Whether a path is a file that the name says to be Parquet or text, packed or not."""
    name = path.name.lower()
    for ending in PACKED_ENDINGS:
        name = name.removesuffix(ending)
    return path.is_file() and name.endswith(ENDINGS)


def require_part(path: pathlib.Path) -> None:
    """Raises ValueError for a file in a folder of tables that the name says to be of another
    kind."""
    if not is_part(path):
        raise ValueError(
            f"{path} is no {', '.join(ENDINGS)} file (packed or not: "
            f"{', '.join(PACKED_ENDINGS)}), which all parts of a table are. Convert it; or, if it "
            "is no part, move it away or give it a name that begins with _."
        )


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


def _text(path: pathlib.Path, form: TextFormat) -> pa.Table:
    table = text_files.read(path, form)
    _check_names(path, table.column_names)
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
    metadata = table.schema.metadata or {}
    return pa.table(
        {name: _plain(table[name], name, path) for name in table.column_names},
        metadata={name: value for name, value in metadata.items() if name == NOTES},
    )


def _plain(array: pa.ChunkedArray, name: str, path: pathlib.Path) -> pa.ChunkedArray:
    """A column cast to one of the table's few types."""
    try:
        wanted = _plain_type(array.type)
        if "list_view" in str(array.type) or "uuid" in str(array.type):
            # pyarrow loses entries when it casts list views, and cannot cast a UUID to text.
            values = array.to_pylist()
            if wanted == pa.large_string():
                values = [None if value is None else str(value) for value in values]
            return pa.chunked_array([pa.array(values, wanted)])
        if pa.types.is_decimal(array.type):
            # Through text, because Arrow's cast is sometimes off by the last bit.
            array = array.cast(pa.large_string())
            if wanted == pa.int64() and pc.max(pc.utf8_length(array)).as_py() > 18:
                return array  # ids of many digits
        return array.cast(wanted)
    except (TypeError, pa.ArrowInvalid) as error:
        raise ValueError(
            f"{path}: {name} is of the type {array.type}, which no column can have, or holds text "
            f"that is not UTF-8 ({error}). Leave it out, or write it as text, numbers, times or "
            "lists of these."
        ) from error


def _plain_type(kind: pa.DataType) -> pa.DataType:
    """The type to cast to. Raises TypeError for anything but text, number, time or list."""
    types = pa.types
    if isinstance(kind, pa.BaseExtensionType):
        if "period" in str(kind):  # of pandas: a count of months or days, as an integer
            raise TypeError(str(kind))
        return pa.large_string() if "uuid" in str(kind) else _plain_type(kind.storage_type)
    if types.is_dictionary(kind):
        return _plain_type(kind.value_type)
    if hasattr(kind, "value_field") and not types.is_map(kind):
        return pa.large_list(_plain_type(kind.value_type))
    if types.is_float16(kind):
        return pa.float32()
    if types.is_decimal(kind):
        return pa.float64() if kind.scale > 0 else pa.int64()
    if types.is_timestamp(kind) and kind.tz is not None:
        return pa.timestamp(kind.unit, "UTC")
    if str(kind).startswith(("string", "large_string", "binary", "large_binary", "fixed_size_bin")):
        return pa.large_string()
    plain = (types.is_null, types.is_boolean, types.is_integer, types.is_floating)
    plain += (types.is_date, types.is_timestamp)
    if any(is_plain(kind) for is_plain in plain):
        return kind
    raise TypeError(f"{kind} is nested" if types.is_nested(kind) else str(kind))


def _check_names(path: pathlib.Path, names: list[str]) -> None:
    for number, name in enumerate(names):
        if name in names[:number]:
            raise ValueError(f"{path} has two columns named {name!r}. Rename or drop one of them.")
