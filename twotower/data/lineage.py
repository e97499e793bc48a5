"""Lineage: which rows a model has learned from, itself or through a model that it started from.

A question whose answer a model has learned cannot judge the model. A split keeps its questions out
of its training rows. But a warm start brings in rows of another training, perhaps on other data or
another split. So a bundle carries the ids of all rows that its weights have learned from, 8 bytes a
row, and an evaluation compares them with the rows that its questions are about.

A row is identified by user, item and time. It is also recognised if another time zone has shifted
the times. It is not recognised if the earlier data had other forms of the ids, or if times were
rounded or shifted otherwise: the model then counts as one that has not seen the answers.
"""

import dataclasses
from typing import Self

import numpy as np
import pandas as pd

from twotower.data.dataset import Dataset
from twotower.data.splits import Split

# Share of the questions' rows that a model may have seen. Not 0: both rows of a user who has two
# are training rows, and in later data, where the user has more, one of them may become a question.
MOST_SEEN = 0.01
# Seconds by which another time zone shifts times: quarters of an hour, up to 14 hours. All are less
# than a day, so that the same user and item on another day is another row.
ZONE_SHIFTS = np.setdiff1d(np.arange(-14 * 3600, 14 * 3600 + 1, 900), [0])
# Held-out rows that are compared at shifted times: a sample, since each shift needs new hashes.
MAX_SHIFTED_ROWS = 2_000


@dataclasses.dataclass(frozen=True)
class Lineage:
    """The rows that a model's weights have learned from.

    Attributes:
        rows: `[num_rows]` uint64, ascending, as `row_ids` returns them; None if an ancestor's rows
            are not known.
        ancestors: Model versions of the bundles that the weights come from, the latest first.

        lineage = Lineage.of(dataset, split)
        lineage.require_unseen(newer, make_split(newer, "temporal"), "Train from new weights.")
    """

    rows: np.ndarray | None
    ancestors: tuple[str, ...] = ()

    @classmethod
    def of(cls, dataset: Dataset, split: Split, ancestor: "Lineage | None" = None) -> Self:
        """Lineage of a training on a split's rows, which may start from an ancestor's weights."""
        rows = row_ids(dataset, split.train)
        if ancestor is None:
            return cls(rows)
        if ancestor.rows is None:
            return cls(None, ancestor.ancestors)
        return cls(np.union1d(rows, ancestor.rows), ancestor.ancestors)

    def share_seen(self, dataset: Dataset, split: Split) -> float | None:
        """Of the rows that a split keeps for its questions, the share that these weights have
        learned from; None where it is not known."""
        if self.rows is None:
            return None
        return max(_shares(self.rows, dataset, split))

    def require_unseen(self, dataset: Dataset, split: Split, advice: str) -> None:
        """Refuses weights that have learned the answers to a split's questions.

        Raises:
            ValueError: The weights have learned, themselves or through an ancestor, from more than
                `MOST_SEEN` of the rows that the questions are about, or it is not known from which
                rows. The message ends with `advice`.
        """
        if self.rows is None:
            raise ValueError(
                "the model, or one that it starts from, does not say which rows it has learned "
                "from, as bundles of earlier versions do not. It may have learned the answers of "
                f"{split.protocol}, {split.part}. {advice}"
            )
        same, shifted = _shares(self.rows, dataset, split)
        seen = max(same, shifted)
        if seen > MOST_SEEN:
            zone = ", at times of another time zone" if shifted > same else ""
            raise ValueError(
                f"the model, or one that it starts from, has learned from {seen:.0%} of the rows "
                f"that {split.protocol} keeps for {split.part}{zone}, so they cannot judge it. "
                f"{advice}"
            )


def row_ids(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Hashes of user, item and time of rows of `interactions`: `[<= num_rows]` uint64, ascending
    and unique. They are the same for the same event in a later version of the data.

    Without times they are of user and item alone: the number of a row changes with every row that
    comes in front of it.
    """
    return np.unique(_ids(dataset, rows))


def _ids(dataset: Dataset, rows: np.ndarray, shift: np.ndarray | int = 0) -> np.ndarray:
    """`[num_rows]` uint64, hashes as in `row_ids`, with times shifted by `shift` seconds."""
    events = dataset.interactions[["user_id", "item_id"]].iloc[rows]
    if dataset.has_times:
        events["timestamp"] = dataset.timestamps[rows] + shift
    return pd.util.hash_pandas_object(events, index=False).to_numpy()


def _among(ids: np.ndarray, known: np.ndarray) -> np.ndarray:
    """Whether each id is in `known`, which ascends: bool of the shape of `ids`."""
    if not len(known):
        return np.zeros(ids.shape, bool)
    return known[np.minimum(np.searchsorted(known, ids), len(known) - 1)] == ids


def held_out(dataset: Dataset, split: Split) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a model must not have learned from if a split is to judge it.

    They are the positive rows of its targets (same user and item), and of the items that it hides.

    Returns:
        `[num_rows]` the rows, ascending, and `[num_ids]` uint64 their `row_ids`. Neither contains a
        training row.
    """
    cases, num_items = split.cases, np.int64(len(dataset.items))
    users = pd.Index(dataset.users["user_id"]).get_indexer(cases.user_id)
    target_pairs = users[cases.targets.row_index] * num_items + cases.targets.values
    is_held_out = np.isin(dataset.user_rows * num_items + dataset.item_keys, target_pairs)
    if split.hidden is not None:
        is_held_out |= np.isin(dataset.item_keys, split.hidden)
    rows = np.flatnonzero(is_held_out & dataset.positive)
    # If seen items may be answered, an earlier row of a target's user and item may be in training.
    ids = np.setdiff1d(row_ids(dataset, rows), row_ids(dataset, split.train), assume_unique=True)
    return np.setdiff1d(rows, split.train), ids


def _shares(known: np.ndarray, dataset: Dataset, split: Split) -> tuple[float, float]:
    """Of the rows that a split keeps for its questions, the share whose ids are known.

    Returns:
        The share at the times of the rows, and the share at times of another time zone.
    """
    rows, ids = held_out(dataset, split)
    same = len(np.intersect1d(ids, known, assume_unique=True)) / max(1, len(ids))
    return same, _share_shifted(known, dataset, rows)


def _share_shifted(known: np.ndarray, dataset: Dataset, rows: np.ndarray) -> float:
    """The share of a sample of the rows whose ids are known at times of another time zone.

    A match does not count if the dataset itself has a row at the shifted time: then the model has
    learned from that other event of the user.
    """
    if not dataset.has_times or not len(rows):
        return 0.0
    rows = rows[:: -(-len(rows) // MAX_SHIFTED_ROWS)]
    shift = np.repeat(ZONE_SHIFTS, len(rows))
    # [num_shifts, num_rows]
    found = _ids(dataset, np.tile(rows, len(ZONE_SHIFTS)), shift).reshape(-1, len(rows))
    is_known = _among(found, known)
    if is_known.any():
        is_known &= ~_among(found, row_ids(dataset, np.arange(len(dataset.interactions))))
    return float(is_known.any(axis=0).mean())
