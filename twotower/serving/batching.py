"""Batcher: requests that arrive at the same time are answered by one call."""

import asyncio
import concurrent.futures
import time
from collections.abc import Callable, Sequence
from typing import Any, Generic, TypeVar

Item = TypeVar("Item")
Result = TypeVar("Result")


class Batcher(Generic[Item, Result]):
    """Answers items that arrive at about the same time by one call.

    While a call is under way, new items gather for the next one. An item that arrives alone is
    answered at once. Only after a batch of several items does the next batch wait: until as many
    items are there again, and for at most `max_wait` seconds.

        batcher = Batcher(answer_all, max_batch=64, max_wait=0.002)
        answer = await batcher.submit(request)

    Args:
        function: Items -> a result or an exception for each. It runs in a thread of the batcher,
            one call at a time.
        max_batch: Most items of a call.
        max_wait: Seconds that the first item of a batch may wait for others.
        observe: Called with the number of items of each batch and the seconds that its first one
            waited.
    """

    def __init__(
        self,
        function: Callable[[Sequence[Item]], Sequence[Result | Exception]],
        max_batch: int = 64,
        max_wait: float = 0.002,
        observe: Callable[[int, float], None] | None = None,
    ) -> None:
        self._function, self._max_batch, self._max_wait = function, max_batch, max_wait
        self._observe = observe
        self._waiting: list[tuple[Item, asyncio.Future, float]] = []
        self._task: asyncio.Task | None = None
        self._arrived: asyncio.Event | None = None
        self._last = 1
        self._thread = concurrent.futures.ThreadPoolExecutor(1, "batches")

    @property
    def queued(self) -> int:
        """Number of items that wait for their call."""
        return len(self._waiting)

    async def submit(self, item: Item) -> Result:
        """The item's result.

        Raises:
            Exception: The one that `function` returned for the item, or raised.
        """
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._waiting.append((item, future, time.perf_counter()))
        if self._arrived is not None:
            self._arrived.set()
        if self._task is None:
            self._task = asyncio.create_task(self._run())
        return await future

    async def _run(self) -> None:
        """Calls until nothing waits."""
        loop = asyncio.get_running_loop()
        try:
            while self._waiting:
                if self._last > 1 and self._max_wait > 0:
                    await self._gather(min(self._last, self._max_batch))
                batch = self._waiting[: self._max_batch]
                del self._waiting[: self._max_batch]
                # A client that has gone, or whose deadline has passed, needs no answer.
                batch = [entry for entry in batch if not entry[1].done()]
                if not batch:
                    continue
                self._last = len(batch)
                items = [item for item, _, _ in batch]
                results: Sequence[Any]
                try:
                    if self._observe is not None:
                        self._observe(len(batch), time.perf_counter() - batch[0][2])
                    results = await loop.run_in_executor(self._thread, self._function, items)
                    if len(results) != len(batch):  # the others would wait for ever
                        raise RuntimeError(f"{len(results)} results for {len(batch)} items")
                except Exception as error:
                    results = [error] * len(batch)
                for (_, future, _), result in zip(batch, results):
                    if future.done():
                        continue
                    if isinstance(result, Exception):
                        future.set_exception(result)
                    else:
                        future.set_result(result)
        finally:
            self._task = None

    async def _gather(self, count: int) -> None:
        """Waits until `count` items are there, at most `max_wait` since the first arrived."""
        end = self._waiting[0][2] + self._max_wait
        self._arrived = asyncio.Event()
        try:
            while len(self._waiting) < count and (left := end - time.perf_counter()) > 0:
                self._arrived.clear()
                try:
                    await asyncio.wait_for(self._arrived.wait(), left)
                except TimeoutError:
                    return
        finally:
            self._arrived = None

    def close(self) -> None:
        """Ends the thread after the call under way."""
        self._thread.shutdown(wait=True)
