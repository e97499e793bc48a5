"""Pipeline: one loaded bundle with its funnels and indexes, which answers a batch of requests.

A service holds one pipeline in one variable. A batch reads it once and is answered by it from ids
to ids, so no answer is of two trainings; a deploy assigns the variable.
"""

import dataclasses
import functools
import pathlib
import threading
import time
from collections.abc import Collection, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from twotower.bundle.bundle import Bundle, BundleError
from twotower.data.dataset import Catalogue, Dataset
from twotower.data.examples import ItemInputs
from twotower.data.requests import Requests
from twotower.funnel.filters import Available, Filters, Seen
from twotower.funnel.funnel import Answer, Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.popularity import Popularity
from twotower.funnel.sources.two_tower import TwoTower
from twotower.ragged import Ragged
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import Candidates
from twotower.serving.answers import Cards, explained
from twotower.serving.journal import ADD, Change
from twotower.serving.query_cache import QueryCache
from twotower.storage import paths

# The funnel of the two-tower source alone, which every pipeline has.
TWO_TOWER = "two_tower"


class ServedBundle(Bundle):
    """A bundle whose indexes are loaded once each, so that all funnels search the same one and see
    its changes."""

    @functools.cached_property
    def _retrievers(self) -> dict[str, Retriever]:
        return {}

    def retriever(self, name: str = "exact", allowed_uris: Collection[str] = ()) -> Retriever:
        """The index `name`, the same object at each call; see `Bundle.retriever`."""
        if name not in self._retrievers:
            self._retrievers[name] = super().retriever(name, allowed_uris)
        return self._retrievers[name]

    @functools.cached_property
    def item_tower(self) -> Any:
        """Raw inputs of items by name -> `[num_items, dim]` float32.

        Raises:
            BundleError: A tower that is changed, or of another training.
        """
        import tensorflow as tf

        model = self.read("item_tower", lambda path: tf.saved_model.load(str(paths.literal(path))))
        version = model.model_version.numpy().decode()
        if version != self.model_version:
            raise BundleError(
                f"{self.directory / 'item_tower'} is of model {version!r}, not of "
                f"{self.model_version!r}. Two bundles were mixed up; export one of them again."
            )
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


@dataclasses.dataclass(frozen=True, eq=False)
class Ask:
    """A request as a pipeline takes it: ids, and all that the service knows of its user.

    Attributes:
        user_id: The user; "" for an unknown one.
        history: Ids of the items, oldest first, those of the session among them.
        times: Time of each event of the history in seconds, -1 for none.
        ratings: Rating of each event of the history, NaN for none.
        context: Further columns of the request, `search_text` among them.
        time: Time of the request in seconds.
        k: Length of the list.
        exclude: Ids of further items not to answer.
        where: Conditions on columns of the catalogue, as `Catalogue.where` takes them.
        funnel: Name of a funnel; "" for the default.
        objective_weights: Objective -> its weight, for funnels that rank.
        explain: Whether to say why.
    """

    user_id: str = ""
    history: Sequence[str] = ()
    times: Sequence[int] = ()
    ratings: Sequence[float] = ()
    context: Mapping[str, str] = dataclasses.field(default_factory=dict)
    time: int = -1
    k: int = 10
    exclude: Sequence[str] = ()
    where: Mapping[str, Any] = dataclasses.field(default_factory=dict)
    funnel: str = ""
    objective_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    explain: bool = False


