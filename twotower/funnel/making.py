"""Makes a funnel from a few settings: its sources, their numbers of candidates, and the merge."""

import dataclasses
import math
import re
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.funnel.attributes import Attribute
from twotower.funnel.cold_start import ExplorationSlots, check_slots, most_telling
from twotower.funnel.filters import Available, Filter, Filters, HoldOut, MinimumAge, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Merge, Quotas, ReciprocalRank, WeightedSum, check_bounds
from twotower.funnel.sources.collaborative import Ease, IAls, ItemKnn
from twotower.funnel.sources.context_popularity import ContextPopularity
from twotower.funnel.sources.diverse import Diverse
from twotower.funnel.sources.fresh import Fresh
from twotower.funnel.sources.popularity import Popularity, Trending
from twotower.funnel.sources.search import Search
from twotower.funnel.sources.similar import Similar
from twotower.funnel.sources.two_tower import TwoTower
from twotower.funnel.stage import Model, Source, Stage
from twotower.limits import at_least, refuse, typed, unread, whole_number

# Attributes by which context popularity groups requests by default, as far as the data has them.
GROUPED_BY = ("age", "gender", "zip_code", "device", "country")
# Name of a source -> how it is made from a model and training rows.
SOURCES: dict[str, Callable[[Model, Dataset, np.ndarray, "FunnelConfig"], Source]] = {
    "two_tower": lambda model, data, train, config: TwoTower(model, config.index),
    "ease": lambda model, data, train, config: Ease.fit(data, train),
    "ials": lambda model, data, train, config: IAls.fit(
        data, train, alpha=config.ials_alpha, regularization=config.ials_regularization
    ),
    "item_knn": lambda model, data, train, config: ItemKnn.fit(data, train),
    "popularity": lambda model, data, train, config: Popularity.fit(data, train),
    "trending": lambda model, data, train, config: Trending.fit(data, train, config.half_life),
    "context": lambda model, data, train, config: ContextPopularity.fit(
        data, train, attributes(data, config.context)
    ),
    "search": lambda model, data, train, config: Search.bm25(data.catalogue, model.keys),
    "tfidf": lambda model, data, train, config: Search.tfidf(data.catalogue, model.keys),
    "similar": lambda model, data, train, config: Similar(model, config.index),
    "diverse": lambda model, data, train, config: Diverse.fit(model),
    "fresh": lambda model, data, train, config: Fresh.rare(model, data, train, config.fresh_below),
}
# Fresh items that are kept in the pool if there are slots for them and `keep` does not name them.
FOR_SLOTS = 50
MERGES = ("weighted_sum", "reciprocal_rank", "quotas")


