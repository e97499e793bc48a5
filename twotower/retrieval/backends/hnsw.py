"""FAISS HNSW: a graph of near neighbours (Malkov and Yashunin, TPAMI 2020)."""

import dataclasses
import pathlib

import numpy as np

from twotower.limits import at_least, typed, within_int32
from twotower.retrieval.backends.faiss_index import FaissIndex, faiss, use_threads
from twotower.retrieval.backends.nodes import Nodes
from twotower.retrieval.vectors import KeyedVectors

STORAGES = ("float", "fp16", "sq8")
# The node of each position; not written where nodes are positions, since all vectors are distinct.
NODES = "hnsw_nodes.npy"
# What indexes of earlier versions have instead: the position of each node's first vector.
ORDER = "hnsw_order.npy"
# The largest number of fp16; a component is no larger than its vector is long.
LONGEST_FP16 = 65504.0
# For `link_power`: the powers of lengths that it tries, the share of vectors that may be without a
# link to them, and the size of the sample.
POWERS, MAX_UNLINKED, SAMPLE = (1, 1 / 2, 1 / 4, 1 / 8, 1 / 16, 1 / 32, 0), 0.04, 2000
# What `tuning.tune` may try for efSearch, in quarters of k.
EFFORTS = (4, 5, 6, 7, 8, 10, 12, 14, 16, 20, 24, 28, 32, 40, 48, 56, 64, 96, 128, 192, 256)


@dataclasses.dataclass(frozen=True)
class HnswConfig:
    """Parameters of the graph.

    Attributes:
        neighbours: Links of a vector in each layer (M); twice as many in the lowest.
        ef_construction: Number of candidates kept while a vector is inserted.
        ef_search: Number of candidates kept during a search; at least k is used.
        storage: How the nodes store vectors: `float` (4 bytes a dimension), `fp16` (2, for lengths
            up to 65,504) or `sq8` (1, a uniform 8-bit code between each dimension's extremes).
        refine: With fp16 and sq8, this number times k items are scored again from the float32
            vectors.
        threads: Number of threads of a search, in every calling thread; 0 for all.

    >>> HnswConfig(storage="int4")
    Traceback (most recent call last):
    ValueError: storage must be one of ('float', 'fp16', 'sq8'); got 'int4'.
    """

    neighbours: int = 32
    ef_construction: int = 200
    ef_search: int = 200
    storage: str = "float"
    refine: int = 1
    threads: int = 0

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, neighbours=2, ef_construction=1, ef_search=1, refine=1, threads=0)
        within_int32(self)
        if self.storage not in STORAGES:
            raise ValueError(f"storage must be one of {STORAGES}; got {self.storage!r}.")


class HnswIndex(FaissIndex):
    """FAISS HNSW, by inner product or L2 as they are.

    Equal vectors share a node, and an answer holds them all; see `Nodes`. The saved `hnsw.faiss` is
    a plain FAISS index whose answers are numbers of nodes. `hnsw_nodes.npy`, where there is one,
    holds the node of each position in `keys.npy`.

    For inner product the graph is linked with partly evened lengths, and searched by inner product.
    If it were linked by inner product itself, links would lead to the longest vectors, and no
    efSearch finds a vector without a link to it: of the 100 best of a sequential tower's 3,416
    items, whose longest is 1.5 times the mean, 12 are found at an efSearch of 100 and 23 at 400. If
    it were linked by direction alone, all would be found, but at four times the efSearch where the
    longest vectors answer most queries. `link_power` finds the power between the two.

    Vectors of one length are linked by their distances, and searched by inner product. Both give
    the same neighbours, but in float32 only distances tell near copies apart. The inner product of
    two unit vectors that differ by 1e-4 rounds to 1.

    A graph takes further vectors and cannot lose any: removed ones stay as ways to others, and
    searches step over them.

    >>> index = HnswIndex("dot", HnswConfig(neighbours=8))
    >>> index = index.build(np.array([7, 8, 9]), np.eye(3, dtype=np.float32))
    >>> index.search(np.float32([[1, 3, 2]]), k=2).keys.tolist()
    [[8, 9]]
    """

    backend = "hnsw"
    Config = HnswConfig
    can_append = True

    @property
    def is_coded(self) -> bool:
        return self.config.storage != "float"

    def checked_items(
        self, keys: np.ndarray, vectors: np.ndarray, dim: int | None = None
    ) -> KeyedVectors:
        items = super().checked_items(keys, vectors, dim)
        if self.config.storage == "fp16":
            lengths = np.sqrt(np.einsum("nd,nd->n", items.vectors, items.vectors))
            if (too_long := lengths > LONGEST_FP16).any():
                raise ValueError(
                    f"vectors of keys {items.keys[too_long][:5].tolist()} are longer than "
                    f"{LONGEST_FP16:g}, where fp16 ends. Take the storage float or sq8, or scale "
                    "items down."
                )
        return items

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
        self._nodes = Nodes.of(vectors)
        self._link(0)

    def _append(self, vectors: np.ndarray) -> None:
        use_threads(0)
        num_old = len(self._nodes)
        self._nodes = self._nodes.appended(np.asarray(self._vectors))
        if len(self._nodes) > num_old:
            self._link(num_old)

    def _link(self, num_old: int) -> None:
        """Adds the nodes after the first `num_old`, which are in the graph already."""
        nodes = np.asarray(self._vectors)
        if not self._nodes.is_identity:
            nodes = nodes[self._nodes.first[:-1]]
        self._index.hnsw.efConstruction = min(self.config.ef_construction, len(nodes))
        lengths = np.sqrt(np.einsum("nd,nd->n", nodes, nodes, dtype=np.float64))
        is_even = lengths.min() >= 0.999 * lengths.max() and 1e-3 < lengths.max() < 1e3
        if self.metric != "dot" or is_even:
            self._measure_by(faiss.METRIC_L2)
            try:
                self._index.add(nodes[num_old:])
            finally:
                self._measure_by(self._kind)
            return
        power = link_power(nodes, self.config)
        use_threads(0)
        # Codes are trained on the vectors, so the evened ones must be as long.
        evened = with_evened_lengths(nodes, power, lengths.max() if self.is_coded else 1.0)
        self._hold(evened[:num_old])
        self._index.add(evened[num_old:])
        self._hold(nodes)

    def _measure_by(self, kind: int) -> None:
        """Sets the metric of FAISS by which nodes are linked and searched. Existing links stay."""
        storage = faiss.downcast_index(self._index.storage)
        self._index.metric_type = storage.metric_type = kind
        self._index.hnsw.is_similarity = kind == faiss.METRIC_INNER_PRODUCT

    def _hold(self, nodes: np.ndarray) -> None:
        """Replaces the vectors of the nodes and keeps the links."""
        storage = faiss.downcast_index(self._index.storage)
        faiss.copy_array_to_vector(storage.sa_encode(nodes).ravel(), storage.codes)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        first, scores = super()._search(queries, min(k, len(self._nodes)))
        if self._nodes.has_copies:
            return self._nodes.expanded(first, scores, k)
        return first, scores

    def _find(self, queries: np.ndarray, size: int, parameters):
        scores, nodes = super()._find(queries, size, parameters)
        return scores, self._nodes.first[nodes]

    @property
    def _num_indexed(self) -> int:
        return len(self._nodes)

    def _save(self, directory: pathlib.Path) -> None:
        super()._save(directory)
        if not self._nodes.is_identity:
            np.save(directory / NODES, self._nodes.of_position)

    def _load(self, directory: pathlib.Path) -> None:
        self._nodes = _read_nodes(directory, len(self._vectors))
        super()._load(directory)

    def _parameters(self, config, k: int):
        # FAISS allocates memory for efSearch candidates, however few vectors there are.
        effort = max(k, min(config.ef_search, len(self._nodes)))
        parameters = faiss.SearchParametersHNSW(efSearch=effort)
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
        return len(self._nodes) * width * self.dim + links + self._nodes.num_bytes


