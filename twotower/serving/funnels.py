"""Funnels: the funnels of a served bundle, and what a request may choose of one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from twotower.funnel.filters import Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.two_tower import TwoTower
from twotower.funnel.stage import Stage
from twotower.ranking.objectives import check_weights
from twotower.ranking.stage import Rank
from twotower.reranking.diversity import Mmr, Varied
from twotower.reranking.similarity import genre_table
from twotower.serving.asks import Ask, FieldError
from twotower.serving.served_bundle import ServedBundle

# The funnel of the two-tower source alone, which every service has.
TWO_TOWER = "two_tower"


class Funnels(dict[str, Funnel]):
    """The funnels of a bundle by name, and variants of them that a request chooses.

    A variant searches another index, or has another weight of diversity. It shares all other parts
    with its funnel.

        funnels = Funnels(ServedBundle("W/bundle"), deadline=0.1)
        funnels.variant("default", index="exact", diversity=0.3).recommend(requests, k=10)

    Args:
        bundle: Whose funnels they are.
        deadline: Seconds after which a funnel goes on without a source for which the bundle names
            no deadline.

    Attributes:
        default: Name of the funnel of a request that names none.
    """

    def __init__(self, bundle: ServedBundle, deadline: float) -> None:
        super().__init__({name: bundle.funnel(name) for name in bundle.funnels})
        if TWO_TOWER not in self:
            sources = {TWO_TOWER: Inlet(TwoTower(bundle, bundle.index), k=None)}
            self[TWO_TOWER] = Funnel(sources, ReciprocalRank(), [Filters([Seen()])])
        for funnel in self.values():
            if len(funnel.sources) > 1:  # without its only source a funnel could not go on
                funnel.sources = {
                    name: dataclasses.replace(inlet, deadline=inlet.deadline or deadline)
                    for name, inlet in funnel.sources.items()
                }
        self.default = "default" if "default" in self else TWO_TOWER
        self._bundle = bundle
        has_genres = "genres" in bundle.catalogue.items
        tags = genre_table(bundle.catalogue) if has_genres else None
        self._mmr = Mmr(0.0, tags=tags, model=bundle)
        self._searching: dict[tuple[str, str], dict[str, Inlet]] = {}

    def variant(self, name: str, index: str = "", diversity: float | None = None) -> Funnel:
        """A funnel with the choices of a request.

        Args:
            name: The funnel's.
            index: What its sources of vectors search; their own if empty.
            diversity: Weight of diversity, from 0 to 1; the funnel's own by default. A funnel that
                does not re-rank for diversity gets maximal marginal relevance behind its ranker, by
                genres, or by vectors where the items have no genres.
        """
        funnel = self[name]
        if not index and diversity is None:
            return funnel
        sources = self._with_index(name, index) if index else funnel.sources
        stages = funnel.stages if diversity is None else self._with_diversity(name, diversity)
        return funnel.with_parts(sources, stages)

    def _with_index(self, name: str, index: str) -> dict[str, Inlet]:
        if (name, index) not in self._searching:
            sources = dict(self[name].sources)
            for source in self._searches(name):
                inlet = sources[source]
                settings = {**inlet.source.settings(), "index": index}
                part = type(inlet.source).restore(settings, inlet.source.arrays(), self._bundle)
                sources[source] = dataclasses.replace(inlet, source=part)
            self._searching[name, index] = sources
        return self._searching[name, index]

    def _with_diversity(self, name: str, weight: float) -> list[Stage]:
        stages = self[name].stages
        if any(isinstance(stage, Varied) for stage in stages):
            return [s.with_weight(weight) if isinstance(s, Varied) else s for s in stages]
        # Behind the ranker, or the filters that come first. Slots and limits follow.
        ranks = [number for number, stage in enumerate(stages) if isinstance(stage, Rank)]
        first = int(bool(stages) and isinstance(stages[0], Filters))
        place = ranks[-1] + 1 if ranks else first
        return [*stages[:place], self._mmr.with_weight(weight), *stages[place:]]

    def check(self, ask: Ask) -> str:
        """The name of the funnel that a request asks.

        Raises:
            FieldError: A funnel, index, source or objective that this bundle does not have.
        """
        name = ask.funnel or self.default
        if name not in self:
            raise FieldError("funnel", f"expected one of {sorted(self)}")
        if ask.index:
            self._bundle.require_index(ask.index)
        sources = self[name].sources
        if unknown := [source for source in ask.sources if source not in sources]:
            raise FieldError("sources", f"this funnel has the sources {[*sources]}; got {unknown}")
        known = self.objectives(name)
        if ask.objective_weights.keys() - known:
            raise FieldError("objective_weights", f"this funnel has the objectives {sorted(known)}")
        if ask.objective_weights:
            try:
                check_weights(ask.objective_weights, known)
            except ValueError as error:
                raise FieldError("objective_weights", str(error)) from error
        return name

    def objectives(self, name: str) -> set[str]:
        """What the ranking of a funnel weighs; empty for funnels without one."""
        ranks = [stage for stage in self[name].stages if isinstance(stage, Rank)]
        return {head for stage in ranks for head in stage.ranker.heads}

    def reads(self, name: str, sources: Sequence[str] = ()) -> set[str]:
        """Names of the context that a funnel's stages and sources read, all sources or some."""
        inlets = self[name].sources
        parts = [inlets[source].source for source in sources or inlets] + self[name].stages
        return {column for part in parts for column in part.context}

    def _searches(self, name: str) -> list[str]:
        """The sources of a funnel that search an index of the bundle."""
        inlets = self[name].sources
        return [source for source, inlet in inlets.items() if "index" in inlet.source.SETTINGS]

    def choices(self, name: str) -> dict[str, Any]:
        """What a request to a funnel may choose."""
        varied = [stage.weight for stage in self[name].stages if isinstance(stage, Varied)]
        return {
            "sources": [*self[name].sources],
            "searches": self._searches(name),
            "objectives": sorted(self.objectives(name)),
            "reads": sorted(self.reads(name)),
            "diversity": varied[-1] if varied else 0.0,
        }
