"""Filters: remove candidates that must not be shown. A stage of a funnel holds several filters."""

import abc
import dataclasses
import hashlib
import re
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Self

import numpy as np

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.funnel.attributes import Attribute
from twotower.funnel.stage import Part, Stage
from twotower.limits import whole_number
from twotower.ragged import Ragged, integers
from twotower.retrieval.candidates import Candidates

# Cells of a table [requests, items] that is filled at once.
CELLS = 2**24


class Filter(Part):
    """Decides which candidates to keep.

    Attributes:
        strict: Whether it may remove all candidates of a request. If not, and it would remove all,
            it keeps them all, and the funnel's answer counts the request under `relaxed`.
    """

    strict = True

    @abc.abstractmethod
    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        """Which candidates to keep, `[num_requests, k]` bool; entries past the end of a list do not
        matter."""


@dataclasses.dataclass(frozen=True)
class Filtered:
    """The candidates after filtering, and what was removed.

    Attributes:
        candidates: The candidates that all filters keep.
        lost: Kind of a filter -> number of candidates that it removed and no earlier filter had.
        relaxed: Kind of a filter -> number of requests of which it would have removed all
            candidates, and so removed none.
    """

    candidates: Candidates
    lost: dict[str, int]
    relaxed: dict[str, int]


class Filters(Stage):
    """A stage that applies filters in order, and then moves the remaining candidates up.

    Args:
        filters: Each sees all candidates, also those that an earlier filter removed.
    """

    kind = "filters"
    required = True

    def __init__(self, filters: Sequence[Filter]) -> None:
        self.filters = list(filters)
        self.context = sorted({name for some in filters for name in some.context})

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        return self.apply(requests, candidates).candidates

    def apply(self, requests: Requests, candidates: Candidates) -> Filtered:
        """The remaining candidates, and how many each filter removed."""
        keep = candidates.valid
        lost: dict[str, int] = {}
        relaxed: dict[str, int] = {}
        for some in self.filters:
            left = keep & some.keep(requests, candidates)
            if not some.strict:
                emptied = keep.any(1) & ~left.any(1)
                left[emptied] = keep[emptied]
                if emptied.any():
                    relaxed[some.kind] = relaxed.get(some.kind, 0) + int(emptied.sum())
            lost[some.kind] = lost.get(some.kind, 0) + int(keep.sum() - left.sum())
            keep = left
        return Filtered(candidates.mask(keep), lost, relaxed)