def _read_nodes(directory: pathlib.Path, num: int) -> Nodes:
    """The nodes of `num` vectors, from what `_save` wrote."""
    path = next((directory / name for name in (NODES, ORDER) if (directory / name).exists()), None)
    if path is None:
        return Nodes(np.arange(num))
    numbers = np.load(path, allow_pickle=False)
    try:
        # Without copies the nodes of positions are the inverse of the positions of nodes.
        nodes = Nodes(numbers) if path.name == NODES else Nodes(Nodes(numbers[:-1]).first[:-1])
    except (ValueError, IndexError) as error:
        raise ValueError(f"{path}: {error}") from error
    if len(nodes.of_position) != num:
        raise ValueError(f"{path} is of {len(nodes.of_position)} vectors; expected {num}.")
    return nodes


def with_evened_lengths(vectors: np.ndarray, power: float, longest: float = 1.0) -> np.ndarray:
    """`[num, dim]` vectors whose lengths are raised to `power` and scaled to at most `longest`."""
    lengths = np.sqrt(np.einsum("nd,nd->n", vectors, vectors, dtype=np.float64))[:, None]
    lengths[lengths == 0] = lengths.max() or 1  # has no direction, and stays zero
    scale = longest * (lengths / lengths.max()) ** power / lengths
    return np.multiply(vectors, scale, out=np.empty_like(vectors), casting="same_kind")


def link_power(vectors: np.ndarray, config: HnswConfig) -> float:
    """The power of lengths that a graph over inner products is linked with, measured on a sample.

    At 1 links follow the inner products of the vectors as they are: a search reaches the longest at
    once, and never a vector without a link to it. At 0 links follow directions: a search reaches
    everything, but slowly where the longest vectors are the answers. The result is the largest of
    `POWERS` at which hardly a vector of the sample is without a link to it.

    Args:
        vectors: `[num, dim]` float32, distinct.
        config: Of the graph.
    """
    use_threads(1)  # so that one sample gives one power
    num = min(len(vectors), SAMPLE)
    sample = vectors[np.random.default_rng(0).choice(len(vectors), num, replace=False)]
    for power in POWERS[:-1]:
        graph = faiss.IndexHNSWFlat(sample.shape[1], config.neighbours, faiss.METRIC_INNER_PRODUCT)
        graph.hnsw.efConstruction = min(config.ef_construction, num)
        graph.add(with_evened_lengths(sample, power))
        is_linked = np.zeros(num + 1, bool)  # one more for -1, which is no link
        is_linked[faiss.vector_to_array(graph.hnsw.neighbors)] = True
        if np.count_nonzero(~is_linked[:-1]) <= MAX_UNLINKED * num:
            return power
    return POWERS[-1]
