"""Limits the number of items of one maker or genre in a list. Numpy only."""

from typing import Self

import numpy as np

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.limits import whole_number
from twotower.reranking.greedy import Gains, Greedy
from twotower.retrieval.candidates import Candidates


class AtMost(Greedy):
    """Limits the items of one maker or genre, both consecutive ones and all in a list.

    Each position gets the first remaining item that the limits allow there. An item with several
    genres must be within the limits of each; one without any is always allowed. If the limits
    forbid all remaining items, the first one follows nevertheless: a list never gets shorter.

        AtMost.of(catalogue, "genres", in_a_row=2, in_all=5, length=10)(requests, candidates)

    Args:
        groups: `[num_items, most]` int64, codes (from 0) of each item's makers or genres, padded
            with -1. An item beyond the table's end has none.
        in_a_row: Largest number of consecutive items of a group; 0 for no limit.
        in_all: Largest number of items of a group among the first `length`; 0 for no limit.
        length: Number of positions to re-rank; the other items follow in their old order.

    Raises:
        ValueError: A setting out of bounds, no limit, or groups of another shape or below -1.
    """

    kind = "at_most"
    SETTINGS = ("in_a_row", "in_all", "length")
    ARRAYS = ("groups int [num_items, most]",)

    def __init__(
        self, groups: np.ndarray, in_a_row: int = 0, in_all: int = 0, length: int = 40
    ) -> None:
        super().__init__(length)
        self.in_a_row = whole_number(in_a_row, "in_a_row")
        self.in_all = whole_number(in_all, "in_all")
        if not self.in_a_row and not self.in_all:
            raise ValueError("in_a_row and in_all are both 0, so there is no limit. Set one.")
        if groups.ndim != 2 or groups.dtype.kind not in "iu" or (groups < -1).any():
            raise ValueError(
                "groups must be integers [num_items, most], codes from 0, or -1 for none; got "
                f"{groups.dtype} {[*groups.shape]}, the least {groups.min(initial=0)}."
            )
        self.groups = groups
        self._groups = np.pad(groups, ((0, 1), (0, 0)), constant_values=-1)

    @classmethod
    def of(cls, catalogue: Catalogue, column: str, **settings: int) -> Self:
        """Limits on a column of the catalogue: a text (`maker`) or tags (`genres`).

        Raises:
            ValueError: A column that the catalogue does not have, or that has numbers or vectors.
        """
        if column not in catalogue.items:
            raise ValueError(
                f"the items have no {column!r}; they have {list(catalogue.items.columns)}."
            )
        rows = [(entry,) if isinstance(entry, str) else entry for entry in catalogue.items[column]]
        try:
            texts = sorted({text for row in rows for text in row if text})
            number = {text: number for number, text in enumerate(texts)}
        except TypeError as error:
            raise ValueError(f"{column} must hold texts or tags to limit them.") from error
        groups = np.full((len(rows), max(map(len, rows), default=1) or 1), -1)
        for row, some in enumerate(rows):
            found = sorted({number[text] for text in some if text})
            groups[row, : len(found)] = found
        return cls(groups, **settings)

    @property
    def num_features(self) -> int:
        return self.groups.shape[1]

    def gains(self, requests: Requests, candidates: Candidates) -> Gains:
        keys = candidates.keys
        groups = self._groups[np.where((keys < 0) | (keys >= len(self._groups)), -1, keys)]
        return _Allowed(groups, self.in_a_row, self.in_all)


class _Allowed(Gains):
    """0 and less for allowed items, in their order; far less for those that are forbidden."""

    def __init__(self, groups: np.ndarray, in_a_row: int, in_all: int) -> None:
        # Numbers from 1 of the groups that these candidates have; 0 for none.
        known, number = np.unique(np.append(-1, groups), return_inverse=True)
        self._groups = number[1:].reshape(groups.shape)  # [num_requests, k, most]
        self._limits = in_a_row or np.inf, in_all or np.inf
        shape = len(groups), len(known)
        self._in_a_row, self._in_all = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
        self._order = -np.arange(groups.shape[1], dtype=float)
        self._rows = np.arange(len(groups))

    def values(self) -> np.ndarray:
        in_a_row, in_all = self._limits
        full = (self._in_a_row >= in_a_row) | (self._in_all >= in_all)  # [num_requests, num_groups]
        full[:, 0] = False
        forbidden = full[self._rows[:, None, None], self._groups].any(2)
        return self._order - len(self._order) * forbidden

    def add(self, column: np.ndarray) -> None:
        row = self._rows[:, None]
        groups = self._groups[self._rows, column]  # [num_requests, most]
        last = self._in_a_row[row, groups] + 1
        self._in_a_row[:] = 0
        self._in_a_row[row, groups] = last
        self._in_all[row, groups] += 1
