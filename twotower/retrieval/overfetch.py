"""Over-fetching: how many candidates to fetch from an index if some must not be answered."""

from collections.abc import Callable

import numpy as np

from twotower.ragged import Ragged
from twotower.retrieval.candidates import NO_SCORE
from twotower.retrieval.vectors import KeyedVectors

Find = Callable[[np.ndarray, int], tuple[np.ndarray, np.ndarray]]


def search_allowed(
    find: Find,
    built: KeyedVectors,
    queries: np.ndarray,
    k: int,
    is_allowed: np.ndarray | None,
    num_allowed: int,
    exclude: Ragged | None,
    distances_per_candidate: float,
) -> tuple[np.ndarray, np.ndarray]:
    """The best positions that are allowed and not excluded.

    The number fetched is k, plus the number of exclusions of a row, plus the number that a filter
    is likely to remove. If a row is short, an exact scan answers it. If a scan costs less than the
    search, it answers all rows.

    Args:
        find: An approximate search: queries and a size -> positions (-1 past the end) and scores,
            best first.
        built: What it searches.
        queries: `[num_queries, dim]` float32.
        k: 1 or more.
        is_allowed: `[num_built]` bool, positions that may be found; None for all.
        num_allowed: Number of these positions.
        exclude: For each query, keys that may not be found.
        distances_per_candidate: As in `Retriever`.

    Returns:
        Positions `[num_queries, k]`, -1 if no more are left, and scores, best first.
    """
    num = len(built)
    excluded = np.empty(0, np.int64) if exclude is None else np.unique(built.pairs(exclude))
    if is_allowed is not None:
        excluded = excluded[is_allowed[excluded % num]]
    num_excluded = np.bincount(excluded // num, minlength=len(queries))
    left = np.minimum(k, num_allowed - num_excluded)  # [num_queries], what a full row holds
    fetch = k + num_excluded
    fetch = filtered_fetch(fetch, num_allowed, num)
    found = np.full((len(queries), k), -1, np.int64)
    scores = np.full((len(queries), k), NO_SCORE, np.float32)
    for rows in _bands(fetch):
        size = int(fetch[rows].max())
        if num_allowed <= distances_per_candidate * size:
            continue  # stays empty, and is scanned below
        near, near_scores = find(_rows(queries, rows), size)
        drop = (near < 0) | _member(rows[:, None] * num + near, excluded)
        if is_allowed is not None:
            drop |= ~is_allowed[near]
        # They come best first, so the first k that stay are the best.
        order = np.argsort(drop, axis=1, kind="stable")[:, :k]
        row = np.arange(len(rows))[:, None]
        stays = ~drop[row, order]
        found[rows, : order.shape[1]] = np.where(stays, near[row, order], -1)
        scores[rows, : order.shape[1]] = np.where(stays, near_scores[row, order], NO_SCORE)
    short = np.flatnonzero((found >= 0).sum(1) < left)
    if len(short):
        pairs = _rows_of(excluded, short, num)
        near, near_scores = built.best(_rows(queries, short), k, is_allowed, pairs)
        found[short, : near.shape[1]] = near
        scores[short, : near.shape[1]] = near_scores
    return found, scores


def filtered_fetch(fetch: np.ndarray, num_allowed: int, num: int) -> np.ndarray:
    """How many of `num` vectors to fetch, so that about `fetch` of them are among the allowed.

    >>> filtered_fetch(np.array([10, 300]), 500, 1000).tolist()
    [38, 676]
    """
    if num_allowed < num:
        # The items that a filter removes are about as frequent in an answer as in the catalogue.
        fetch = fetch + 16 + (1.2 * fetch * (num / max(num_allowed, 1) - 1)).astype(np.int64)
    return np.minimum(fetch, num)


def _bands(fetch: np.ndarray) -> list[np.ndarray]:
    """Groups of queries that are searched together; inside a group, fetch sizes differ by a factor
    of two at most. So queries with few exclusions do not fetch as much as those with thousands."""
    if len(fetch) == 1:
        return [np.zeros(1, np.int64)]
    band = np.ceil(np.log2(fetch))
    return [np.flatnonzero(band == size) for size in np.unique(band)]


def _rows(queries: np.ndarray, rows: np.ndarray) -> np.ndarray:
    """Some queries; the batch itself, not a copy, where it is all of them."""
    return queries if len(rows) == len(queries) else queries[rows]


def _rows_of(pairs: np.ndarray, rows: np.ndarray, num: int) -> np.ndarray:
    """The pairs `row * num + position` of some rows (ascending), renumbered by index in `rows`."""
    row, position = np.divmod(pairs, num)
    index = np.minimum(np.searchsorted(rows, row), len(rows) - 1)
    inside = rows[index] == row
    return index[inside] * num + position[inside]


def _member(pairs: np.ndarray, excluded: np.ndarray) -> np.ndarray:
    """Which of `pairs`, of any shape, stand in `excluded`, which ascends."""
    if not len(excluded):
        return np.zeros(pairs.shape, bool)
    index = np.minimum(np.searchsorted(excluded, pairs), len(excluded) - 1)
    return excluded[index] == pairs
