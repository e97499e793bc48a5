"""A pair takes the place of another one, and what was changed since goes with it."""

import contextlib
import dataclasses
import threading

import numpy as np
import pytest
from small_logs import entries, last
from two_trainings import (
    CALLS,
    CHECKS,
    DIM,
    NUM,
    add,
    ask,
    bundle,
    holds,
    items,
    pair,
    tower,
    wrong_rows,
)

from twotower.live import index as live_module
from twotower.live.entries import ADD
from twotower.live.index import LiveIndex, SwapRefused
from twotower.live.pair import Pair
from twotower.retrieval import build


def test_replay_into_a_pair_built_from_an_older_snapshot(live, log, backend):
    add(live, [50, 51])  # 1
    older = pair(keys=[*range(NUM), 50, 51], sequence=1, backend=backend)
    lacking = pair(keys=range(6, NUM), sequence=1, backend=backend)
    add(live, [52, 53])  # 2
    live.remove([5, 52, 50])  # 3
    live.add([50], items("A")([150]), "A")  # 4: back, with another vector
    live.remove([51])  # 5
    kept = [n for n in range(NUM) if n != 5]
    wanted = [*kept, 50, 53]
    vectors = items("A")(np.array([*kept, 150, 53]))
    assert holds(live, wanted, vectors)
    live.swap(older)
    assert live.pair is older and live.sequence == 5 and holds(live, wanted, vectors)
    assert live.search(ask([150]), 1).candidates.keys.tolist() == [[50]]
    # 5 and 51 were never in this one: their removal is passed over.
    live.swap(lacking)
    kept = range(6, NUM)
    assert holds(live, [*kept, 50, 53], items("A")(np.array([*kept, 150, 53])))
    assert add(live, [54]) == 6


def test_items_of_another_training_are_embedded_anew(live, backend):
    add(live, [50, 51, 52])
    live.remove([52])
    new = pair("B", backend=backend)
    with pytest.raises(SwapRefused, match=r"replay: 2 items .*\['A'\], not of 'B': pass embed"):
        live.swap(new)
    assert live.pair.model_version == "A" and len(new.retriever) == NUM
    with pytest.raises(SwapRefused, match=r"replay: vectors of keys .* hold NaN"):
        live.swap(new, embed=lambda keys: np.full((len(keys), DIM), np.nan))
    assert live.pair.model_version == "A" and len(new.retriever) == NUM
    asked = []

    def embed(keys):
        asked.extend(keys.tolist())
        return items("B")(keys)

    live.swap(new, embed)
    assert asked == [50, 51]  # not 52, which is gone
    assert holds(live, [*range(NUM), 50, 51])
    assert wrong_rows(live.search(ask([50, 51, 7]), 1), [50, 51, 7]) == 0


def test_a_bundle_with_other_keys_takes_no_changes_of_the_log(log):
    """A new training may list its items in another order: the log would remove another item."""
    old, new = bundle("A"), bundle("B")
    live = LiveIndex(Pair.from_bundle(old), log, CHECKS)
    new.id_hashes = np.uint64([*range(100, 105), 106, 105, *range(107, 100 + NUM), 1])
    live.remove([7])
    live.swap(Pair.from_bundle(new), items("B"))  # key 7 is the same item in both
    live.swap(Pair.from_bundle(old))
    live.remove([6])
    with pytest.raises(SwapRefused, match="replay: entry 2 of the log changes key 6"):
        live.swap(Pair.from_bundle(new), items("B"))
    assert live.pair.model_version == "A" and len(live.pair.retriever) == NUM - 2
    # Items that came at the end do not matter.
    new.id_hashes = np.uint64([*range(100, 100 + NUM), 1])
    live.swap(Pair.from_bundle(new), items("B"))
    assert holds(live, [n for n in range(NUM) if n not in (6, 7)])


def test_the_log_knows_in_which_bundle_a_key_was_changed(log):
    """Changes that were made while a third bundle was live are of its items, whichever is live
    now."""
    first, third = bundle("A"), bundle("B")
    third.id_hashes = np.uint64([*range(100, 105), 106, 105, *range(107, 100 + NUM)])
    live = LiveIndex(Pair.from_bundle(first), log, CHECKS)
    live.swap(Pair.from_bundle(third))
    live.remove([5])
    with pytest.raises(SwapRefused, match="entry 1 of the log changes key 5"):
        live.swap(Pair.from_bundle(first))
    live.swap(Pair.from_bundle(third))


