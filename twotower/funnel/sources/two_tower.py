"""The two-tower source: items whose vectors score highest with the request's."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.sources.answers import at_most
from twotower.funnel.stage import Model, Source
from twotower.retrieval.candidates import Candidates


class TwoTower(Source):
    """The model's candidates, through one of its indexes, which is loaded once.

    Whatever the query tower reads takes part: a tower with the feature `search_text` reads the text
    of the request, too.

        TwoTower(bundle, "hnsw")(requests, k=500)

    Args:
        model: The trained model.
        index: Name of one of its indexes, or `exact`.
    """

    kind = "two_tower"
    encodes = True
    SETTINGS = ("index",)

    def __init__(self, model: Model, index: str = "exact") -> None:
        self.index = index
        self._model, self._retriever = model, model.retriever(index)

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Model
    ) -> "TwoTower":
        return cls(model, **settings)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        k = at_most(k, len(self._retriever))
        if not len(requests):
            return Candidates.empty(0, k)
        vectors = self._model.encode(requests)
        return self._retriever.search(vectors, k, exclude=requests.exclude)
