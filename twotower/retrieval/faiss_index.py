"""FAISS HNSW: a graph of near neighbours (Malkov and Yashunin, TPAMI 2020)."""

import dataclasses
import logging
import pathlib

import numpy as np

from twotower.retrieval.base import Retriever

# Says at each import which of its builds it found.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)
try:
    import faiss
except ImportError as error:  # pragma: no cover
    raise ImportError('the HNSW index needs FAISS: pip install "faiss-cpu>=1.14.3"') from error

FILE = "hnsw.faiss"


@dataclasses.dataclass(frozen=True)
class HnswConfig:
    """Parameters of the graph.

    Attributes:
        neighbours: Links of a vector in each layer (M); twice as many in the lowest.
        ef_construction: Candidates kept while a vector is linked in.
        ef_search: Candidates kept while a query walks; at least k is used.
        threads: Threads of a search, 0 for FAISS' default. It holds in every calling thread.
    """

    neighbours: int = 32
    ef_construction: int = 200
    ef_search: int = 200
    threads: int = 0

    def __post_init__(self) -> None:
        for name, least in (
            ("neighbours", 2),
            ("ef_construction", 1),
            ("ef_search", 1),
            ("threads", 0),
        ):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be {least} or more; got {getattr(self, name)}.")


class HnswIndex(Retriever):
    """FAISS HNSW over float32 vectors, by inner product or L2 as they are.

    (The reduction of inner product to L2 by a further dimension makes HNSW much worse.)

    Args:
        metric: As in Retriever.
        config: Parameters.
    """

    backend = "hnsw"

    def __init__(self, metric: str = "dot", config: HnswConfig | None = None) -> None:
        super().__init__(metric)
        self.config = config or HnswConfig()

    def _build(self, vectors: np.ndarray) -> None:
        kind = faiss.METRIC_L2 if self.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT
        self._index = faiss.IndexHNSWFlat(vectors.shape[1], self.config.neighbours, kind)
        self._index.hnsw.efConstruction = self.config.ef_construction
        self._index.add(vectors)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self.config.threads:
            # A setting of the calling thread alone, so it is made at every call.
            faiss.omp_set_num_threads(self.config.threads)
        parameters = faiss.SearchParametersHNSW(efSearch=max(k, self.config.ef_search))
        scores, positions = self._index.search(queries, k, params=parameters)
        if self.metric == "euclidean":
            np.negative(scores, out=scores)
        return positions, scores

    def _save(self, directory: pathlib.Path) -> None:
        faiss.write_index(self._index, str(directory / FILE))

    def _load(self, directory: pathlib.Path) -> None:
        try:
            self._index = faiss.read_index(str(directory / FILE))
        except RuntimeError as error:
            raise ValueError(f"{directory / FILE} is no FAISS index: {error}") from error
        if self._index.ntotal != len(self._vectors) or self._index.d != self.dim:
            raise ValueError(
                f"{directory / FILE} holds {self._index.ntotal} x {self._index.d} vectors; "
                f"expected {len(self._vectors)} x {self.dim}."
            )

    @property
    def _backend_bytes(self) -> int:
        graph = self._index.hnsw  # int32 links and levels, 8 bytes an offset
        links = 4 * graph.neighbors.size() + 8 * graph.offsets.size() + 4 * graph.levels.size()
        return len(self._vectors) * 4 * self.dim + links
