"""ScaNN: partition, anisotropic quantisation, exact reordering (Guo et al., ICML 2020).

Two forms: `ScannIndex`, a Retriever over the pybind searcher, and the TFRS layer that goes into a
SavedModel. `import scann` loads TensorFlow; it happens in this file alone, at first use.
"""

import dataclasses
import importlib.util
import pathlib
from typing import Any

import numpy as np

from twotower.limits import at_least, typed, within_int32
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import NO_SCORE, widened
from twotower.retrieval.threads import bounded

FOLDER, POSITIONS = "scann", "scann_positions.npy"
# ScaNN learns 16 codes for each block of dimensions, and needs a vector for each code.
FEWEST_IN_LAYER = 16


@dataclasses.dataclass(frozen=True)
class ScannConfig:
    """Parameters of the three stages.

    Attributes:
        num_leaves: Partitions of the catalogue.
        num_leaves_to_search: Number of partitions that a query searches. With all of them,
            partitions would save nothing.
        num_reordering_candidates: Number of candidates that are scored again exactly. ScaNN never
            returns more items than this. `ScannIndex` raises it to k; the layer cannot.
        dimensions_per_block: Dimensions that share a code of 4 bits.
        training_iterations: Of the k-means that makes the partitions.
        soar: Whether each vector is also in a second partition, chosen so that its residual is
            orthogonal to the first one (Sun et al., NeurIPS 2023); not under euclidean, and not in
            the TFRS layer.
        threads: Threads that share a batch of queries; 0 for all, at most the number of cores. A
            single query takes one thread.

    >>> config = ScannConfig.for_size(10_000)
    >>> config.num_leaves, config.num_leaves_to_search
    (100, 40)
    """

    num_leaves: int = 60
    num_leaves_to_search: int = 40
    num_reordering_candidates: int = 500
    dimensions_per_block: int = 2
    training_iterations: int = 12
    soar: bool = False
    threads: int = 1

    def __post_init__(self) -> None:
        typed(self)
        names = [field.name for field in dataclasses.fields(self)]
        at_least(self, **{name: 0 if name in ("soar", "threads") else 1 for name in names})
        within_int32(self)
        if self.num_leaves_to_search >= self.num_leaves:
            raise ValueError(
                f"num_leaves_to_search must be under num_leaves ({self.num_leaves}); got "
                f"{self.num_leaves_to_search}. For an exact search take the exact index."
            )

    @classmethod
    def for_size(cls, num_items: int) -> "ScannConfig":
        """Parameters to start from; `tuning.tune` finds the cheapest for your vectors.

        On 128-d vectors of length 1 around 100 centres they find .996 of the true top 100 at
        3,706 items and 1.0 at 20,000. In a small catalogue the top 100 is spread over most leaves.
        """
        leaves = max(2, int(np.sqrt(num_items)))
        share = 0.95 if num_items < 2_000 else 0.9 if num_items < 10_000 else 0.4
        return cls(leaves, max(1, min(leaves - 1, int(share * leaves))), min(num_items, 1000))


def available() -> bool:
    """Whether ScaNN is installed (there are builds for Linux only)."""
    return importlib.util.find_spec("scann") is not None


def _require() -> None:
    if not available():
        raise ImportError(
            'ScaNN is not installed: pip install "scann[tf]==1.4.2" (Linux only). Everything else '
            "works without it; take the hnsw or exact index."
        )


def make_tfrs_layer(
    config: ScannConfig, identifiers: Any, vectors: Any, k: int | None = None
) -> Any:
    """The TFRS ScaNN layer over `vectors`, for a SavedModel.

    Args:
        config: Parameters.
        identifiers: `[num_items]` tensor that the layer answers with.
        vectors: `[num_items, dim]` float32 tensor, of `FEWEST_IN_LAYER` items at least.
        k: Default number of answers; 10, or the reordering candidates if fewer, where None.

    Raises:
        ValueError: More answers than reordering candidates, which the layer would silently cut.
    """
    _require()
    if k is None:
        k = min(10, config.num_reordering_candidates)
    if k > config.num_reordering_candidates:
        raise ValueError(
            f"k = {k} needs as many reordering candidates; with num_reordering_candidates = "
            f"{config.num_reordering_candidates} the layer would silently answer fewer."
        )
    import tensorflow_recommenders as tfrs

    layer = tfrs.layers.factorized_top_k.ScaNN(
        k=k,
        distance_measure="dot_product",
        num_leaves=config.num_leaves,
        num_leaves_to_search=config.num_leaves_to_search,
        training_iterations=config.training_iterations,
        dimensions_per_block=config.dimensions_per_block,
        num_reordering_candidates=config.num_reordering_candidates,
        # A single request gains nothing from a thread pool and pays for it.
        parallelize_batch_searches=False,
    )
    return layer.index(vectors, identifiers)