def test_back_and_forth(live):
    first, second = live.pair, pair("B")
    add(live, [50])
    assert live.swap(second, items("B")) is first
    add(live, [60])
    live.remove([50, 4])
    # Each index goes on from where it was: the first needs 60, and not 50.
    asked = []
    live.swap(first, lambda keys: asked.extend(keys.tolist()) or items("A")(keys))
    kept = [n for n in range(NUM) if n != 4]
    assert asked == [60] and holds(live, [*kept, 60])
    # The second has all there is, though its `sequence` is still 0.
    live.swap(second)
    assert second.sequence == 0 and live.sequence == 3 and holds(live, [*kept, 60])
    # A swap with itself changes nothing.
    live.swap(live.pair)
    assert live.pair is second and holds(live, [*kept, 60])


def test_back_after_the_log_was_truncated(live, log):
    first, second = live.pair, pair("B")
    add(live, [50])
    live.swap(second, items("B"))
    log.truncate(1)
    live.swap(first)  # current up to 1: nothing is missing
    with pytest.raises(SwapRefused, match=r"after 0 are not in the log.*later snapshot"):
        live.swap(pair("B"), items("B"))
    assert holds(live, [*range(NUM), 50])


def test_what_is_added_while_a_swap_replays(live, log):
    # `embed` is called in the middle of a replay. While writers may go on, a thread adds an item to
    # the live index; once they may not, it only searches, which takes no lock.
    add(live, [50])
    added, searched = [50], []

    def embed(keys):
        if live._writing.locked():
            search = threading.Thread(
                target=lambda: searched.append(live.search(ask([7, *added]), 1)), daemon=True
            )
            search.start()
            search.join(5)
        else:
            added.append(50 + len(added))
            other = threading.Thread(target=add, args=(live, added[-1:]))
            other.start()
            other.join()
        return items("B")(keys)

    live.swap(pair("B"), embed)
    # One item a round, and the last of them under the lock, where the old pair still answers.
    assert added == [50, 51, 52, 53] and live_module.ROUNDS == 3
    assert [answer.model_version for answer in searched] == ["A"]
    assert wrong_rows(searched[0], [7, *added]) == 0
    assert live.sequence == last(log) == 4 and holds(live, [*range(NUM), *added])


def test_one_swap_at_a_time(live):
    # Two into one index would both replay into it. The second begins in the middle of the first.
    add(live, [50])
    new, others = pair("B"), []

    def embed(keys):
        if not others:
            others.append(threading.Thread(target=live.swap, args=(new, items("B"))))
            others[0].start()
            others[0].join(0.1)
            assert others[0].is_alive() and live.pair.model_version == "A"
        return items("B")(keys)

    assert live.swap(new, embed).model_version == "A"
    others[0].join()
    assert live.pair is new and holds(live, [*range(NUM), 50])


@pytest.mark.parametrize("caller", ["embed", "query tower"])
@pytest.mark.parametrize("call", CALLS)
def test_a_swap_that_would_wait_for_itself(live, log, tmp_path, call, caller):
    add(live, [50])
    errors = []

    def calls(inputs):
        CALLS[call](live, tmp_path)
        return items("B")(inputs) if caller == "embed" else tower("B")(inputs)

    def swap():
        made = pair("B")
        if caller == "query tower":
            made = dataclasses.replace(made, query_tower=calls)
        try:
            live.swap(made, calls if caller == "embed" else items("B"))
        except SwapRefused as error:
            errors.append(str(error))

    swapping = threading.Thread(target=swap, daemon=True)
    swapping.start()
    swapping.join(10)
    assert not swapping.is_alive()
    assert ["the swap would wait for itself" in error for error in errors] == [True]
    assert live.pair.model_version == "A" and entries(log) == [(ADD, [50])]
    # Nobody has to wait for ever after it.
    assert add(live, [51]) == 2
    live.swap(pair("B"), items("B"))
    assert holds(live, [*range(NUM), 50, 51])


