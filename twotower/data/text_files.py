"""Reads CSV, TSV and other text files as Arrow tables whose columns are all text."""

import csv
import dataclasses
import io
import itertools
import pathlib
import re
from collections.abc import Callable, Iterator

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.csv

# First bytes of packed files, and what Arrow calls their codec.
PACKED = {b"\x1f\x8b": "gzip", b"BZh": "bz2", b"\x28\xb5\x2f\xfd": "zstd"}
# How Hive and Spark write a missing value.
NULL = "\\N"
BOM = b"\xef\xbb\xbf"
# Bytes that Arrow parses at once. No record may be longer.
BLOCK_SIZE = 2**26
# Separators that are recognised, and what stands for one of several characters while it is read.
SEPARATORS, UNIT_SEPARATOR = (",", "\t", ";", "|"), "\x1f"


@dataclasses.dataclass(frozen=True)
class TextFormat:
    """How text files are written.

    Attributes:
        sep: Between fields, one or more characters; "" for what the first line has most of: a
            comma, tab, semicolon or bar.
        header: Whether the first line names the columns. Without, they are called "1", "2", ...
        quoted: Whether a field may stand in double quotes. In a tab-separated file, quotes are
            text if every line has all fields and a reader of quotes would fail or join lines.
        decode: Makes UTF-8 of a file's bytes; None where they are UTF-8.

        read(pathlib.Path("ratings.dat"), TextFormat(sep="::", header=False, quoted=False))
    """

    sep: str = ""
    header: bool = True
    quoted: bool = True
    decode: Callable[[bytes], bytes] | None = None


def read(path: pathlib.Path, form: TextFormat) -> pa.Table:
    """A table whose columns are all text; only `NULL` is read as missing.

    Columns may share a name; `files.read` refuses that.

    Args:
        path: The file, packed or not.
        form: How it is written.

    Raises:
        ValueError: A file that is empty, damaged or not UTF-8; or a line that has too many or too
            few fields, or is the header again. The message names the file or line.
    """
    data, sep, form = _bytes_of(path, form)
    # Arrow would read an empty line before the header as the header, and needs a newline at the end
    # of a file that has only a header.
    body = data.lstrip(b"\r\n") + b"\n"
    if not body.strip():
        raise ValueError(f"{path} cannot be read: it is empty.")
    if problem := _json_problem(body):
        raise ValueError(f"{path} {problem}")
    if form.quoted and b'"' in body:  # Arrow reads on past a quote that is not closed
        _check(path, data, sep, form)
    try:
        _, first = next(_records(data, sep, form))
        columns = [str(number) for number in range(1, len(first) + 1)]
        table = pyarrow.csv.read_csv(
            pa.BufferReader(body),
            pyarrow.csv.ReadOptions(
                column_names=columns,
                skip_rows_after_names=int(form.header),
                block_size=BLOCK_SIZE,
            ),
            pyarrow.csv.ParseOptions(
                delimiter=sep,
                quote_char='"' if form.quoted else False,
                newlines_in_values=form.quoted,
            ),
            pyarrow.csv.ConvertOptions(
                column_types=dict.fromkeys(columns, pa.large_string()),
                null_values=[NULL],
                strings_can_be_null=True,
            ),
        )
    except (UnicodeDecodeError, csv.Error, pa.ArrowInvalid) as error:
        _check(path, data, sep, form)
        raise ValueError(f"{path} cannot be read as text: {error}.") from error
    if sep == UNIT_SEPARATOR:  # also between quotes, where it was text
        columns = [pc.replace_substring(column, sep, form.sep) for column in table.columns]
        table = pa.table(columns, table.column_names)
    if not form.header:
        return table
    _refuse_second_header(path, table, first, form)
    names = [name.strip() for name in first]
    named = [number for number, name in enumerate(names) if name]  # without pandas' row numbers
    names = [names[number] for number in named]
    return table.select(named).rename_columns(names)


def _refuse_second_header(
    path: pathlib.Path, table: pa.Table, first: list[str], form: TextFormat
) -> None:
    """Raises for a row that is the header again, as `cat` leaves it between two files.

    Its names would be read as a user and an item.
    """
    is_header = pc.equal(pc.utf8_ltrim(table[0], BOM.decode()), first[0])
    for column, name in zip(table.columns[1:], first[1:]):
        if not pc.any(is_header).as_py():  # nearly always true at the first column
            return
        is_header = pc.and_(is_header, pc.equal(column, name))
    row = pc.index(is_header, True).as_py()
    if row >= 0:
        raise ValueError(
            f"{path}, line {line_of(path, form, row)} has the names of the columns again. Were "
            "several files joined? Give them as several files, or drop that line."
        )


def line_of(path: pathlib.Path, form: TextFormat, row: int) -> int:
    """The line, counted from 1, at which a row of the table begins."""
    records = _records(*_bytes_of(path, form))
    line, _ = next(itertools.islice(records, row + form.header, None))
    return line


