"""An index and a dictionary that go through the same adds, removes and searches."""

import collections
import dataclasses
import tempfile

import numpy as np
import pytest
from oracle import oracle_scores, rows_of

from twotower.ragged import Ragged
from twotower.retrieval import build

# By what factor programs of a backend are shorter: a search of milvus-lite takes milliseconds.
FEWER = {"milvus": 10}
# Relative and absolute, of scores up to some tens: float32 against float64, and under euclidean a
# small difference of squared lengths.
CLOSE = {"rtol": 1e-4, "atol": 1e-4}


class Twins:
    """An index and a dictionary that go through the same steps; every answer is compared."""

    def __init__(self, index, items):
        self.index, self.known, self.ever = index, {}, set()
        self.done = collections.Counter()
        self.dim = len(next(iter(items.values())))
        self.recalls = []  # of each row that is not empty
        self.last = []  # the last answer
        self.sizes = []  # vectors that the backend was built from, after each step
        self._note(items)
        index.build(*self.arrays())

    def _note(self, items):
        self.known.update(items)
        self.ever |= items.keys()
        self._arrays = None

    def arrays(self):
        """Keys, ascending, and vectors of the dictionary."""
        if self._arrays is None:
            keys = np.fromiter(self.known, np.int64, len(self.known))
            vectors = np.array(list(self.known.values()), np.float32).reshape(len(keys), self.dim)
            order = np.argsort(keys)
            self._arrays = keys[order], vectors[order]
        return self._arrays

    def play(self, steps):
        for name, *arguments in steps:
            getattr(self, name)(*arguments)
            self.done[name] += 1
            assert np.array_equal(self.index.keys, self.arrays()[0]), f"other keys after {name}"
            assert len(self.index) == len(self.known)
            self.sizes.append(len(self.index.state()["keys"]))
        return self

    # The steps.

    def add(self, items):
        keys = np.array(list(items), np.int64)
        self.index.add(keys, np.float32(list(items.values())).reshape(-1, self.dim))
        self._note(items)

    def remove(self, keys):
        wanted = np.array(sorted(keys), np.int64)
        if not set(keys) <= self.known.keys():
            with pytest.raises(ValueError, match="not in the index"):
                self.index.remove(wanted)
            return
        self.index.remove(wanted)
        for key in keys:
            del self.known[key]
        self._arrays = None

    def search(self, queries, k, banned, allow):
        queries = np.float32(queries).reshape(-1, self.dim)
        chosen = None if allow is None else np.array(sorted(allow), np.int64)
        found = self.index.search(queries, k, exclude=Ragged.from_rows(banned), allow=chosen)
        assert found.keys.shape == (len(queries), min(k, max(1, len(self.known))))
        keys, vectors = self.arrays()
        scores = oracle_scores(self.index.metric, queries, vectors)  # [num_queries, num_items]
        self.last = rows_of(found)
        for row, answer in enumerate(self.last):
            is_allowed = ~np.isin(keys, list(banned[row]))
            assert not set(answer) & set(banned[row]), "an excluded key"
            if allow is not None:
                is_allowed &= np.isin(keys, chosen)
                assert np.isin(answer, chosen).all(), "a key that is not allowed"
            assert len(set(answer)) == len(answer), "a key stands twice"
            assert self.known.keys() >= set(answer), "a removed key"
            best = np.sort(scores[row, is_allowed])[::-1][:k]
            assert len(answer) == len(best), "a short row"
            true = scores[row, np.searchsorted(keys, answer)]
            got = found.scores[row, : len(answer)]
            np.testing.assert_allclose(got, true, **CLOSE, err_msg="other scores")
            ties = got[1:] == got[:-1]
            assert (np.diff(answer)[ties] > 0).all(), "ties out of order"
            # Which of equal ones make the cut is open, so scores are compared.
            if self.index.is_exact:
                np.testing.assert_allclose(true, best, **CLOSE, err_msg="not the best")
            if len(best):
                self.recalls.append((true >= best[-1] - CLOSE["atol"]).mean())

    def absorb(self):
        assert self.index.absorb() is self.index
        if self.known:
            self.check_backend()

    def rebuild(self):
        if self.known:
            self.index.build(*self.index.live())
            self.check_backend()

    def disk(self, mmap=False):
        with tempfile.TemporaryDirectory() as folder:
            build.save(self.index, f"{folder}/index")
            self.index = build.load(f"{folder}/index", mmap=mmap)

    # What holds at any time.

    def check_backend(self):
        """Just built or absorbed, the backend by itself holds all: whatever it is asked for, it
        answers with every key, provided that it looks everywhere."""
        index, num = self.index, len(self.index.state()["keys"])
        config = index.config
        if hasattr(config, "num_probes"):
            index.config = dataclasses.replace(config, num_probes=num)
        if hasattr(config, "num_leaves"):
            # ScaNN leaves out one partition, the farthest; so what is left asks for itself.
            index.config = dataclasses.replace(config, num_leaves_to_search=config.num_leaves - 1)
        found = set(index.search_built(np.ones((1, self.dim), np.float32), num).keys[0].tolist())
        left = list(self.known.keys() - found)
        if left:
            vectors = np.concatenate([self.vector(key) for key in left])
            found |= set(index.search_built(vectors, num).keys.ravel().tolist())
        index.config = config
        assert found - {-1} <= self.known.keys(), "the backend kept a removed key"
        lost = self.known.keys() - found
        if index.backend == "hnsw":
            # A graph need not lead everywhere: by inner product few links lead to short vectors
            # among long ones. (Their rows come back short and are scanned, as `check_reach` and a
            # search for all see.) So what it does not find must at least stand at its nodes.
            lost -= self.at_nodes()
        # Of the small graph in front of codes, 2% were cut off at most.
        most = len(self.known) // 50 if index.backend == "tiered" else 0
        assert len(lost) <= most, f"the backend lost {sorted(lost)[:5]}"

    def at_nodes(self) -> set[int]:
        """Keys whose vectors stand at the nodes of a FAISS graph."""
        graph, nodes, found = self.index._index, self.index._nodes.of_position.tolist(), set()
        for node, key in zip(nodes, self.index.state()["keys"].tolist(), strict=True):
            if key in self.known:
                vector = self.vector(key)[0]
                if self.index.metric == "cosine":
                    vector = vector / np.linalg.norm(vector)
                if np.allclose(graph.reconstruct(node), vector, rtol=1e-5):
                    found.add(key)
        return found

    def check_reach(self, keys):
        """Each key is found by its own vector, and no removed one is found at all."""
        for key in keys:
            found = self.index.search(self.vector(key), 1, allow=np.array([key]))
            assert found.keys.tolist() == [[key]], "a key that cannot be reached"
        if len(keys) and self.index.is_exact and self.index.metric == "euclidean":
            vectors = np.concatenate([self.vector(key) for key in keys])
            found = self.index.search(vectors, 1).keys[:, 0].tolist()
            np.testing.assert_array_equal([self.vector(key)[0] for key in found], vectors)
        gone = np.array(sorted(self.ever - self.known.keys()), np.int64)
        query = np.ones((1, self.dim), np.float32)
        assert self.index.search(query, 1, allow=gone).counts.tolist() == [0], "a removed key"

    def vector(self, key):
        return np.float32(self.known[key])[None]


def make(backend, metric, parameters=None):
    return build.make(build.IndexConfig(backend, metric, parameters or {}))
