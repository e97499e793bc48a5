"""A table's files as a pandas frame with our names, and errors that say the file and the line.

`tables.py` and `grouplens.py` read every table in this way.
"""

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import pandas as pd
import pyarrow as pa

from twotower.data import files, schema
from twotower.data.columns import ColumnError
from twotower.data.file_columns import column_of, decoded


def frame_of(
    source: files.Source, table: str, entries: Sequence[schema.Entry] = ()
) -> tuple[pd.DataFrame, list[str]]:
    """The columns of a file as a pandas frame, under our names. The Dataset gives them their form.

    Returns:
        The frame, and sentences on what was left out or decoded.
    """
    is_text = source.text is not None
    is_headless = source.text is not None and not source.text.header
    found, units, notes = schema.renamed(
        source.table, source.where(None), table, entries, is_headless
    )
    if is_headless:
        _refuse_header(source, found)
    arrays = {name: found[name] for name in found.column_names}
    texts = {n: decoded(array) for n, array in arrays.items() if array.type == pa.large_string()}
    texts = {name: array for name, array in texts.items() if array is not None}
    if texts:
        notes.append(f"{table}: decoded {', '.join(texts)}, which the file has as Python's bytes")
    columns = {
        name: column_of(array, name, table, is_text, units.get(name, ""))
        for name, array in (arrays | texts).items()
    }
    return pd.DataFrame(columns), notes


def _refuse_header(source: files.Source, found: pa.Table) -> None:
    """Raises for a file said to have no header whose first row holds the names of columns."""
    for name in found.column_names if found.num_rows else ():
        text = str(found[name][0])
        if text.lower().replace("_", "") == name.replace("_", ""):
            raise ValueError(
                f"{source.where(0)}: {name} is {text!r}, so the file begins with names, and "
                f"numbers of columns are for files without. Give names: columns='{name}={text}'."
            )


def refuse_unused(entries: list[schema.Entry], sources: Mapping[str, files.Source]) -> None:
    """Raises ValueError for an entry of the schema whose column no file has."""
    for entry in entries:
        wanted = [source for table, source in sources.items() if entry.is_for(table)]
        if not any(entry.column in source.table.column_names for source in wanted):
            there = "; ".join(f"{s.where(None)} has {s.table.column_names}" for s in wanted)
            raise ValueError(
                f"no column {entry.column!r}, which {entry.name!r} should be: "
                f"{there or 'no file of that table is given'}."
            )


@contextlib.contextmanager
def located(
    sources: Mapping[str, files.Source],
    frames: Mapping[str, pd.DataFrame] | None = None,
    hints: Mapping[str, str] | None = None,
) -> Iterator[None]:
    """A context that turns a ColumnError into a ValueError with the file and line of the value.

    Args:
        sources: The files of each table.
        frames: The tables made of them, whose index says which row of the file each row was.
        hints: Ends of the errors of some columns.
    """
    try:
        yield
    except ColumnError as error:
        source = sources.get(error.table, sources["interactions"])
        row, frame = error.row, (frames or {}).get(error.table)
        if row is not None and frame is not None:
            row = int(frame.index[row])
        hint = (hints or {}).get(error.column, "")
        message = f"{source.where(row)}: {error.column} {error.problem}.{hint}"
        raise ValueError(message) from error