@pytest.mark.parametrize("call", CALLS)
def test_an_embed_that_waits_for_a_thread(live, log, tmp_path, monkeypatch, call):
    """In each replay `embed` waits for a thread that adds an item and makes the call. Each is done
    or refused, and no thread waits for ever. The last replay holds the writers' lock, so both are
    refused."""
    monkeypatch.setattr(live_module, "SWAP_TIMEOUT", 0.2, raising=False)
    add(live, [50])
    kept, refused = [50], []

    def change():
        with contextlib.suppress(ValueError):
            add(live, [len(kept) + 50])
            kept.append(len(kept) + 50)
        try:
            CALLS[call](live, tmp_path)
        except ValueError as error:
            refused.append(str(error))

    def embed(keys):
        thread = threading.Thread(target=change, daemon=True)
        thread.start()
        thread.join()
        return items("B")(keys)

    swapping = threading.Thread(target=lambda: live.swap(pair("B"), embed), daemon=True)
    swapping.start()
    swapping.join(10)
    assert not swapping.is_alive() and live.pair.model_version == "B"
    assert "a swap has kept this call waiting for 0.2 seconds" in refused[-1]
    gone = {3} if call == "remove" else {*()}
    wanted = {*range(NUM), 50, 51, 52, 53, *([70] if call == "add" else [])} - gone
    assert holds(live, sorted(wanted)) and live.sequence == last(log)
    # Afterwards no call has to wait.
    assert add(live, [99]) == last(log)
    live.swap(pair("A"), items("A"))
    assert holds(live, sorted({*wanted, 99}))


def test_a_pair_built_from_the_live_items_lacks_nothing(live, log, monkeypatch):
    """It is built while an entry is in the log and not yet in the index: acknowledged later, it is
    not to be taken for one that the items hold."""
    logged, go_on, real = threading.Event(), threading.Event(), live.pair.retriever.add

    def slow(*arguments):
        logged.set()
        assert go_on.wait(10)
        real(*arguments)

    add(live, [50])
    monkeypatch.setattr(live.pair.retriever, "add", slow)
    adding = threading.Thread(target=add, args=(live, [51]))
    adding.start()
    assert logged.wait(10)
    found = live.items()
    assert found.sequence == 1 and sorted(found.keys) == [*range(NUM), 50]
    built = build.build(build.IndexConfig("exact"), found.keys, found.vectors)
    go_on.set()
    adding.join()
    assert last(log) == live.sequence == 2
    live.swap(Pair(tower("A"), built, "A", "A", found.sequence))
    assert live.pair.retriever is built and holds(live, [*range(NUM), 50, 51])
    # What would lose it is not to be had.
    assert not hasattr(log, "last")


def test_a_full_buffer_is_absorbed_by_a_swap(log, tmp_path, monkeypatch, backend):
    """No restart is needed, whether the buffer comes with a snapshot or from the log."""
    live = LiveIndex(pair(backend=backend), log, CHECKS)
    monkeypatch.setattr("twotower.retrieval.store.MAX_BUFFER", 3)
    with pytest.warns(UserWarning, match=r"snapshot: 4 vectors in the buffer, of 3 at most"):
        add(live, [50, 51, 52, 53])
    live.snapshot(tmp_path / "s")
    add(live, [54])
    new = Pair.from_snapshot(tmp_path / "s", bundle())
    assert len(new.retriever.state()["fresh_keys"]) == 4
    live.swap(new)
    assert holds(live, [*range(NUM), *range(50, 55)])
    assert len(live.pair.retriever.state()["fresh_keys"]) == 0
    add(live, [55], ["new"])
    with pytest.warns(UserWarning, match=r"6 vectors in the buffer"):
        live.swap(pair(backend=backend))
    assert holds(live, [*range(NUM), *range(50, 56)])
    assert len(live.pair.retriever.state()["fresh_keys"]) == 0
    assert wrong_rows(live.search(ask([50, 55, 7]), 1), [50, 55, 7]) == 0


def test_adds_race_swaps(live, log):
    acknowledged, refused, errors, done = [], 0, [], threading.Event()

    def write():
        nonlocal refused
        key = 1000
        while not done.is_set() or len(acknowledged) < 20:
            try:
                add(live, [key, key + 1])
                live.remove([key + 1])
            except ValueError as error:  # a swap came between the version and the add
                refused += "do not fit the live one" in str(error)
                if "do not fit the live one" not in str(error):
                    errors.append(error)
                    return
                continue
            acknowledged.append(key)
            key += 2
            if key >= 4094:
                return

    both = live.pair, pair("B")
    writer = threading.Thread(target=write)
    writer.start()
    for number in range(60):
        new = both[1 - number % 2]
        live.swap(new, items(new.model_version))
        assert set(acknowledged) <= set(live.pair.retriever.keys.tolist())
    done.set()
    writer.join()
    assert errors == [] and len(acknowledged) >= 20
    assert holds(live, [*range(NUM), *acknowledged])
    assert live.sequence == last(log) == 2 * len(acknowledged)
