"""Makes the stages that re-rank a funnel's lists from a few settings."""

import dataclasses
import re
from collections.abc import Callable

import numpy as np

from twotower.funnel.cold_start import ExplorationSlots
from twotower.funnel.filters import Filters
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Merge, Quotas, ReciprocalRank
from twotower.funnel.stage import Model, Stage
from twotower.limits import at_least, typed
from twotower.reranking.calibration import Calibration
from twotower.reranking.diversity import Dpp, Mmr
from twotower.reranking.greedy import check_weight
from twotower.reranking.promoted import Promoted, PromotedSlots
from twotower.reranking.rules import AtMost
from twotower.reranking.similarity import genre_table

# Name of a way to re-rank -> how its stage is made from a model, a weight, and a length.
WAYS: dict[str, Callable[[Model, float, int], Stage]] = {
    "mmr": lambda model, weight, length: Mmr.of_tags(
        genre_table(model.catalogue), weight, length=length
    ),
    "mmr_vectors": lambda model, weight, length: Mmr.of_vectors(model, weight, length=length),
    "dpp": lambda model, weight, length: Dpp.of_tags(
        genre_table(model.catalogue), weight, length=length
    ),
    "dpp_vectors": lambda model, weight, length: Dpp.of_vectors(model, weight, length=length),
    "calibration": lambda model, weight, length: Calibration(
        genre_table(model.catalogue), weight, length
    ),
}


@dataclasses.dataclass(frozen=True)
class RerankingConfig:
    """Settings of re-ranking.

    Attributes:
        rerank: Methods from `WAYS`, in order, each with its weight from 0 to 1.
        max_in_a_row: Largest number of consecutive items of a genre; 0 for no limit.
        max_in_all: Largest number of items of a genre among the first `length`; 0 for no limit.
        length: Number of positions to re-rank.
        promoted: Ids of items with their slots; slots ascend from 1.
    """

    rerank: tuple[tuple[str, float], ...] = ()
    max_in_a_row: int = 0
    max_in_all: int = 0
    length: int = 40
    promoted: tuple[tuple[str, int], ...] = ()

    def __post_init__(self) -> None:
        typed(self)
        for way, weight in self.rerank:
            if way not in WAYS:
                raise ValueError(f"rerank takes {', '.join(WAYS)}; got {way!r}.")
            check_weight(weight)
        at_least(self, max_in_a_row=0, max_in_all=0, length=1)
        PromotedSlots(np.arange(len(self.promoted)), [slot for _, slot in self.promoted])


def with_reranking(funnel: Funnel, config: RerankingConfig, model: Model) -> Funnel:
    """The funnel with stages that re-rank, each where it belongs.

        filters, ranker, re-ranking, limits, slots for fresh items, promoted items, filters

    Promoted items get a source without weight in the merge. The filters run again at the end, so
    that no stage can bring back an item that they remove.

    Args:
        funnel: From `make_funnel`, with a ranker or without one.
        config: The settings.
        model: The model around which the funnel was made.

    Raises:
        ValueError: A promoted item that the catalogue does not have or the model does not answer,
            or items without genres where a choice needs them.
    """
    filters = [stage for stage in funnel.stages if isinstance(stage, Filters)]
    ranks = [stage for stage in funnel.stages if stage.kind == "rank"]
    slots = [stage for stage in funnel.stages if isinstance(stage, ExplorationSlots)]
    stages: list[Stage] = [WAYS[way](model, w, config.length) for way, w in config.rerank]
    if config.max_in_a_row or config.max_in_all:
        stages.append(
            AtMost.of(
                model.catalogue,
                "genres",
                in_a_row=config.max_in_a_row,
                in_all=config.max_in_all,
                length=config.length,
            )
        )
    sources, merge = funnel.sources, funnel.merge
    promoted: list[Stage] = []
    if config.promoted:
        keys = model.catalogue.require_keys([item for item, _ in config.promoted])
        if not np.isin(keys, model.keys).all():
            unknown = [item for (item, _), k in zip(config.promoted, keys) if k not in model.keys]
            raise ValueError(f"the model has no vectors of the promoted items {unknown}.")
        promoted = [PromotedSlots(keys, [slot for _, slot in config.promoted]), *filters]
        sources = {**sources, Promoted.kind: Inlet(Promoted(keys), len(keys), None, len(keys))}
        merge = _without_promoted(merge)
    stages = [*filters, *ranks, *stages, *slots, *promoted]
    return Funnel(sources, merge, stages, funnel.pool, funnel.fallback, funnel.onboarding)


def parse_rerank(entries: list[str]) -> tuple[tuple[str, float], ...]:
    """`["dpp:0.3"]` as pairs of a way and its weight.

    Raises:
        ValueError: An entry of another form.
    """
    pairs = [entry.partition(":") for entry in entries]
    if not all(re.fullmatch(r"\d*\.?\d+", weight) for _, _, weight in pairs):
        raise ValueError(f"rerank is a list such as dpp:0.3,calibration:0.1; got {entries}.")
    return tuple((way, float(weight)) for way, _, weight in pairs)


def parse_promoted(entries: list[str]) -> tuple[tuple[str, int], ...]:
    """`["260@1"]` as pairs of an item's id and its slot, which stands behind the last @.

    Raises:
        ValueError: An entry of another form.
    """
    pairs = [entry.rpartition("@") for entry in entries]
    if not all(item and re.fullmatch(r"\d+", slot) for item, _, slot in pairs):
        raise ValueError(f"promoted is a list of ID@SLOT such as 260@1,1196@5; got {entries}.")
    return tuple((item, int(slot)) for item, _, slot in pairs)


def _without_promoted(merge: Merge) -> Merge:
    """The merge, for which it does not count that an item is promoted."""
    if isinstance(merge, ReciprocalRank):
        return ReciprocalRank(merge.constant, {**merge.weights, Promoted.kind: 0})
    if isinstance(merge, Quotas):
        # The others' items have at most their quota as rank, so these come after them.
        return Quotas({**merge.quotas, Promoted.kind: 0.5})
    return merge  # a weighted sum counts only what its weights name
