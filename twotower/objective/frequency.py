"""Streaming estimate of how often each item is drawn (Yi et al., RecSys 2019, Algorithm 2).

Log-Q needs p, the probability that an example is of a given item. True counts need a fixed table of
items and a pass over the data. This estimate needs neither, so new ids may come at any time, and
their popularity may drift. Ids are hashed to buckets, and each bucket holds two numbers:

    A[h(y)]   the time at which y was last seen
    B[h(y)]   a moving average of the gaps between two times: B <- (1 - a) B + a (t - A)

The estimate is p = 1 / B. If two ids share a bucket, its gaps are too short. So there are several
hash functions, and the longest of an id's gaps counts (section 4.3 of the paper).

Time is counted in examples, not in batches. A popular item is in every batch of 4,096 examples: its
gap in batches would always be 1, and p could grow no further. The first 1 / a gaps of a bucket have
equal weights, so that B is their mean and does not depend on the first one alone.
"""

import pathlib

import numpy as np

# Odd multipliers of 64 bits, for multiplicative hashing: the upper bits of key * multiplier.
MULTIPLIERS = np.array(
    [0x9E3779B97F4A7C15, 0xC2B2AE3D27D4EB4F, 0x165667B19E3779F9, 0xD6E8FEB86659FD93],
    np.uint64,
)


class StreamingFrequency:
    """Estimates the probability of each item from a stream of examples.

    Args:
        num_buckets: Buckets of each hash function; a few times the number of items.
        num_hashes: Number of hash functions, 1 to 4.
        rate: The learning rate a, in (0, 1]; about the last 1 / a gaps of an item count.

    Raises:
        ValueError: Sizes or a rate out of range.

    >>> frequency = StreamingFrequency(num_buckets=100)
    >>> frequency.update(np.array([7, 8] * 50))
    >>> round(float(frequency.probability(np.array([7]))[0]), 1)
    0.5
    """

    def __init__(self, num_buckets: int, num_hashes: int = 2, rate: float = 0.01) -> None:
        if num_buckets < 1 or not 1 <= num_hashes <= len(MULTIPLIERS) or not 0 < rate <= 1:
            raise ValueError(
                f"expected num_buckets of 1 or more, num_hashes of 1 to {len(MULTIPLIERS)} and a "
                f"rate in (0, 1]; got {num_buckets}, {num_hashes}, {rate}."
            )
        self.num_buckets, self.num_hashes, self.rate = num_buckets, num_hashes, rate
        self.time = 0  # of the last example
        shape = num_hashes, num_buckets
        self._last = np.zeros(shape, np.int64)
        self._gap = np.zeros(shape)
        self._seen = np.zeros(shape, np.int64)

    def _buckets(self, keys: np.ndarray) -> np.ndarray:
        """`[num_hashes, num_keys]`."""
        with np.errstate(over="ignore"):
            mixed = keys.astype(np.uint64) * MULTIPLIERS[: self.num_hashes, None]
        # Only the upper bits depend on all bits of the key. They are scaled to the buckets, since
        # with a modulo most buckets could stay empty, if keys have a common factor.
        return ((mixed >> np.uint64(32)) * np.uint64(self.num_buckets) >> np.uint64(32)).astype(int)

    def update(self, keys: np.ndarray, times: np.ndarray | None = None) -> None:
        """Takes in examples, in order.

        Args:
            keys: `[num_examples]` int64 keys, or hashes of ids, of any size.
            times: `[num_examples]` integers, ascending and not before those of earlier calls. By
                default the number of the example.

        Raises:
            ValueError: Keys or times that are not integers, or times that descend.
        """
        keys = _integers(keys)
        times = self.time + 1 + np.arange(len(keys)) if times is None else np.asarray(times)
        if len(keys) and times.dtype.kind not in "iu":
            raise ValueError(f"times must be integers; got {times.dtype}.")
        if len(times) != len(keys) or (np.diff(times, prepend=self.time) < 0).any():
            raise ValueError(f"expected {len(keys)} times, ascending from {self.time}.")
        for which, buckets in enumerate(self._buckets(keys)):
            self._update(which, buckets, times)
        self.time = int(times[-1]) if len(times) else self.time

    def _update(self, which: int, buckets: np.ndarray, times: np.ndarray) -> None:
        if not len(buckets):
            return
        # By bucket, then time: the gaps of one bucket stand together.
        order = np.argsort(buckets, kind="stable")
        buckets, times = buckets[order], times[order]
        first = np.r_[True, buckets[1:] != buckets[:-1]]
        before = np.where(first, self._last[which, buckets], np.r_[0, times[:-1]])
        start = np.flatnonzero(first)
        size = np.diff(np.r_[start, len(buckets)])
        group = np.repeat(np.arange(len(start)), size)
        touched = buckets[start]
        # The n-th gap ever gets the rate max(1 / n, a), and what came before it the rest.
        number = self._seen[which, buckets] + np.arange(len(buckets)) - start[group] + 1
        rate = np.maximum(1 / number, self.rate)
        kept = np.log1p(-np.minimum(rate, 1 - 1e-12))
        total = np.cumsum(kept)
        # Share of a gap that is left once the later ones of this batch have come.
        left = np.exp(total[start + size - 1][group] - total)
        whole = np.exp(np.add.reduceat(kept, start))
        gaps = np.bincount(group, rate * left * (times - before))
        self._gap[which, touched] = whole * self._gap[which, touched] + gaps
        self._last[which, touched] = times[start + size - 1]
        self._seen[which, touched] += size

    def probability(self, keys: np.ndarray) -> np.ndarray:
        """p of each key, `[num_keys]` float32. A key that was never seen counts as half as frequent
        as one that was seen once.

        Raises:
            ValueError: Keys that are not integers.
        """
        buckets = self._buckets(_integers(keys))
        rows = np.arange(self.num_hashes)[:, None]
        gaps = np.where(self._seen[rows, buckets] > 0, self._gap[rows, buckets], 2.0 * self.time)
        return (1 / np.maximum(gaps.max(0), 1.0)).astype(np.float32)

    def save(self, path: str | pathlib.Path) -> None:
        """Writes the state to one .npz file; the rate is not part of it."""
        with open(path, "wb") as file:  # np.savez would put .npz behind another name
            np.savez(file, last=self._last, gap=self._gap, seen=self._seen, time=self.time)

    def load(self, path: str | pathlib.Path) -> "StreamingFrequency":
        """Continues from what `save` wrote, and returns itself.

        Raises:
            ValueError: Another number of buckets or hash functions.
        """
        with np.load(path, allow_pickle=False) as saved:
            if saved["last"].shape != self._last.shape:
                raise ValueError(
                    f"{path} holds {saved['last'].shape} hash functions x buckets; expected "
                    f"{self._last.shape}. Make the estimator with the saved sizes."
                )
            self._last, self._gap, self._seen = saved["last"], saved["gap"], saved["seen"]
            self.time = int(saved["time"])
        return self


def _integers(keys: np.ndarray) -> np.ndarray:
    keys = np.asarray(keys)
    if keys.ndim != 1 or keys.dtype.kind not in "iu":
        raise ValueError(f"expected [num_examples] integers; got {keys.shape} {keys.dtype}.")
    return keys
