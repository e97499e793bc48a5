"""FAISS IVF: inverted lists around k-means centres (Jegou et al., TPAMI 2011, without the codes).

A query scans the lists of its nearest centres. The lists hold the vectors themselves; those of
`ivf_pq` hold codes.
"""

import dataclasses

import numpy as np

from twotower.limits import at_least, typed, within_int32
from twotower.retrieval.backends.faiss_index import FaissIndex, faiss, use_threads

LEAST_SHARED = 20_000  # vectors that are worth more than one thread


@dataclasses.dataclass(frozen=True)
class IvfConfig:
    """Parameters of the lists.

    Attributes:
        num_lists: Lists (nlist); 0 for 4 sqrt(num_items).
        num_probes: Number of lists that a query scans (nprobe).
        training_points: Largest number of training vectors of k-means, for each list.
        training_iterations: Number of iterations of k-means.
        threads: Threads of a search, whichever thread calls it; 0 for all, at most the number of
            cores.

    >>> IvfConfig(num_probes=0)
    Traceback (most recent call last):
    ValueError: num_probes must be 1 or more; got 0.
    """

    num_lists: int = 0
    num_probes: int = 32
    training_points: int = 64
    training_iterations: int = 10
    threads: int = 0

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, num_lists=0, num_probes=1, training_points=1)
        at_least(self, training_iterations=1, threads=0)
        within_int32(self)


class IvfIndex(FaissIndex):
    """FAISS IVF-Flat.

    Vectors can be added and removed. The centres stay those of the first build, so they fit less
    and less well if the catalogue drifts: see experiments/benchmarks/index_updates.py.

    >>> index = IvfIndex("dot", IvfConfig(num_lists=2, num_probes=2))
    >>> index = index.build(np.array([7, 8, 9]), np.eye(3, dtype=np.float32))
    >>> index.search(np.float32([[1, 3, 2]]), k=2).keys.tolist()
    [[8, 9]]
    """

    backend = "ivf"
    Config = IvfConfig
    can_append = True
    can_forget = True

    def _make(self, quantizer, dim: int, num_lists: int):
        return faiss.IndexIVFFlat(quantizer, dim, num_lists, self._kind)

    def _build(self, vectors: np.ndarray) -> None:
        num, dim = vectors.shape
        # Iterations of k-means over few vectors are too short to share: threads would mostly wait.
        use_threads(0 if num >= LEAST_SHARED else 1)
        num_lists = min(num, self.config.num_lists or int(4 * np.sqrt(num)))
        # The quantizer has the index's metric: over another, lists and answers would not agree.
        quantizer = faiss.IndexFlat(dim, self._kind)
        self._index = self._make(quantizer, dim, num_lists)
        clustering = self._index.cp
        clustering.max_points_per_centroid = self.config.training_points
        clustering.min_points_per_centroid = 1  # few points are the caller's choice, not a warning
        clustering.niter = self.config.training_iterations
        self._index.train(vectors)
        self._index.add(vectors)

    def _append(self, vectors: np.ndarray) -> None:
        use_threads(0)
        # `absorb` has put them after the others. FAISS would number them by its count, which is
        # less once something was forgotten.
        first = len(self._vectors) - len(vectors)
        self._index.add_with_ids(vectors, np.arange(first, first + len(vectors)))

    def _discard(self, positions: np.ndarray) -> None:
        use_threads(0)
        self._index.remove_ids(faiss.IDSelectorBatch(positions))

    def _parameters(self, config, k: int):
        return faiss.SearchParametersIVF(nprobe=min(config.num_probes, self._index.nlist))

    def efforts(self, k: int) -> dict[str, list[int]]:
        num_lists = self._index.nlist if self._index else 1
        ladder = [1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512]
        return {"num_probes": [value for value in ladder if value < num_lists] or [1]}

    @property
    def _num_indexed(self) -> int:
        return int((self._store.built.keys >= 0).sum())

    @property
    def _code_bytes(self) -> int:
        return 4 * self.dim

    @property
    def backend_bytes(self) -> int:
        # A code and an int64 id each; the centres.
        return self._index.ntotal * (self._code_bytes + 8) + self._index.nlist * 4 * self.dim
