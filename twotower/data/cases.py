"""EvalCases: what is asked of a recommender, a row a question."""

import dataclasses
from collections.abc import Mapping

import numpy as np

from twotower.ragged import Ragged


@dataclasses.dataclass(frozen=True)
class EvalCases:
    """Questions to a recommender, as columns; training queries have the same form.

    Attributes:
        user_id: `[num_cases]` strings.
        history: Keys of the items that the query tower sees, oldest first.
        history_time: Their times in seconds, with the offsets of `history`.
        history_rating: Their ratings, NaN where there is none, with the same offsets.
        exclude: Keys of the items that may not be answered.
        targets: Keys of the items that would be right answers.
        time: `[num_cases]` int64, time of the request in seconds; -1 where the model is not told.
        context: What else is known of the request (`search_text`, `device`), `[num_cases]` each.
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
        for field in dataclasses.fields(self):
            if field.name != "context" and len(getattr(self, field.name)) != len(self.user_id):
                raise ValueError(
                    f"{field.name} has {len(getattr(self, field.name))} rows for "
                    f"{len(self.user_id)} cases."
                )

    def __len__(self) -> int:
        return len(self.user_id)

    def take(self, rows: np.ndarray) -> "EvalCases":
        """The given cases; `rows` are indices or a boolean mask."""
        rows = np.arange(len(self))[rows]
        columns = {
            field.name: getattr(self, field.name)
            for field in dataclasses.fields(self)
            if field.name != "context"
        }
        return EvalCases(
            **{
                name: values.take(rows) if isinstance(values, Ragged) else values[rows]
                for name, values in columns.items()
            },
            context={name: values[rows] for name, values in self.context.items()},
        )

    def batches(self, batch_size: int):
        """Consecutive cases, at most `batch_size` at a time."""
        for start in range(0, len(self), batch_size):
            yield self.take(np.arange(start, min(start + batch_size, len(self))))
