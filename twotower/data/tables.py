"""Your own Parquet, CSV or TSV files -> Dataset, and a Dataset -> Parquet."""

import os
import pathlib
from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet

from twotower.data import files, schema
from twotower.data.columns import ColumnError
from twotower.data.dataset import EVENTS, REQUIRED, Dataset
from twotower.data.file_frames import frame_of, located, refuse_unused
from twotower.data.text_files import TextFormat
from twotower.storage.paths import local

# One file or folder, or several files.
Paths = str | os.PathLike | Sequence[str | os.PathLike]

EVENTS_HOW = (
    "Give each event a weight, such as view=1,purchase=5, or one of this project's events, such as "
    f"view=impression,purchase=click. There are {[*EVENTS[1:]]}. Rows of "
    "all others are dropped."
)
HINTS = {
    "timestamp": f" Or say how it is written: columns='timestamp=COLUMN:UNIT'. {schema.HOW}",
    "released": f" Or say how it is written: columns='released=COLUMN:UNIT'. {schema.HOW}",
    "event": f" Or say what it means: events='view=1,purchase=5'. {EVENTS_HOW}",
}


def read_tables(
    interactions: Paths,
    items: Paths | None = None,
    users: Paths | None = None,
    *,
    columns: str | Mapping[str, str] | None = None,
    sep: str = "",
    events: str | Mapping[str, object] | None = None,
    min_rating: float | None = None,
    data_dir: str | os.PathLike | None = None,
    name: str | None = None,
) -> Dataset:
    r"""A Dataset from one to three tables of your own.

    A table is a Parquet or text file, packed or not (.gz, .bz2, .zst), several of them, or a folder
    of such files, as Spark writes one. Text files are UTF-8; `\N` is missing.
    `print(summarise(dataset))` says what was read and what was dropped (`summary.py`).

    - Ids become strings: 7 and "7" are the same id, "07" (in CSV, too) is another. Ids that a
      program has spoilt are refused: "nan", " 7", "7.0" among whole numbers, "1.23E+17". So is a
      table of items or users that has none of the ids in the interactions.
    - Times (`timestamp`, `released`) are whole seconds since 1970, dates, or ISO 8601 texts; they
      are UTC where they name no zone. `columns` says if they are written in another way. Without a
      timestamp, the order of the rows stands for time.
    - `genres` is a list of strings, or a text with `|`, `;` or `,` between them (the first of these
      that the column has), or a list as Python or JSON write it. A list of numbers, such as an
      embedding, becomes a float32 vector; all rows must be of one length.
    - Missing strings become "", missing numbers, years and release times NaN, a missing list of
      strings is empty, a missing vector NaN. A missing id or timestamp is refused.
    - An item or user that only the interactions name gets a row, an item with its id as title.
    - Further columns stay: those of users as strings, others as they are. In text files, what is
      known of users and the texts among `INTERACTION_COLUMNS`, titles, descriptions and makers stay
      as they are written (25.0 means 25 in a column of whole numbers with a gap). Other columns
      become numbers, truth values, times or lists where every value is one; a column with a number
      such as 01234 stays text.

    >>> import tempfile
    >>> folder = tempfile.mkdtemp()
    >>> _ = pathlib.Path(folder, "log.tsv").write_text("u\tbuy\ta\t1500\nu\tview\tb\t2500\n")
    >>> dataset = read_tables("log.tsv", data_dir=folder, events="view=1,buy=5",
    ...                       columns="user_id=1,event=2,item_id=3,timestamp=4:ms")
    >>> dataset.interactions[["item_id", "timestamp", "weight"]].to_numpy().tolist()
    [['a', 1, 5.0], ['b', 2, 1.0]]

    Args:
        interactions: A table with `user_id`, `item_id`, `timestamp` and the optional columns of
            `INTERACTION_COLUMNS`; or a folder with the tables `interactions`, `items` and `users`
            (any ending), as `save` writes one.
        items: A table with `item_id`; without one, items are known by their ids alone.
        users: A table with `user_id`; without one, users are known by their ids alone.
        columns: Which column of the files is which of ours, and how times are written, such as
            `user_id=visitorid,timestamp=time:ms` (`schema.py`). With numbers, such as
            `user_id=1,item_id=2`, the text file has no header.
        sep: Between the fields of text files; by default what the first line has most of.
        events: What the values of `event` mean: weights of positives (`view=1,purchase=5`), or
            events of this project (`view=impression,purchase=click`). Rows of others are dropped.
        min_rating: Rows with a lower rating, or without one, are dropped: they are not positives.
        data_dir: The folder to which paths are relative.
        name: Name of the dataset; `tables/` and the first file's by default.

    Raises:
        FileNotFoundError: No such file.
        ValueError: A file that cannot be read, a missing column, a value that its column cannot
            hold, or an id twice. The message names the file, the line (of Parquet the row, counted
            from 0) and the column, and says what to do.
    """
    given = {"interactions": interactions, "items": items, "users": users}
    for table, paths in given.items():
        if isinstance(paths, pd.DataFrame):
            raise ValueError(
                f"{table}: expected paths of files; got a DataFrame. Save it as Parquet, or give "
                "three tables to Dataset(name, interactions, items, users), such as "
                "items=interactions[['item_id']].drop_duplicates()."
            )
    given = {table: _strings(paths) for table, paths in given.items() if paths}
    if "interactions" not in given:
        raise ValueError("no file of interactions is given; it is who did what (--interactions).")
    paths = _files(given, None if data_dir is None else local(data_dir))
    first = paths["interactions"][0]
    entries = schema.parse(columns)
    sources = {
        table: files.read(paths[table], TextFormat(sep, schema.has_header(entries, table)))
        for table in REQUIRED
        if table in paths
    }
    refuse_unused(entries, sources)
    frames: dict[str, pd.DataFrame] = {}
    notes = []
    with located(sources, frames, HINTS):
        for table, source in sources.items():
            frames[table], left_out = frame_of(source, table, entries)
            notes += [*left_out, *source.notes]
        has_times = "timestamp" in frames["interactions"]
        if not has_times:
            frames["interactions"]["timestamp"] = np.arange(len(frames["interactions"]))
            notes.append(
                "no timestamps: the order of the rows stands for time; if a column holds times, "
                "say which: columns='timestamp=COLUMN'; if the order means nothing, split at random"
            )
        if events:
            frames["interactions"], dropped = _with_events(frames["interactions"], events)
            notes += dropped
        notes += _add_missing_rows(frames)
        reading: dict[str, object] = {**given, "sep": sep}
        for key, value in (("columns", columns), ("events", events)):
            # A manifest is JSON, which cannot hold NumPy's scalars.
            reading[key] = value if isinstance(value, str) else schema.pairs(value, "")
        dataset = Dataset(
            name or f"tables/{first.name.split('.')[0]}",
            **frames,
            notes=tuple(notes),
            has_times=has_times,
            reading={key: value for key, value in reading.items() if value},
        )
    return dataset if min_rating is None else dataset.rated_at_least(min_rating)


