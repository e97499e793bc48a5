"""ItemMap: items as points of a plane where similar ones are neighbours; stored in a bundle.

map.json      format and model version, trustworthiness, sha256 of every file
keys.npy      [num_mapped] int64, ascending
points.npy    [num_mapped, 2] float32 between 0 and 1
"""

import dataclasses
import pathlib

import numpy as np

from twotower import __version__
from twotower.retrieval.candidates import NO_KEY, Candidates
from twotower.storage import bundle_part, description
from twotower.storage.replacing import replacing

FORMAT_VERSION = 1
DESCRIPTION = "map.json"
ENTRIES = {"model_version": str, "trustworthiness": float, "files": dict}
FEWEST = 10  # items; among fewer there are no neighbourhoods to keep
NEIGHBOURS = 15  # of each item, in the trustworthiness
# Trustworthiness needs the distances of all pairs: 8 bytes each, and a few times that to sort them.
MEASURED = 5_000


@dataclasses.dataclass(frozen=True, eq=False)
class ItemMap:
    """Points of items.

    Attributes:
        keys: `[num_mapped]` int64, ascending.
        points: `[num_mapped, 2]` float32, x and y between 0 and 1. Only distances mean something:
            neither axis does.
        trustworthiness: How far neighbours on the map are neighbours among the vectors, from 0 to
            1 (Venna and Kaski 2001), at 15 neighbours. Of at most 5,000 of the items.

    Raises:
        ValueError: Arrays of other types or shapes, or that are out of range.

    >>> two = ItemMap(np.array([3, 8]), np.float32([[0, 0], [1, 0.5]]), 1.0)
    >>> two.locate(Candidates.rank(np.array([[8, 3]]), np.float32([[2, 2]]), 2)).tolist()
    [[0.5, 0.25]]
    """

    keys: np.ndarray
    points: np.ndarray
    trustworthiness: float

    def __post_init__(self) -> None:
        keys, points = self.keys, self.points
        if keys.dtype != np.int64 or keys.ndim != 1 or (np.diff(keys) <= 0).any():
            raise ValueError("keys of a map are ascending int64, each there once.")
        if points.dtype != np.float32 or points.shape != (len(keys), 2):
            raise ValueError(
                f"points of a map: expected float32 {[len(keys), 2]}; got {points.dtype} "
                f"{[*points.shape]}."
            )
        if not ((points >= 0) & (points <= 1)).all():
            raise ValueError("points of a map lie between 0 and 1.")

    def locate(self, found: Candidates) -> np.ndarray:
        """Where queries are on the map: the mean of the points of the items that were found for
        them, weighted by a softmax of their scores.

        The scores of a query are divided by their standard deviation first, so the weights do not
        depend on their scale. A query between two groups of items lies between their points, where
        there may be no items at all.

        Args:
            found: The nearest mapped items of each query; some ten are enough.

        Returns:
            `[num_queries, 2]` float64; NaN for a query for which nothing mapped was found.
        """
        rows = np.searchsorted(self.keys, found.keys).clip(max=len(self.keys) - 1)
        is_mapped = (found.keys != NO_KEY) & (self.keys[rows] == found.keys)  # [num_queries, k]
        located = np.full((len(found), 2), np.nan)
        for query, mapped in enumerate(is_mapped):
            if not mapped.any():
                continue
            scores = found.scores[query, mapped].astype(np.float64)
            scores -= scores.max()
            weights = np.exp(scores / (scores.std() or 1.0))
            located[query] = weights @ self.points[rows[query, mapped]] / weights.sum()
        return located


def make_map(keys: np.ndarray, vectors: np.ndarray, metric: str = "dot", seed: int = 0) -> ItemMap:
    """A map by t-SNE (van der Maaten and Hinton, JMLR 2008), from `scikit-learn`.

    On one core it takes a minute or two for 4,000 items, and up to ten for 10,000.

    Args:
        keys: `[num_items]` int64, ascending.
        vectors: `[num_items, dim]` float32.
        metric: Of the bundle. Neighbours are by the angle between vectors, unless it is
            `euclidean`.
        seed: Of the optimisation, and of the items that the trustworthiness is measured on.

    Raises:
        ValueError: Too few items.
        ImportError: `scikit-learn` is not installed.
    """
    try:
        from sklearn.manifold import TSNE, trustworthiness
    except ImportError as error:
        raise ImportError('a map needs scikit-learn: pip install "twotower[funnel]"') from error

    num_items = len(keys)
    if num_items < FEWEST:
        raise ValueError(f"a map needs {FEWEST} items or more; got {num_items}.")
    distance = "euclidean" if metric == "euclidean" else "cosine"
    vectors = np.asarray(vectors, np.float32)
    tsne = TSNE(
        metric=distance, init="pca", perplexity=min(30.0, (num_items - 1) / 3), random_state=seed
    )
    points = tsne.fit_transform(vectors)
    # Into the middle of the unit square, with one scale for both axes.
    low, high = points.min(0), points.max(0)
    points = 0.5 + (points - (low + high) / 2) / (high - low).max()
    rows = np.random.default_rng(seed).permutation(num_items)[:MEASURED]
    neighbours = min(NEIGHBOURS, (len(rows) - 1) // 2)
    trust = trustworthiness(vectors[rows], points[rows], n_neighbors=neighbours, metric=distance)
    return ItemMap(np.asarray(keys, np.int64), points.clip(0, 1).astype(np.float32), float(trust))


def save(item_map: ItemMap, directory: str | pathlib.Path, model_version: str) -> None:
    """Writes a map to a temporary folder, which then replaces `directory`.

    Args:
        item_map: The map.
        directory: A map that is there is replaced; a folder of something else is refused.
        model_version: Of the training whose vectors it shows; `load` demands it.

    Raises:
        ValueError: A folder that may not be replaced.
    """
    with replacing(directory, DESCRIPTION) as folder:
        np.save(folder / "keys.npy", item_map.keys, allow_pickle=False)
        np.save(folder / "points.npy", item_map.points, allow_pickle=False)
        entries = {
            "format_version": FORMAT_VERSION,
            "model_version": model_version,
            "trustworthiness": item_map.trustworthiness,
            "twotower": __version__,
            "files": description.hashes(folder),
        }
        description.write(folder / DESCRIPTION, entries)


def load(directory: str | pathlib.Path, model_version: str) -> ItemMap:
    """Reads a map.

    Args:
        directory: What `save` wrote.
        model_version: Of the bundle; the map must have been saved with it.

    Raises:
        ValueError: No map, another format, a file that is missing, changed or not listed, or a map
            of another model.
    """

    def make(directory: pathlib.Path, entries: dict) -> ItemMap:
        names = ("keys.npy", "points.npy")
        keys, points = (np.load(directory / name, allow_pickle=False) for name in names)
        return ItemMap(keys, points, entries["trustworthiness"])

    return bundle_part.load(
        directory, DESCRIPTION, "a map", ENTRIES, FORMAT_VERSION, model_version, make
    )
