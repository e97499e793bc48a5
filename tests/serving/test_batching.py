"""Requests that come together are answered together, and each gets its own answer."""

import asyncio
import threading
import time

import pytest

from twotower.serving.batching import Batcher


def test_who_waits_is_answered_by_the_next_call():
    batches: list[list[int]] = []

    def double(items):
        batches.append(list(items))
        time.sleep(0.02)
        return [ValueError("no 3") if item == 3 else 2 * item for item in items]

    async def run():
        batcher = Batcher(double, max_batch=4)
        first = asyncio.create_task(batcher.submit(0))
        await asyncio.sleep(0.005)
        rest = [batcher.submit(item) for item in range(1, 8)]
        found = [await first, *await asyncio.gather(*rest, return_exceptions=True)]
        batcher.close()
        return found

    found = asyncio.run(run())
    assert found[:3] == [0, 2, 4] and str(found[3]) == "no 3" and found[4:] == [8, 10, 12, 14]
    # The first began alone; what came meanwhile went together, at most four at a time.
    assert batches == [[0], [1, 2, 3, 4], [5, 6, 7]]


def test_a_call_that_fails_fails_its_batch_alone():
    def fail_once(items):
        if not failed:
            failed.append(True)
            raise OSError("disk full")
        return items

    failed: list[bool] = []

    async def run():
        batcher = Batcher(fail_once)
        with pytest.raises(OSError, match="disk full"):
            await batcher.submit(1)
        return await batcher.submit(2)

    assert asyncio.run(run()) == 2


@pytest.mark.parametrize("function", [lambda items: items[1:], lambda items: [*items, 9]])
def test_an_answer_that_is_missing_is_an_error_and_no_wait_for_ever(function):
    async def run():
        waiting = [Batcher(function).submit(item) for item in range(3)]
        return await asyncio.wait_for(asyncio.gather(*waiting, return_exceptions=True), 5)

    assert all("results for 1 items" in str(error) for error in asyncio.run(run()))


def test_an_observer_that_fails_is_an_error_and_no_wait_for_ever():
    def observe(size, waited):
        raise OSError("disk full")

    async def run():
        await asyncio.wait_for(Batcher(lambda items: items, observe=observe).submit(1), 5)

    with pytest.raises(OSError, match="disk full"):
        asyncio.run(run())


def test_who_has_gone_costs_nothing():
    release, seen = threading.Event(), []

    def wait(items):
        seen.extend(items)
        release.wait(5)
        return items

    async def run():
        batcher = Batcher(wait)
        first = asyncio.create_task(batcher.submit("first"))
        await asyncio.sleep(0.01)
        with pytest.raises(TimeoutError):
            await asyncio.wait_for(batcher.submit("gone"), 0.01)
        last = asyncio.create_task(batcher.submit("last"))
        await asyncio.sleep(0)
        release.set()
        return await first, await last

    assert asyncio.run(run()) == ("first", "last")
    assert seen == ["first", "last"]


def test_a_lone_request_waits_for_nobody():
    waits: list[float] = []

    async def run():
        batcher = Batcher(list, max_wait=30.0, observe=lambda size, wait: waits.append(wait))
        for item in range(3):
            await batcher.submit(item)
        # After a batch of two, one alone waits for a second, and not longer than allowed.
        await asyncio.gather(batcher.submit(1), batcher.submit(2))

    asyncio.run(asyncio.wait_for(run(), 20))
    assert len(waits) == 4 and max(waits) < 5
