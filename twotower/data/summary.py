"""What a dataset holds, in a few lines that a person reads before a training."""

import dataclasses
import datetime

import numpy as np

from twotower.data.columns import known
from twotower.data.dataset import REQUIRED, Dataset

# If there are more users (or items) than this share of the interactions, nearly all have one.
NEARLY = 0.9


@dataclasses.dataclass(frozen=True)
class Summary:
    """What a dataset holds. `print(summarise(dataset))` shows it.

    Attributes:
        name: Of the dataset.
        num_rows: Interactions.
        num_positives: Those that are examples to learn from.
        num_users, num_items: Rows of the tables.
        num_active_users, num_active_items: Those with a positive interaction.
        first, last: Time of the first and last interaction in seconds since 1970; None without
            times.
        density: Share of all pairs of an active user and an active item that have a positive row.
        columns: Columns of each table in which something is known, but for the ids.
        notes: What was left out or taken for granted, a sentence each.

    >>> import pandas as pd
    >>> times = [366 * 86400, 367 * 86400, 367 * 86400]
    >>> rows = {"user_id": ["u"] * 3, "item_id": ["a", "b", "a"], "timestamp": times}
    >>> users, items = pd.DataFrame({"user_id": ["u"]}), pd.DataFrame({"item_id": ["a", "b", "c"]})
    >>> print(summarise(Dataset("mine", pd.DataFrame(rows), items, users)))
    mine
      rows     3 interactions, 3.0 a user
      users    1
      items    3, of which 2 have an interaction
      period   1971-01-02 to 1971-01-03
      density  100.000% of all pairs of these users and items
      columns  interactions: timestamp
    """

    name: str
    num_rows: int
    num_positives: int
    num_users: int
    num_items: int
    num_active_users: int
    num_active_items: int
    first: int | None
    last: int | None
    density: float
    columns: dict[str, list[str]]
    notes: tuple[str, ...]

    def __str__(self) -> str:
        rows = f"{self.num_rows:,} interactions"
        if self.num_positives < self.num_rows:
            rows += f", of which {self.num_positives:,} are positives"
        if self.num_active_users:
            rows += f", {self.num_positives / self.num_active_users:.1f} a user"
        period = "unknown"
        if self.first is not None and self.last is not None:
            period = f"{_day(self.first)} to {_day(self.last)}"
        columns = [f"{table}: {', '.join(names)}" for table, names in self.columns.items() if names]
        entries = {
            "rows": rows,
            "users": _active(self.num_users, self.num_active_users),
            "items": _active(self.num_items, self.num_active_items),
            "period": period,
            "density": f"{self.density:.3%} of all pairs of these users and items",
            "columns": "; ".join(columns),
        }
        lines = [self.name, *(f"  {name:8s} {text}" for name, text in entries.items() if text)]
        return "\n".join([*lines, *(f"  note     {note}" for note in self.notes)])


def _active(num: int, num_active: int) -> str:
    some = f", of which {num_active:,} have an interaction" if num_active < num else ""
    return f"{num:,}{some}"


def _day(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()


def summarise(dataset: Dataset) -> Summary:
    """Counts what a dataset holds."""
    users, items = dataset.user_rows[dataset.positive], dataset.item_keys[dataset.positive]
    num_users, num_items = len(np.unique(users)), len(np.unique(items))
    num_pairs = len(np.unique(users * len(dataset.items) + items))
    has_times = dataset.has_times and len(dataset.timestamps) > 0
    notes = list(dataset.notes)
    times = {"timestamp": dataset.timestamps if has_times else np.array([])}
    if "released" in dataset.items:
        times["released"] = dataset.items["released"].dropna().to_numpy()
    for name, seconds in times.items():
        if len(seconds) and seconds.min() >= 0 and seconds.max() < 365 * 86_400:
            what = "times" if name == "timestamp" else f"times of {name}"
            notes.append(
                f"all {what} lie in 1970: if they are no seconds, say what they are "
                f"(columns='{name}=COLUMN:UNIT')"
            )
    rated = "rating" in dataset.interactions and known(dataset.interactions["rating"]).any()
    if rated and "min_rating" not in dataset.reading:
        lowest = dataset.interactions["rating"].min()
        notes.append(f"every rating counts as a positive, down to {lowest:g} (min_rating)")
    if num_users > NEARLY * len(users):
        notes.append("nearly every user has one interaction, so there is no history to learn from")
    if num_items > NEARLY * len(items):
        notes.append(
            "nearly every item has one interaction, which says little about it; if fields hold "
            "several ids, write a row for each"
        )
    return Summary(
        name=dataset.name,
        num_rows=len(dataset.interactions),
        num_positives=len(users),
        num_users=len(dataset.users),
        num_items=len(dataset.items),
        num_active_users=num_users,
        num_active_items=num_items,
        first=int(dataset.timestamps.min()) if has_times else None,
        last=int(dataset.timestamps.max()) if has_times else None,
        density=num_pairs / max(1, num_users * num_items),
        columns={table: _columns(getattr(dataset, table)) for table in REQUIRED},
        notes=tuple(notes),
    )


def _columns(frame) -> list[str]:
    names = [name for name in frame if name not in ("user_id", "item_id")]
    return [name for name in names if len(frame) and known(frame[name]).any()]
