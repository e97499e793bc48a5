"""Pipeline: one loaded bundle with its funnels and indexes, which answers a batch of requests.

A service holds one pipeline in one variable. A batch reads it once and is answered by it from ids
to ids, so no answer is of two trainings; a deploy assigns the variable.
"""

import collections
import functools
import json
import logging
import pathlib
import threading
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from twotower.bundle.encoder import users_of
from twotower.data.catalogue import Catalogue
from twotower.data.dataset import Dataset
from twotower.data.inputs import COMPUTED
from twotower.funnel.answer import Answer, NoSourceError
from twotower.funnel.filters import Available, Filters
from twotower.funnel.funnel import Funnel
from twotower.funnel.sources.popularity import Popularity
from twotower.serving.answers import Cards, explained
from twotower.serving.asks import Ask, FieldError, Row, requests_of, row_of
from twotower.serving.funnels import Funnels
from twotower.serving.index_client import IndexCallError, IndexClient
from twotower.serving.item_columns import is_missing
from twotower.serving.journal import ADD, Change
from twotower.serving.map_view import MapView
from twotower.serving.query_cache import QueryCache
from twotower.serving.remote_index import QueryBundle
from twotower.serving.served_bundle import ServedBundle

LOG = logging.getLogger("twotower.serving")
# How the reason in `Answer.missing` begins if a source is late, and if its index process does not
# answer. All other reasons are errors.
LATE, NO_INDEX = "not within", f"{IndexCallError.__name__}: "
# Newest items of a history that an explained answer names.
SHOWN_HISTORY = 100
# Inputs of a query tower that a request has fields for.
OWN_FIELDS = {"user_id", *COMPUTED}
# Genres among which a request may choose.
MAX_GENRES = 40
# When the vectors of a batch were computed.
Encoded = tuple[float, float] | None
# The catalogue before items are added, the items to add as text, and the answer of `vectors_of`:
# the catalogue afterwards, and the keys and vectors of these items.
Checked = tuple[Catalogue, str, tuple[Catalogue, np.ndarray, np.ndarray]]