class FieldError(ValueError):
    """A value of a request that is wrong for this bundle.

    >>> FieldError("funnel", "there is none of this name").field
    'funnel'
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True, eq=False)
class _Row:
    """A request in keys."""

    history: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    exclude: np.ndarray
    unknown: list[str]


class Pipeline:
    """Answers requests from one bundle.

    Threads may call it at once. Changes of items come from one thread at a time.

    Args:
        directory: The bundle's folder.
        dataset: Knows columns of known users, where the query tower reads any; None for none.
        source_deadline: Seconds after which a funnel goes on without a source for which the bundle
            names no deadline.
        cache_size: Number of query vectors that are kept.
        cache_seconds: How long they are kept.
        index: Index of the funnel `two_tower` and of searches that name none; by default `hnsw`
            where the bundle has it, else `exact`.

    Attributes:
        bundle: The bundle.
        catalogue: Its items and those added since.
        funnels: Name -> funnel.
        cache: Query vectors of requests that were asked before.

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
    ) -> None:
        self.bundle = bundle = ServedBundle(directory)
        encode = bundle.encode if dataset is None else bundle.encoder(dataset)
        names = [spec["name"] for spec in bundle.manifest["query_inputs"]]
        self.cache = QueryCache(encode, names, bundle.manifest["dim"], cache_size, cache_seconds)
        bundle.encode = self.cache
        self.index = index or ("hnsw" if "hnsw" in bundle.indexes else "exact")
        bundle.retriever(self.index)
        self.funnels = {name: bundle.funnel(name) for name in bundle.funnels}
        if TWO_TOWER not in self.funnels:
            sources = {TWO_TOWER: Inlet(TwoTower(bundle, self.index))}
            self.funnels[TWO_TOWER] = Funnel(sources, ReciprocalRank(), [Filters([Seen()])])
        for funnel in self.funnels.values():
            funnel.sources = {
                name: dataclasses.replace(inlet, deadline=inlet.deadline or source_deadline)
                for name, inlet in funnel.sources.items()
            }
        self.default_funnel = "default" if "default" in self.funnels else TWO_TOWER
        self.catalogue, self._num_exported = bundle.catalogue, len(bundle.catalogue)
        self._cards = Cards(self.catalogue)
        self._removed: np.ndarray = np.empty(0, np.int64)
        self._changing = threading.Lock()
        self.sequence = 0  # last change of the journal that is applied

    @property
    def model_version(self) -> str:
        """Names the training."""
        return self.bundle.model_version

    def warm(self) -> None:
        """Answers one request by each funnel, which prepares TensorFlow's graphs."""
        item = self.catalogue.ids_of(self.bundle.keys[:1]).tolist()
        for name in self.funnels:
            for answer in self.recommend([Ask(history=item, funnel=name), Ask(funnel=name)], False):
                if isinstance(answer, Exception):
                    raise answer

    # Answers.

    def recommend(
        self, asks: Sequence[Ask], deadlines: bool = True
    ) -> list[dict[str, Any] | Exception]:
        """For each request its answer, or what was wrong with it; the others are answered.

        Args:
            asks: The requests.
            deadlines: Whether the sources' deadlines hold.
        """
        answers: list[Any] = [None] * len(asks)
        rows: dict[int, _Row] = {}
        by_funnel: dict[str, list[int]] = {}
        catalogue, cards, removed = self.catalogue, self._cards, self._removed
        for number, ask in enumerate(asks):
            try:
                name = ask.funnel or self.default_funnel
                self._check(name, ask)
                rows[number] = self._row(ask, catalogue, removed)
                by_funnel.setdefault(name, []).append(number)
            except ValueError as error:
                answers[number] = error
        for name, numbers in by_funnel.items():
            k = max(asks[number].k for number in numbers)
            requests = _requests([asks[n] for n in numbers], [rows[n] for n in numbers])
            begun = time.perf_counter()
            try:
                answer = self.funnels[name].recommend(requests, k, deadlines)
            except Exception as error:
                for number in numbers:
                    answers[number] = error
                continue
            seconds = time.perf_counter() - begun
            for place, number in enumerate(numbers):
                answers[number] = self._answer(
                    name, answer, place, asks[number], rows[number], cards, seconds
                )
        return answers

    def _check(self, name: str, ask: Ask) -> None:
        """Raises FieldError for a funnel or weights that are not of this bundle."""
        if name not in self.funnels:
            raise FieldError("funnel", f"expected one of {sorted(self.funnels)}")
        known: set[str] = set()
        for stage in self.funnels[name].stages:
            known.update(getattr(stage, "objectives", ()))
        if ask.objective_weights.keys() - known:
            raise FieldError("objective_weights", f"this funnel has the objectives {sorted(known)}")

    def _row(self, ask: Ask, catalogue: Catalogue, removed: np.ndarray) -> _Row:
        history = catalogue.keys_of(ask.history)
        known = (history >= 0) & (history < self._num_exported)
        unknown = [item for item, is_known in zip(ask.history, known) if not is_known]
        further = catalogue.keys_of(ask.exclude)
        exclude = [history[history >= 0], further[further >= 0], removed]
        if ask.where:
            exclude.append(np.setdiff1d(catalogue.keys, _where(catalogue, ask.where)))
        times = np.array(ask.times or [-1] * len(known), np.int64)
        ratings = np.array(ask.ratings or [np.nan] * len(known), np.float32)
        return _Row(history[known], times[known], ratings[known], np.concatenate(exclude), unknown)

    def _answer(
        self,
        funnel: str,
        answer: Answer,
        place: int,
        ask: Ask,
        row: _Row,
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
            # The reason may name a path of this machine, which is no business of a client.
            "missing": {name: why.split(":")[0] for name, why in answer.missing.items()},
        }
        if ask.explain:
            found |= explained(
                answer, place, keys, row.history, self.bundle, self.catalogue, items, seconds
            )
        return found

    def embed(self, asks: Sequence[Ask]) -> tuple[np.ndarray, list[list[str]]]:
        """Vectors of requests, `[num_requests, dim]`, and the unknown items of each history."""
        rows = [self._row(ask, self.catalogue, self._removed) for ask in asks]
        return self.bundle.encode(_requests(asks, rows)), [row.unknown for row in rows]

    def search(
        self, vectors: np.ndarray, k: int, exclude: Sequence[str], index: str
    ) -> list[list[dict[str, Any]]]:
        """The best `k` items of each vector of this training, from one index.

        Raises:
            FieldError: No such index, or vectors of another length or that are not finite.
        """
        cards, removed, keys = self._cards, self._removed, self.catalogue.keys_of(exclude)
        rows = Ragged.from_rows([np.concatenate([keys[keys >= 0], removed])] * len(vectors))
        retriever = self.retriever(index)
        try:
            found = retriever.search(vectors, k, exclude=rows)
        except ValueError as error:
            raise FieldError("vectors", str(error)) from error
        return _listed(found, cards)

    def similar(self, item_id: str, k: int, index: str) -> list[dict[str, Any]]:
        """The best `k` items for the vector of an item, without that item.

        Raises:
            FieldError: No such index; or an item that is not in the catalogue, or has no vector.
        """
        key = self.catalogue.keys_of([item_id])
        retriever = self.retriever(index)
        keys, vectors = retriever.live()
        row = np.flatnonzero(keys == key[0])
        if not len(row):
            raise FieldError("item_id", "there is no such item in the index")
        return self.search(vectors[row], k, [item_id], index)[0]

    def retriever(self, index: str) -> Retriever:
        """The index of that name, with all changes of items; the default one for "".

        Raises:
            FieldError: There is none.
        """
        name, names = index or self.index, ["exact", *self.bundle.indexes]
        if name not in names:
            raise FieldError("index", f"expected one of {names}")
        return self._live[name] if name in self._live else self._opened(name)

    @property
    def _live(self) -> dict[str, Retriever]:
        return self.bundle._retrievers

    def _opened(self, name: str) -> Retriever:
        """An index that nobody has asked for yet, with the changes of the others."""
        with self._changing:
            if name not in self._live:
                some = self._live[self.index]
                retriever = self.bundle.retriever(name)
                keys, vectors = some.live()
                added = keys >= self._num_exported
                if added.any():
                    retriever.add(keys[added], vectors[added])
                gone = retriever.keys[~np.isin(retriever.keys, keys)]
                if len(gone):
                    retriever.remove(gone)
        return self._live[name]

    def onboarding(self, size: int) -> list[dict[str, Any]]:
        """Items to ask a new user about: the most popular ones that a funnel knows of.

        Raises:
            FieldError: No funnel of this bundle has a source of popular items.
        """
        for funnel in self.funnels.values():
            for inlet in funnel.sources.values():
                if isinstance(inlet.source, Popularity):
                    keys = inlet.source.keys
                    keys = keys[~np.isin(keys, self._removed)][:size]
                    return self._cards.of(keys)
        raise FieldError("size", "no funnel of this bundle knows popular items")

    # Changes.

    def apply(self, changes: Sequence[Change], exported: int = 0) -> None:
        """Adds and removes items; the next answer knows of it. A change that is applied already is
        left out.

        Args:
            changes: In the order of the journal.
            exported: Changes up to this number came before the export: an item that was added and
                that the bundle has keeps the bundle's vector.

        Raises:
            ValueError: Columns that do not fit the catalogue's.
        """
        with self._changing:
            changes = [change for change in changes if change.sequence > self.sequence]
            if not changes:
                return
            last = {change.item_id: change for change in changes}
            added = [
                change.item
                for change in last.values()
                if change.op == ADD
                and (
                    change.sequence > exported
                    or self.bundle.catalogue.keys_of([change.item_id])[0] < 0
                )
            ]
            gone = self.catalogue.keys_of(
                [change.item_id for change in last.values() if change.op != ADD]
            )
            if added:
                self._add(added)
            if len(gone := gone[gone >= 0]):
                self._remove(gone)
            self.sequence = changes[-1].sequence

    def _add(self, items: list[dict[str, Any]]) -> None:
        table, catalogue = _table(items), self.catalogue
        keys, vectors = self._embedded(table)
        if (new := keys >= len(catalogue)).any():
            self.catalogue = catalogue.extend(table[new])
            self._cards = Cards(self.catalogue)
        for retriever in self._live.values():
            retriever.add(keys, vectors)
        self._removed = np.setdiff1d(self._removed, keys)
        for part in self._availables():
            part.keys = np.union1d(part.keys, keys)

    def check_items(self, items: list[dict[str, Any]]) -> None:
        """Raises ValueError for items that `apply` could not add; nothing is changed."""
        if items:
            self._embedded(_table(items))

    def _embedded(self, table: pd.DataFrame) -> tuple[np.ndarray, np.ndarray]:
        """Keys of items, new ones among them, and their vectors."""
        known = self.catalogue.keys_of(table["item_id"]) >= 0
        # A catalogue of the exported columns and the new rows says how values are stored.
        base = self.bundle.catalogue
        extended = Catalogue(base.items.iloc[:1].assign(item_id="\0")).extend(table)
        users = pd.DataFrame({"user_id": np.array([], object)})
        events = pd.DataFrame(
            {
                "user_id": np.array([], object),
                "item_id": np.array([], object),
                "timestamp": np.array([], np.int64),
            }
        )
        names = [spec["name"] for spec in self.bundle.manifest["item_inputs"]]
        inputs = ItemInputs(
            Dataset("", events, extended.items, users), np.empty(0, np.int64), names
        )
        vectors = self.bundle.item_tower(inputs(np.arange(1, len(table) + 1)))
        if not np.isfinite(vectors).all():
            raise ValueError("the item tower gives vectors that are not finite for these items")
        keys = self.catalogue.keys_of(table["item_id"])
        keys[~known] = len(self.catalogue) + np.arange((~known).sum())
        return keys, vectors

    def _remove(self, keys: np.ndarray) -> None:
        for retriever in self._live.values():
            if len(known := keys[retriever.knows(keys)]):
                retriever.remove(known)
        self._removed = np.union1d(self._removed, keys)

    def _availables(self) -> list[Available]:
        """Filters of the funnels that keep available items alone."""
        stages = [stage for funnel in self.funnels.values() for stage in funnel.stages]
        filters = [f for stage in stages if isinstance(stage, Filters) for f in stage.filters]
        return [some for some in filters if isinstance(some, Available)]

    @property
    def num_items(self) -> int:
        """Number of items that a search may find."""
        return len(self._live[self.index])


