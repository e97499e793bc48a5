"""Dataset: interactions, items and users as tables with fixed column names."""

import dataclasses
import functools
import hashlib
import numbers
from collections.abc import Mapping

import numpy as np
import pandas as pd

from twotower.data.catalogue import Catalogue
from twotower.data.cleaning import clean
from twotower.data.columns import (
    EXACT,
    IDS,
    check_ids,
    known,
    refuse,
    refuse_spoilt_ids,
)

# What a column holds. Only the first three of `interactions` and the ids are required.
INTERACTION_COLUMNS = {
    "user_id": "string",
    "item_id": "string",
    "timestamp": "seconds since 1970, int64",
    "rating": "explicit rating, float32, NaN where there is none",
    "event": "impression, click, watch, skip, like or share; missing means a plain positive",
    "value": "what the event is worth, such as seconds watched, float32",
    "weight": "what the row weighs as an example of training, float32",
    "search_text": "what the user typed before it, '' where nothing",
    "device": "such as phone, tv, web; '' where unknown",
    "country": "two letters; '' where unknown",
}
# Events that are training examples and targets. "" is a plain positive, such as a rating.
POSITIVE_EVENTS = ("", "click", "watch")
# An opinion of an item. Most follow a watch, which is another row.
OPINIONS = ("like", "share")
# Shown and not chosen; started and given up.
OTHER_EVENTS = ("impression", "skip")
EVENTS = (*POSITIVE_EVENTS, *OPINIONS, *OTHER_EVENTS)
REQUIRED = {
    "interactions": ("user_id", "item_id", "timestamp"),
    "items": ("item_id",),
    "users": ("user_id",),
}


