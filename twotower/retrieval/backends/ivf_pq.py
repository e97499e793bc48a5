"""FAISS IVF-PQ: inverted lists of product-quantised residuals (Jegou et al., TPAMI 2011).

A vector's difference from its list's centre is cut into `code_bytes` parts, each replaced by the
nearest of 256 learned ones: a byte for each part. Scores of codes are approximate, so the first
`refine` times k items are scored again from the float32 vectors, which may be memory-mapped.
"""

import dataclasses
import pathlib

import numpy as np

from twotower.limits import at_least
from twotower.retrieval.backends.faiss_index import faiss
from twotower.retrieval.backends.ivf import IvfConfig, IvfIndex
from twotower.retrieval.candidates import NO_SCORE, widened

# 256 parts cannot be learned from fewer vectors than a few each; fewer are scanned exactly.
LEAST_ITEMS = 1000


@dataclasses.dataclass(frozen=True)
class IvfPqConfig(IvfConfig):
    """Parameters of the lists (see IvfConfig) and of the codes.

    Attributes:
        code_bytes: Bytes of a code (m); must divide the dimension. 0 for the largest divisor up to
            16.
        refine: This number times k items are scored again exactly. With 1, the k items that the
            codes find are put into the right order.

    >>> IvfPqConfig(code_bytes=16, refine=4).num_probes
    32
    """

    code_bytes: int = 0
    refine: int = 8

    def __post_init__(self) -> None:
        super().__post_init__()
        at_least(self, code_bytes=0, refine=1)


class IvfPqIndex(IvfIndex):
    """FAISS IVF-PQ with exact refinement.

    >>> vectors = np.random.default_rng(0).normal(size=(1000, 32)).astype(np.float32)
    >>> index = IvfPqIndex().build(np.arange(1000), vectors)
    >>> index.backend_bytes < vectors.nbytes, index.search(vectors[:1], k=5).counts.tolist()
    (True, [5])
    """

    backend = "ivf_pq"
    Config = IvfPqConfig

    @property
    def can_append(self) -> bool:  # type: ignore[override]
        """False while there are too few items for codes: `absorb` then rebuilds from the live
        items, as codes once they are enough."""
        return self._index is not None

    @property
    def is_coded(self) -> bool:
        return True

    @property
    def _code_bytes(self) -> int:
        if self.config.code_bytes:
            return self.config.code_bytes
        return next(size for size in range(16, 0, -1) if self.dim % size == 0)

    def _make(self, quantizer, dim: int, num_lists: int):
        if dim % self._code_bytes:
            raise ValueError(
                f"code_bytes must divide the dimension, {dim}; got {self._code_bytes}."
            )
        # Without its metric IndexIVFPQ is L2, whatever the quantizer is.
        index = faiss.IndexIVFPQ(quantizer, dim, num_lists, self._code_bytes, 8, self._kind)
        index.pq.cp.min_points_per_centroid = 1
        return index

    def _build(self, vectors: np.ndarray) -> None:
        self._index = None
        if len(vectors) >= LEAST_ITEMS:
            super()._build(vectors)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        if self._index is None:
            found, scores = self._store.built.best(queries, k, self._store.is_allowed(None))
            return widened(found, k, -1), widened(scores, k, NO_SCORE)
        return super()._search(queries, k)

    def _save(self, directory: pathlib.Path) -> None:
        if self._index is not None:
            super()._save(directory)

    def _load(self, directory: pathlib.Path) -> None:
        if len(self._vectors) >= LEAST_ITEMS:
            super()._load(directory)

    def efforts(self, k: int) -> dict[str, list[int]]:
        if self._index is None:
            return {}
        return {"refine": [2, 4, 8, 16, 32], **super().efforts(k)}

    @property
    def backend_bytes(self) -> int:
        if self._index is None:
            return 0
        return super().backend_bytes + 256 * 4 * self.dim  # 256 centres of each of the m parts
