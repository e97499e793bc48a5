"""Ask: one request in ids, as a pipeline takes it; and how asks become `Requests` in keys."""

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.ragged import Ragged


@dataclasses.dataclass(frozen=True, eq=False)
class Ask:
    """One request in ids, with all that the service knows of its user.

    Attributes:
        user_id: The user; "" for an unknown one.
        history: Ids of the items that the user liked, oldest first; the session is its end.
        times: Time of each event of the history in seconds, -1 for none.
        ratings: Rating of each event of the history, NaN for none.
        context: Further columns of the request, `search_text` among them.
        time: Time of the request in seconds.
        k: Length of the list.
        exclude: Ids of items that must not be answered, besides those of the history.
        where: Conditions on columns of the catalogue, as `Catalogue.where` takes them.
        funnel: Name of a funnel; "" for the default.
        sources: Names of the funnel's sources to ask; () for all.
        index: The index that the sources search; "" for their own.
        diversity: Weight of diversity from 0 to 1; None for the funnel's own.
        objective_weights: Objective -> its weight, for funnels that rank.
        explain: Whether the answer says why each item is there.
        span: Of the trace that the request belongs to; None for none.
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
    sources: Sequence[str] = ()
    index: str = ""
    diversity: float | None = None
    objective_weights: Mapping[str, float] = dataclasses.field(default_factory=dict)
    explain: bool = False
    span: Any = None


class FieldError(ValueError):
    """A value of a request that is wrong for this bundle.

    >>> FieldError("funnel", "there is none of this name").field
    'funnel'
    """

    def __init__(self, field: str, message: str) -> None:
        super().__init__(message)
        self.field = field


@dataclasses.dataclass(frozen=True, eq=False)
class Row:
    """A request in keys of the catalogue.

    Attributes:
        history: `[num_events]` int64, the items that the model knows.
        times: `[num_events]` seconds, -1 for none.
        ratings: `[num_events]`, NaN for none.
        exclude: Keys of all items that must not be answered.
        unknown: Ids of the history that the model does not know.
    """

    history: np.ndarray
    times: np.ndarray
    ratings: np.ndarray
    exclude: np.ndarray
    unknown: list[str]


def row_of(ask: Ask, catalogue: Catalogue, num_exported: int, removed: np.ndarray) -> Row:
    """The keys of one request.

    Args:
        ask: The request.
        catalogue: The items of the bundle and, after them, those that were added since.
        num_exported: Number of the bundle's items; the model does not know the others.
        removed: `[num_removed]` keys of items that are not to be answered.

    Raises:
        FieldError: Conditions that do not fit the catalogue.
    """
    history = catalogue.keys_of(ask.history)
    known = (history >= 0) & (history < num_exported)
    unknown = [item for item, is_known in zip(ask.history, known) if not is_known]
    further = catalogue.keys_of(ask.exclude)
    exclude = [history[history >= 0], further[further >= 0], removed]
    if ask.where:
        # Sources know no conditions, so the items that fail one are excluded.
        exclude.append(np.setdiff1d(catalogue.keys, keys_where(catalogue, ask.where)))
    times = np.array(ask.times or [-1] * len(known), np.int64)
    ratings = np.array(ask.ratings or [np.nan] * len(known), np.float32)
    return Row(history[known], times[known], ratings[known], np.concatenate(exclude), unknown)


def requests_of(asks: Sequence[Ask], rows: Sequence[Row]) -> Requests:
    """The requests as columns, a row for each ask."""
    history = Ragged.from_rows([row.history for row in rows])
    offsets = history.offsets
    names = {name for ask in asks for name in ask.context}
    heads = sorted({head for ask in asks for head in ask.objective_weights})
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
        # An objective that a request does not name weighs 0. A request that names none has NaN for
        # all, which stands for the ranker's weights.
        objectives={
            head: np.array(
                [
                    ask.objective_weights.get(head, 0.0) if ask.objective_weights else np.nan
                    for ask in asks
                ]
            )
            for head in heads
        },
        diversity=np.array([np.nan if a.diversity is None else a.diversity for a in asks], float),
    )


def keys_where(catalogue: Catalogue, conditions: Mapping[str, Any]) -> np.ndarray:
    """Keys of the items that meet all conditions, `[num_found]` int64.

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
