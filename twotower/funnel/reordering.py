"""Puts candidates into another order, with scores that still descend."""

import numpy as np

from twotower.retrieval.candidates import NO_SCORE, Candidates

# The column with the score that an item had before a stage reordered the list.
RELEVANCE = "relevance"


def reordered(candidates: Candidates, order: np.ndarray) -> Candidates:
    """The same items in another order.

    Scores stay at their positions: an item gets the score of its new position, so scores still
    descend. `Candidates` orders items of equal scores by key. So in a list that changes, each equal
    score is lowered by the smallest step of float32. The column `relevance` has the score of each
    item before, or, if several stages reorder, before the first of them.

    Args:
        candidates: The lists, best first.
        order: `[num_requests, k]` int64, the old position, from 0, of each item of the new list.
            Behind the end of a list positions must stay.

    >>> found = Candidates.rank(np.array([[5, 3, 8]]), np.float32([[4, 2, 1]]), k=3)
    >>> moved = reordered(found, np.array([[2, 0, 1]]))
    >>> moved.keys.tolist(), moved.scores.tolist(), moved.columns["relevance"].tolist()
    ([[8, 5, 3]], [[4.0, 2.0, 1.0]], [[1.0, 4.0, 2.0]])
    """
    columns = {RELEVANCE: candidates.scores, **candidates.columns}
    changed = (order != np.arange(order.shape[1])).any(1)
    scores = candidates.scores.copy()
    scores[changed] = _all_different(scores[changed])
    scores[~candidates.valid] = NO_SCORE
    return Candidates(
        np.take_along_axis(candidates.keys, order, axis=1),
        scores,
        candidates.counts,
        {name: np.take_along_axis(values, order, axis=1) for name, values in columns.items()},
    )


def _all_different(scores: np.ndarray) -> np.ndarray:
    """Descending float32 scores `[num_rows, k]`, lowered where they are equal to the one before by
    the smallest step that float32 has.

    >>> lowered = _all_different(np.float32([[2, 1, 1, -1]]))[0]
    >>> bool(lowered[1] == 1 and lowered[2] == np.nextafter(np.float32(1), np.float32(0)))
    True
    """
    # As integers in the order of the floats, one step is 1.
    bits = (scores + np.float32(0)).view(np.int32).astype(np.int64)
    steps = np.where(bits < 0, -(bits & 0x7FFFFFFF), bits) + np.arange(scores.shape[1])
    steps = np.minimum.accumulate(steps, axis=1) - np.arange(scores.shape[1])
    bits = np.where(steps < 0, -steps | 0x80000000, steps).astype(np.uint32)
    return bits.view(np.float32)
