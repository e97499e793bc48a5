"""Promoted items: a source that brings them into the pool, and slots that show them. Numpy only.

    keys = catalogue.require_keys(["260", "1196"])
    sources["promoted"] = Inlet(Promoted(keys), k=2, keep=2)
    stages = [Filters([Seen(), blocked]), Mmr.of_tags(tags, 0.3), PromotedSlots(keys, [1, 5])]

The source puts them into the pool of every request, at the end if no other source finds them.
Filters remove them like other items, so no slot shows an item that is excluded or blocked.
"""

from collections.abc import Sequence

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.cold_start import check_slots
from twotower.funnel.filters import is_among
from twotower.funnel.reordering import reordered
from twotower.funnel.sources.answers import at_most
from twotower.funnel.stage import Source, Stage
from twotower.ragged import integers
from twotower.retrieval.candidates import Candidates


class Promoted(Source):
    """A source that finds the same items for all requests, in the given order.

    Args:
        keys: `[num_promoted]` int64, none twice.

    Raises:
        ValueError: Keys that occur twice or are negative.
    """

    kind = "promoted"
    ARRAYS = ("keys int [num_promoted]",)

    def __init__(self, keys: np.ndarray) -> None:
        self.keys = check_promoted(keys)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self.keys))
        keys = np.broadcast_to(self.keys, (len(requests), len(self.keys)))
        scores = np.where(is_among(keys, requests.exclude), -np.inf, -np.arange(len(self.keys)))
        return Candidates.rank(keys, scores, k)


class PromotedSlots(Stage):
    """Moves promoted items up to their slots.

    A promoted item moves up to its slot, and the items between shift back by one. An item that is
    already before its slot stays there, or shifts back at most to the slot. If an item is not among
    the candidates, because it was excluded or blocked, its slot goes to the other items.

    Args:
        keys: `[num_promoted]` int64, none twice.
        slots: The position of each, from 1, ascending.

    Raises:
        ValueError: Keys that occur twice or are negative, or slots that are not ascending, one for
            each key.
    """

    kind = "promoted_slots"
    SETTINGS = ("slots",)
    ARRAYS = ("keys int [num_promoted]",)

    def __init__(self, keys: np.ndarray, slots: Sequence[int]) -> None:
        self.keys, self.slots = check_promoted(keys), check_slots(slots)
        if len(self.keys) != len(self.slots):
            raise ValueError(f"{len(self.keys)} promoted items have {len(self.slots)} slots.")

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        column = np.arange(candidates.keys.shape[1])
        order = np.broadcast_to(column, candidates.keys.shape)
        for key, slot in zip(self.keys, self.slots):
            if slot >= len(column):
                break
            is_item = np.take_along_axis(candidates.keys, order, axis=1) == key
            moves = is_item[:, slot:].any(1, keepdims=True)
            # What stands from the slot to the item moves back by one, and the item to the slot.
            item = is_item.argmax(1)[:, None]
            origin = np.where((column >= slot) & (column <= item), column - 1, column)
            origin = np.where(column == slot - 1, item, origin)
            order = np.take_along_axis(order, np.where(moves, origin, column), axis=1)
        return reordered(candidates, order)


def check_promoted(keys: np.ndarray) -> np.ndarray:
    """The keys, `[num_promoted]` int64.

    Raises:
        ValueError: Keys that occur twice or are negative.
    """
    keys = integers(keys, "keys of promoted items")
    if keys.min(initial=0) < 0 or len(np.unique(keys)) < len(keys):
        raise ValueError(f"promoted items are keys from 0, none twice; got {keys.tolist()}.")
    return keys