def _files(
    given: dict[str, list[str]], folder: pathlib.Path | None
) -> dict[str, list[pathlib.Path]]:
    """Paths of each table's files. Interactions that are a folder of all tables bring theirs."""
    paths = {
        table: [local(name if folder is None else folder / name) for name in names]
        for table, names in given.items()
    }
    first = paths["interactions"][0]
    saved = tables_in(first) if len(paths["interactions"]) == 1 else {}
    if saved and len(paths) > 1:
        raise ValueError(f"{first} holds all tables, so it brings its own items and users.")
    return paths | {table: [path] for table, path in saved.items()}


def save(dataset: Dataset, directory: str | os.PathLike) -> None:
    """Writes `interactions.parquet`, `items.parquet` and `users.parquet`, for `read_tables`.

    The dataset that is read again has the same fingerprint. Data without times get no timestamps in
    the file.
    """
    folder = local(directory)
    folder.mkdir(parents=True, exist_ok=True)
    for table in REQUIRED:
        frame = getattr(dataset, table)
        if table == "interactions" and not dataset.has_times:
            frame = frame.drop(columns="timestamp")
        pyarrow.parquet.write_table(
            pa.Table.from_pandas(frame, preserve_index=False), folder / f"{table}.parquet"
        )


def tables_in(folder: pathlib.Path) -> dict[str, pathlib.Path]:
    """Name -> path of the tables in a folder that has a file or folder `interactions`, with any
    ending; {} for any other folder.

    Raises:
        ValueError: Two files for one table, or none but one of another kind, such as `items.json`.
    """
    if not folder.is_dir():
        return {}
    found = {}
    for table in REQUIRED:
        called = [p for p in sorted(folder.glob(f"{table}*")) if p.name.split(".")[0] == table]
        named = [path for path in called if path.is_dir() or files.is_part(path)]
        if len(named) > 1:
            raise ValueError(f"{folder} has {[path.name for path in named]}; keep one of them.")
        if named:
            found[table] = named[0]
        elif called and "interactions" in found:  # not passed over in silence
            files.require_part(called[0])
    return found if "interactions" in found else {}


