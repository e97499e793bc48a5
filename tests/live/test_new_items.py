"""Items that no bundle had when they were added: the log knows them by the ids that came with
them, also once a bundle has another item at their key."""

import numpy as np
import pytest
from two_trainings import NUM, TABLE, add, bundle, holds, items

from twotower.bundle.exported_model import hashes_of_ids
from twotower.live.index import LiveIndex, SwapRefused
from twotower.live.log import WriteAheadLog
from twotower.live.pair import Checks, Pair

CHECKS = Checks({"request": np.array([3, 1])}, k=5)


def later(name):
    """A bundle of training B that has one item more than that of A."""
    made = bundle("B")
    more = hashes_of_ids(np.array([name], object))
    made.id_hashes = np.concatenate([made.id_hashes, more])
    return made


def logged(log):
    return [entry.id_hashes.tolist() for entry in log.since(log.truncated)]


def test_the_key_is_another_item_in_a_later_bundle(log):
    """What was done to item x is not done to item y, which has its key in the next training."""
    live = LiveIndex(Pair.from_bundle(bundle()), log, CHECKS)
    add(live, [NUM], ["x"])
    with pytest.raises(SwapRefused, match=f"entry 1 of the log changes key {NUM}, which was one"):
        live.swap(Pair.from_bundle(later("y")), items("B"))
    live.remove(np.array([NUM]))
    for change in (lambda: None, lambda: log.truncate(1)):  # the removal alone says as much
        change()
        pair = Pair.from_bundle(later("y"), sequence=log.truncated)
        with pytest.raises(ValueError, match=f"of the log changes key {NUM}"):
            LiveIndex(pair, log, embed=items("B"))


def test_the_key_is_the_same_item_in_a_later_bundle(log):
    live = LiveIndex(Pair.from_bundle(bundle()), log, CHECKS)
    add(live, [NUM], ["x"])
    live.swap(Pair.from_bundle(later("x")), items("B"))
    assert holds(live, range(NUM + 1))
    live.remove(np.array([NUM]))
    assert logged(log)[0] == logged(log)[1] != [0]


def test_the_id_outlives_the_log(log, path, tmp_path):
    """The log is truncated at a snapshot, which then has the id alone."""
    live = LiveIndex(Pair.from_bundle(bundle()), log)
    add(live, [NUM, NUM + 1], ["x", "z"])
    log.truncate(live.snapshot(tmp_path / "snapshot"))
    log.close()
    with WriteAheadLog(path) as log:
        live = LiveIndex(Pair.from_snapshot(tmp_path / "snapshot", bundle()), log)
        add(live, [NUM])  # known by now
        live.remove(np.array([NUM]))
        assert logged(log) == [hashes_of_ids(np.array(["x"], object)).tolist()] * 2
        with pytest.raises(ValueError, match=f"of the log changes key {NUM}"):
            LiveIndex(Pair.from_bundle(later("y"), sequence=1), log, embed=items("B"))


@pytest.mark.parametrize(
    "ids, match",
    [
        (None, rf"keys \[{NUM}\] are of no item of the live bundle. Give ids"),
        ([], "ids must be 2 texts"),
        (["x"], "ids must be 2 texts"),
        (["x", ""], "ids must be 2 texts"),
        (["x", 7], "ids must be 2 texts"),
        ("xy", "ids must be 2 texts"),
        (["x", "y"], "key 3 is another item in the live bundle than 'y'"),
    ],
)
def test_ids_that_are_refused(log, ids, match):
    live = LiveIndex(Pair.from_bundle(bundle()), log)
    with pytest.raises(ValueError, match=match):
        live.add(np.array([NUM, 3]), TABLE[[NUM, 3]], "A", ids)
    assert live.sequence == 0 and log.truncated == 0 and logged(log) == []
