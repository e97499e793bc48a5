"""Catalogue: the items, each with an id (a string) and a key (a row number).

Files, SavedModels and pages name an item by its *id*. All code between them uses the *key*. Only
the Catalogue converts between the two.
"""

import itertools
from collections.abc import Collection, Iterable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from twotower.data.cleaning import as_stored, clean
from twotower.data.columns import IDS, check_ids, form_of, known
from twotower.ragged import integers


class Catalogue:
    """The items, each with an id (string, at the edge) and a key (int64, inside).

    The key of an item is its row number and never changes: `extend` appends, and an item that is
    taken out of service keeps its key.

    >>> items = pd.DataFrame({"item_id": ["a", "b"], "year": [1990, 2001]})
    >>> catalogue = Catalogue(items)
    >>> catalogue.keys_of(["b", "zzz"]).tolist(), catalogue.ids_of([1, -1]).tolist()
    ([1, -1], ['b', ''])
    >>> catalogue.where(year=(2000, None)).tolist()
    [1]
    """

    def __init__(self, items: pd.DataFrame) -> None:
        items = clean(items, "items").reset_index(drop=True)
        check_ids("items", items["item_id"])
        self._set(items)

    def _set(self, items: pd.DataFrame) -> None:
        self.items = items
        # Position -1 is the id of "no item", so that ids_of is one indexing operation.
        self._ids = np.append(self.items["item_id"].to_numpy(object), "")
        self._key_of = dict(zip(self._ids[:-1], range(len(self.items))))

    def __len__(self) -> int:
        return len(self.items)

    @property
    def keys(self) -> np.ndarray:
        """All keys, `[num_items]` int64."""
        return np.arange(len(self), dtype=np.int64)

    def keys_of(self, ids: Iterable[str]) -> np.ndarray:
        """Keys of ids `[...]`, int64 of the same shape; -1 for an unknown id."""
        ids = np.asarray(ids, object)
        found = map(self._key_of.get, ids.ravel(), itertools.repeat(-1))
        return np.fromiter(found, np.int64, ids.size).reshape(ids.shape)

    def require_keys(self, ids: Sequence[str]) -> np.ndarray:
        """Keys of ids, `[num_ids]` int64.

        Raises:
            ValueError: Ids that the catalogue does not have, or a single string in place of a list.
        """
        if isinstance(ids, str):  # its letters could be ids, as those of "260" are
            raise ValueError(f"items are a list of ids, such as [{ids!r}]; got the text {ids!r}.")
        if not isinstance(ids, Collection) or np.ndim(found := list(ids)) != 1:
            raise ValueError(f"items are a list of ids; got {ids!r}. Give [] for none.")
        keys = self.keys_of(found)
        if (keys < 0).any():
            unknown = [item for item, key in zip(ids, keys) if key < 0]
            example = f", whose ids are texts such as {self._ids[0]!r}" if len(self) else ""
            raise ValueError(f"items {unknown} are not in the catalogue{example}.")
        return keys

    def require_same_keys(self, items: pd.DataFrame) -> None:
        """Refuses a table of items that gives one of this catalogue's keys to another item.

        This happens if items were inserted or reordered. Either of the two may have further items
        at its end.

        Raises:
            ValueError: Such a table; the message names the first such key.
        """
        ids = items["item_id"].to_numpy(object)
        num = min(len(self), len(ids))
        if len(key := np.flatnonzero(self._ids[:num] != ids[:num])):
            raise ValueError(
                f"key {key[0]} is item {self._ids[key[0]]!r} here and {ids[key[0]]!r} in the other "
                "data, whose keys would name wrong items. Take the data that the model was trained "
                "on."
            )

    def ids_of(self, keys: np.ndarray) -> np.ndarray:
        """Ids of keys `[...]`, objects of the same shape; '' for -1.

        Raises:
            ValueError: A key that this catalogue never gave out, or keys that are no integers, such
                as a mask of all items.
        """
        keys = integers(keys, "keys")
        if keys.size and (keys.max() >= len(self) or keys.min() < -1):
            wrong = keys.max() if keys.max() >= len(self) else keys.min()
            raise ValueError(f"key {wrong} is not of this catalogue of {len(self)} items.")
        return self._ids[keys]

    def where(self, /, **conditions: Any) -> np.ndarray:
        """Keys of the items that meet every condition, `[num_found]` int64, ascending.

        Args:
            **conditions: Column name and what it must be: a value; a `(low, high)` tuple of
                numbers or times, both included (None: no bound), which no missing number matches;
                or several values (a list, set, range or array), one of which must match. A column
                of tags, such as `genres`, matches if an item has any of the tags given.
                Values may be as the column was given: True, or a pd.Timestamp for `released`.

        Raises:
            ValueError: A column that the catalogue does not have, a value of another type than the
                column's, a missing value, a range of text, or a condition on vectors.
        """
        keep = np.ones(len(self), bool)
        for column, wanted in conditions.items():
            if column not in self.items:
                raise ValueError(
                    f"the catalogue has no column {column!r}; it has {list(self.items.columns)}."
                )
            if len(self):
                keep &= _matches(self.items[column], wanted)
        return np.flatnonzero(keep).astype(np.int64)

    def extend(self, items: pd.DataFrame) -> "Catalogue":
        """A catalogue with further items after these; the keys of these do not change.

        The new rows are converted as those of a Dataset are, to the forms that these columns have.
        """
        table, is_done = self._with(items)
        if (self.keys_of(table["item_id"][len(self) :]) >= 0).any():
            check_ids("items", table["item_id"])
        return self._continued(table, is_done)

    def updated(self, items: pd.DataFrame) -> "Catalogue":
        """As `extend`, but items that are there already get the columns given, and no others.

        >>> catalogue = Catalogue(pd.DataFrame({"item_id": ["a", "b"], "title": ["A", "B"]}))
        >>> catalogue.updated(pd.DataFrame({"item_id": ["a"], "title": ["Z"]})).items["title"][0]
        'Z'
        """
        table, is_done = self._with(items)
        keys, rows = self.keys_of(items["item_id"]), np.arange(len(self), len(table))
        order = np.arange(len(table))
        order[keys[keys >= 0]] = rows[keys >= 0]
        stays = np.append(np.ones(len(self), bool), keys < 0)
        return self._continued(table.iloc[order[stays]], is_done)

    @staticmethod
    def _continued(table: pd.DataFrame, is_done: list[str]) -> "Catalogue":
        """The catalogue of a table whose ids are checked, and of which some columns are cleaned."""
        table = table.reset_index(drop=True)
        rest = clean(table.drop(columns=is_done), "items")
        for column in rest:
            table[column] = rest[column]
        made = Catalogue.__new__(Catalogue)
        made._set(table)
        return made

    def _with(self, items: pd.DataFrame) -> tuple[pd.DataFrame, list[str]]:
        """The table of these items and, after them, further ones; and which columns are cleaned.

        Those are the texts and tags that both have. To clean the tags of a whole catalogue anew
        would take most of the time in which one item is added.
        """
        if "item_id" not in items:
            raise ValueError(f"further items lack 'item_id'; they have {list(items.columns)}.")
        is_known = {column: known(self.items[column]).any() for column in self.items}
        forms = {column: form_of(self.items[column]) for column in self.items if is_known[column]}
        new = clean(items, "items", forms)
        check_ids("items", new["item_id"])
        # A column of which nothing was known takes the form of the new values.
        blank = [name for name in new if name not in IDS and not is_known.get(name, True)]
        is_done = [
            name
            for name in new
            if name == "item_id" or (name not in blank and forms.get(name) in ("text", "tags"))
        ]
        return pd.concat([self.items.drop(columns=blank), new], ignore_index=True), is_done


