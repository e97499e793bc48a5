"""QueryCache: query vectors of requests that were asked before, kept for a short time.

The key of a vector is all that the query tower reads of a request. An event changes the history,
and so the key; a deploy begins with an empty cache. So no entry is ever out of date.
"""

import threading
import time
import weakref
from collections.abc import Callable, Sequence

import cachetools
import numpy as np

from twotower.data.requests import Requests, once

Encode = Callable[[Requests], np.ndarray]
# Inputs that are parts of `Requests`; all others are in its context.
HISTORY = {"history": "history", "history_time": "history_time", "history_rating": "history_rating"}


class QueryCache:
    """Requests -> `[num_requests, dim]` float32, as `encode` gives them.

    Args:
        encode: Computes the vectors of requests.
        names: What it reads: inputs of the query tower.
        dim: Length of a vector.
        size: Number of vectors kept; those not used for longest go first. 0 keeps none.
        seconds: How long a vector is kept.

    Attributes:
        hits: Number of vectors that were found.
        misses: Number of vectors that were computed.
        took: Requests whose vectors were asked for -> when that began and ended, by
            `time.perf_counter`, as long as the requests are there.
    """

    def __init__(
        self, encode: Encode, names: Sequence[str], dim: int, size: int, seconds: float
    ) -> None:
        self._encode, self._names, self._dim = encode, list(names), dim
        self._known: cachetools.TTLCache | None = None
        if size:
            self._known = cachetools.TTLCache(size, seconds)
        self._lock, self.hits, self.misses = threading.Lock(), 0, 0
        self.took: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
        # Several sources of a funnel ask for the same requests.
        self._once = once(self._timed)

    def __call__(self, requests: Requests) -> np.ndarray:
        return self._once(requests)

    def _timed(self, requests: Requests) -> np.ndarray:
        begun = time.perf_counter()
        vectors = self._vectors(requests)
        self.took[requests] = begun, time.perf_counter()
        return vectors

    def _vectors(self, requests: Requests) -> np.ndarray:
        if self._known is None:
            self.misses += len(requests)
            return self._encode(requests)
        keys = [self._key(requests, row) for row in range(len(requests))]
        vectors = np.empty((len(requests), self._dim), np.float32)
        missing = []
        with self._lock:
            for row, key in enumerate(keys):
                known = self._known.get(key)
                if known is None:
                    missing.append(row)
                else:
                    vectors[row] = known
        self.hits += len(requests) - len(missing)
        self.misses += len(missing)
        if missing:
            vectors[missing] = found = self._encode(requests.take(np.array(missing)))
            with self._lock:
                for row, vector in zip(missing, found):
                    self._known[keys[row]] = vector.copy()
        return vectors

    def _key(self, requests: Requests, row: int) -> tuple:
        parts: list = []
        for name in self._names:
            if name in HISTORY:
                parts.append(getattr(requests, name)[row].tobytes())
            elif name == "time":
                parts.append(int(requests.time[row]))
            elif name == "user_id":
                parts.append(requests.user_id[row])
            else:  # a column of a known user, unless the context has it
                texts = requests.context.get(name)
                parts += [requests.user_id[row], "" if texts is None else texts[row]]
        return tuple(parts)