def _bytes_of(path: pathlib.Path, form: TextFormat) -> tuple[bytes, str, TextFormat]:
    """A text file in UTF-8, unpacked, without a byte order mark; its separator, a character; and
    the format, with `quoted` as it applies to this file."""
    data = path.read_bytes()
    codec = next((name for magic, name in PACKED.items() if data.startswith(magic)), None)
    if codec is not None:
        try:
            data = pa.CompressedInputStream(pa.BufferReader(data), codec).read()
        except (pa.ArrowException, OSError) as error:
            raise ValueError(
                f"{path} cannot be unpacked: {error}. Is the file whole? Copy it again."
            ) from error
    data = (data if form.decode is None else form.decode(data)).removeprefix(BOM)
    sep = form.sep or ("\t" if ".tsv" in path.suffixes else _most_frequent(data))
    if len(sep.encode()) > 1:  # Arrow takes one byte
        data, sep = data.replace(sep.encode(), UNIT_SEPARATOR.encode()), UNIT_SEPARATOR
    if sep == "\t" and form.quoted and b'"' in data and _quotes_are_text(data, form):
        form = dataclasses.replace(form, quoted=False)
    return data, sep, form


def _quotes_are_text(data: bytes, form: TextFormat) -> bool:
    """Whether the quotes of a tab-separated file belong to its texts.

    Many programs write texts between tabs as they are, such as `"Weird Al" Yankovic`. Then every
    line has all fields. A reader of quotes would refuse such a line or join it with the next ones.
    """
    lines = [line for line in data.splitlines() if line]
    if len({line.count(b"\t") for line in lines}) > 1:
        return False
    try:
        return sum(1 for _ in _records(data, "\t", form, strict=True)) < len(lines)
    except UnicodeDecodeError:  # `_check` says where
        return False
    except csv.Error:
        return True


def _most_frequent(data: bytes) -> str:
    """The separator of which the first line has most, outside of quotes."""
    first = re.sub(rb'"[^"]*"', b"", data[:65_536].lstrip(b"\r\n")).split(b"\n")[0]
    return max(SEPARATORS, key=lambda sep: first.count(sep.encode()))


def _records(
    data: bytes, sep: str, form: TextFormat, strict: bool = False
) -> Iterator[tuple[int, list[str]]]:
    """The first line (counted from 1) and the fields of each record; empty lines are skipped."""
    csv.field_size_limit(BLOCK_SIZE)  # of this process; by default a field has 131,072 characters
    text = io.TextIOWrapper(io.BytesIO(data), "utf-8", newline="")
    reader = csv.reader(
        text,
        delimiter=sep,
        strict=strict,
        quoting=csv.QUOTE_MINIMAL if form.quoted else csv.QUOTE_NONE,
    )
    line = 1
    for fields in reader:
        if fields:
            yield line, fields
        line = reader.line_num + 1


def _json_problem(body: bytes) -> str:
    """What is wrong with a file that holds JSON, and what to do; "" for any other file."""
    start = body[:1000].lstrip()
    if not re.match(rb"\[?\s*\{\s*[\"']", start):
        return ""
    call = "pandas.read_json(FILE, dtype=False)"
    if start.startswith(b"{"):
        call = "pandas.read_json(FILE, lines=True, dtype=False)"
    if re.match(rb"\{\s*'", start):
        call = "pandas.DataFrame(map(ast.literal_eval, open(FILE)))"
    return (
        "holds JSON or Python's dictionaries, which are not read. Make Parquet of the columns that "
        f"you need: {call}[['COLUMN', 'COLUMN']].to_parquet('NAME.parquet')."
    )


def _encoding_advice(data: bytes) -> str:
    """What to do with a file that is not UTF-8."""
    if data.startswith(b"PK\x03\x04"):
        return "It is a zip archive or an Excel workbook: unpack it, or save it as CSV UTF-8."
    if data.startswith((b"\xff\xfe", b"\xfe\xff")):
        return "It is UTF-16: iconv -f UTF-16 -t UTF-8 FILE > NEW."
    return (
        "If it is text from Windows or in Latin-1: iconv -f CP1252 -t UTF-8 FILE > NEW. If it is "
        "no text, save it as Parquet or CSV."
    )


def _check(path: pathlib.Path, data: bytes, sep: str, form: TextFormat) -> None:
    """Raises for the first line that is not UTF-8, has too many or few fields, or an open quote."""
    try:
        data.decode()
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        raise ValueError(
            f"{path}, line {line} is not text in UTF-8: {error}. {_encoding_advice(data)}"
        ) from error
    line, width = 0, None
    shown = form.sep or sep
    try:
        for line, fields in _records(data, sep, form, strict=True):
            width = width or len(fields)
            if len(fields) != width:
                text = shown.join(fields)
                text = text if len(text) < 200 else text[:197] + "..."
                raise ValueError(
                    f"{path}, line {line}: {len(fields)} fields, where the first line has {width}: "
                    f"{text!r}. Is the line cut off, or a text with {shown!r} not in quotes?"
                )
    except csv.Error as error:
        how = ""
        if b'\\"' in data:
            how = rf""", and this file has \" for it: sed 's/\\"/""/g' '{path.name}' > NEW"""
        raise ValueError(
            f"{path}: the record after line {line} has a quote that is not closed, or is closed "
            f'within a field ({error}). Within quotes, a quote is written twice (""){how}.'
        ) from error