def _strings(paths: Paths) -> list[str]:
    several = [paths] if isinstance(paths, str | os.PathLike) else paths
    return [os.fspath(path) for path in several]


def _with_events(
    frame: pd.DataFrame, events: str | Mapping[str, object]
) -> tuple[pd.DataFrame, list[str]]:
    """The rows whose events mean something, with what they mean; and a sentence on the others."""
    if "event" not in frame:
        raise ValueError(
            f"events are given, and the interactions have no column event but "
            f"{list(frame.columns)}. Say which column it is: columns='event=COLUMN'."
        )
    meaning, weight = {}, {}
    for name, value in schema.pairs(events, EVENTS_HOW).items():
        if value in EVENTS:
            meaning[name], weight[name] = value, 1.0
            continue
        try:
            weight[name] = float(value)
        except ValueError:
            weight[name] = -1.0
        if not 0 <= weight[name] < np.inf:
            raise ValueError(f"event {name}={value}: no weight and no event. {EVENTS_HOW}")
        meaning[name] = ""
    gives_weights = len(set(weight.values()) - {0}) > 1
    if gives_weights and "weight" in frame:
        raise ValueError(
            f"events give weights ({weight}), and the interactions have a column weight. Keep one: "
            "give all events the same weight, or call the column by another name, such as "
            "columns='file_weight=weight'."
        )
    found = frame["event"].fillna("")
    keep = found.map(weight).fillna(0) > 0
    if not keep.any():
        raise ValueError(f"no row has an event of {list(weight)}, but {_counts(found)}.")
    notes = [] if keep.all() else [
        f"dropped {(~keep).sum():,} of {len(frame):,} rows by their event: {_counts(found[~keep])}"
    ]  # fmt: skip
    if unused := [name for name in weight if name not in set(found)]:
        notes.append(f"no row has the event {', '.join(map(repr, unused))}")
    frame, found = frame[keep].copy(), found[keep]
    frame["event"] = found.map(meaning)
    if not (frame["event"] != "").any():
        frame = frame.drop(columns="event")
    if gives_weights:
        frame["weight"] = found.map(weight)
        notes.append("weights: " + ", ".join(f"{name} {weight[name]:g}" for name in weight))
    return frame, notes


def _counts(values: pd.Series, most: int = 5) -> str:
    counts = values.value_counts()
    rest = f" and {len(counts) - most} more" if len(counts) > most else ""
    return ", ".join(f"{v!r} ({n:,})" for v, n in counts.head(most).items()) + rest


def _add_missing_rows(frames: dict[str, pd.DataFrame]) -> list[str]:
    """Adds rows for items and users that only the interactions name; says of how many.

    Raises:
        ColumnError: A table has none of those that the interactions name.
    """
    notes = []
    for table, column in (("items", "item_id"), ("users", "user_id")):
        ids = pd.Series(frames["interactions"][column].unique(), name=column, dtype=object)
        known = frames.get(table, pd.DataFrame({column: ids[:0]}))
        new = ids[~ids.isin(known[column])].to_frame()
        if len(known) and len(ids) == len(new) > 0:
            problem = (
                f"is {ids[0]!r}, and no {column} of the interactions is in the table of {table}, "
                f"whose first is {known[column].iloc[0]!r}. Write the ids alike, or leave that "
                "table out"
            )
            raise ColumnError("interactions", column, 0, problem)
        if table not in frames:
            notes.append(f"no table of {table}: they are known by their ids alone")
        elif len(new):
            notes.append(
                f"{len(new):,} of {len(ids):,} {table} of the interactions have no row in their "
                f"table, such as {new[column].iloc[0]!r}"
            )
        if table == "items" and ("title" in known or table not in frames):
            new["title"] = new["item_id"]
        if len(new) or table not in frames:
            index = pd.RangeIndex(len(known), len(known) + len(new))
            frames[table] = pd.concat([known, new.set_index(index)]) if len(known) else new
    return notes
