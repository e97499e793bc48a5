"""MapView: the map of a served bundle's items, as they come and go."""

import collections
import hashlib
from typing import Any

import numpy as np
import orjson

from twotower.data.catalogue import Catalogue
from twotower.serving.served_bundle import ServedBundle

# Mapped items from whose points that of a query is computed.
NEAREST = 10


class MapView:
    """The map of the items of a bundle, without those that were removed.

    Args:
        bundle: A bundle that has a map.

    Raises:
        BundleError: A map that is damaged, or of another training.
    """

    def __init__(self, bundle: ServedBundle) -> None:
        self._bundle, self._map = bundle, bundle.item_map()
        # The items and the removed keys that the last body was made for; that body and its tag.
        self._body: tuple[Catalogue, np.ndarray, bytes, str] | None = None

    def body(self) -> tuple[bytes, str]:
        """The map without the items that were removed, as JSON, and its ETag. Both are made anew
        after a change of items. The tag changes only if the map does."""
        made, items, removed = self._body, self._bundle.items_now, self._bundle.removed
        if made is None or made[0] is not items or not np.array_equal(made[1], removed):
            body = orjson.dumps(self.without(removed))
            tag = f'"{hashlib.sha256(body).hexdigest()[:16]}"'
            self._body = made = items, removed, body, tag
        return made[2:]

    def without(self, removed: np.ndarray) -> dict[str, Any]:
        """The map as `GET /map` answers it.

        Each item has an id, x and y from 0 to 1, and as `genre` the position of its first genre in
        `genres`, -1 for none. The most frequent genre is first. An item that was replaced has its
        new genre, at its old point.

        Args:
            removed: Keys of items to leave out.
        """
        is_there = ~np.isin(self._map.keys, removed)
        keys, points = self._map.keys[is_there], self._map.points[is_there]
        x, y = np.round(points.astype(np.float64), 3).T.tolist()
        items = self._bundle.items_now.items
        columns = items["genres"].iloc[keys] if "genres" in items else [()] * len(keys)
        first = [genres[0] if genres else "" for genres in columns]
        genres = [name for name, _ in collections.Counter(filter(None, first)).most_common()]
        numbers = {name: number for number, name in enumerate(genres)}
        return {
            "model_version": self._bundle.model_version,
            "ids": self._bundle.catalogue.ids_of(keys).tolist(),
            "x": x,
            "y": y,
            "genre": [numbers.get(name, -1) for name in first],
            "genres": genres,
            "trustworthiness": round(self._map.trustworthiness, 4),
        }

    def locate(self, vectors: np.ndarray) -> list[list[float] | None]:
        """x and y of each of the vectors `[num_queries, dim]`, from the points of the ten nearest
        mapped items (`ItemMap.locate`); None if all mapped items were removed."""
        found = self._bundle.named("").search(vectors, NEAREST, allow=self._map.keys)
        points = np.round(self._map.locate(found), 4)
        return [point.tolist() if np.isfinite(point).all() else None for point in points]
