"""The protocols: which rows train, and which queries are evaluated.

| protocol              | items        | test targets                                           |
|-----------------------|--------------|--------------------------------------------------------|
| `loo-5core`           | >= 5 ratings | each user's last row; the one before it is validation  |
| `loo`                 | all rated    | the same                                               |
| `temporal-last`       | >= 5 ratings | each user's last row after the 0.9 quantile of time    |
| `temporal-successive` | >= 5 ratings | every row after it, each with all of the user's before |
| `random`              | all rated    | a fifth of the rows at random: leaks the future        |
| `random-100k+seen`    | all rated    | a fifth of 100,000 random rows; seen items are allowed |

With `+time` after its name, a protocol gives the model the time of each request. A user's rows are
sorted by time, and rows of the same time by their order in the file, so nothing may change that
order. Data without times is sorted by the file alone; all protocols without `+time` accept it. Only
in the two `temporal` protocols are all training rows older than every query. In `loo` one user's
training rows can be newer than another user's query, so these splits do not fully prevent leaks
from the future.
"""

import numpy as np

from twotower.data.dataset import Dataset
from twotower.ragged import Ragged

PROTOCOLS = (
    "loo-5core",
    "loo",
    "temporal-last",
    "temporal-successive",
    "random",
    "random-100k+seen",
)
PARTS = ("validation", "test")


def eligible_rows(dataset: Dataset, name: str) -> np.ndarray:
    """The rows that a protocol divides: `[num_rows]`, ascending.

    Args:
        dataset: The data; only its `positive` rows count.
        name: One of `PROTOCOLS`.
    """
    rows = np.flatnonzero(dataset.positive)
    if name in ("loo-5core", "temporal-last", "temporal-successive"):
        return _five_core(dataset, rows)
    return rows


def divide(
    dataset: Dataset, rows: np.ndarray, name: str, part: str, seed: int
) -> tuple[np.ndarray, Ragged, Ragged]:
    """Training rows, and the histories and targets of all queries, as rows of `interactions`.

    Args:
        dataset: The data.
        rows: `[num_rows]`, as `eligible_rows` returns them.
        name: One of `PROTOCOLS`.
        part: One of `PARTS`.
        seed: Seed of the random protocols.

    Returns:
        `[num_train]` training rows in any order; a history and the targets of each query.
    """
    if name.startswith("random"):
        return _random(dataset, rows, part, seed, name)
    if name.startswith("loo"):
        return _leave_one_out(dataset, rows, part)
    return _temporal(dataset, rows, part, name == "temporal-last")


def _five_core(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """The rows whose item has at least 5 rows. One pass over items, as in the published files."""
    keys = dataset.item_keys[rows]
    return rows[np.bincount(keys, minlength=1)[keys] >= 5]


def _by_user(dataset: Dataset, rows: np.ndarray) -> Ragged:
    """Ascending rows, grouped by user, oldest first; rows of the same time in file order."""
    rows = rows[np.lexsort((dataset.timestamps[rows], dataset.user_rows[rows]))]
    lengths = np.bincount(dataset.user_rows[rows], minlength=len(dataset.users))
    return Ragged.from_lengths(rows, lengths)


def _pairs(dataset: Dataset, rows: np.ndarray) -> np.ndarray:
    """One number for the (user, item) of each row."""
    return dataset.user_rows[rows] * np.int64(len(dataset.items)) + dataset.item_keys[rows]


def _queries(dataset: Dataset, by_user: Ragged, positions: np.ndarray) -> tuple[Ragged, Ragged]:
    """(histories, targets): a query for each row `by_user.values[positions]`.

    The history of a query is the user's rows before it. A row whose item is in its history is not a
    query, since seen items are not recommended.
    """
    _, first = np.unique(_pairs(dataset, by_user.values), return_index=True)
    positions = positions[np.isin(positions, first)]
    start = by_user.offsets[by_user.row_index[positions]]
    before = Ragged.ranges(start, positions - start)
    targets = Ragged.from_lengths(by_user.values[positions], np.ones(len(positions), np.int64))
    return Ragged(by_user.values[before.values], before.offsets), targets


def _leave_one_out(dataset: Dataset, rows: np.ndarray, part: str):
    """(training rows, histories, targets), all as rows of `interactions`.

    The history of a test query has the validation row, as it would in serving, although that is not
    a training row. A user with fewer than 3 rows has no query, and all of the rows are training
    rows.
    """
    by_user = _by_user(dataset, rows)
    is_query = by_user.lengths >= 3  # [num_users]
    held_out = by_user.offsets[1:][is_query, None] - [2, 1]  # validation and test rows
    train = np.delete(by_user.values, held_out.ravel())
    return train, *_queries(dataset, by_user, held_out[:, PARTS.index(part)])


def _temporal(dataset: Dataset, rows: np.ndarray, part: str, last: bool):
    """(training rows, histories, targets): the targets are the youngest tenth of the rows."""
    by_user = _by_user(dataset, rows)
    if part == "validation":
        rows = by_user.values
        rows = np.sort(rows[~_youngest_tenth(dataset.timestamps[rows])])
        by_user = _by_user(dataset, rows)
    is_target = _youngest_tenth(dataset.timestamps[by_user.values])
    train, positions = by_user.values[~is_target], np.flatnonzero(is_target)
    if last:
        users = by_user.row_index[positions]
        is_last = np.append(users[1:] != users[:-1], True)[: len(positions)]
        positions = positions[is_last]
    return train, *_queries(dataset, by_user, positions)


def _youngest_tenth(times: np.ndarray) -> np.ndarray:
    """Which times are after the 0.9 quantile, bool."""
    return times > np.quantile(times, 0.9) if len(times) else np.zeros(0, bool)


def _random(dataset: Dataset, rows: np.ndarray, part: str, seed: int, name: str):
    """(training rows, histories, targets): one query for each user, with all held-out items."""
    seen = name == "random-100k+seen"
    rows = rows[np.random.default_rng(seed).permutation(len(rows))][: 100_000 if seen else None]
    train, held_out = np.split(rows, [round(0.8 * len(rows))])
    if part == "validation":
        train, held_out = np.split(train, [round(0.95 * len(train))])
    held_out = np.sort(held_out)
    _, first = np.unique(_pairs(dataset, held_out), return_index=True)
    held_out = held_out[np.sort(first)]  # an item that was rated twice is one target
    if not seen:
        held_out = held_out[~np.isin(_pairs(dataset, held_out), _pairs(dataset, train))]
    history, targets = _by_user(dataset, np.sort(train)), _by_user(dataset, held_out)
    users = np.flatnonzero(targets.lengths)
    return train, history.take(users), targets.take(users)
