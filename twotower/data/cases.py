"""EvalCases: the requests of an evaluation, with their right answers."""

import dataclasses

import numpy as np

from twotower.data.requests import Requests
from twotower.ragged import Ragged


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
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

    def as_new_users(self, newest: int) -> "EvalCases":
        """The same cases as if asked by users who are new: unknown ids, and the newest events.

        Answers still leave out all that the users have seen, so that figures compare.

        Args:
            newest: Number of events that are left of a history.
        """
        return dataclasses.replace(
            self,
            # Each its own, since intervals count the cases of a user as one.
            user_id=np.array([f"new user {user}" for user in self.user_id], object),
            history=self.history.last(newest),
            history_time=self.history_time.last(newest),
            history_rating=self.history_rating.last(newest),
        )
