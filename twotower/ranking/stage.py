"""The ranking stage of a funnel."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.data.requests import Requests
from twotower.funnel.stage import Model, Stage
from twotower.ranking.candidate_ranker import CandidateRanker
from twotower.retrieval.candidates import Candidates


class Rank(Stage):
    """Orders candidates by a ranker of the bundle; see `CandidateRanker.rank`.

    A request may weight the heads by `Requests.objectives`, such as 1 for `relevance` and .5 for
    `like`.

    Args:
        ranker: The ranker.
        name: Its name in the bundle, by which a saved funnel loads it.
    """

    kind = "rank"
    SETTINGS = ("name",)

    def __init__(self, ranker: CandidateRanker, name: str = "default") -> None:
        self.ranker, self.name = ranker, name
        self.context = ranker.columns.attributes

    @classmethod
    def restore(
        cls, settings: Mapping[str, Any], arrays: Mapping[str, np.ndarray], model: Model
    ) -> "Rank":
        return cls(model.ranker(settings["name"]), settings["name"])

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        if not candidates.keys.size:
            return candidates
        return self.ranker.rank(requests, candidates)
