"""Threads in which sources run. They let the process end even if a source hangs."""

import concurrent.futures
import queue
import threading
import weakref
from collections.abc import Callable
from typing import Any


class Threads:
    """Runs calls in threads, at most `most` at a time; further calls wait.

    Like `ThreadPoolExecutor`, but with daemon threads. The interpreter waits at exit for the
    threads of an executor, and not for daemons, so a call that hangs does not keep the process from
    ending. Threads start when calls need them, and end when the object is closed or
    garbage-collected.

    Args:
        name: Name of the threads, for debuggers.
        most: Largest number of threads, 1 or more.

    >>> threads = Threads("example", 2)
    >>> threads.submit(max, 3, 5).result()
    5
    >>> threads.close()
    """

    def __init__(self, name: str, most: int) -> None:
        self._name, self._most, self._started = name, most, 0
        self._calls: queue.SimpleQueue = queue.SimpleQueue()
        self._idle, self._lock = threading.Semaphore(0), threading.Lock()
        self._end = weakref.finalize(self, _end, self._calls, most)
        self._end.atexit = False

    def submit(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        """The future of the call; it can be cancelled until a thread takes it.

        Raises:
            RuntimeError: After `close`.
        """
        future: concurrent.futures.Future = concurrent.futures.Future()
        with self._lock:
            self._require_open()
            self._calls.put((future, function, arguments))
            if not self._idle.acquire(blocking=False) and self._started < self._most:
                self._started += 1
                given = self._calls, self._idle
                threading.Thread(target=_work, args=given, name=self._name, daemon=True).start()
        return future

    def here(self, function: Callable[..., Any], *arguments: Any) -> concurrent.futures.Future:
        """Like `submit`, but runs in the thread of the caller; the returned future is done.

        Raises:
            RuntimeError: After `close`.
        """
        self._require_open()
        future: concurrent.futures.Future = concurrent.futures.Future()
        _run(future, function, arguments)
        return future

    def _require_open(self) -> None:
        if not self._end.alive:
            raise RuntimeError(f"{self._name} is closed, and answers no more.")

    def close(self) -> None:
        """Cancels waiting calls and ends the threads, without waiting for calls that hang."""
        with self._lock:
            self._end()


def _work(calls: queue.SimpleQueue, idle: threading.Semaphore) -> None:
    while (call := calls.get()) is not None:
        future, function, arguments = call
        if future.set_running_or_notify_cancel():
            _run(future, function, arguments)
        del call, future, function, arguments  # while it waits for the next, nothing is kept
        idle.release()


def _run(future: concurrent.futures.Future, function: Callable[..., Any], arguments: tuple) -> None:
    try:
        future.set_result(function(*arguments))
    except BaseException as error:
        future.set_exception(error)


def _end(calls: queue.SimpleQueue, most: int) -> None:
    try:
        while True:
            calls.get_nowait()[0].cancel()
    except queue.Empty:
        pass
    for _ in range(most):
        calls.put(None)
