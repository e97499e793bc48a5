"""What all FAISS indexes share: metric, threads, exact scores, files; and Flat, which is exact."""

import dataclasses
import logging
import pathlib
from typing import Any

import numpy as np

from twotower.limits import at_least, typed, within_int32
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import NO_SCORE
from twotower.retrieval.threads import bounded

# Says at each import which of its builds it found.
logging.getLogger("faiss.loader").setLevel(logging.WARNING)
try:
    import faiss
except ImportError as error:  # pragma: no cover
    raise ImportError('FAISS indexes need faiss: pip install "faiss-cpu>=1.14.3"') from error

ALL_THREADS = faiss.omp_get_max_threads()


def use_threads(threads: int) -> None:
    """Sets the threads of FAISS' next calls: 0 for all, at most what `threads.bounded` allows.
    FAISS keeps the number per calling thread, so each search, build and read sets it again."""
    faiss.omp_set_num_threads(bounded(threads, ALL_THREADS))


class FaissIndex(Retriever):
    """A FAISS index in `self._index`, searched with the parameters of `self.config`.

    Where its codes are not the vectors themselves (`is_coded`), what it finds is scored again
    exactly, from the float32 vectors that the base class keeps, `config.refine` times k of it.

    A subclass builds the index and says how it is searched:

        class LshIndex(FaissIndex):
            backend, Config = "lsh", LshConfig

            def _build(self, vectors):
                self._index = faiss.IndexLSH(vectors.shape[1], self.config.num_bits)
                self._index.add(vectors)

            def _parameters(self, config, k):
                return None  # a scan of all codes has none
    """

    _index: Any = None
    # Config, size and number of vectors of the last search, and the SearchParameters they gave.
    _made: tuple = (None, 0, 0, None)

    @property
    def _kind(self) -> int:
        return faiss.METRIC_L2 if self.metric == "euclidean" else faiss.METRIC_INNER_PRODUCT

    @property
    def is_coded(self) -> bool:
        """Whether the index holds codes and not the vectors themselves."""
        return False

    def _parameters(self, config: Any, k: int) -> Any:
        """SearchParameters of this config for `k` answers."""
        raise NotImplementedError

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config_at(k)
        use_threads(config.threads)
        fetch = min(k * config.refine, len(self._vectors)) if self.is_coded else k
        made = self._made  # read once: other threads may replace it
        num = len(self._vectors)
        if made[0] is not config or made[1:3] != (fetch, num):
            # Kept, as making one takes as long as checking the queries.
            made = self._made = config, fetch, num, self._parameters(config, fetch)
        scores, positions = self._find(queries, fetch, made[3])
        if self.is_coded:
            return self._refined(queries, positions, k)
        if self.metric == "euclidean":
            np.negative(scores, out=scores)
        return positions, scores

    def _find(self, queries: np.ndarray, size: int, parameters):
        """Scores and positions, -1 for none, as FAISS has them."""
        return self._index.search(queries, size, params=parameters)

    def _refined(self, queries: np.ndarray, positions: np.ndarray, k: int):
        """The best k of positions, which may be -1, by their exact scores; no vector is copied."""
        scores = np.empty(positions.shape, np.float32)
        euclidean = self.metric == "euclidean"
        exact = faiss.fvec_L2sqr_by_idx if euclidean else faiss.fvec_inner_products_by_idx
        exact(
            faiss.swig_ptr(scores),
            faiss.swig_ptr(queries),
            faiss.swig_ptr(np.asarray(self._vectors)),
            faiss.swig_ptr(positions),
            self.dim,
            *positions.shape,
        )
        best = faiss.ResultHeap(len(positions), k, keep_max=not euclidean)
        best.add_result(scores, positions)
        best.finalize()
        if euclidean:
            np.negative(best.D, out=best.D)
        best.D[best.I < 0] = NO_SCORE
        return best.I, best.D

    def _save(self, directory: pathlib.Path) -> None:
        faiss.write_index(self._index, str(directory / f"{self.backend}.faiss"))

    def _load(self, directory: pathlib.Path) -> None:
        path = directory / f"{self.backend}.faiss"
        use_threads(0)  # reading an index of codes computes its tables
        try:
            self._index = faiss.read_index(str(path))
        except RuntimeError as error:
            raise ValueError(f"{path} is no FAISS index: {error}") from error
        num, dim = self._num_indexed, self.dim
        if self._index.ntotal != num or self._index.d != dim:
            raise ValueError(
                f"{path} holds {self._index.ntotal} x {self._index.d} vectors; expected "
                f"{num} x {dim}."
            )

    @property
    def _num_indexed(self) -> int:
        """Vectors that `_index` should hold."""
        return len(self._vectors)


@dataclasses.dataclass(frozen=True)
class FlatConfig:
    """Parameters of the scan.

    Attributes:
        threads: Threads of a search, whichever thread calls it; 0 for all, at most the number of
            cores.

    >>> FlatIndex("cosine", FlatConfig(threads=1)).config.threads
    1
    """

    threads: int = 0

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, threads=0)
        within_int32(self)


class FlatIndex(FaissIndex):
    """FAISS' exact scan, straight over the vectors that the base class keeps: no second copy.

    >>> index = FlatIndex().build(np.array([7, 8, 9]), np.eye(3, dtype=np.float32))
    >>> index.search(np.float32([[1, 3, 2]]), k=2).keys.tolist()
    [[8, 9]]
    """

    backend = "flat"
    Config = FlatConfig
    is_exact = True

    def _build(self, vectors: np.ndarray) -> None:
        pass

    def _save(self, directory: pathlib.Path) -> None:
        pass

    def _load(self, directory: pathlib.Path) -> None:
        pass

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        use_threads(self.config.threads)
        vectors = np.asarray(self._vectors)
        scores, positions = faiss.knn(queries, vectors, k, metric=self._kind)
        if self.metric == "euclidean":
            np.negative(scores, out=scores)
        return positions, scores
