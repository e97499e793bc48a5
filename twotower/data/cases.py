"""EvalCases: the requests of an evaluation, with their right answers."""

import dataclasses

from twotower.data.requests import Requests
from twotower.ragged import Ragged


@dataclasses.dataclass(frozen=True, kw_only=True)
class EvalCases(Requests):
    """Requests with their right answers, as columns. A row is a case; a user can have several.

    Attributes:
        targets: Keys of the items that are right answers, none twice in a case.

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

    targets: Ragged
