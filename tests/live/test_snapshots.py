"""Snapshots of the live index, and restarts from them."""

import json
import threading

import pytest
from two_trainings import CHECKS, NUM, add, ask, bundle, holds, items, pair, wrong_rows

from twotower.live import index as live_module
from twotower.live.index import LiveIndex
from twotower.live.log import WriteAheadLog
from twotower.live.pair import Pair
from twotower.retrieval import build
from twotower.storage import description


def test_from_bundle(log, backend):
    made = Pair.from_bundle(bundle("B"), backend, sequence=0)
    assert (made.tower_version, made.index_version, made.model_version) == ("B", "B", "B")
    assert made.retriever.backend == backend and made.sequence == 0
    assert wrong_rows(LiveIndex(made, log).search(ask([5, 6]), 1), [5, 6]) == 0
    assert Pair.from_bundle(bundle()).retriever.backend == "exact"


def test_snapshot_truncate_restart(tmp_path, backend):
    folder = tmp_path / "new" / "snapshot"
    with WriteAheadLog(tmp_path / "log") as log:
        live = LiveIndex(pair(backend=backend), log, CHECKS)
        add(live, [50, 51])
        live.remove([5])
        assert live.snapshot(folder) == 2
        log.truncate(2)
        add(live, [52])
        live.remove([50])
    kept = [n for n in range(NUM) if n != 5]
    with WriteAheadLog(tmp_path / "log") as log:
        loaded = Pair.from_snapshot(folder, bundle())
        assert loaded.sequence == 2 and loaded.retriever.backend == backend
        again = LiveIndex(loaded, log, CHECKS)
        assert again.sequence == 4 and holds(again, [*kept, 51, 52])
        assert wrong_rows(again.search(ask([51, 52, 9]), 1), [51, 52, 9]) == 0
        # Without the snapshot the truncated entries are missing, and that is not a start.
        with pytest.raises(ValueError, match="start from a later snapshot"):
            LiveIndex(pair(), log)
        # A second snapshot takes the place of the first.
        add(again, [53], ["new"])
        assert again.snapshot(folder) == 5
        assert [path.name for path in folder.parent.iterdir()] == ["snapshot"]
        log.truncate(5)
        assert holds(LiveIndex(Pair.from_snapshot(folder, bundle()), log), [*kept, 51, 52, 53])


def test_a_snapshot_after_a_swap_is_of_the_new_training(live, tmp_path, log):
    add(live, [50])
    live.swap(pair("B"), items("B"))
    live.snapshot(tmp_path / "s")
    with pytest.raises(ValueError, match="vectors of model 'B', not of 'A'"):
        Pair.from_snapshot(tmp_path / "s", bundle("A"))
    assert holds(LiveIndex(Pair.from_snapshot(tmp_path / "s", bundle("B")), log), [*range(NUM), 50])


def test_half_a_copy_over_a_snapshot(live, tmp_path):
    """It has the later number and the earlier index, so a restart would lose item 51."""
    add(live, [50])
    live.snapshot(tmp_path / "earlier")
    add(live, [51])
    live.snapshot(tmp_path / "later")
    (tmp_path / "earlier/live.json").write_bytes((tmp_path / "later/live.json").read_bytes())
    with pytest.raises(ValueError, match=r"index\.json is truncated or changed"):
        Pair.from_snapshot(tmp_path / "earlier", bundle())
    assert Pair.from_snapshot(tmp_path / "later", bundle()).sequence == 2


def test_a_snapshot_of_an_earlier_version(live, tmp_path):
    """It does not list its index."""
    add(live, [50])
    live.snapshot(tmp_path / "s")
    entries = json.loads((tmp_path / "s/live.json").read_text())
    entries.pop("files")
    description.write(tmp_path / "s/live.json", entries)
    assert Pair.from_snapshot(tmp_path / "s", bundle()).sequence == 1


def test_no_change_in_the_middle_of_a_snapshot(live, tmp_path, monkeypatch):
    # Otherwise the files could be of two moments.
    save, writers = build.save, []

    def slow(*arguments):
        writers.append(threading.Thread(target=add, args=(live, [50])))
        writers[0].start()
        writers[0].join(0.1)
        assert writers[0].is_alive()
        assert wrong_rows(live.search(ask([7]), 1), [7]) == 0
        save(*arguments)

    monkeypatch.setattr(build, "save", slow)
    assert live.snapshot(tmp_path / "s") == 0
    writers[0].join()
    assert live.sequence == 1
    assert len(Pair.from_snapshot(tmp_path / "s", bundle()).retriever) == NUM


