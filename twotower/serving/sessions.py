"""Sessions: what users did since their history was recorded; the next answer knows of it."""

import collections
import dataclasses
import json
import math
from collections.abc import Sequence

from twotower.serving.store import Store

# Events that put an item into the history; the one that keeps it away; the one that is counted.
LIKED, REFUSED, SHOWN = ("click", "watch", "like", "share"), "skip", "impression"


@dataclasses.dataclass(frozen=True)
class Deed:
    """One event of a user.

    Attributes:
        item_id: The item.
        event: `impression`, `click`, `watch`, `skip`, `like` or `share`.
        timestamp: In seconds.
        rating: NaN where there is none.
    """

    item_id: str
    event: str
    timestamp: int
    rating: float = math.nan


@dataclasses.dataclass(frozen=True)
class Session:
    """What a user did lately.

    Attributes:
        liked: Events that belong to the history, oldest first, the last one of each item.
        refused: Ids of items that the user skipped and did not choose afterwards.
        shown: Id of an item -> how often it was shown.
    """

    liked: Sequence[Deed] = ()
    refused: Sequence[str] = ()
    shown: collections.Counter = dataclasses.field(default_factory=collections.Counter)

    @classmethod
    def of(cls, deeds: Sequence[Deed]) -> "Session":
        """The session of events, in the order of their times; of equal times, as given.

        >>> deeds = [Deed("a", "watch", 1), Deed("b", "skip", 2), Deed("a", "like", 3)]
        >>> session = Session.of(deeds)
        >>> [deed.timestamp for deed in session.liked], session.refused
        ([3], ['b'])
        """
        liked: dict[str, Deed] = {}
        refused: dict[str, None] = {}
        shown: collections.Counter = collections.Counter()
        for deed in sorted(deeds, key=lambda deed: deed.timestamp):
            if deed.event in LIKED:
                liked.pop(deed.item_id, None)
                liked[deed.item_id] = deed
                refused.pop(deed.item_id, None)
            elif deed.event == REFUSED:
                refused[deed.item_id] = None
                liked.pop(deed.item_id, None)
            else:
                shown[deed.item_id] += 1
        return cls([*liked.values()], [*refused], shown)


class Sessions:
    """The sessions of users, in a store.

    Impressions are a list of their own: there are many, and they must not push out what a user did.

        sessions = Sessions(MemoryStore())
        sessions.add([("u1", Deed("260", "watch", 978300760))])
        sessions.of(["u1"])[0].liked

    Args:
        store: Where events are kept.
    """

    def __init__(self, store: Store) -> None:
        self._store = store

    def add(self, deeds: Sequence[tuple[str, Deed]]) -> None:
        """Adds events of users; the next `of` knows of them."""
        by_user: dict[str, list[str]] = {}
        for user, deed in deeds:
            rating = None if math.isnan(deed.rating) else deed.rating
            entry = json.dumps([deed.item_id, deed.event, deed.timestamp, rating])
            by_user.setdefault(_name(user, deed.event), []).append(entry)
        self._store.append(by_user)

    def of(self, users: Sequence[str]) -> list[Session]:
        """The session of each user; an empty one for "" and for users without events."""
        known = [*{user for user in users if user}]
        names = [_name(user, event) for user in known for event in ("", SHOWN)]
        read = iter(self._store.read(names) if known else ())
        found = {}
        for user in known:
            deeds = map(_deed, [*next(read), *next(read)])
            found[user] = Session.of([deed for deed in deeds if deed is not None])
        nothing = Session()
        return [found.get(user, nothing) for user in users]


def _name(user: str, event: str) -> str:
    """Name of the list in the store that holds such events of a user."""
    return f"{'shown' if event == SHOWN else 'done'}:{user}"


def _deed(entry: str) -> Deed | None:
    """An event as `Sessions.add` has written it; None for what another program wrote there."""
    try:
        item, event, timestamp, rating = json.loads(entry)
        return Deed(
            str(item), str(event), int(timestamp), float("nan" if rating is None else rating)
        )
    except (ValueError, TypeError):
        return None