@dataclasses.dataclass(frozen=True)
class FunnelConfig:
    """Settings of a funnel.

    Attributes:
        sources: Name of a source, one of `SOURCES` -> number of candidates it is asked for.
        merge: `weighted_sum`, whose weights are fitted on validation; `reciprocal_rank`; or
            `quotas`, in the proportion of the numbers of candidates.
        pool: Length of the merged list.
        fallback: Source that answers requests whose list is empty; "" for none.
        deadline: Seconds that a source may take; 0 for no limit.
        index: Name of the index of the two-tower source.
        ials_alpha: Weight of an observed pair in `ials`; all others weigh 1.
        ials_regularization: L2 penalty of `ials`.
        context: Attributes by which the source `context` groups requests, such as `age` or `hour`.
            By default those of `GROUPED_BY` that the data has.
        half_life: Days after which an event counts half in `trending`.
        fresh_below: The source `fresh` has the items with fewer training rows than this.
        slots: Positions at which fresh items are shown until each has been shown `shown_until`
            times. They need the source `fresh`. None by default.
        keep: Name of a source -> number of its first candidates that are in the merged list
            whatever their merged score. It is for new items: too few of them are targets on
            validation, so the merge that is fitted there gives their source no weight. With slots,
            50 of `fresh` are kept by default, and at most half of the pool.
        shown_until: Number of times that each fresh item is shown in the slots.
        bounds: Smallest history length of each bucket of users, ascending from 0. The weights of
            the merge are fitted for each bucket.
        minimum_age: Genre -> least age of a user who is shown its items. A user of unknown age
            counts as a child, and items that come later have a least age of 18.
        hold_out: Name of an experiment -> share of the items, from 0 to 1, that it hides from all
            users. A hash of the experiment's name and the item's id chooses them.
        onboarding: Number of items to ask new users about, those whose picks tell most
            (`cold_start.most_telling`); 0 for none.
    """

    sources: Mapping[str, int]
    merge: str = "weighted_sum"
    pool: int = 500
    fallback: str = "popularity"
    deadline: float = 0.0
    index: str = "exact"
    ials_alpha: float = 8.0
    ials_regularization: float = 90.0
    context: tuple[str, ...] = ()
    half_life: float = 30.0
    fresh_below: int = 10
    slots: tuple[int, ...] = ()
    keep: Mapping[str, int] = dataclasses.field(default_factory=dict)
    shown_until: int = 100
    bounds: tuple[int, ...] = (0,)
    minimum_age: Mapping[str, int] = dataclasses.field(default_factory=dict)
    hold_out: Mapping[str, float] = dataclasses.field(default_factory=dict)
    onboarding: int = 50

    def __post_init__(self) -> None:
        typed(self)
        is_mapping = isinstance(self.sources, Mapping)
        if not (is_mapping and self.sources and all(name in SOURCES for name in self.sources)):
            raise ValueError(
                f"sources are some of {', '.join(SOURCES)}, each with a number of candidates; got "
                f"{self.sources}."
            )
        for name, k in self.sources.items():
            whole_number(k, f"candidates of {name}", 1)
        if self.merge not in MERGES:
            raise ValueError(f"merge must be one of {MERGES}; got {self.merge!r}.")
        if self.slots and "fresh" not in self.sources:
            raise ValueError(f"slots {self.slots} are for the source fresh; add it to the sources.")
        if self.fallback and self.fallback not in self.sources:
            raise ValueError(
                f"fallback {self.fallback!r} is none of the sources {[*self.sources]}."
            )
        for name, number in self.keep.items():
            if name not in self.sources:
                raise ValueError(
                    f"keep names {name!r}, which is none of the sources {[*self.sources]}."
                )
            if whole_number(number, f"keep of {name}") > self.sources[name]:
                raise ValueError(
                    f"keep of {name} is {number}, and {name} is asked for {self.sources[name]} "
                    "candidates. Keep fewer, or ask for more."
                )
        for genre, age in self.minimum_age.items():
            whole_number(age, f"minimum age of {genre}")
        refuse(unread(self, "context" in self.sources, "the source context", "context"))
        for name in ("half_life", "ials_alpha", "ials_regularization"):
            if not 0 < getattr(self, name) < math.inf:
                value = getattr(self, name)
                raise ValueError(f"{name} must be positive and finite; got {value}.")
        check_bounds(self.bounds)
        check_slots(self.slots)
        at_least(self, pool=1, deadline=0, fresh_below=1, shown_until=1, onboarding=0)
        if (places := sum(self.keep.values())) > self.pool:
            raise ValueError(f"keep takes {places} places of a pool of {self.pool}. Keep fewer.")

    @property
    def kept(self) -> dict[str, int]:
        """`keep`, and what slots for fresh items need in the pool."""
        if not self.slots or "fresh" in self.keep:
            return dict(self.keep)
        left = self.pool - sum(self.keep.values())
        return {**self.keep, "fresh": min(FOR_SLOTS, self.pool // 2, left)}


def make_funnel(
    config: FunnelConfig, model: Model, dataset: Dataset, split: Split, merge: Merge | None = None
) -> Funnel:
    """A funnel whose sources are fitted on a split's training rows.

    Args:
        config: The settings.
        model: A model trained on these rows.
        dataset: The data.
        split: Sources are fitted on its training rows, and only its candidates are recommended.
        merge: The merge to use, such as one whose weights were fitted on validation. By default
            one of the kind that `config.merge` names; a `weighted_sum` then has weights of 1.

    Raises:
        ValueError: A split or model of another dataset, or an error of a source.
    """
    split.require_of(dataset)
    model.catalogue.require_same_keys(dataset.items)
    kept, rules = config.kept, filters(config, dataset, split)
    inlets = {
        name: Inlet(
            SOURCES[name](model, dataset, split.train, config),
            k,
            config.deadline or None,
            kept.get(name, 0),
        )
        for name, k in config.sources.items()
    }
    if merge is None:
        kinds: dict[str, Callable[[], Merge]] = {
            "weighted_sum": lambda: WeightedSum([*inlets], np.ones((1, len(inlets)))),
            "reciprocal_rank": ReciprocalRank,
            "quotas": lambda: Quotas(config.sources),
        }
        merge = kinds[config.merge]()
    stages: list[Stage] = [Filters(rules)]
    if config.slots:
        counts = np.zeros(len(dataset.items), np.int64)
        stages.append(ExplorationSlots(counts, config.slots, config.shown_until))
    size = config.onboarding
    telling = most_telling(dataset, split.train, size) if size else np.empty(0, np.int64)
    return Funnel(inlets, merge, stages, config.pool, config.fallback, telling)


def filters(config: FunnelConfig, dataset: Dataset, split: Split) -> list[Filter]:
    """The filters of a funnel.

    Raises:
        ValueError: A minimum age of a genre that no item has, or a share out of bounds.
    """
    rules: list[Filter] = [Available(split.candidates), Seen()]
    if config.minimum_age:
        catalogue, ages = dataset.catalogue, Attribute.of(dataset, "age")
        for genre in config.minimum_age:
            if not len(catalogue.where(genres=[genre])):
                raise ValueError(f"no item has the genre {genre!r}, which minimum_age names.")
        conditions = [(age, {"genres": [genre]}) for genre, age in config.minimum_age.items()]
        rules.append(MinimumAge.rule(catalogue, conditions, ages))
    for experiment, share in config.hold_out.items():
        rules.append(HoldOut.of(dataset.catalogue, share, experiment))
    return rules


def fitted(funnel: Funnel, cases: EvalCases, bounds: tuple[int, ...] = (0,)) -> WeightedSum:
    """A weighted sum whose weights are fitted to the targets of validation cases."""
    found = {step.name: step.candidates for step in funnel.find(cases)}
    return WeightedSum.fit(found, cases, bounds)


def parse_sources(entries: Sequence[str]) -> dict[str, int]:
    """`["ease:300", "ials"]` as name -> number of candidates, 500 where none is given.

    Raises:
        ValueError: Something that is not a positive number, or a source that is named twice.
    """
    expected = "sources are a list such as ease:300,ials"
    return _parsed(entries, "[1-9][0-9]*", expected, default="500")


def parse_keep(entries: Sequence[str]) -> dict[str, int]:
    """`["fresh:50"]` as name -> number of candidates.

    Raises:
        ValueError: An entry without a number, or a source that is named twice.
    """
    return _parsed(entries, "[0-9]+", "keep is a list such as fresh:50,trending:20")


def parse_minimum_age(entries: Sequence[str]) -> dict[str, int]:
    """`["Horror:18"]` as genre -> age.

    Raises:
        ValueError: An entry without a number, or a genre that is named twice.
    """
    return _parsed(entries, "[0-9]+", "minimum_age is a list such as Horror:18,War:16")


def parse_hold_out(entries: Sequence[str]) -> dict[str, float]:
    """`["new:0.05"]` as experiment -> share.

    Raises:
        ValueError: An entry without a number, or an experiment that is named twice.
    """
    return _parsed(entries, r"[0-9]*\.?[0-9]+", "hold_out is a list such as new:0.05", float)


def _parsed(
    entries: Sequence[str],
    pattern: str,
    expected: str,
    kind: Callable[[str], Any] = int,
    default: str = "",
) -> dict[str, Any]:
    """Entries `name:number` as a mapping. `pattern` is the regular expression of a number, and
    `default` stands for a missing one."""
    found: dict[str, Any] = {}
    for entry in entries:
        name, _, given = entry.partition(":")
        number = given or default
        if name in found or not re.fullmatch(pattern, number):
            raise ValueError(f"{expected}, each once; got {entry!r}.")
        found[name] = kind(number)
    return found


def attributes(dataset: Dataset, names: Sequence[str] = ()) -> list[Attribute]:
    """The attributes of these names, by default those of `GROUPED_BY` that the data has.

    A zip code becomes its region, the first digit.
    """
    columns = {*dataset.users, *dataset.interactions}
    names = names or [name for name in GROUPED_BY if name in columns]
    return [
        Attribute.of(dataset, name, short=lambda text: text[:1])
        if name == "zip_code"
        else Attribute.of(dataset, name)
        for name in names
    ]