def test_an_interrupted_snapshot_leaves_the_old_one(live, tmp_path, monkeypatch):
    add(live, [50])
    live.snapshot(tmp_path / "s")
    add(live, [51])

    def full(*_):
        raise OSError("no space left on device")

    for name in ("sync", "description"):
        with monkeypatch.context() as patched:
            patched.setattr(live_module, name, full if name == "sync" else None)
            with pytest.raises((OSError, AttributeError)):
                live.snapshot(tmp_path / "s")
        assert Pair.from_snapshot(tmp_path / "s", bundle()).sequence == 1
    assert add(live, [52]) == 3  # the writers' lock is free again


@pytest.mark.parametrize("text", [None, "", "[]", "{}", '{"format_version": 2, "sequence": "x"}'])
def test_what_is_no_snapshot(live, tmp_path, text):
    live.snapshot(tmp_path / "s")
    path = tmp_path / "s" / "live.json"
    path.unlink() if text is None else path.write_text(text)
    with pytest.raises(ValueError, match=r"live\.json does not describe a snapshot"):
        Pair.from_snapshot(tmp_path / "s", bundle())


def test_a_snapshot_of_another_format(live, tmp_path):
    live.snapshot(tmp_path / "s")
    path = tmp_path / "s" / "live.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"format_version": 3}))
    with pytest.raises(ValueError, match=r"format 3 is newer than this code reads \(2\)"):
        Pair.from_snapshot(tmp_path / "s", bundle())


def test_a_snapshot_meets_no_other_log(live, tmp_path):
    """A log that was lost and begun anew soon has as many entries as the snapshot had."""
    add(live, [50])
    live.snapshot(tmp_path / "s")
    loaded = Pair.from_snapshot(tmp_path / "s", bundle())
    with WriteAheadLog(tmp_path / "new") as new:
        other = LiveIndex(pair(), new)
        add(other, [60])
        add(other, [61])
        with pytest.raises(ValueError, match="another entry 1 than the snapshot"):
            LiveIndex(loaded, new)


# name -> where a snapshot goes whose log is in `data/log`.
SWALLOWS = {
    "its folder": lambda data: data,
    "a folder above": lambda data: data.parent,
    "by dots": lambda data: data / "new" / "..",
    "a link to its folder": lambda data: linked(data.parent / "link", data),
    "a link to a folder above": lambda data: linked(data / "link", data.parent),
    "the log": lambda data: data / "log",
    "a link to the log": lambda data: linked(data.parent / "link", data / "log"),
    "its journal": lambda data: data / "log-journal",
    "another file of it": lambda data: data / "log-wal",
}


def linked(link, target):
    link.symlink_to(target)
    return link


@pytest.mark.parametrize("name", SWALLOWS)
@pytest.mark.parametrize("through_a_link", [False, True])
def test_a_snapshot_never_takes_the_log_with_it(tmp_path, monkeypatch, name, through_a_link):
    data = tmp_path / "data"
    data.mkdir()
    path = linked(tmp_path / "outside", data / "log") if through_a_link else data / "log"
    with WriteAheadLog(path) as log:
        live = LiveIndex(pair(), log)
        add(live, [50])
        directory = SWALLOWS[name](data)
        before = sorted(tmp_path.rglob("*"))
        with pytest.raises(ValueError, match=r"is or holds the log|lays a file beside the log"):
            live.snapshot(directory)
        assert sorted(tmp_path.rglob("*")) == before
        add(live, [51])
        # Beside it, and even in a folder below, is right.
        assert live.snapshot(data / "snapshot") == 2
        assert live.snapshot(tmp_path / "data2") == 2
    with WriteAheadLog(path) as log:
        assert holds(LiveIndex(pair(), log), [*range(NUM), 50, 51])


def test_a_log_in_a_folder_with_the_name_of_a_leftover(tmp_path):
    # Only what a killed snapshot left is cleaned, and a log is none of that.
    folder = tmp_path / ".s.partial-aaaaaa12"
    folder.mkdir()
    with WriteAheadLog(folder / "log") as log:
        live = LiveIndex(pair(), log)
        add(live, [50])
        live.snapshot(tmp_path / "s")
        add(live, [51])
    with WriteAheadLog(folder / "log") as log:
        assert holds(LiveIndex(pair(), log), [*range(NUM), 50, 51])
