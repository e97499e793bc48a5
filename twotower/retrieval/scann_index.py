"""ScaNN: partition, anisotropic quantisation, exact reordering (Guo et al., ICML 2020).

Two forms: `ScannIndex`, a Retriever over the pybind searcher, and the TFRS layer that goes into a
SavedModel. `import scann` loads TensorFlow; it happens in this file alone, at first use.
"""

import dataclasses
import importlib.util
import pathlib

import numpy as np

from twotower.retrieval.base import Retriever

FOLDER = "scann"


@dataclasses.dataclass(frozen=True)
class ScannConfig:
    """Parameters of the three stages.

    Attributes:
        num_leaves: Partitions of the catalogue.
        num_leaves_to_search: Partitions looked into; all of them would be no partition at all.
        num_reordering_candidates: Finds that are scored again exactly. Asking for more answers
            than this silently gets fewer: `ScannIndex` raises it to k, the layer cannot.
        dimensions_per_block: Dimensions that share a code of 4 bits.
        training_iterations: Of the k-means that makes the partitions.
    """

    num_leaves: int = 60
    num_leaves_to_search: int = 40
    num_reordering_candidates: int = 500
    dimensions_per_block: int = 2
    training_iterations: int = 12

    def __post_init__(self) -> None:
        for field in dataclasses.fields(self):
            if getattr(self, field.name) < 1:
                raise ValueError(
                    f"{field.name} must be 1 or more; got {getattr(self, field.name)}."
                )
        if self.num_leaves_to_search >= self.num_leaves:
            raise ValueError(
                f"num_leaves_to_search must be under num_leaves ({self.num_leaves}); got "
                f"{self.num_leaves_to_search}. For an exact search take the exact index."
            )

    @classmethod
    def for_size(cls, num_items: int) -> "ScannConfig":
        """Parameters to start from; `tuning.tune` finds the cheapest for your own vectors.

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
    import twotower  # noqa: F401  (sets the Keras switch before ScaNN loads TensorFlow)


def make_tfrs_layer(config: ScannConfig, identifiers, vectors, k: int | None = None):
    """The TFRS ScaNN layer over `vectors`, for a SavedModel.

    Args:
        config: Parameters.
        identifiers: `[num_items]` tensor that the layer answers with.
        vectors: `[num_items, dim]` float32 tensor.
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
    """ScaNN's pybind searcher.

    Args:
        metric: As in Retriever.
        config: Parameters; by the size of the catalogue where None.
    """

    backend = "scann"

    def __init__(self, metric: str = "dot", config: ScannConfig | None = None) -> None:
        super().__init__(metric)
        _require()
        self._by_size = config is None
        self.config = config

    def _build(self, vectors: np.ndarray) -> None:
        from scann import scann_ops_pybind

        if self._by_size:
            self.config = ScannConfig.for_size(len(vectors))
        measure = "squared_l2" if self.metric == "euclidean" else "dot_product"
        builder = scann_ops_pybind.builder(vectors, 10, measure)
        if len(vectors) < 2 * self.config.num_leaves or len(vectors) < 100:
            builder = builder.score_brute_force()  # too few to train partitions on
        else:
            builder = (
                builder.tree(
                    num_leaves=self.config.num_leaves,
                    num_leaves_to_search=self.config.num_leaves_to_search,
                    training_iterations=self.config.training_iterations,
                )
                .score_ah(self.config.dimensions_per_block, anisotropic_quantization_threshold=0.2)
                .reorder(self.config.num_reordering_candidates)
            )
        self._searcher = builder.build()

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        reorder = max(k, self.config.num_reordering_candidates)
        leaves = self.config.num_leaves_to_search
        if len(queries) == 1:
            found, scores = self._searcher.search(queries[0], k, reorder, leaves)
            found, scores = found[None], scores[None]
        else:
            found, scores = self._searcher.search_batched(queries, k, reorder, leaves)
        positions, scores = found.astype(np.int64), scores.astype(np.float32, copy=False)
        short = k - positions.shape[1]
        if short > 0:
            positions = np.pad(positions, ((0, 0), (0, short)), constant_values=-1)
            scores = np.pad(scores, ((0, 0), (0, short)), constant_values=np.nan)
        lost = np.isnan(scores)
        if lost.any():
            positions = np.where(lost, -1, positions)
            scores = np.where(lost, -np.inf if self.metric != "euclidean" else np.inf, scores)
        return positions, -scores if self.metric == "euclidean" else scores

    def _save(self, directory: pathlib.Path) -> None:
        folder = directory / FOLDER
        folder.mkdir()
        self._searcher.serialize(str(folder), relative_path=True)
        # Would be read back through pickle; keys.npy says all that it says.
        (folder / "scann_docids.pkl").unlink(missing_ok=True)

    def _load(self, directory: pathlib.Path) -> None:
        from scann import scann_ops_pybind

        pickled = directory / FOLDER / "scann_docids.pkl"
        if pickled.exists():
            raise ValueError(f"{pickled} is no part of an index, and ScaNN would unpickle it.")
        # What `load_searcher` does, but for that file.
        folder = directory / FOLDER
        assets = (folder / "scann_assets.pbtxt").read_text()
        searcher = scann_ops_pybind.scann_pybind.ScannNumpy(str(folder), assets)
        self._searcher = scann_ops_pybind.ScannSearcher(searcher)
        if self._searcher.size() != len(self._vectors):
            raise ValueError(
                f"{folder} holds {self._searcher.size()} vectors; expected {len(self._vectors)}."
            )

    @property
    def _backend_bytes(self) -> int:
        codes = self.dim / self.config.dimensions_per_block / 2
        return int(len(self._vectors) * (4 * self.dim + codes))
