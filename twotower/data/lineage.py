"""Lineage: which rows a model has learned from, itself or through a model that it started from.

A question whose answer a model has learned cannot judge the model. A split keeps its questions out
of its training rows. But a warm start brings in rows of another training, perhaps on other data or
another split. So a bundle carries the ids of all rows that its weights have learned from, 8 bytes a
row, and an evaluation compares them with the rows that its questions are about.

A row is identified by user, item and time. If the earlier data had other forms of the ids, or if
all times have moved, as by another time zone, this is not noticed: the model then counts as one
that has not seen the answers.
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
        held_out = held_out_ids(dataset, split)
        return len(np.intersect1d(held_out, self.rows, assume_unique=True)) / max(1, len(held_out))

    def require_unseen(self, dataset: Dataset, split: Split, advice: str) -> None:
        """Refuses weights that have learned the answers to a split's questions.

        Raises:
            ValueError: The weights have learned, themselves or through an ancestor, from more than
                `MOST_SEEN` of the rows that the questions are about, or it is not known from which
                rows. The message ends with `advice`.
        """
        seen = self.share_seen(dataset, split)
        if seen is None:
            raise ValueError(
                "the model, or one that it starts from, does not say which rows it has learned "
                "from, as bundles of earlier versions do not. It may have learned the answers of "
                f"{split.protocol}, {split.part}. {advice}"
            )
        if seen > MOST_SEEN:
            raise ValueError(
                f"the model, or one that it starts from, has learned from {seen:.0%} of the rows "
                f"that {split.protocol} keeps for {split.part}, so they cannot judge it. {advice}"
            )


def row_ids(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """Hashes of user, item and time of rows of `interactions`: `[<= num_rows]` uint64, ascending
    and unique. They are the same for the same event in a later version of the data.

    Without times they are of user and item alone: the number of a row changes with every row that
    comes in front of it.
    """
    events = dataset.interactions[["user_id", "item_id"]].iloc[rows]
    if dataset.has_times:
        events["timestamp"] = dataset.timestamps[rows]
    return np.unique(pd.util.hash_pandas_object(events, index=False).to_numpy())


def held_out_ids(dataset: Dataset, split: Split) -> np.ndarray:
    """Ids of the rows that a model must not have learned from if a split is to judge it: the rows
    of its targets (same user and item), and all rows of items that it hides. Only positive rows.

    Returns:
        `[num_rows]` uint64, ascending and unique.
    """
    cases, num_items = split.cases, np.int64(len(dataset.items))
    users = pd.Index(dataset.users["user_id"]).get_indexer(cases.user_id)
    target_pairs = users[cases.targets.row_index] * num_items + cases.targets.values
    held_out = np.isin(dataset.user_rows * num_items + dataset.item_keys, target_pairs)
    if split.hidden is not None:
        held_out |= np.isin(dataset.item_keys, split.hidden)
    # If seen items may be answered, an earlier row of a target's user and item may be in training.
    ids = row_ids(dataset, np.flatnonzero(held_out & dataset.positive))
    return np.setdiff1d(ids, row_ids(dataset, split.train), assume_unique=True)