def is_among(keys: np.ndarray, rows: Ragged) -> np.ndarray:
    """Which of `keys` `[num_rows, k]` are in their row of `rows`; -1 is in none.

    Keys may have any value, such as those of items added after training.

    >>> is_among(np.array([[4, 9], [9, -1]]), Ragged.from_rows([[9], [3]])).tolist()
    [[False, True], [False, False]]
    """
    found = np.zeros(keys.shape, bool)
    if not len(rows.values):
        return found
    column, rows = keys, Ragged(np.maximum(rows.values, -1), rows.offsets)
    width = int(max(keys.max(initial=0), rows.values.max())) + 2  # the last for -1
    if width > CELLS:  # a table of the keys in `rows`, since one of all keys would be too large
        known, places = np.unique(rows.values, return_inverse=True)
        column = np.minimum(np.searchsorted(known, keys), len(known) - 1)
        column = np.where(known[column] == keys, column, -1)
        rows, width = Ragged(places, rows.offsets), len(known) + 1
    step = max(1, CELLS // width)
    for start in range(0, len(keys), step):
        part = rows.take(np.arange(start, min(start + step, len(keys))))
        table = np.zeros((len(part), width), bool)
        table[part.row_index, part.values] = True
        found[start : start + step] = np.take_along_axis(table, column[start : start + step], 1)
    return found & (keys >= 0)


class Seen(Filter):
    """Drops the items that a request excludes: those its user has seen, and any that it names."""

    kind = "seen"

    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        return ~is_among(candidates.keys, requests.exclude)


class PerUser(Filter):
    """Drops the items in a list of each user; base class of `Blocked` and `Shown`.

    Args:
        user_id: `[num_users]` strings, no duplicates.
        keys: `[num_pairs]` int64, the items of all users, concatenated.
        offsets: `[num_users + 1]`; the items of user `i` are `keys[offsets[i]:offsets[i + 1]]`.
    """

    ARRAYS = (
        "user_id text [num_users]",
        "keys int [num_pairs]",
        "offsets int [num_users + 1]",
    )

    def __init__(self, user_id: np.ndarray, keys: np.ndarray, offsets: np.ndarray) -> None:
        self.user_id, self.keys, self.offsets = user_id, keys, offsets
        self._row_of = {user: row for row, user in enumerate(user_id.tolist())}
        # The last row is that of all users without a list.
        self._items = Ragged(keys, np.append(offsets, len(keys)))

    @classmethod
    def of(cls, lists: Mapping[str, Iterable[int]]) -> Self:
        """The filter from lists of keys by user."""
        rows = Ragged.from_rows([sorted(set(keys)) for keys in lists.values()])
        return cls(np.array([*lists], str), rows.values, rows.offsets)

    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        nobody = len(self.user_id)
        rows = [self._row_of.get(user, nobody) for user in requests.user_id]
        return ~is_among(candidates.keys, self._items.take(np.array(rows, np.int64)))


class Blocked(PerUser):
    """Drops what a user has blocked: items, or all items of a genre or maker.

    Blocked.where(catalogue, {"u1": {"genres": ["Horror"]}})
    """

    kind = "blocked"

    @classmethod
    def where(cls, catalogue: Catalogue, rules: Mapping[str, Mapping[str, Any]]) -> Self:
        """The filter from conditions by user, in the form that `Catalogue.where` takes."""
        return cls.of({user: catalogue.where(**rule).tolist() for user, rule in rules.items()})


class Shown(PerUser):
    """Drops items that a user was shown too often without choosing them (an impression cap).

    Not strict: if all candidates were shown too often to a user, they are shown again.
    """

    kind = "shown"
    strict = False

    @classmethod
    def count(cls, user_id: Sequence[str], keys: np.ndarray, at_least: int = 3) -> Self:
        """The filter that drops an item for a user if the rows have this pair `at_least` times.

        Args:
            user_id: `[num_rows]` users who were shown an item and did not choose it.
            keys: `[num_rows]` int64, the items.
            at_least: The threshold, 1 or more.

        Raises:
            ValueError: Users and keys of different lengths, keys that are not integers, or a
                threshold out of bounds.
        """
        keys, at_least = integers(keys, "keys"), whole_number(at_least, "at_least", 1)
        if keys.shape != (len(user_id),):
            raise ValueError(
                f"expected users [num_rows] and a key for each; got {len(user_id)} users and keys "
                f"{[*keys.shape]}."
            )
        users, row = np.unique(np.asarray(user_id, str), return_inverse=True)
        pairs, counts = np.unique(np.stack([row, keys]), axis=1, return_counts=True)
        row, keys = pairs[:, counts >= at_least]
        rows = Ragged.group(keys, row, len(users))
        return cls(users, rows.values, rows.offsets)


class Available(Filter):
    """Keeps only the items that are available, such as those in stock or licensed.

    Args:
        keys: `[num_available]` int64, the keys themselves; a mask of all items is refused.
    """

    kind = "available"
    ARRAYS = ("keys int [num_available]",)

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = np.unique(integers(keys, "keys"))

    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        return np.isin(candidates.keys, self.keys)


class MinimumAge(Filter):
    """Drops items whose minimum age is above the age of the request's user.

    Args:
        least: `[num_items]` float32, the minimum age of each item. Items beyond its end have
            `unknown_item`.
        user_id: `[num_users]` users whose age is known. An age in the request's context takes
            precedence.
        age: `[num_users]` their ages, as text; a range such as "18-24" counts as its lower bound.
        unknown_age: The age of a user whose age is unknown or not a number.
        unknown_item: The minimum age of an item that `least` does not have.
    """

    kind = "minimum_age"
    context = ("age",)
    SETTINGS = ("unknown_age", "unknown_item")
    ARRAYS = (
        "least float [num_items]",
        "user_id text [num_users]",
        "age text [num_users]",
    )

    def __init__(
        self,
        least: np.ndarray,
        user_id: np.ndarray | None = None,
        age: np.ndarray | None = None,
        unknown_age: float = 0.0,
        unknown_item: float = 18.0,
    ) -> None:
        self._age = Attribute("age", user_id, age)
        self.least, self.user_id, self.age = least, self._age.user_id, self._age.values
        self.unknown_age, self.unknown_item = unknown_age, unknown_item
        # The last entry is that of all items that came later.
        self._least = np.append(least, unknown_item)

    @classmethod
    def rule(
        cls,
        catalogue: Catalogue,
        rules: Sequence[tuple[float, Mapping[str, Any]]],
        ages: Attribute | None = None,
        **settings: Any,
    ) -> Self:
        """The filter from rules (age, condition), such as `(18, {"genres": ["Horror"]})`.

        Args:
            catalogue: The items. An item that no rule names has no minimum age.
            rules: Pairs of a minimum age and a condition for `Catalogue.where`.
            ages: `Attribute.of(dataset, "age")`, for users whose age is known.
            **settings: Further arguments of the filter.
        """
        least = np.zeros(len(catalogue), np.float32)
        for age, condition in rules:
            keys = catalogue.where(**condition)
            least[keys] = np.maximum(least[keys], age)
        ages = ages or Attribute("age")
        return cls(least, ages.user_id, ages.values, **settings)

    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        ages = np.array([_number(text, self.unknown_age) for text in self._age(requests)])
        return ages[:, None] >= self._least[np.minimum(candidates.keys, len(self.least))]


class HoldOut(Filter):
    """Hides a random share of the items from all users, by a hash of their ids, to measure their
    value.

    Args:
        fraction: `[num_items]` a hash of each item as a number in [0, 1). Items beyond its end are
            kept.
        share: Items whose hash is below this are hidden.
    """

    kind = "hold_out"
    SETTINGS = ("share",)
    ARRAYS = ("fraction float [num_items]",)

    def __init__(self, fraction: np.ndarray, share: float) -> None:
        if not 0 <= share <= 1:
            raise ValueError(f"share must lie within 0 and 1; got {share}.")
        self.fraction, self.share = fraction, share
        # The last entry is that of all items that came later. They are kept: no share is above 1.
        self._fraction = np.append(fraction, 1.0)

    @classmethod
    def of(cls, catalogue: Catalogue, share: float, experiment: str) -> Self:
        """The filter that hides a share of a catalogue; each experiment hides other items."""
        return cls(fractions(catalogue.ids_of(catalogue.keys), experiment), share)

    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        return self._fraction[np.minimum(candidates.keys, len(self.fraction))] >= self.share


def fractions(ids: Iterable[str], salt: str) -> np.ndarray:
    """A hash of each id and the salt as a number in [0, 1), `[num_ids]`, the same on every machine.

    >>> fractions(["a", "b"], "colour").round(3).tolist()
    [0.387, 0.681]
    """
    digests = (hashlib.blake2b(f"{salt}:{some}".encode(), digest_size=8).digest() for some in ids)
    return np.array([int.from_bytes(digest, "big") >> 11 for digest in digests]) / 2.0**53


def _number(text: str, otherwise: float) -> float:
    """A number, the lower bound of a range such as "18-24" or "56+", or else `otherwise`."""
    bounded = re.fullmatch(r"\s*(\d+(?:\.\d+)?)\s*(?:\+|[-–]\s*\d+(?:\.\d+)?)\s*", text)
    try:
        number = float(bounded[1] if bounded else text)
    except ValueError:
        return otherwise
    return number if np.isfinite(number) else otherwise
