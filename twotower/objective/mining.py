"""Hard negatives of each query's own, mined from the current model through the project's indexes.

The negatives of a batch are mostly easy. Every so many steps the model's own item vectors are
indexed, and each user's query finds the items that the model takes for the best and that the user
has not liked in the training rows. Of these a row draws its block `[num_queries, width]` beside the
columns that all rows share (Huang et al., KDD 2020, section 6; ANCE, ICLR 2021).

Three things that go wrong are settled here: a mined positive pulls apart what belongs together, so
positives are left out; another user's list is random noise at best, so each row has its own; and
the model of the first steps has nothing to say, so there is a warm-up. Too many still make a
training collapse where they weigh as much as draws of the batch (`losses.block_weight`).
"""

import numpy as np

from twotower.objective.config import MiningConfig
from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.candidates import NO_KEY, widened


class Miner:
    """Keeps a list of hard negatives for each user.

    Args:
        config: When and where.
        own: Keys of each user's positives, one row a user.
        keys: `[num_items]`, items that may be negatives.
    """

    def __init__(self, config: MiningConfig, own: Ragged, keys: np.ndarray) -> None:
        self.config, self.own, self.keys = config, own, np.asarray(keys)
        self._span = int(max(self.keys.max(), own.values.max(initial=0))) + 1
        # One number a pair of user and positive, ascending, to look pairs up by.
        self._pairs = np.unique(own.row_index * self._span + own.values)
        self.lists: np.ndarray | None = None  # [num_users, depth], padded with -1
        # Places of all blocks so far, and those that the row's own list filled.
        self.num_places, self.num_mined = 0, 0

    def mine(self, queries: np.ndarray, vectors: np.ndarray, batch_size: int = 1024) -> None:
        """Makes new lists; those that ask meanwhile get the old ones.

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
                exclude=self.own.take(np.arange(start, min(start + batch_size, len(queries)))),
            ).keys[:, self.config.skip :]
            for start in range(0, len(queries), batch_size)
        ]
        lists = widened(np.concatenate(lists), self.config.depth, NO_KEY)
        self.lists = lists.astype(np.int32)

    def block(
        self, users: np.ndarray, width: int, rng: np.random.Generator, batch: np.ndarray = ()
    ) -> np.ndarray:
        """Hard negatives of each user, drawn from the list without repetition.

        All rows draw from one pool, which bounds what the item tower has to encode: the batch's own
        items, and so many others of the lists, the more likely the more lists they are in. A list
        that has too few of these is topped up with random items of the catalogue, no positives, and
        never from the lists of other rows. `num_mined` of `num_places` tells how often.

        Args:
            users: `[num_queries]` rows of users.
            width: Negatives a query.
            rng: Draws.
            batch: Keys of the batch's own items, which cost nothing more.

        Returns:
            `[num_queries, width]` int32; -1 where a user likes nearly everything. Of width 0 before
            the first mining.
        """
        if self.lists is None or not width:
            return np.empty((len(users), 0), np.int32)
        lists = self.lists[users]
        pool, others = self._pool(lists, np.asarray(batch, np.int64), rng)
        is_open = np.zeros(self._span + 1, bool)  # the last for -1
        is_open[pool] = True
        block = drawn(np.where(is_open[lists], lists, -1), width, rng)
        self.num_places += block.size
        self.num_mined += int((block >= 0).sum())
        return self._topped_up(block, users, others, rng)

    def _pool(self, lists: np.ndarray, batch: np.ndarray, rng) -> tuple[np.ndarray, np.ndarray]:
        """(keys that the blocks of these lists are drawn from, random keys to top them up)."""
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

    def _topped_up(self, block: np.ndarray, users: np.ndarray, keys: np.ndarray, rng) -> np.ndarray:
        for _ in range(10):
            row, column = np.nonzero(block < 0)
            if not len(row):
                break
            random = rng.choice(keys, len(row))
            liked = self.is_own(users[row], random)
            block[row[~liked], column[~liked]] = random[~liked]
        return block

    def is_own(self, users: np.ndarray, keys: np.ndarray) -> np.ndarray:
        """Which pairs are a user and a positive, elementwise."""
        if not len(self._pairs):
            return np.zeros(np.shape(keys), bool)
        pair = users * self._span + keys
        place = np.minimum(np.searchsorted(self._pairs, pair), len(self._pairs) - 1)
        return self._pairs[place] == pair


def drawn(lists: np.ndarray, width: int, rng: np.random.Generator) -> np.ndarray:
    """`width` random keys of each row without repetition, `[num_rows, width]` int32.

    Args:
        lists: `[num_rows, n]` keys, -1 for none. Shorter rows come back with -1 behind.
        width: Keys a row.
        rng: Draws.
    """
    # A random order that puts empty places last.
    order = np.argsort(rng.random(lists.shape) + (lists < 0), axis=1)[:, :width]
    block = np.full((len(lists), width), -1, np.int32)
    block[:, : order.shape[1]] = np.take_along_axis(lists, order, 1)
    return block
