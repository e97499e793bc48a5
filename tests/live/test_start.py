"""A live index starts with what the log has and its index has not, and holds no more than the
catalogue meanwhile."""

import tracemalloc
import warnings

import numpy as np
import pytest
from two_trainings import DIM, NUM, add, ask, bundle, holds, index, items, pair, tower, wrong_rows

from twotower.bundle.exported_model import hashes_of_ids
from twotower.live.entries import ADD, REMOVE
from twotower.live.index import LiveIndex
from twotower.live.pair import Pair
from twotower.retrieval import build


def test_tower_and_index_of_two_trainings_never_start(log):
    with pytest.raises(ValueError, match="one training; got 'A' and 'B'"):
        LiveIndex(Pair(tower("A"), index("A"), "A", "B"), log)


def test_start_replays_what_the_index_does_not_hold(live, log):
    add(live, [50])
    add(live, [51])
    live.remove([5])
    kept = [n for n in range(NUM) if n != 5]
    assert holds(LiveIndex(pair(), log), [*kept, 50, 51])
    # An index that holds entry 1 does not get it again: 50 stays as it was built, 49 here.
    vectors = items("A")(np.array([*range(NUM), 49]))
    built = build.build(build.IndexConfig("exact"), np.array([*range(NUM), 50]), vectors)
    at_one = LiveIndex(Pair(tower("A"), built, "A", "A", sequence=1), log)
    assert at_one.sequence == 3
    assert holds(at_one, [*kept, 50, 51], items("A")(np.array([*kept, 49, 51])))


def test_start_under_another_training(live, log):
    add(live, [50, 51])
    live.remove([51])
    with pytest.raises(ValueError, match=r"1 items were added .*\['A'\], not of 'B': pass embed"):
        LiveIndex(pair("B"), log)
    assert holds(LiveIndex(pair("B"), log, embed=items("B")), [*range(NUM), 50])


def test_start_with_a_bundle_in_which_keys_are_other_items(log):
    """A new training lists items 5 and 6 the other way around, and ends with a new item."""
    new, hashes = bundle("B"), [*range(100, 105), 106, 105, *range(107, 100 + NUM)]
    new.id_hashes = np.concatenate([np.uint64(hashes), hashes_of_ids(np.array(["new"], object))])
    other = Pair.from_bundle(new)
    live = LiveIndex(Pair.from_bundle(bundle("A")), log)
    live.remove([3])
    add(live, [NUM], ["new"])  # which no bundle of training A names
    # These changes are of the same items in both.
    assert holds(LiveIndex(other, log, embed=items("B")), [n for n in range(NUM + 1) if n != 3])
    live.remove([6])
    for change in (lambda: None, lambda: add(live, [6])):
        change()
        with pytest.raises(
            ValueError,
            match=r"entry 3 of the log changes key 6, .* training 'A' .* training 'B'\. Start",
        ):
            LiveIndex(Pair.from_bundle(new), log, embed=items("B"))
    assert holds(LiveIndex(Pair.from_bundle(bundle("A")), log), [*range(3), *range(4, NUM + 1)])


def test_a_log_that_was_lost(live, log):
    add(live, [50])
    with pytest.raises(
        ValueError, match=r"after 7 are not in the log.*another log, or this log was"
    ):
        LiveIndex(pair(sequence=7), log)


def test_a_full_buffer_is_said_once_and_absorbed_at_the_next_start(live, log, monkeypatch, backend):
    monkeypatch.setattr("twotower.retrieval.store.MAX_BUFFER", 3)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        add(live, [50, 51, 52])
        with pytest.raises(UserWarning, match=r"4 vectors in the buffer, of 3 at most"):
            add(live, [53])
        add(live, [54])
    assert len(live.pair.retriever.state()["fresh_keys"]) == 5
    with pytest.warns(UserWarning, match=r"5 vectors in the buffer, of 3 at most"):
        again = LiveIndex(pair(backend=backend), log)
    assert len(again.pair.retriever.state()["fresh_keys"]) == 0
    assert holds(again, [*range(NUM), *range(50, 55)])
    assert wrong_rows(again.search(ask([50, 54, 7]), 1), [50, 54, 7]) == 0


def replay_peak(log, catalogue):
    """Bytes that a replay allocates at most, beside what the index holds behind it."""
    base = Pair(tower("A"), catalogue, "A", "A")
    tracemalloc.start()
    live = LiveIndex(base, log)
    held, peak = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    return live, peak - held, log.path.stat().st_size


def test_a_replay_holds_no_more_than_the_catalogue(log):
    """300 entries of 100 items: 99 that the next entry replaces, and one that stays."""
    log._connection.execute("PRAGMA synchronous = OFF")
    vectors = np.float32(np.random.default_rng(0).normal(size=(100, 64)))
    for number in range(300):
        log.append(ADD, "A", np.append(np.arange(99), 1000 + number), vectors + number)
    catalogue = build.build(build.IndexConfig("exact"), np.arange(99), vectors[:99])
    live, beside, size = replay_peak(log, catalogue)
    # 399 vectors of 256 bytes, a few times over; the log has 30,000 of them.
    assert size > 30_000 * 256 and beside < 10 * 399 * 256
    assert len(live.pair.retriever) == 399
    keys, stored = live.pair.retriever.live()
    np.testing.assert_array_equal(stored[keys == 5][0], vectors[5] + 299)
    np.testing.assert_array_equal(stored[keys == 1200][0], vectors[99] + 200)


def test_a_replay_forgets_what_came_and_went(log):
    log._connection.execute("PRAGMA synchronous = OFF")
    for number in range(0, 40_000, 100):
        log.append(ADD, "A", np.arange(number, number + 100) + 10**6, np.ones((100, DIM)))
        log.append(REMOVE, "A", np.arange(number, number + 100) + 10**6)
    log.append(REMOVE, "A", [3])
    live, beside, size = replay_peak(log, index())
    assert size > 40_000 * DIM * 4 and beside < 200_000
    assert holds(live, [n for n in range(NUM) if n != 3])


@pytest.mark.slow
def test_a_million_entries(log):
    """Replayed within a few times the catalogue; and the file gets small again."""
    log._connection.execute("PRAGMA synchronous = OFF")
    num, dim = 1_000_000, 64
    vectors = np.float32(np.random.default_rng(0).normal(size=(1000, dim)))
    log._connection.execute("BEGIN")
    for number in range(num):
        log.append(ADD, "A", [number], vectors[number % 1000, None] + number)
    log._connection.execute("COMMIT")
    catalogue = build.build(build.IndexConfig("exact"), np.arange(1000), vectors)
    live, beside, size = replay_peak(log, catalogue)
    print(f"log {size / 1e6:.0f} MB, beside the index {beside / 1e6:.0f} MB at most")
    assert beside < 5 * num * dim * 4 and len(live.pair.retriever) == num
    log.truncate(live.sequence)
    assert log.path.stat().st_size < 100_000