def _matches(values: pd.Series, wanted) -> np.ndarray:
    """Which rows of a cleaned column meet a condition of `Catalogue.where`, `[num_rows]` bool."""
    form = form_of(values)
    if form == "vector":
        raise ValueError(
            f"{values.name} holds vectors, which no condition can be on. Leave it out."
        )
    if isinstance(wanted, tuple) and form != "tags":
        if form != "number":
            raise ValueError(
                f"{values.name} holds no numbers, so {wanted} cannot be a range of it. Give a "
                "value, or a list of values."
            )
        if len(wanted) != 2:
            raise ValueError(
                f"{values.name}: {wanted} is no range. Give (low, high), None where it has no "
                "bound, or a list of values."
            )
        low, high = wanted
        # NaN, which stands for a missing number, lies in no range.
        least = -np.inf if low is None else as_stored(values, low)
        most = np.inf if high is None else as_stored(values, high)
        if least > most:
            raise ValueError(f"{values.name}: the range {wanted} ends before it begins.")
        return ((values >= least) & (values <= most)).to_numpy()
    several = list(wanted) if pd.api.types.is_list_like(wanted) else [wanted]
    several = [as_stored(values, value) for value in several]
    if form == "tags":
        return np.array([not set(several).isdisjoint(tags) for tags in values])
    return values.isin(several).to_numpy(bool)
