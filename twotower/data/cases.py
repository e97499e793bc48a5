"""EvalCases: the queries of an evaluation, with their histories and right answers."""

import dataclasses
from collections.abc import Iterator, Mapping

import numpy as np

from twotower.ragged import Ragged


@dataclasses.dataclass(frozen=True)
class EvalCases:
    """Queries to a recommender with their right answers, as columns. A row is a case.

    Attributes:
        user_id: `[num_cases]` strings, as objects. A user can have several cases.
        history: Keys of the items that the query tower reads, oldest first, a row for each case.
        history_time: Their times in seconds, with the offsets of `history`.
        history_rating: Their ratings, float32, NaN for none, with the offsets of `history`.
        exclude: Keys of the items that may not be recommended, a row for each case.
        targets: Keys of the items that are right answers, none twice in a case.
        time: `[num_cases]` int64, time of the request in seconds; -1 if the model does not get it.
        context: What else is known of the request (`search_text`, `device`, `country`), name ->
            `[num_cases]` strings, "" where nothing is known.

    Raises:
        ValueError: Columns of different lengths, or a history whose times or ratings have other
            offsets.

    >>> history = Ragged.from_rows([[4, 2], []])
    >>> cases = EvalCases(
    ...     user_id=np.array(["u1", "u2"], object),
    ...     history=history,
    ...     history_time=Ragged(np.array([10, 20]), history.offsets),
    ...     history_rating=Ragged(np.float32([5, np.nan]), history.offsets),
    ...     exclude=history,
    ...     targets=Ragged.from_rows([[7], [1, 3]]),
    ...     time=np.array([-1, -1]),
    ... )
    >>> len(cases), cases.take([1]).targets.values.tolist()
    (2, [1, 3])
    """

    user_id: np.ndarray
    history: Ragged
    history_time: Ragged
    history_rating: Ragged
    exclude: Ragged
    targets: Ragged
    time: np.ndarray
    context: Mapping[str, np.ndarray] = dataclasses.field(default_factory=dict)

    def __post_init__(self) -> None:
        for name, values in {**self._columns(), **self.context}.items():
            if len(values) != len(self.user_id):
                raise ValueError(f"{name} has {len(values)} rows for {len(self.user_id)} cases.")
        for name in ("history_time", "history_rating"):
            offsets = getattr(self, name).offsets
            if offsets is not self.history.offsets and (offsets != self.history.offsets).any():
                raise ValueError(f"{name} must have the offsets of history, one value an item.")

    def __len__(self) -> int:
        return len(self.user_id)

    def take(self, rows: np.ndarray) -> "EvalCases":
        """The cases `rows`, in that order: indices, or a boolean mask `[num_cases]`."""
        rows = np.arange(len(self))[rows]
        taken = {}  # an array that is two columns, such as history and exclude, is taken once

        def take(values):
            if id(values) not in taken:
                taken[id(values)] = (
                    values.take(rows) if isinstance(values, Ragged) else values[rows]
                )
            return taken[id(values)]

        columns = {name: take(values) for name, values in self._columns().items()}
        return EvalCases(**columns, context={name: take(v) for name, v in self.context.items()})

    def batches(self, batch_size: int) -> Iterator["EvalCases"]:
        """All cases in order, at most `batch_size` at a time."""
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, min(start + batch_size, len(self))))

    def _columns(self) -> dict:
        names = [field.name for field in dataclasses.fields(self) if field.name != "context"]
        return {name: getattr(self, name) for name in names}
