"""Mining of hard negatives: items that the model ranks high and that the user did not like.

Most negatives of a batch are easy. So every few hundred steps an index is built over the current
item vectors, and each user's query searches it. The user's known positives are left out, and the
best of the rest are the user's list. At each step a row draws some items of its list as negatives,
which stand beside the columns that all rows share (Huang et al., KDD 2020, section 6; ANCE, Xiong
et al., ICLR 2021).

Three things can go wrong, and are prevented here:

- A mined positive would be pushed away from a user who likes it: known positives are left out.
- An item from another user's list is no harder than a random one: each row has its own list.
- The model ranks at random in the first steps: mining starts after a warm-up.

Many hard negatives make a training collapse if each weighs as much as a draw of the batch;
`corrections.hard_negative_weight` says what they weigh instead.
"""

import numpy as np
from numpy.typing import ArrayLike

from twotower.objective.config import MiningConfig
from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.candidates import NO_KEY, widened


class Miner:
    """Finds hard negatives for each user, keeps them in lists, and draws from these.

    Args:
        config: How deep a list is, and which index finds it.
        known_positives: Keys of the items that each user likes, one row for each user.
        keys: `[num_items]`, items that may be negatives.

    Attributes:
        lists: `[num_users, depth]` int32 keys, best first, padded with -1; None before `mine`.
        num_drawn: How many negatives `hard_negatives` was asked for so far.
        num_mined: How many of these came from the lists; the others are random.

    >>> miner = Miner(MiningConfig(depth=2), Ragged.from_rows([[2], [0]]), np.arange(3))
    >>> vectors = np.float32([[1, 0], [0.9, 0.1], [0.8, 0.2]])
    >>> miner.mine(np.float32([[1, 0], [1, 0]]), vectors)
    >>> miner.lists.tolist()  # user 0 likes item 2, user 1 likes item 0
    [[0, 1], [1, 2]]
    """

    def __init__(self, config: MiningConfig, known_positives: Ragged, keys: np.ndarray) -> None:
        self.config, self.known_positives, self.keys = config, known_positives, np.asarray(keys)
        self._span = int(max(self.keys.max(), known_positives.values.max(initial=0))) + 1
        # One number for each pair of user and positive, ascending, to look pairs up by.
        self._pairs = np.unique(known_positives.row_index * self._span + known_positives.values)
        self.lists: np.ndarray | None = None
        self.num_drawn, self.num_mined = 0, 0

    def mine(self, queries: np.ndarray, vectors: np.ndarray, batch_size: int = 1024) -> None:
        """Makes new lists. Calls of `hard_negatives` during this get the old ones.

        Args:
            queries: `[num_users, dim]`, each user's current vector.
            vectors: `[num_items, dim]`, current vectors of `keys`.
            batch_size: Users searched for at a time.
        """
        index = build.build(build.IndexConfig(self.config.index), self.keys, vectors)
        wanted = self.config.skip + self.config.depth
        lists = [
            index.search(
                queries[start : start + batch_size],
                wanted,
                exclude=self.known_positives.take(
                    np.arange(start, min(start + batch_size, len(queries)))
                ),
            ).keys[:, self.config.skip :]
            for start in range(0, len(queries), batch_size)
        ]
        lists = widened(np.concatenate(lists), self.config.depth, NO_KEY)
        self.lists = lists.astype(np.int32)

    def hard_negatives(
        self, users: np.ndarray, width: int, rng: np.random.Generator, batch: ArrayLike = ()
    ) -> np.ndarray:
        """Hard negatives of each user, drawn from the user's list without repetition.

        The item tower encodes each drawn item once, so a batch may draw only a limited number of
        distinct items: those of `batch`, and up to `MiningConfig.distinct` others. Most of the
        others come from the lists, and an item that is in more lists is more likely. The rest are
        random. If a list holds too few of the allowed items, random ones, which may repeat, fill
        the row. A known positive is never drawn.

        Args:
            users: `[num_queries]` rows of users.
            width: Negatives of each query.
            rng: Source of the random numbers.
            batch: Keys of the batch's items, which the item tower encodes in any case.

        Returns:
            `[num_queries, width]` int32 keys; -1 where a user likes nearly everything. Of width 0
            before the first mining.
        """
        if self.lists is None or not width:
            return np.empty((len(users), 0), np.int32)
        lists = self.lists[users]
        pool, others = self._pool(lists, np.asarray(batch, np.int64), rng)
        is_open = np.zeros(self._span + 1, bool)  # the last for -1
        is_open[pool] = True
        chosen = drawn(np.where(is_open[lists], lists, -1), width, rng)
        self.num_drawn += chosen.size
        self.num_mined += int((chosen >= 0).sum())
        return self._topped_up(chosen, users, others, rng)

    def _pool(
        self, lists: np.ndarray, batch: np.ndarray, rng: np.random.Generator
    ) -> tuple[np.ndarray, np.ndarray]:
        """(keys that may be drawn, the random ones among them), for the lists of one batch."""
        count = np.bincount(lists[lists >= 0], minlength=self._span)
        count[batch] = 0
        mined = np.flatnonzero(count)
        most = self.config.distinct - self.config.distinct // 4
        if len(mined) > most:
            share = count[mined] / count[mined].sum()
            mined = rng.choice(mined, most, replace=False, p=share)
        num_others = min(self.config.distinct - len(mined), len(self.keys))
        others = rng.choice(self.keys, num_others, replace=False)
        return np.concatenate([batch, mined, others]), others

    def _topped_up(
        self, chosen: np.ndarray, users: np.ndarray, keys: np.ndarray, rng: np.random.Generator
    ) -> np.ndarray:
        """`chosen` with random keys, no known positives, in place of -1."""
        for _ in range(10):
            row, column = np.nonzero(chosen < 0)
            if not len(row):
                break
            random = rng.choice(keys, len(row))
            liked = self.is_known_positive(users[row], random)
            chosen[row[~liked], column[~liked]] = random[~liked]
        return chosen

    def is_known_positive(self, users: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Whether `keys[i]` is a known positive of `users[i]`, bool of the arguments' shape."""
        if not len(self._pairs):
            return np.zeros(np.shape(keys), bool)
        pair = users * self._span + keys
        found = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        return self._pairs[found] == pair


def drawn(lists: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """`width` random keys of each row without repetition, `[num_rows, width]` int32.

    Args:
        lists: `[num_rows, n]` keys, padded with -1. A row of fewer than `width` keys is returned
            with -1 after them.
        width: Keys of each row.
        rng: Source of the random numbers.

    >>> drawn(np.array([[7, -1, -1]]), 2, np.random.default_rng(0)).tolist()
    [[7, -1]]
    """
    # A random order that puts the padding last.
    order = np.argsort(rng.random(lists.shape) + (lists < 0), axis=1)[:, :width]
    chosen = np.full((len(lists), width), -1, np.int32)
    chosen[:, : order.shape[1]] = np.take_along_axis(lists, order, 1)
    return chosen
