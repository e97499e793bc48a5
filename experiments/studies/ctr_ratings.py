"""What the user's and the item's other training ratings say of a row of `ctr-1m`, as numbers.

A training row must not see its own rating, not even through an average or a similarity between
items. So the training rows are cut into folds, and the numbers of a fold come from the training
rows outside it. Those of validation and test rows come from all training rows.
"""

import dataclasses

import ctr_table
import numpy as np

NUM_FOLDS = 5
# How many ratings of the average a mean starts from.
PRIOR = 5.0
NUMBERS = (
    "user_mean",
    "user_count",
    "item_mean",
    "item_count",
    "genre_affinity",
    "similar_films",
    "rated_like_these",
    "near_in_time",
)


def with_ratings(table: ctr_table.Table, seed: int = 0) -> ctr_table.Table:
    """The table with `NUMBERS` beside its fields, standardised by the training rows."""
    train = table.rows("train")
    fold = np.random.default_rng(seed).integers(NUM_FOLDS, size=len(train))
    numbers = np.empty((len(table.labels), len(NUMBERS)), np.float32)
    for number in range(NUM_FOLDS):
        asked = train[fold == number]
        numbers[asked] = numbers_of(table, train[fold != number], asked)
    asked = np.flatnonzero(table.part > 0)
    numbers[asked] = numbers_of(table, train, asked)
    inputs = dataclasses.replace(table.inputs, numbers=NUMBERS).fitted(numbers[train])
    return dataclasses.replace(table, inputs=inputs, columns={**table.columns, "numbers": numbers})


def numbers_of(table: ctr_table.Table, known: np.ndarray, asked: np.ndarray) -> np.ndarray:
    """`NUMBERS` of the rows `asked`, from the ratings of the rows `known`.

    Returns:
        `[len(asked), len(NUMBERS)]` float32.
    """
    user, item = table.columns["user"] - 1, table.columns["item"] - 1
    num_users, num_items = user.max() + 1, item.max() + 1
    ratings = table.ratings[known] - table.ratings[known].mean()
    item_mean, item_count = shrunk_means(ratings, item[known], num_items)
    user_mean, user_count = shrunk_means(ratings - item_mean[item[known]], user[known], num_users)
    residual = np.zeros((num_users, num_items), np.float32)  # 0 where not rated
    rest = ratings - item_mean[item[known]] - user_mean[user[known]]
    residual[user[known], item[known]] = rest
    pairs = user[asked], item[asked]
    genres = genres_of(table, num_items)
    rated = np.zeros_like(residual)
    rated[user[known], item[known]] = 1
    liking = (residual @ genres) / (PRIOR + rated @ genres)  # [num_users, num_genres]
    share = genres / np.maximum(genres.sum(1, keepdims=True), 1)
    return np.stack(
        [
            user_mean[pairs[0]],
            np.log1p(user_count[pairs[0]]),
            item_mean[pairs[1]],
            np.log1p(item_count[pairs[1]]),
            np.einsum("rg,rg->r", liking[pairs[0]], share[pairs[1]]),
            (residual @ item_weights(residual, 150.0))[pairs],
            (rated @ item_weights(rated, 300.0))[pairs],
            near_in_time(table, known, rest, asked),
        ],
        axis=1,
    ).astype(np.float32)


def shrunk_means(values: np.ndarray, group: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    """Mean of each group, drawn to 0 by `PRIOR` values of 0; and the number of its values."""
    count = np.bincount(group, minlength=size)
    return np.bincount(group, values, size) / (count + PRIOR), count


def genres_of(table: ctr_table.Table, num_items: int) -> np.ndarray:
    """1 for each genre of an item, `[num_items, num_genres]` float32."""
    has = np.zeros((num_items, 1 + table.columns["genres"].max()), np.float32)
    has[table.columns["item"][:, None] - 1, table.columns["genres"]] = 1
    return has[:, 1:]


def item_weights(values: np.ndarray, regularisation: float) -> np.ndarray:
    """Weights that predict an item's column from those of all other items (EASE, Steck, 2019).

    Args:
        values: `[num_users, num_items]`, 0 where not rated.
        regularisation: Added to the diagonal of the Gram matrix.

    Returns:
        `[num_items, num_items]` with a diagonal of 0.
    """
    gram = (values.T @ values).astype(np.float64)
    gram[np.diag_indices_from(gram)] += regularisation
    inverse = np.linalg.inv(gram)
    weights = -inverse / np.diag(inverse)
    np.fill_diagonal(weights, 0)
    return weights.astype(np.float32)


def near_in_time(
    table: ctr_table.Table, known: np.ndarray, rest: np.ndarray, asked: np.ndarray, count: int = 3
) -> np.ndarray:
    """Mean of the user's `count` known residuals before and after each row in time.

    MovieLens users rate what a page shows them, one after the other; neighbours are alike.
    """
    user, time = table.columns["user"], table.times
    order = np.lexsort((time[known], user[known]))
    start = np.searchsorted(user[known][order], np.arange(user.max() + 2))
    # Users and their times as one ascending number.
    span = time.max() - time.min() + 1
    key = user.astype(np.int64) * span + (time - time.min())
    place = np.searchsorted(key[known][order], key[asked])
    low = np.maximum(place - count, start[user[asked]])
    high = np.minimum(place + count, start[user[asked] + 1])
    total = np.concatenate([[0.0], np.cumsum(rest[order], dtype=np.float64)])
    return (total[high] - total[low]) / (1 + high - low)
