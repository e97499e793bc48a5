"""Items come and go: each change is logged before it is applied, and one at a time."""

import sqlite3
import threading
import time

import numpy as np
import pytest
from backends import needs
from forks import in_a_fork
from small_logs import entries, last
from two_trainings import (
    CALLS,
    DIM,
    NAN,
    NUM,
    TABLE,
    VECTOR,
    add,
    ask,
    holds,
    index,
    items,
    pair,
    tower,
    wrong_rows,
)

from twotower.live.entries import ADD, REMOVE
from twotower.live.index import LiveIndex
from twotower.live.pair import Pair
from twotower.retrieval.store import Store


def test_add_and_remove(live, log):
    assert (last(log), live.sequence) == (0, 0)
    assert add(live, [50, 51]) == 1
    assert add(live, [7, 52]) == 2  # 7 was there: replaced
    assert live.remove([51, 3, 3]) == 3
    assert entries(log) == [(ADD, [50, 51]), (ADD, [7, 52]), (REMOVE, [51, 3, 3])]
    assert live.sequence == last(log) == 3
    assert holds(live, [n for n in range(NUM) if n != 3] + [50, 52])
    assert wrong_rows(live.search(ask([50, 7, 52]), 1), [50, 7, 52]) == 0
    assert live.search(ask([51, 3]), NUM).candidates.counts.tolist() == [NUM, NUM]
    assert not np.isin(live.search(ask([51, 3]), NUM).candidates.keys, [51, 3]).any()


def test_a_replaced_vector_is_the_last_one(live, log):
    live.add([7], items("A")([100]), "A")
    live.add([7], items("A")([101]), "A")
    assert live.search(ask([101]), 1).candidates.keys.tolist() == [[7]]
    again = LiveIndex(pair(), log)
    assert again.search(ask([101]), 1).candidates.keys.tolist() == [[7]]


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda live: live.remove([5, 999]), r"keys \[999\] are not in the index"),
        (lambda live: live.remove([1.5]), "keys must be integers"),
        (lambda live: live.add([60], VECTOR[:, :-1], "A"), r"Expected vectors \[1, 16\]"),
        (lambda live: live.add([60, 61], VECTOR, "A"), r"Expected vectors \[2, 16\]"),
        (lambda live: live.add([60], NAN, "A"), r"keys \[60\] hold NaN"),
        (lambda live: live.add([60], np.full((1, DIM), 1e300), "A"), r"keys \[60\] hold"),
        (lambda live: live.add([60, 60], TABLE[:2], "A"), r"\[60\] stand twice"),
        (lambda live: live.add([-1], VECTOR, "A"), "must not be negative"),
        (lambda live: live.add([60], VECTOR, "B"), "training 'B' do not fit the live one, 'A'"),
    ],
)
def test_bad_input_is_neither_logged_nor_applied(live, log, change, match):
    with pytest.raises(ValueError, match=match):
        change(live)
    assert (last(log), live.sequence) == (0, 0) and holds(live, range(NUM))
    assert add(live, [60]) == 1  # and the next one goes well


def test_nothing_is_applied_that_could_not_be_logged(live, log, monkeypatch):
    def full(*_):
        raise sqlite3.OperationalError("database or disk is full")

    with monkeypatch.context() as patched:
        patched.setattr(log, "append", full)
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            add(live, [60])
        with pytest.raises(sqlite3.OperationalError, match="disk is full"):
            live.remove([5])
    assert live.sequence == 0 and holds(live, range(NUM))
    assert add(live, [60]) == 1


def test_what_was_logged_and_not_applied_comes_later(live, log, monkeypatch):
    def no_memory(*_):
        raise MemoryError

    with monkeypatch.context() as patched:
        patched.setattr(live.pair.retriever, "add", no_memory)
        with pytest.raises(MemoryError):
            add(live, [60])
    # As a crash between log and index would leave it: logged, so it comes with a restart ...
    assert (last(log), live.sequence) == (1, 0) and holds(live, range(NUM))
    assert holds(LiveIndex(pair(), log), [*range(NUM), 60])
    # ... and otherwise with the next change, which already knows of it.
    assert live.remove([60]) == 2
    assert live.sequence == 2 and holds(live, range(NUM))


def test_cosine_comes_back_to_the_bit(log):
    # Under cosine an index scales vectors; scaled twice, 7 of these would differ in the last bit.
    vectors = np.float32(np.random.default_rng(1).normal(size=(4000, DIM)))
    plain, live, again = [Pair(tower("A"), index(metric="cosine"), "A", "A") for _ in range(3)]
    plain.retriever.add(np.arange(4000), vectors)
    with pytest.warns(UserWarning, match="40 of 40 vectors are tombstones"):
        LiveIndex(live, log).add(np.arange(4000), vectors, "A")
    LiveIndex(again, log)
    for one in (live, again):
        for wanted, got in zip(plain.retriever.live(), one.retriever.live()):
            np.testing.assert_array_equal(wanted, got)


def test_the_caller_may_reuse_its_arrays(live):
    keys, vectors = np.array([60]), items("A")(np.array([60]))
    live.add(keys, vectors, "A")
    keys[:], vectors[:] = 3, 0
    assert holds(live, [*range(NUM), 60])


def test_items_are_of_one_moment(log, monkeypatch):
    """An item of the main tier is replaced while the tiers are read: it is in one of them."""
    live = LiveIndex(pair(backend=needs("tiered")), log)
    add(live, [50])
    real, replaced = Store.live, []

    def interrupted(store):
        found = real(store)
        if not replaced:
            replaced.append(add(live, [7]))
        return found

    monkeypatch.setattr(Store, "live", interrupted)
    found = live.items()
    assert replaced and sorted(found.keys) == [*range(NUM), 50]


def test_what_a_forked_process_changes_is_refused(live, log, tmp_path):
    add(live, [50])
    calls = [*CALLS.values(), lambda live, folder: live.search(ask([7]), 1)]
    for number, call in enumerate(calls):
        text = in_a_fork(lambda call=call: call(live, tmp_path))
        assert "forked from it" in text if number < len(CALLS) else text == "done"
    assert add(live, [51]) == 2 and entries(log) == [(ADD, [50]), (ADD, [51])]


def test_writers_take_turns(live, log, monkeypatch):
    real, inside, most = live.pair.retriever.add, [], []

    def slow(*arguments):
        inside.append(1)
        most.append(len(inside))
        time.sleep(0.002)
        real(*arguments)
        inside.pop()

    monkeypatch.setattr(live.pair.retriever, "add", slow)
    keys = np.arange(1000, 1040).reshape(4, 10)
    threads = [
        threading.Thread(target=lambda row=row: [add(live, [key]) for key in row]) for row in keys
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert set(most) == {1} and last(log) == 40
    assert holds(live, [*range(NUM), *range(1000, 1040)])
