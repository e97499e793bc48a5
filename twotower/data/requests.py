"""Requests: what is asked of a recommender, as columns."""

import concurrent.futures
import dataclasses
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, Self

import numpy as np

from twotower.data.catalogue import Catalogue
from twotower.ragged import Ragged, integers

# Columns of `interactions` that say in which context a request was made.
CONTEXT = ("search_text", "device", "country")
# Fields of `Requests` that hold columns by name.
FURTHER = ("context", "objectives")
# Requests that a query tower encodes at once, and the most cells of their padded histories.
QUERIES, CELLS = 256, 2**15


@dataclasses.dataclass(frozen=True, eq=False)
class Requests:
    """Requests to a recommender, as columns; a row is a request.

    Query towers, funnels and baselines read them; `EvalCases` are requests with right answers.

    Attributes:
        user_id: `[num_requests]` strings, as objects; "" for an unknown user.
        history: Keys of the items that the query tower reads, oldest first, a row for each request.
        history_time: Their times in seconds, with the offsets of `history`; -1 for none.
        history_rating: Their ratings, float32, NaN for none, with the offsets of `history`.
        exclude: Keys of the items that may not be recommended, a row for each request.
        time: `[num_requests]` int64, time of the request in seconds; -1 if it is unknown or the
            protocol does not give it to the model.
        context: What else is known of the request (`search_text`, `device`, `country`) or of a user
            whom the data does not have (`gender`, `age`), name -> `[num_requests]` strings, ""
            where nothing is known.
        objectives: Weights of a ranker's heads, name of a head -> `[num_requests]` floats; they may
            be negative. A request with NaN for every head gets the default weights of the ranker.
        diversity: `[num_requests]` floats from 0 to 1, the weight of diversity in stages that
            re-rank for it (`Mmr`, `Dpp`). NaN, the default, is the weight of the stage.

    Raises:
        ValueError: Columns of different lengths, negative keys, a history whose times or ratings
            have other offsets, or a weight of diversity outside [0, 1].

    >>> import pandas as pd
    >>> catalogue = Catalogue(pd.DataFrame({"item_id": ["10", "20", "30"]}))
    >>> requests = Requests.of(catalogue, [["30", "10"], []], context={"country": ["de", ""]})
    >>> len(requests), requests.history.values.tolist(), requests.take([1]).context["country"]
    (2, [2, 0], array([''], dtype=object))
    """

    user_id: np.ndarray
    history: Ragged
    history_time: Ragged
    history_rating: Ragged
    exclude: Ragged
    time: np.ndarray
    context: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    objectives: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)
    diversity: np.ndarray = None  # type: ignore[assignment]

    def __post_init__(self) -> None:
        if self.diversity is None:
            object.__setattr__(self, "diversity", np.full(len(self.user_id), np.nan))
        if (wrong := (self.diversity < 0) | (self.diversity > 1)).any():
            raise ValueError(f"diversity must lie within 0 and 1; got {self.diversity[wrong][0]}.")
        for name, values in {**self._columns(), **self.context, **self.objectives}.items():
            if len(values) != len(self.user_id):
                raise ValueError(f"{name} has {len(values)} rows for {len(self.user_id)} requests.")
        for name in ("history", "exclude"):
            least = getattr(self, name).values.min(initial=0)
            if least < 0:  # NumPy would count it from the end, as another item
                raise ValueError(f"{name} holds keys of items, which are 0 or more; got {least}.")
        for name in ("history_time", "history_rating"):
            offsets = getattr(self, name).offsets
            if offsets is not self.history.offsets and (offsets != self.history.offsets).any():
                raise ValueError(f"{name} must have the offsets of history, one value an item.")

    @classmethod
    def of(
        cls,
        catalogue: Catalogue,
        history: Sequence[Sequence[str]],
        *,
        user_id: Sequence[str] | None = None,
        times: Sequence[Sequence[int]] | None = None,
        ratings: Sequence[Sequence[float]] | None = None,
        exclude: Sequence[Sequence[str]] | None = None,
        time: Sequence[int] | None = None,
        context: Mapping[str, Sequence[str]] | None = None,
        objectives: Mapping[str, Sequence[float]] | None = None,
        diversity: Sequence[float] | None = None,
    ) -> "Requests":
        """Requests from ids of items. What was seen is excluded from the answers.

        Args:
            catalogue: Converts ids to keys.
            history: Ids of the items of each request, oldest first.
            user_id: Users; unknown by default.
            times: Time of each event of the histories, in seconds; unknown by default.
            ratings: Rating of each event; unknown by default.
            exclude: Ids of further items that may not be answered.
            time: Times of the requests in seconds; unknown by default.
            context: Further columns, name -> a string for each request.
            objectives: Weights of a ranker's heads, name -> a number for each request.
            diversity: Weights of diversity, a number for each request.

        Raises:
            ValueError: Ids that the catalogue does not have, columns of different lengths, or
                values of another type.
        """
        count = len(history)
        keys = Ragged.from_rows([catalogue.require_keys(row) for row in history])
        further = [catalogue.require_keys(row) for row in (exclude or [[]] * count)]
        if len(further) != count:
            raise ValueError(f"exclude has {len(further)} rows for {count} requests.")
        if times is None:
            times = [[-1] * len(row) for row in history]
        if ratings is None:
            ratings = [[np.nan] * len(row) for row in history]
        for name, texts in {
            "user_id": () if user_id is None else user_id,
            **(context or {}),
        }.items():
            if isinstance(texts, str):  # each letter would be the value of a request
                raise ValueError(f"{name} takes a list of strings, one a request; got {texts!r}.")
            if wrong := [text for text in texts if not isinstance(text, str)]:
                raise ValueError(
                    f"{name} takes strings, '' where nothing is known; got {wrong[0]!r}."
                )
        return cls(
            user_id=np.array([""] * count if user_id is None else [*user_id], object),
            history=keys,
            history_time=_aligned(Ragged.from_rows(times), keys.offsets),
            history_rating=_aligned(Ragged.from_rows(ratings, np.float32), keys.offsets),
            exclude=Ragged.from_rows([np.concatenate(rows) for rows in zip(keys, further)]),
            time=np.full(count, -1) if time is None else integers(time, "time"),
            context={name: np.array([*texts], object) for name, texts in (context or {}).items()},
            objectives={name: np.array(w, float) for name, w in (objectives or {}).items()},
            diversity=np.full(count, np.nan) if diversity is None else np.array(diversity, float),
        )

    def __len__(self) -> int:
        return len(self.user_id)

    def take(self, rows: np.ndarray) -> Self:
        """The requests `rows`, in that order: indices, or a boolean mask `[num_requests]`.

        For all rows in their order it returns this object, not a copy.
        """
        every = np.arange(len(self))
        rows = every[rows]
        if np.array_equal(rows, every):
            return self
        taken: dict[int, Any] = {}  # an array that is two columns (history, exclude) is taken once

        def take(values):
            if id(values) not in taken:
                taken[id(values)] = (
                    values.take(rows) if isinstance(values, Ragged) else values[rows]
                )
            return taken[id(values)]

        columns = {name: take(values) for name, values in self._columns().items()}
        return type(self)(
            **columns,
            context={name: take(values) for name, values in self.context.items()},
            objectives={name: take(values) for name, values in self.objectives.items()},
        )

    def with_events(self, keep: np.ndarray) -> Self:
        """The requests with only those events of the histories for which `keep` holds.

        Args:
            keep: `[num_events]` bool, in the order of `history.values`.
        """
        history, times, ratings = self.history, self.history_time, self.history_rating
        kept = history.where(keep)
        return dataclasses.replace(
            self,
            history=kept,
            history_time=Ragged(times.values[keep], kept.offsets),
            history_rating=Ragged(ratings.values[keep], kept.offsets),
        )

    def batches(self, batch_size: int, cells: int | None = None) -> Iterator[Self]:
        """All requests in order, at most `batch_size` at a time.

        Args:
            batch_size: 1 or more.
            cells: Batches whose histories, padded to the longest one, would take more cells than
                this are split further, down to single requests. No limit by default.
        """
        for start in range(0, len(self), batch_size):
            part = self.take(np.arange(start, min(start + batch_size, len(self))))
            longest = max(int(part.history.lengths.max(initial=0)), 1)
            if cells is None or len(part) == 1 or len(part) * longest <= cells:
                yield part
            else:
                yield from part.batches(max(1, cells // longest))

    def texts(self, name: str) -> np.ndarray:
        """The column `name` of `context`, `[num_requests]` strings; "" where it is not known."""
        return self.context.get(name, np.full(len(self), "", object))

    def _columns(self) -> dict[str, Any]:
        names = [field.name for field in dataclasses.fields(self) if field.name not in FURTHER]
        return {name: getattr(self, name) for name in names}


def _aligned(values: Ragged, offsets: np.ndarray) -> Ragged:
    """Values with the very offsets of the history where they are equal, so that `take` and the
    checks need not compare them."""
    same = np.array_equal(values.offsets, offsets)
    return Ragged(values.values, offsets) if same else values


def encoded(requests: Requests, encode: Callable[[Requests], np.ndarray], dim: int) -> np.ndarray:
    """The vectors of requests, `[num_requests, dim]` float32, computed in batches.

    A batch has histories of like length, since a tower reads padding like events. Its size is
    bounded by `QUERIES` and `CELLS`, since self-attention takes memory for each pair of events.

    Args:
        requests: The requests, in any order.
        encode: Some requests -> their vectors.
        dim: Length of a vector.
    """
    order = np.argsort(requests.history.lengths, kind="stable")
    vectors = np.empty((len(requests), dim), np.float32)
    parts = [encode(part) for part in requests.take(order).batches(QUERIES, CELLS)]
    vectors[order] = np.concatenate([vectors[:0], *parts])
    return vectors


def once(function: Callable[[Requests], np.ndarray]) -> Callable[[Requests], np.ndarray]:
    """The function, computed only once for each `Requests` object.

    Several sources of a funnel ask for the vectors of the same requests, each in its thread: the
    first computes them, the others wait. A result is kept as long as its requests are. An error is
    raised to all who wait for it and is not kept.

    >>> calls = []
    >>> counted = once(lambda requests: calls.append(requests) or np.zeros(len(requests)))
    >>> import pandas as pd
    >>> requests = Requests.of(Catalogue(pd.DataFrame({"item_id": ["10"]})), [["10"]])
    >>> counted(requests) is counted(requests), len(calls)
    (True, 1)
    """
    known: weakref.WeakKeyDictionary = weakref.WeakKeyDictionary()
    lock = threading.Lock()

    def computed(requests: Requests) -> np.ndarray:
        with lock:
            is_first = requests not in known
            future = known.setdefault(requests, concurrent.futures.Future())
        if is_first:
            try:
                future.set_result(function(requests))
            except BaseException as error:
                # Its traceback holds the requests, which would keep themselves alive in `known`.
                with lock:
                    del known[requests]
                future.set_exception(error)
        return future.result()

    return computed
