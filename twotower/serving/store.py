"""Stores: short lists of text by user, in this process or in Redis, where replicas share them."""

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import cachetools

# Entries kept of a user, users kept in memory, and seconds after a user's last entry.
MOST, USERS, SECONDS = 500, 100_000, 7 * 24 * 3600
PREFIX = "twotower:session:"
# Seconds in which `read` fails at once, after a call that Redis has not answered. Otherwise each
# batch of requests would wait for the timeout.
PAUSE = 3.0


class StoreError(Exception):
    """A store that does not answer.

    >>> str(StoreError("Redis does not answer"))
    'Redis does not answer'
    """


class Store(Protocol):
    """Keeps the last entries of each user. Its calls raise StoreError where it does not answer.

    store.append({"u1": ["first", "second"]})
    store.read(["u1", "u2"])  # [["first", "second"], []]
    """

    def append(self, entries: Mapping[str, Sequence[str]]) -> None:
        """Adds entries after those that each user has."""

    def read(self, users: Sequence[str]) -> list[list[str]]:
        """The entries of each user, oldest first."""

    def ping(self) -> None:
        """Raises StoreError if the store does not answer."""


class MemoryStore:
    """A store of this process alone; it ends with the process.

    >>> store = MemoryStore(most=2)
    >>> store.append({"u1": ["a", "b"]})
    >>> store.append({"u1": ["c"]})
    >>> store.read(["u1", "u2"])
    [['b', 'c'], []]

    Args:
        most: Number of entries kept of a user, the last ones.
        users: Number of users kept; those whose last entry is longest ago go first.
        seconds: How long a user is kept after the last entry.
    """

    def __init__(self, most: int = MOST, users: int = USERS, seconds: float = SECONDS) -> None:
        self._most, self._lock = most, threading.Lock()
        self._entries: Any = cachetools.TTLCache(users, seconds)

    def append(self, entries: Mapping[str, Sequence[str]]) -> None:
        """See `Store`."""
        with self._lock:
            for user, new in entries.items():
                self._entries[user] = [*self._entries.get(user, ()), *new][-self._most :]

    def read(self, users: Sequence[str]) -> list[list[str]]:
        """See `Store`."""
        with self._lock:
            return [self._entries.get(user, []) for user in users]

    def ping(self) -> None:
        """See `Store`."""


class RedisStore:
    """A store in Redis; one round trip for a batch.

    After a call that Redis did not answer, `read` fails at once for `PAUSE` seconds, or until
    another call succeeds.

    Args:
        url: Such as `redis://127.0.0.1:6379/0`.
        most: Number of entries kept of a user, the last ones.
        seconds: How long a user is kept after the last entry.

    Raises:
        ImportError: The package `redis` is not installed.
    """

    def __init__(self, url: str, most: int = MOST, seconds: int = SECONDS) -> None:
        try:
            import redis
        except ImportError as error:
            raise ImportError('--store needs redis: pip install "twotower[serving]"') from error
        self._most, self._seconds, self._errors = most, seconds, redis.RedisError
        self._refusals = redis.ResponseError
        self._redis: Any = redis.Redis.from_url(
            url, socket_timeout=1, socket_connect_timeout=1, health_check_interval=30
        )
        self._paused_until = 0.0

    def append(self, entries: Mapping[str, Sequence[str]]) -> None:
        """See `Store`."""
        with self._redis.pipeline(transaction=True) as pipeline:
            for user, new in entries.items():
                pipeline.rpush(PREFIX + user, *new)
                pipeline.ltrim(PREFIX + user, -self._most, -1)
                pipeline.expire(PREFIX + user, self._seconds)
            self._answered(pipeline.execute)

    def read(self, users: Sequence[str]) -> list[list[str]]:
        """See `Store`."""
        if not users:
            return []
        if time.monotonic() < self._paused_until:
            raise StoreError(f"Redis does not answer: a call of the last {PAUSE:g} seconds failed")
        with self._redis.pipeline(transaction=False) as pipeline:
            for user in users:
                pipeline.lrange(PREFIX + user, 0, -1)
            rows = self._answered(lambda: pipeline.execute(raise_on_error=False))
        for row in rows:
            # A key of this name that another program has written is no list, and no session.
            if isinstance(row, Exception) and not str(row).startswith("WRONGTYPE"):
                raise StoreError(f"Redis refuses to read: {row}") from row
        lists = [row if isinstance(row, list) else [] for row in rows]
        return [[entry.decode(errors="replace") for entry in row] for row in lists]

    def ping(self) -> None:
        """See `Store`."""
        self._answered(self._redis.ping)

    def _answered(self, call: Callable[[], Any]) -> Any:
        try:
            answer = call()
            self._paused_until = 0.0
            return answer
        except self._refusals as error:  # no pause: a full Redis still answers reads
            raise StoreError(f"Redis refuses: {error}") from error
        except self._errors as error:
            self._paused_until = time.monotonic() + PAUSE
            raise StoreError(f"Redis does not answer: {error}") from error


def open_store(address: str) -> Store:
    """The store of an address: `memory`, or `redis://HOST:PORT/NUMBER`.

    Raises:
        ValueError: Another kind of address.
    """
    if address == "memory":
        return MemoryStore()
    if address.startswith(("redis://", "rediss://", "unix://")):
        return RedisStore(address)
    raise ValueError(f"a store is 'memory' or redis://HOST:PORT/NUMBER; got {address!r}.")