class Pipeline:
    """Answers requests from one bundle.

    Threads may call it at once. Changes of items come from one thread at a time.

    Args:
        directory: The bundle's folder.
        dataset: Data with the columns of known users, if the query tower reads any; None for none.
            Its items are not read, so they may be older or newer than those of the bundle.
        source_deadline: Seconds after which a funnel goes on without a source for which the bundle
            names no deadline.
        cache_size: Number of query vectors that are kept.
        cache_seconds: How long they are kept.
        index: Index of the funnel `two_tower` and of searches that name none; by default `hnsw`
            where the bundle has it, else `exact`.
        client: Calls the process that has the indexes; None for indexes in this process.

    Attributes:
        bundle: The bundle.
        funnels: Name -> funnel.
        cache: Query vectors of requests that were asked before.
        observe: A function that is called with each batch, the funnel's answer, and when the query
            vectors were computed (`QueryCache.took`; None if no source asked for them). None by
            default.

    Raises:
        BundleError: A part that is missing, changed, or of another training.
        ValueError: No such index.
    """

    def __init__(
        self,
        directory: str | pathlib.Path,
        dataset: Dataset | None = None,
        source_deadline: float = 1.0,
        cache_size: int = 10_000,
        cache_seconds: float = 30.0,
        index: str = "",
        client: IndexClient | None = None,
    ) -> None:
        self.bundle = bundle = (
            ServedBundle(directory, index)
            if client is None
            else QueryBundle(directory, client, index)
        )
        if dataset is None:
            encode = bundle.encode
        else:  # a deployed bundle may have newer items than the data, or another order of them
            encode = bundle.encoder(users_of(dataset.users, bundle.catalogue))
        names = [spec["name"] for spec in bundle.manifest["query_inputs"]]
        self._inputs = names
        self.cache = QueryCache(encode, names, bundle.manifest["dim"], cache_size, cache_seconds)
        bundle.encode = self.cache
        self.funnels = Funnels(bundle, source_deadline)
        self._map = MapView(bundle) if bundle.has_map else None
        self._num_exported = len(bundle.catalogue)
        self._changing = threading.Lock()
        self._checked: Checked | None = None
        self.observe: Callable[[Sequence[Ask], Answer, Encoded], None] | None = None
        self.sequence = 0  # last change of the journal that is applied

    @property
    def model_version(self) -> str:
        """Names the training."""
        return self.bundle.model_version

    @property
    def catalogue(self) -> Catalogue:
        """The bundle's items and those added since."""
        return self.bundle.items_now

    def warm(self) -> None:
        """Answers some requests by each funnel. So the first caller need not wait for TensorFlow's
        graphs, nor for the tables that split a search text into words."""
        item = self.catalogue.ids_of(self.bundle.keys[:1]).tolist()
        for name in self.funnels:
            asks = [Ask(history=item, funnel=name), Ask(funnel=name)]
            if "search_text" in self.funnels.reads(name):
                asks.append(Ask(context={"search_text": "a"}, funnel=name))
            for answer in self.recommend(asks, is_trial=True):
                if isinstance(answer, Exception) and not _passes(answer):
                    raise answer

    # Answers.

    def recommend(
        self, asks: Sequence[Ask], is_trial: bool = False
    ) -> list[dict[str, Any] | Exception]:
        """The answer to each request, or, for one that cannot be answered, an exception.

        Args:
            asks: The requests.
            is_trial: Whether nobody waits for the answers: no deadline holds, and `observe` is not
                called.
        """
        answers: list[Any] = [None] * len(asks)
        rows: dict[int, Row] = {}
        # Requests that choose the same of a funnel are answered together.
        alike: dict[tuple[Any, ...], list[int]] = {}
        catalogue, removed = self.catalogue, self.bundle.removed
        for number, ask in enumerate(asks):
            try:
                name = self.funnels.check(ask)
                rows[number] = row_of(ask, catalogue, self._num_exported, removed)
                k = ask.k if self.funnels.asks_for_k(name) else 0
                is_diverse = ask.diversity is not None
                choice = name, ask.index, is_diverse, tuple(sorted({*ask.sources})), k
                alike.setdefault(choice, []).append(number)
            except ValueError as error:
                answers[number] = error
        for (name, index, is_diverse, *_), numbers in alike.items():
            group, of_group = [asks[n] for n in numbers], [rows[n] for n in numbers]
            try:
                funnel = self.funnels.variant(name, index, is_diverse)
            except IndexCallError as error:
                found: list[Any] = [error] * len(group)
            else:
                found = self._ask(name, funnel, group, of_group, is_trial)
            for number, answer in zip(numbers, found):
                answers[number] = answer
        return answers

    def _ask(
        self,
        name: str,
        funnel: Funnel,
        asks: Sequence[Ask],
        rows: Sequence[Row],
        is_trial: bool,
    ) -> list[Any]:
        """Answers of one funnel to requests with the same choices, or an exception for each."""
        requests, k = requests_of(asks, rows), max(ask.k for ask in asks)
        begun = time.perf_counter()
        try:
            answer = funnel.recommend(requests, k, not is_trial, asks[0].sources)
            failed = bool(answer.failed) or not all(map(passing, answer.missing.values()))
        except Exception as error:
            if len(asks) == 1 or _passes(error):
                return [error] * len(asks)
            failed = True
        if failed and len(asks) > 1:
            # One request that a source or a stage cannot read must not cost the others theirs.
            return [
                self._ask(name, funnel, [ask], [row], is_trial)[0] for ask, row in zip(asks, rows)
            ]
        seconds = time.perf_counter() - begun
        if self.observe is not None and not is_trial:
            self.observe(asks, answer, self.cache.took.get(requests))
        # Read after the answer, which may have an item that was added meanwhile.
        cards = self.bundle.cards
        return [
            self._answer(name, answer, place, ask, row, cards, seconds)
            for place, (ask, row) in enumerate(zip(asks, rows))
        ]

    def _answer(
        self,
        funnel: str,
        answer: Answer,
        place: int,
        ask: Ask,
        row: Row,
        cards: Cards,
        seconds: float,
    ) -> dict[str, Any]:
        count = min(int(answer.candidates.counts[place]), ask.k)
        keys = answer.candidates.keys[place, :count]
        scores = answer.candidates.scores[place, :count].tolist()
        items = [{**card, "score": round(score, 6)} for card, score in zip(cards.of(keys), scores)]
        found: dict[str, Any] = {
            "items": items,
            "model_version": self.model_version,
            "funnel": funnel,
            "unknown": row.unknown,
            "unread": self._unread(funnel, ask),
            "missing": {
                name: public(why) for name, why in {**answer.missing, **answer.failed}.items()
            },
        }
        if ask.explain:
            found |= explained(
                answer, place, keys, row.history, self.bundle, self.catalogue, items, seconds
            )
            found["history"] = cards.of(row.history[-SHOWN_HISTORY:])
        return found

    def _unread(self, funnel: str, ask: Ask) -> list[str]:
        """Names of a request's context that neither the query tower nor the funnel reads, and
        `index` if no source searches one."""
        if not ask.context and not ask.index:
            return []
        # A name with a field of its own has its value from there.
        unread = {*ask.context} - (self.funnels.reads(funnel, ask.sources) - OWN_FIELDS)
        if ask.index and not self.funnels.searches(funnel, ask.sources):
            unread.add("index")
        return sorted(unread)

    def embed(self, asks: Sequence[Ask]) -> tuple[np.ndarray, list[list[str]]]:
        """Vectors of requests, `[num_requests, dim]`, and the unknown items of each history."""
        rows = [
            row_of(ask, self.catalogue, self._num_exported, self.bundle.removed) for ask in asks
        ]
        return self.bundle.encode(requests_of(asks, rows)), [row.unknown for row in rows]

    @property
    def map(self) -> MapView:
        """The map of the items.

        Raises:
            FieldError: The bundle has none.
        """
        if self._map is None:
            raise FieldError("map", "this bundle has no map; `twotower build_map` makes one")
        return self._map

    def onboarding(self, size: int) -> tuple[list[dict[str, Any]], str]:
        """Items to ask a new user about, and how they were chosen.

        `telling` are those that a funnel of the bundle names as the ones whose picks tell most of
        a taste. Where more are asked for, popular items follow. If no funnel names any, all are
        `popular`.

        Raises:
            FieldError: No funnel of this bundle names such items or has a source of popular ones.
        """
        telling, popular = self._telling(), self._popular()
        keys = np.concatenate([telling, popular[~np.isin(popular, telling)]])
        if not len(keys):
            raise FieldError("size", "no funnel of this bundle knows telling or popular items")
        items = self.bundle.cards.of(keys[~np.isin(keys, self.bundle.removed)][:size])
        return items, "telling" if len(telling) else "popular"

    def _telling(self) -> np.ndarray:
        """Keys of the first onboarding list of any funnel; empty if there is none."""
        lists = (funnel.onboarding for funnel in self.funnels.values())
        return next((keys for keys in lists if len(keys)), np.empty(0, np.int64))

    def _popular(self) -> np.ndarray:
        """Keys of the first source of popular items of any funnel, the most popular one first;
        empty if there is none."""
        inlets = [inlet for funnel in self.funnels.values() for inlet in funnel.sources.values()]
        sources = (inlet.source for inlet in inlets)
        found = (source.keys for source in sources if isinstance(source, Popularity))
        return next(found, np.empty(0, np.int64))

    def choices(self) -> dict[str, Any]:
        """What a request to this bundle may choose."""
        return {
            "funnels": {name: self.funnels.choices(name) for name in self.funnels},
            "default_funnel": self.funnels.default,
            "indexes": self.bundle.index_names,
            "inputs": self._inputs,
            "dataset": self.bundle.manifest["dataset"],
            "genres": self._genres,
            "has_map": self._map is not None,
            "has_onboarding": bool(len(self._telling()) or len(self._popular())),
        }

    @functools.cached_property
    def _genres(self) -> list[str]:
        """The most frequent genres of the exported items, by name."""
        items = self.bundle.catalogue.items
        if "genres" not in items:
            return []
        counts = collections.Counter(genre for genres in items["genres"] for genre in genres)
        return sorted(genre for genre, _ in counts.most_common(MAX_GENRES))

    # Changes.

    def apply(self, changes: Sequence[Change], exported: int = 0) -> None:
        """Adds and removes items; the next answer knows of it. A change that is applied already is
        left out.

        Args:
            changes: In the order of the journal.
            exported: Changes up to this number came before the export: an item that was added and
                that the bundle answers keeps the bundle's row and vector. One that nobody had used
                has no vector there, and is added again.
        """
        with self._changing:
            changes = [change for change in changes if change.sequence > self.sequence]
            if not changes:
                return
            last = {change.item_id: change for change in changes}
            has_vector = np.isin(self.bundle.catalogue.keys_of([*last]), self.bundle.keys)
            added = [
                change.item
                for change, is_answered in zip(last.values(), has_vector)
                if change.op == ADD and (change.sequence > exported or not is_answered)
            ]
            gone = self.catalogue.keys_of(
                [change.item_id for change in last.values() if change.op != ADD]
            )
            if added:
                self._add(added)
            if len(gone := gone[gone >= 0]):
                self.bundle.remove_items(gone)
            self.sequence = changes[-1].sequence

    def _add(self, items: list[dict[str, Any]]) -> None:
        checked, self._checked = self._checked, None
        try:
            if checked is None or checked[:2] != (self.catalogue, json.dumps(items)):
                checked = self._embedded(items)
        except ValueError as error:
            # An item of the journal that fitted another bundle, or items whose columns agree one
            # after another and not in one table. None may keep a service from starting.
            if len(items) > 1:
                for item in items:
                    self._add([item])
            else:
                LOG.error("item %r is left out: %s", items[0]["item_id"], error)
            return
        catalogue, keys, vectors = checked[2]
        self.bundle.add_items(catalogue, keys, vectors)
        given = {name for item in items for name in item if not is_missing(item[name])}
        # What an item has and the catalogue does not is a vector.
        self.bundle.vector_columns |= given - {*catalogue.items}
        for part in self._availables():
            part.keys = np.union1d(part.keys, keys)

    def check_items(self, items: list[dict[str, Any]]) -> None:
        """Raises ValueError for items that `apply` could not add; nothing is changed.

        The next `apply` does not compute the vectors of the same items again.
        """
        self._checked = self._embedded(items) if items else None

    def _embedded(self, items: list[dict[str, Any]]) -> Checked:
        return self.catalogue, json.dumps(items), self.bundle.vectors_of(items)

    def _availables(self) -> list[Available]:
        """Filters of the funnels that keep available items alone."""
        stages = [stage for funnel in self.funnels.values() for stage in funnel.stages]
        filters = [f for stage in stages if isinstance(stage, Filters) for f in stage.filters]
        return [some for some in filters if isinstance(some, Available)]


def passing(why: str) -> bool:
    """Whether the reason for a missing source is temporary and no fault of a request: the source is
    late, or its index process does not answer.

    >>> passing("not within its deadline of 30 ms"), passing("ValueError: no text")
    (True, False)
    """
    return why.startswith((LATE, NO_INDEX))


def public(why: str) -> str:
    """The reason as a client may read it. Of most errors only the type is left, since the message
    may name a path of this machine.

    >>> public("OSError: /srv/W/bundle is gone"), public("IndexCallError: it does not answer")
    ('OSError', 'it does not answer')
    """
    return why.removeprefix(NO_INDEX) if why.startswith(NO_INDEX) else why.split(":")[0]


def _passes(error: Exception) -> bool:
    return isinstance(error, NoSourceError) and all(map(passing, error.missing.values()))
