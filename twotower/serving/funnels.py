"""Funnels: the funnels of a served bundle, and what a request may choose of one."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from twotower.data.catalogue import Catalogue
from twotower.funnel.filters import Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.two_tower import TwoTower
from twotower.funnel.stage import Part, Stage
from twotower.ranking.objectives import check_weights
from twotower.ranking.stage import Rank
from twotower.reranking.diversity import Mmr, Varied
from twotower.reranking.similarity import genre_table
from twotower.serving.asks import Ask, FieldError
from twotower.serving.schemas import MAX_K
from twotower.serving.served_bundle import ServedBundle

# The funnel of the two-tower source alone, which every service has.
TWO_TOWER = "two_tower"
# Candidates among which diversity chooses, of a source that is otherwise asked for no more than the
# list has. As many as the longest list, so that no answer depends on the others of its batch.
AMONG = MAX_K


class Funnels(dict[str, Funnel]):
    """The funnels of a bundle by name, and variants of them that a request chooses.

    A variant searches another index, or re-ranks for diversity. It shares all other parts with its
    funnel.

        funnels = Funnels(ServedBundle("W/bundle"), deadline=0.1)
        funnels.variant("default", index="exact").recommend(requests, k=10)

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
        self._inputs = [spec["name"] for spec in bundle.manifest["query_inputs"]]
        self._searching: dict[tuple[str, str], dict[str, Inlet]] = {}
        self._mmr: tuple[Catalogue, Mmr] | None = None  # for the items of this catalogue

    def variant(self, name: str, index: str = "", is_diverse: bool = False) -> Funnel:
        """A funnel with the choices of a request.

        Args:
            name: The funnel's.
            index: The index that its sources search; their own if empty.
            is_diverse: Whether it must re-rank for diversity, by `Requests.diversity`. A funnel
                that does not gets maximal marginal relevance behind its ranker: by genres, or by
                vectors where the items have no genres.

        Raises:
            IndexCallError: The index cannot be opened.
        """
        funnel = self[name]
        if not index and not is_diverse:
            return funnel
        sources, stages = dict(funnel.sources), funnel.stages
        if index and self.searches(name):
            sources |= self._with_index(name, index)
        if is_diverse and not _is_varied(funnel):
            stages = self._with_diversity(stages)
            sources = {
                source: dataclasses.replace(inlet, k=inlet.k or AMONG)
                for source, inlet in sources.items()
            }
        return funnel.with_parts(sources, stages)

    def _with_index(self, name: str, index: str) -> dict[str, Inlet]:
        """The sources that search an index, which search another one."""
        self._bundle.named(index)  # opened, or an error that a client may read
        if (name, index) not in self._searching:
            found = {}
            for source in self.searches(name):
                inlet = self[name].sources[source]
                settings = {**inlet.source.settings(), "index": index}
                part = type(inlet.source).restore(settings, inlet.source.arrays(), self._bundle)
                found[source] = dataclasses.replace(inlet, source=part)
            self._searching[name, index] = found
        return self._searching[name, index]

    def _with_diversity(self, stages: list[Stage]) -> list[Stage]:
        # Behind the ranker, or the filters that come first. Slots and limits follow.
        ranks = [number for number, stage in enumerate(stages) if isinstance(stage, Rank)]
        first = int(bool(stages) and isinstance(stages[0], Filters))
        place = ranks[-1] + 1 if ranks else first
        return [*stages[:place], self.diversity(), *stages[place:]]

    def lacks_items(self, name: str) -> bool:
        """Whether a variant of a funnel for diversity has to call `diversity` first, because the
        funnel has no stage for it, and items came after the last call."""
        made = self._mmr
        is_known = made is not None and made[0] is self._bundle.items_now
        funnel = self.get(name or self.default)
        return not is_known and funnel is not None and not _is_varied(funnel)

    def diversity(self) -> Mmr:
        """Maximal marginal relevance for funnels that do not re-rank for diversity. It has the
        genres of added items, too. For a large catalogue the first call takes a second."""
        made, items = self._mmr, self._bundle.items_now
        if made is None or made[0] is not items:
            tags = genre_table(items) if "genres" in items.items else None
            self._mmr = made = items, Mmr(0.0, tags=tags, model=self._bundle)
        return made[1]

    def check(self, ask: Ask) -> str:
        """The name of the funnel that a request asks.

        Raises:
            FieldError: A funnel, index, source, weight or objective that this bundle does not have.
        """
        name = ask.funnel or self.default
        if name not in self:
            raise FieldError("funnel", f"expected one of {sorted(self)}")
        if ask.index:
            self._bundle.require_index(ask.index)
        sources = self[name].sources
        if unknown := [source for source in ask.sources if source not in sources]:
            raise FieldError("sources", f"this funnel has the sources {[*sources]}; got {unknown}")
        if ask.diversity is not None and not 0 <= ask.diversity <= 1:
            raise FieldError("diversity", f"expected a number from 0 to 1; got {ask.diversity}")
        known = self.objectives(name)
        if ask.objective_weights.keys() - known:
            raise FieldError("objective_weights", f"this funnel has the objectives {sorted(known)}")
        if ask.objective_weights:
            try:
                check_weights(ask.objective_weights, known)
            except ValueError as error:
                raise FieldError("objective_weights", str(error)) from error
        return name

    def asks_for_k(self, name: str) -> bool:
        """Whether a source is asked for as many candidates as the list has, so that requests for
        lists of different lengths cannot share a batch."""
        return any(inlet.k is None for inlet in self[name].sources.values())

    def objectives(self, name: str) -> set[str]:
        """What the ranking of a funnel weighs; empty for funnels without one."""
        ranks = [stage for stage in self[name].stages if isinstance(stage, Rank)]
        return {head for stage in ranks for head in stage.ranker.heads}

    def objective_weights(self, name: str) -> dict[str, float]:
        """Each objective of a funnel and its exported weight, which holds for requests that have no
        weights of their own."""
        weights = dict.fromkeys(sorted(self.objectives(name)), 0.0)
        for stage in self[name].stages:
            if isinstance(stage, Rank):
                weights.update(stage.ranker.weights)
        return weights

    def reads(self, name: str, sources: Sequence[str] = ()) -> set[str]:
        """Names of what a funnel reads of a request, with all its sources or some: what its query
        tower reads, and columns of the context that its sources and stages read themselves."""
        inlets = self[name].sources
        asked = [inlets[source].source for source in self._asked(name, sources)]
        parts: list[Part] = [*asked, *self[name].stages]
        inputs = self._inputs if any(part.encodes for part in parts) else []
        return {*inputs, *(column for part in parts for column in part.context)}

    def searches(self, name: str, sources: Sequence[str] = ()) -> list[str]:
        """Those of a funnel's sources, all or some, that search an index of the bundle."""
        inlets = self[name].sources
        asked = self._asked(name, sources)
        return [source for source in asked if "index" in inlets[source].source.SETTINGS]

    def _asked(self, name: str, sources: Sequence[str]) -> list[str]:
        """All sources of a funnel, or some of them and the fallback, which may answer for them."""
        funnel = self[name]
        asked = {*sources, funnel.fallback} if sources else funnel.sources
        return [source for source in funnel.sources if source in asked]

    def choices(self, name: str) -> dict[str, Any]:
        """What a request to a funnel may choose."""
        varied = [stage.weight for stage in self[name].stages if isinstance(stage, Varied)]
        return {
            "sources": [*self[name].sources],
            "searches": self.searches(name),
            "objectives": sorted(self.objectives(name)),
            "objective_weights": self.objective_weights(name),
            "reads": sorted(self.reads(name)),
            "diversity": varied[-1] if varied else 0.0,
        }


def _is_varied(funnel: Funnel) -> bool:
    """Whether a funnel re-ranks for diversity."""
    return any(isinstance(stage, Varied) for stage in funnel.stages)
