"""Baselines by name: what a model has to beat, on the same rows and with the same evaluation.

Each is fitted on the training rows of a split and answers from a case's history, as the query tower
does. Every rating counts as 1. The defaults were chosen on the validation cases of `random` on
MovieLens 1M; the file of each method says what was tried.
"""

from typing import Any

from twotower.evaluation.baselines.baseline import Baseline
from twotower.evaluation.baselines.content_ials import ContentIAls
from twotower.evaluation.baselines.ease import Ease
from twotower.evaluation.baselines.ials import IAls
from twotower.evaluation.baselines.item_knn import ItemKnn
from twotower.evaluation.baselines.popularity import Popularity

BASELINES = {
    "popularity": Popularity,
    "ease": Ease,
    "item_knn": ItemKnn,
    "ials": IAls,
    "content_ials": ContentIAls,
}


def make(name: str, **parameters: Any) -> Baseline:
    """A baseline by its name.

    Raises:
        ValueError: An unknown name.
    """
    if name not in BASELINES:
        raise ValueError(f"unknown baseline {name!r}; there are {', '.join(BASELINES)}.")
    return BASELINES[name](**parameters)
