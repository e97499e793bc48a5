"""ServedBundle: a bundle whose parts are loaded once, and which embeds items that come later."""

import functools
from collections.abc import Collection, Mapping
from typing import Any

import numpy as np
import pandas as pd

from twotower.bundle.bundle import Bundle
from twotower.data.dataset import Catalogue, Dataset
from twotower.data.examples import ItemInputs
from twotower.retrieval.base import Retriever


class ServedBundle(Bundle):
    """A bundle whose indexes are loaded once each, so that all funnels search the same one and see
    its changes."""

    @functools.cached_property
    def retrievers(self) -> dict[str, Retriever]:
        """The indexes that were loaded so far, by name."""
        return {}

    def retriever(self, name: str = "exact", allowed_uris: Collection[str] = ()) -> Retriever:
        """The index `name`, the same object at each call; see `Bundle.retriever`."""
        if name not in self.retrievers:
            self.retrievers[name] = super().retriever(name, allowed_uris)
        return self.retrievers[name]

    @functools.cached_property
    def item_tower(self) -> Any:
        """Raw inputs of items by name -> `[num_items, dim]` float32.

        Raises:
            BundleError: A tower that is changed, or of another training.
        """
        import tensorflow as tf

        model = self.tower_model("item_tower")
        signature, dtypes = (
            model.signatures["serving_default"],
            {spec["name"]: spec["dtype"] for spec in self.manifest["item_inputs"]},
        )

        def embed(inputs: Mapping[str, np.ndarray]) -> np.ndarray:
            tensors = {name: tf.constant(inputs[name], dtype) for name, dtype in dtypes.items()}
            return signature(**tensors)["embedding"].numpy()

        tower: Any = embed
        tower.model = model  # keeps the variables alive
        return tower

    def vectors_of(self, items: list[dict[str, Any]]) -> tuple[pd.DataFrame, np.ndarray]:
        """New items as a table, and their vectors `[num_items, dim]` float32.

        What the item tower reads and an item does not have is missing, as in training.

        Args:
            items: Columns of each, `item_id` among them; lists are tags.

        Raises:
            ValueError: Columns that do not fit the catalogue's, or vectors that are not finite.
        """
        as_tags: dict[type, Any] = {list: tuple}
        table = pd.DataFrame(
            [{n: as_tags.get(type(v), lambda v: v)(v) for n, v in row.items()} for row in items]
        )
        # An exported row in front says how the values of each column are stored.
        first = self.catalogue.items.iloc[:1].assign(item_id="\0")
        extended = Catalogue(first).extend(table)
        kinds = {"user_id": object, "item_id": object, "timestamp": np.int64}
        nothing = pd.DataFrame({name: np.array([], kind) for name, kind in kinds.items()})
        data = Dataset("", nothing, extended.items, nothing[["user_id"]])
        names = [spec["name"] for spec in self.manifest["item_inputs"]]
        inputs = ItemInputs(data, np.empty(0, np.int64), names)
        vectors = self.item_tower(inputs(np.arange(1, len(extended))))
        if not np.isfinite(vectors).all():
            raise ValueError("the item tower gives vectors that are not finite for these items.")
        return table, vectors