@dataclasses.dataclass(frozen=True)
class Dataset:
    """Three tables. `interactions` has the order of its file, which carries meaning.

    MovieLens users rate in bursts (the median gap between two ratings is 0 s), so many protocols
    break ties of time by file order: nothing here may sort or shuffle `interactions`.

    Attributes:
        name: Such as `movielens/1m`.
        interactions: One row for each event; columns as in `INTERACTION_COLUMNS`.
        items: `item_id`, and as far as known `title`, `description`, `genres` (a tuple of strings
            a row), `maker`, `year`, `released` (seconds), further columns of the source.
        users: `user_id`, and what is known of the user (strings).
        notes: What a reader of the data left out or took for granted, a sentence each.
        has_times: Whether timestamps are times. If not, they are row numbers: the order of the rows
            stands for time.
        reading: What `load_dataset` needs besides name and folder to read the same data again, as
            JSON values. The manifest of a bundle stores it.

    The tables have the forms of `columns.py`: a missing value is "" in text, NaN in numbers and
    vectors, () in tags.

    Raises:
        ValueError: A required column is missing; an id is duplicate, empty, not a string, or spoilt
            (such as "nan"); an interaction names an item or user that its table does not have, an
            event is unknown, or a column has a value that it cannot hold (`ColumnError` names the
            row): times that are not whole seconds, infinite numbers, text instead of numbers.
    """

    name: str
    interactions: pd.DataFrame
    items: pd.DataFrame
    users: pd.DataFrame
    notes: tuple[str, ...] = ()
    has_times: bool = True
    reading: Mapping[str, object] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for table, columns in REQUIRED.items():
            frame = getattr(self, table)
            missing = [column for column in columns if column not in frame]
            if missing:
                without_times = (
                    " Without times, set timestamp=range(len(interactions)) and has_times=False."
                )
                raise ValueError(
                    f"{self.name}: table {table!r} lacks {missing}; it has {list(frame.columns)}."
                    + (without_times if missing == ["timestamp"] else "")
                )
            object.__setattr__(self, table, clean(frame, table))
        for table, column in (("items", "item_id"), ("users", "user_id")):
            ids = getattr(self, table)[column]
            check_ids(table, ids)
            if len(self.interactions):  # a catalogue alone may be an older bundle's
                refuse_spoilt_ids(table, ids)
            used = self.interactions[column]
            unknown = ~used.isin(ids)
            problem = f"is {{}}, which {table!r} does not have ({int(unknown.sum())} such rows)"
            refuse("interactions", used, unknown, problem)
        if not self.has_times:
            self._number_rows()
        problem = f"is {{}}, not one of {[*EVENTS]}"
        events = self._events
        refuse("interactions", events.rename("event"), ~events.isin(EVENTS), problem)

    def _number_rows(self) -> None:
        """Replaces timestamps that are no times by row numbers.

        So a dataset stays the same when it is saved and read again, also if rows were dropped.

        Raises:
            ColumnError: Rows that are not in the order of their timestamps.
        """
        given = self.interactions["timestamp"]
        problem = "is {}, less than that of the row before; without times the rows are in order"
        refuse("interactions", given, np.append(False, np.diff(given) < 0)[: len(given)], problem)
        self.interactions["timestamp"] = np.arange(len(given))

    @property
    def _events(self) -> pd.Series:
        """Each interaction's event, '' where there is none."""
        if "event" not in self.interactions:
            return pd.Series("", self.interactions.index)
        return self.interactions["event"]

    @functools.cached_property
    def catalogue(self) -> Catalogue:
        """The catalogue of all items; key `n` is row `n` of `items`."""
        return Catalogue(self.items)

    @functools.cached_property
    def item_keys(self) -> np.ndarray:
        """Key of each interaction's item, `[num_interactions]` int64."""
        return self._rows_of(self.items, "item_id")

    @functools.cached_property
    def user_rows(self) -> np.ndarray:
        """Row in `users` of each interaction's user, `[num_interactions]` int64."""
        return self._rows_of(self.users, "user_id")

    def _rows_of(self, table: pd.DataFrame, name: str) -> np.ndarray:
        """Row of each interaction in a table, `[num_interactions]` int64; -1 for an unknown id."""
        index = pd.Index(table[name])
        return index.get_indexer(self.interactions[name]).astype(np.int64)

    @functools.cached_property
    def timestamps(self) -> np.ndarray:
        """Time of each interaction in seconds since 1970, `[num_interactions]` int64."""
        return self.interactions["timestamp"].to_numpy(np.int64)

    @functools.cached_property
    def positive(self) -> np.ndarray:
        """Which interactions are training examples and targets, `[num_interactions]` bool.

        These are clicks, watches and rows without an event (a rating, high or low). A like or share
        is one only if the user has not clicked, watched, liked or shared the item before. Most
        follow a watch, which is another row, and would be a second target of the same user and
        item. An impression or a skip is not a positive.

        Later rows do not change this, so that held-out rows leave no trace in the training rows.
        """
        events = self._events
        positive = events.isin(POSITIVE_EVENTS).to_numpy(bool, copy=True)
        is_opinion = events.isin(OPINIONS).to_numpy(bool)
        if not is_opinion.any():
            return positive
        rows = np.flatnonzero(positive | is_opinion)
        # By time; of one second the watches come first, and then the order of the rows counts.
        rows = rows[np.lexsort((is_opinion[rows], self.timestamps[rows]))]
        pairs = self.user_rows[rows] * np.int64(len(self.items)) + self.item_keys[rows]
        _, first = np.unique(pairs, return_index=True)
        positive[rows[first]] = True
        return positive

    def rated_at_least(self, min_rating: float) -> "Dataset":
        """The dataset without the rows whose rating is lower or missing, which are not positives.

        Raises:
            ValueError: There are no ratings, or none as high as that; or the bound is not a number.
        """
        is_number = isinstance(min_rating, numbers.Real) and not isinstance(min_rating, bool)
        if not is_number or np.isnan(min_rating):
            raise ValueError(f"min_rating must be a number, such as 4; got {min_rating!r}.")
        min_rating = float(min_rating)  # JSON cannot hold NumPy's scalars
        if "rating" not in self.interactions:
            raise ValueError(
                f"min_rating={min_rating:g}: {self.name} has no ratings, but the columns "
                f"{list(self.interactions.columns)}. Say which one it is: columns='rating=COLUMN'."
            )
        keep = self.interactions["rating"] >= min_rating
        if not keep.any():
            highest = self.interactions["rating"].max()
            found = (
                "no row has a rating" if np.isnan(highest) else f"the highest rating is {highest:g}"
            )
            raise ValueError(f"min_rating={min_rating:g}: {found}.")
        dropped = f"dropped {(~keep).sum():,} of {len(keep):,} rows, rated below {min_rating:g}"
        return dataclasses.replace(
            self,
            interactions=self.interactions[keep],
            notes=(*self.notes, dropped),
            reading={**self.reading, "min_rating": min_rating},
        )

    def fingerprint(self) -> str:
        """sha256 over all values and their order; equal for equal data, whatever its source.

        Numbers are hashed as a model reads them, in float32; whole numbers are hashed exactly. The
        name, the order of columns, columns without a known value, and frames' indexes do not count.
        """
        digest = hashlib.sha256()
        for table in REQUIRED:
            frame = getattr(self, table)
            for column in sorted(frame.columns):
                values = frame[column]
                if column not in IDS and not known(values).any():
                    continue
                hashes = pd.util.hash_array(_hashable(values), categorize=True)
                digest.update(f"{table}.{column}:{len(hashes)}".encode())
                digest.update(hashes.astype("<u8").tobytes())
        return digest.hexdigest()


def _hashable(values: pd.Series) -> np.ndarray:
    """A column as one array in which equal values have equal bits, whatever held them."""
    if len(values) and isinstance(values.iloc[0], np.ndarray):
        values = np.stack(values.to_numpy()).ravel()  # str() would round and shorten
    elif not pd.api.types.is_numeric_dtype(values.dtype):
        return values.map(str).to_numpy(object)
    values = values.to_numpy() if isinstance(values, pd.Series) else values
    is_missing = np.isnan(values)
    if values.dtype != np.float32:
        whole = np.where(is_missing, 0, values)
        if (whole % 1 == 0).all() and (np.abs(whole) <= EXACT).all():
            return np.where(is_missing, np.iinfo(np.int64).min, whole).astype(np.int64)
    # All NaN get the same bits, and -0 becomes 0.
    return np.where(is_missing, np.float32(np.nan), values.astype(np.float32) + np.float32(0))