def _requests(asks: Sequence[Ask], rows: Sequence[_Row]) -> Requests:
    """The requests as columns."""
    history = Ragged.from_rows([row.history for row in rows])
    offsets = history.offsets
    names = {name for ask in asks for name in ask.context}
    return Requests(
        user_id=np.array([ask.user_id for ask in asks], object),
        history=history,
        history_time=Ragged(np.concatenate([row.times for row in rows]), offsets),
        history_rating=Ragged(np.concatenate([row.ratings for row in rows]), offsets),
        exclude=Ragged.from_rows([row.exclude for row in rows]),
        time=np.array([ask.time for ask in asks], np.int64),
        context={
            name: np.array([ask.context.get(name, "") for ask in asks], object) for name in names
        },
    )


def _where(catalogue: Catalogue, conditions: Mapping[str, Any]) -> np.ndarray:
    """Keys of the items that meet all conditions.

    Raises:
        FieldError: Columns or values that do not fit the catalogue.
    """
    wanted: dict[str, Any] = {}
    for column, value in conditions.items():
        if isinstance(value, Mapping):
            if not value or value.keys() - {"from", "to"}:
                raise FieldError(f"filters.{column}", 'a range is {"from": 1990, "to": 1999}')
            value = (value.get("from"), value.get("to"))
        wanted[column] = value
    try:
        return catalogue.where(**wanted)
    except (ValueError, TypeError) as error:
        raise FieldError("filters", str(error)) from error


def _table(items: list[dict[str, Any]]) -> pd.DataFrame:
    """New items as a table; lists are tags, which tables have as tuples."""
    return pd.DataFrame(
        [
            {
                name: tuple(value) if isinstance(value, list) else value
                for name, value in row.items()
            }
            for row in items
        ]
    )


def _listed(found: Candidates, cards: Cards) -> list[list[dict[str, Any]]]:
    """Items and scores of each row."""
    rows = []
    for keys, scores, count in zip(found.keys, found.scores.tolist(), found.counts):
        listed = zip(cards.of(keys[:count]), scores)
        rows.append([{**card, "score": round(score, 6)} for card, score in listed])
    return rows