class ScannIndex(Retriever):
    """ScaNN's pybind searcher, to which vectors can be added and from which they can be deleted.

    ScaNN numbers vectors without a gap: the last one takes the number of one that it deletes.
    `_position` says which of ours each of its numbers is. (Its document ids do the same by a
    list of Python objects, which one unknown id in a call of `delete` leaves wrong for good.)

    Args:
        metric: As in Retriever.
        config: Parameters; by the size of the catalogue where None.

    Raises:
        ValueError: SOAR under euclidean.

        index = ScannIndex("dot", ScannConfig.for_size(len(keys))).build(keys, vectors)
        tuning.tune(index, queries, k=100)
        index.search(queries, 100)
    """

    backend = "scann"
    Config = ScannConfig
    can_append = True
    can_forget = True

    def __init__(self, metric: str = "dot", config: ScannConfig | None = None) -> None:
        _require()
        super().__init__(metric, config)
        self._by_size = config is None
        if self.config.soar and metric == "euclidean":
            raise ValueError("soar needs inner products: metric dot or cosine; got euclidean.")

    def _build(self, vectors: np.ndarray) -> None:
        from scann import scann_ops_pybind

        if self._by_size:
            self.config = ScannConfig.for_size(len(vectors))
        config = self.config
        measure = "squared_l2" if self.metric == "euclidean" else "dot_product"
        builder = scann_ops_pybind.builder(vectors, 10, measure)
        builder.set_n_training_threads(bounded(0))
        if len(vectors) < 2 * config.num_leaves or len(vectors) < 100:
            builder = builder.score_brute_force()  # too few to train partitions on
        else:
            builder = (
                builder.tree(
                    num_leaves=config.num_leaves,
                    num_leaves_to_search=config.num_leaves_to_search,
                    training_iterations=config.training_iterations,
                    soar_lambda=1.5 if config.soar else None,
                )
                .score_ah(config.dimensions_per_block, anisotropic_quantization_threshold=0.2)
                .reorder(config.num_reordering_candidates)
            )
        self._searcher = builder.build().searcher
        # A last -1, so that the number -1 (nothing found) becomes the position -1 by indexing.
        self._position = np.append(np.arange(len(vectors)), -1)

    def _append(self, vectors: np.ndarray) -> None:
        first = len(self._vectors) - len(vectors)
        new = np.arange(first, first + len(vectors))
        self._searcher.upsert([None] * len(vectors), vectors, len(vectors))
        self._position = np.concatenate([self._position[:-1], new, [-1]])

    def _discard(self, positions: np.ndarray) -> None:
        known = self._position[:-1].copy()
        number = {int(position): number for number, position in enumerate(known)}
        numbers, last = [], len(known) - 1
        for position in positions:
            numbers.append(number.pop(int(position)))
            known[numbers[-1]] = known[last]
            if numbers[-1] != last:
                number[int(known[last])] = numbers[-1]
            last -= 1
        self._searcher.delete(numbers)
        self._position = np.append(known[: last + 1], -1)

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        config = self.config_at(k)
        reorder = max(k, min(config.num_reordering_candidates, len(self._vectors)))
        leaves, threads = config.num_leaves_to_search, bounded(config.threads)
        if len(queries) == 1:
            found, scores = self._searcher.search(queries[0], k, reorder, leaves)
            found, scores = found[None], scores[None]
        elif threads == 1:
            found, scores = self._searcher.search_batched(queries, k, reorder, leaves, False, 0)
        else:
            self._searcher.set_num_threads(threads)
            share = -(-len(queries) // threads)
            found, scores = self._searcher.search_batched(queries, k, reorder, leaves, True, share)
        if self.metric == "euclidean":
            scores = -scores
        # Behind the end of a short row ScaNN has any number, and the score NaN.
        scores, found = widened(scores, k, np.nan), widened(found.astype(np.int64), k, -1)
        is_missing = np.isnan(scores)
        positions = self._position[np.where(is_missing, -1, found)]
        return positions, np.where(is_missing, NO_SCORE, scores)

    def efforts(self, k: int) -> dict[str, list[int]]:
        leaves = self.config.num_leaves
        shares = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 100, 150, 200, 300, 400, 500, 600)
        shares = (*shares, 700, 800, 850, 900, 950)  # thousandths
        steps = sorted({max(1, min(leaves - 1, leaves * share // 1000)) for share in shares})
        return {
            "num_reordering_candidates": [2 * k, 3 * k, 5 * k, 10 * k, 20 * k],
            "num_leaves_to_search": steps,
        }

    def _save(self, directory: pathlib.Path) -> None:
        folder = directory / FOLDER
        folder.mkdir()
        # Paths relative to the folder, so that it can be renamed.
        self._searcher.serialize(str(folder), True)
        np.save(directory / POSITIONS, self._position[:-1])

    def _load(self, directory: pathlib.Path) -> None:
        from scann import scann_ops_pybind

        folder = directory / FOLDER
        pickled = folder / "scann_docids.pkl"
        if pickled.exists():
            raise ValueError(f"{pickled} is no part of an index, and ScaNN would unpickle it.")
        # What `load_searcher` does, but for that file.
        assets = (folder / "scann_assets.pbtxt").read_text()
        self._searcher = scann_ops_pybind.scann_pybind.ScannNumpy(str(folder), assets)
        path, num = directory / POSITIONS, int((self._store.built.keys >= 0).sum())
        # Not in indexes of earlier versions whose numbers are the positions.
        positions = np.load(path, allow_pickle=False) if path.exists() else np.arange(num)
        self._position, known = np.append(positions, -1), len(positions)
        if not self._searcher.size() == known == num:
            raise ValueError(
                f"{folder} holds {self._searcher.size()} vectors, {known} with a position; "
                f"expected {num}."
            )

    @property
    def backend_bytes(self) -> int:
        # The vectors, 4 bits a part (twice with SOAR), and the partitions' centres.
        codes = self.dim / self.config.dimensions_per_block / 2 * (2 if self.config.soar else 1)
        centres = self.config.num_leaves * 4 * self.dim
        return int(len(self._vectors) * (4 * self.dim + codes)) + centres
