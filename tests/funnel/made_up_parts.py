"""Parts of a funnel over twelve items that answer, fail or turn lists round as a test wants it."""

import threading

import numpy as np
import pandas as pd

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.funnel.sources.popularity import Popularity
from twotower.funnel.stage import Source, Stage
from twotower.retrieval.candidates import Candidates

NUM_ITEMS = 12
CATALOGUE = Catalogue(pd.DataFrame({"item_id": [f"i{key}" for key in range(NUM_ITEMS)]}))


class Always(Source):
    """Answers the same keys to all, best first, whatever they exclude."""

    kind = "always"

    def __init__(self, *keys: int) -> None:
        self.keys = np.array(keys, np.int64)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        keys = np.broadcast_to(self.keys[:k], (len(requests), len(self.keys[:k]))).copy()
        scores = -np.arange(keys.shape[1], dtype=np.float32)
        counts = np.full(len(keys), keys.shape[1])
        return Candidates(keys, np.broadcast_to(scores, keys.shape).copy(), counts)


class Broken(Source):
    """Does what `fault` does."""

    kind = "broken"

    def __init__(self, fault) -> None:
        self.fault = fault

    def __call__(self, requests: Requests, k: int) -> Candidates:
        return self.fault(requests, k)


def ask(*histories, **more) -> Requests:
    return Requests.of(CATALOGUE, [[f"i{key}" for key in keys] for keys in histories], **more)


def popular(num_items: int) -> Popularity:
    return Popularity(np.arange(num_items), -np.arange(num_items, dtype=np.float32))


class Backwards(Stage):
    """Turns lists round, as a re-ranker might."""

    kind = "backwards"

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        return Candidates.rank(
            candidates.keys,
            np.where(candidates.valid, -candidates.scores, -np.inf),
            candidates.keys.shape[1],
            candidates.columns,
        )


class Counted(Always):
    """Notes how many candidates it is asked for, and in which thread."""

    def __call__(self, requests: Requests, k: int) -> Candidates:
        self.asked, self.thread = k, threading.current_thread()
        return super().__call__(requests, k)
