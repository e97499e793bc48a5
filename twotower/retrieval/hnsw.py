"""FAISS HNSW: a graph of near neighbours (Malkov and Yashunin, TPAMI 2020)."""

import dataclasses
import pathlib

import numpy as np

from twotower.limits import at_least
from twotower.retrieval.faiss_index import FaissIndex, faiss, use_threads

STORAGES = ("float", "fp16", "sq8")
ORDER = "hnsw_order.npy"
# Under this many vectors a graph fits into the processor's caches in any order.
LEAST_ORDERED = 20_000
# What `tuning.tune` may try for efSearch, in quarters of k.
EFFORTS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 256)


@dataclasses.dataclass(frozen=True)
class HnswConfig:
    """Parameters of the graph.

    Attributes:
        neighbours: Links of a vector in each layer (M); twice as many in the lowest.
        ef_construction: Candidates kept while a vector is linked in.
        ef_search: Candidates kept while a query walks; at least k is used.
        storage: What stands at the nodes: `float` (4 bytes a dimension), `fp16` (2) or `sq8` (1,
            a uniform 8-bit code between each dimension's extremes).
        refine: With fp16 and sq8, times k that are scored again from the float32 vectors.
        threads: Threads of a search, 0 for all. It holds in every calling thread.
    """

    neighbours: int = 32
    ef_construction: int = 200
    ef_search: int = 200
    storage: str = "float"
    refine: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        at_least(self, neighbours=2, ef_construction=1, ef_search=1, refine=1, threads=0)
        if self.storage not in STORAGES:
            raise ValueError(f"storage must be one of {STORAGES}; got {self.storage!r}.")


class HnswIndex(FaissIndex):
    """FAISS HNSW, by inner product or L2 as they are.

    Nodes stand in memory by cluster: a walk goes from neighbour to neighbour, and those then share
    pages and caches. At a million vectors that nearly halves a search and takes a third off the
    build; the answers are the same kind. (FAISS links them in an order of its own, at random.)

    For inner product the graph is linked by direction and walked by inner product. Linked by inner
    product, links lead to the longest vectors, and what no link leads to is found by no efSearch:
    of the 100 best of a sequential tower's 3,416 items, whose longest is 1.5 times the mean, 12 at
    an efSearch of 100 and 23 at 400, against 95 and 99.8 (Liu et al., "Understanding and Improving
    Proximity Graph Based Maximum Inner Product Search", AAAI 2020). L2 with one more component,
    which makes all lengths equal, finds as many there and the fewest where some are far longer.

    A graph takes further vectors and cannot lose any: removed ones stay as ways to others, and
    searches step over them.
    """

    backend = "hnsw"
    Config = HnswConfig
    can_append = True

    @property
    def is_coded(self) -> bool:
        return self.config.storage != "float"

    def _build(self, vectors: np.ndarray) -> None:
        use_threads(0)
        dim, links = vectors.shape[1], self.config.neighbours
        if self.config.storage == "float":
            self._index = faiss.IndexHNSWFlat(dim, links, self._kind)
        else:
            code = {"fp16": "QT_fp16", "sq8": "QT_8bit"}[self.config.storage]
            code = getattr(faiss.ScalarQuantizer, code)
            self._index = faiss.IndexHNSWSQ(dim, code, links, self._kind)
            self._index.train(vectors)
        self._index.hnsw.efConstruction = self.config.ef_construction
        # Position of each node; a last -1, so that "nothing found" stays so.
        self._order = None
        if len(vectors) >= LEAST_ORDERED:
            self._order = np.append(by_cluster(vectors, self._kind), -1)
            vectors = vectors[self._order[:-1]]
        self._link(vectors)

    def _append(self, vectors: np.ndarray) -> None:
        use_threads(0)
        if self._order is not None:
            new = np.arange(len(self._vectors) - len(vectors), len(self._vectors))
            self._order = np.concatenate([self._order[:-1], new, [-1]])
        self._link(vectors)

    def _link(self, new: np.ndarray) -> None:
        """Links `[num_new, dim]` vectors, the last nodes, to those before, which are in."""
        nodes = np.asarray(self._vectors)
        if self.metric == "dot":
            lengths = np.sqrt(np.einsum("nd,nd->n", nodes, nodes, dtype=np.float64))[:, None]
            if lengths.min() < 0.999 * lengths.max():
                # Codes are trained on the vectors, so directions must be as long.
                lengths /= lengths.max() if self.is_coded else 1
                if self._order is not None:
                    nodes, lengths = nodes[self._order[:-1]], lengths[self._order[:-1]]
                directions = np.zeros_like(nodes)
                np.divide(nodes, lengths, out=directions, where=lengths > 0, casting="same_kind")
                self._hold(directions[: -len(new)])
                self._index.add(directions[-len(new) :])
                self._hold(nodes)
                return
        self._index.add(new)

    def _hold(self, nodes: np.ndarray) -> None:
        """Puts other vectors to the nodes and leaves the links."""
        storage = faiss.downcast_index(self._index.storage)
        faiss.copy_array_to_vector(storage.sa_encode(nodes).ravel(), storage.codes)

    def _find(self, queries: np.ndarray, size: int, parameters):
        scores, positions = super()._find(queries, size, parameters)
        return scores, positions if self._order is None else self._order[positions]

    def _save(self, directory: pathlib.Path) -> None:
        super()._save(directory)
        if self._order is not None:
            np.save(directory / ORDER, self._order)

    def _load(self, directory: pathlib.Path) -> None:
        super()._load(directory)
        path = directory / ORDER
        self._order = np.load(path, allow_pickle=False) if path.exists() else None
        if self._order is not None and len(self._order) != len(self._vectors) + 1:
            raise ValueError(
                f"{path} orders {len(self._order) - 1} vectors; expected {len(self._vectors)}."
            )

    def _parameters(self, config, k: int):
        parameters = faiss.SearchParametersHNSW(efSearch=max(k, config.ef_search))
        # FAISS' bounded queue looks for its best by a scan. A heap finds the same: at a million
        # vectors and an efSearch of 650 in .92 of the time.
        parameters.bounded_queue = False
        return parameters

    def efforts(self, k: int) -> dict[str, list[int]]:
        ladder = [k * quarters // 4 for quarters in EFFORTS]
        return {"refine": [1, 2] if self.is_coded else [1], "ef_search": ladder}

    @property
    def backend_bytes(self) -> int:
        graph = self._index.hnsw  # int32 links and levels, 8 bytes an offset
        links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        width = {"float": 4, "fp16": 2, "sq8": 1}[self.config.storage]
        order = 0 if self._order is None else self._order.nbytes
        return len(self._vectors) * width * self.dim + links + order


def by_cluster(vectors: np.ndarray, kind: int) -> np.ndarray:
    """Positions of `[num_items, dim]` vectors, those of one k-means cluster after another."""
    num, dim = vectors.shape
    means = faiss.Kmeans(
        dim,
        int(np.sqrt(num)),
        niter=4,
        max_points_per_centroid=40,
        min_points_per_centroid=1,
        spherical=kind == faiss.METRIC_INNER_PRODUCT,
    )
    means.train(vectors)
    return np.argsort(means.index.search(vectors, 1)[1][:, 0], kind="stable")
