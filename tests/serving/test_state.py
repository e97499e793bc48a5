"""State outside of bundles: sessions in memory and in Redis, events and items on disk."""

import shutil
import socket
import sqlite3
import subprocess
import time

import pyarrow.parquet as parquet
import pytest

from twotower.serving.events import EventLog
from twotower.serving.journal import Journal
from twotower.serving.sessions import Deed, Session, Sessions
from twotower.serving.store import MemoryStore, RedisStore, StoreError, open_store


@pytest.fixture(scope="module")
def redis_url(tmp_path_factory):
    """Debian's redis-server on a free port of the loopback interface."""
    program = shutil.which("redis-server")
    if program is None:
        pytest.skip("no redis-server here: apt-get install redis-server")
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    folder = tmp_path_factory.mktemp("redis")
    arguments = ["--bind", "127.0.0.1", "--port", str(port), "--save", "", "--dir", str(folder)]
    process = subprocess.Popen([program, *arguments], stdout=subprocess.DEVNULL)
    url = f"redis://127.0.0.1:{port}/0"
    for _ in range(200):
        try:
            RedisStore(url).ping()
            break
        except Exception:
            time.sleep(0.05)
    yield url
    process.terminate()
    process.wait(10)


@pytest.fixture(params=["memory", "redis"])
def make_store(request):
    """Makes a store: each call another client of the same Redis."""
    if request.param == "memory":
        store = MemoryStore(most=3)
        return lambda: store
    url = request.getfixturevalue("redis_url")
    return lambda: RedisStore(url, most=3)


def test_sessions_are_shared_and_keep_the_last_events(make_store):
    first, second = Sessions(make_store()), Sessions(make_store())
    events = [("u1", Deed(item, "watch", number)) for number, item in enumerate("abcd")]
    first.add([*events, ("\u00fc \n", Deed("a", "skip", 9, 2.5))])
    found, other, nobody = second.of(["u1", "\u00fc \n", ""])
    assert [deed.item_id for deed in found.liked] == ["b", "c", "d"]
    assert other.refused == ["a"] and nobody.liked == ()
    # The next event, through the other client.
    second.add([("u1", Deed("b", "skip", 5)), ("u1", Deed("c", "impression", 6))])
    (found,) = first.of(["u1"])
    assert [deed.item_id for deed in found.liked] == ["c", "d"]
    assert found.refused == ["b"] and found.shown == {"c": 1}
    # Any number of impressions pushes out none of what the user did.
    second.add([("u1", Deed("e", "impression", 7))] * 4)
    (found,) = first.of(["u1"])
    assert [deed.item_id for deed in found.liked] == ["c", "d"] and found.shown == {"e": 3}


def test_a_session_is_in_the_order_of_its_times():
    """An event that arrives late, or while the clock went back, is no newer than it is."""
    deeds = [Deed("a", "watch", 30), Deed("b", "watch", 10), Deed("c", "skip", 20)]
    late = Deed("c", "click", 15)
    session = Session.of([*deeds, late])
    assert [deed.item_id for deed in session.liked] == ["b", "a"] and session.refused == ["c"]


def test_an_address_of_no_store():
    with pytest.raises(ValueError, match="a store is 'memory' or redis://"):
        open_store("file:///tmp")
    with pytest.raises(StoreError, match="does not answer"):
        open_store("redis://127.0.0.1:1/0").ping()


def test_a_store_that_hangs_is_waited_for_once_in_a_while(redis_url, monkeypatch):
    with socket.create_server(("127.0.0.1", 0)) as silent:  # accepts, never answers
        store = RedisStore(f"redis://127.0.0.1:{silent.getsockname()[1]}/0")
        calls, pipeline = [], store._redis.pipeline
        monkeypatch.setattr(
            store._redis, "pipeline", lambda **kw: calls.append(1) or pipeline(**kw)
        )
        for _ in range(5):
            with pytest.raises(StoreError, match="does not answer"):
                store.read(["u1"])
        assert len(calls) == 1  # the others failed at once
        # Events are still written. Once one is accepted, sessions are read again.
        store._redis = RedisStore(redis_url)._redis
        store.append({"pause": ["a"]})
        assert store.read(["pause"]) == [["a"]]
        # Without events, sessions are read again after the pause.
        store._paused_until = time.monotonic() + 60
        with pytest.raises(StoreError):
            store.read(["pause"])
        store._paused_until = time.monotonic()
        assert store.read(["pause"]) == [["a"]]


def event(number: int) -> dict:
    return {"user_id": "u", "item_id": f"i{number}", "timestamp": number, "event": "click"}


def logged(folder) -> list[str]:
    """Items of all part files."""
    tables = [parquet.read_table(path) for path in sorted(folder.glob("*.parquet"))]
    return [item for table in tables for item in table["item_id"].to_pylist()]


def test_each_event_is_there_once_whatever_a_crash_left(tmp_path):
    folder = tmp_path / "events"
    log = EventLog(folder, rows=3)
    log.append([event(0), event(1)])
    assert logged(folder) == []
    log.flush_full()  # two are too few
    log.append([event(2)])
    assert logged(folder) == [] and log.waiting == 3
    log.flush_full()  # three make a part file
    assert logged(folder) == ["i0", "i1", "i2"] and log.waiting == 0
    log.append([event(3)])
    # As after `kill -9`: nothing was closed.
    again = EventLog(folder)
    assert again.waiting == 1
    again.flush()
    assert logged(folder) == ["i0", "i1", "i2", "i3"]
    # A crash between the part file and the removal of its rows: they are in both.
    again.append([event(4)])
    copy = tmp_path / "copy.sqlite"
    spool = tmp_path / "events.spool.sqlite"
    shutil.copy(spool, copy)
    again.close()
    shutil.copy(copy, spool)
    last = EventLog(folder)
    assert last.waiting == 0
    last.append([event(5)])
    last.close()
    assert logged(folder) == [f"i{number}" for number in range(6)]


def test_numbers_go_on_behind_the_part_files_without_the_file_beside_them(tmp_path):
    """As where the folder was copied to another machine."""
    folder = tmp_path / "events"
    log = EventLog(folder)
    log.append([event(number) for number in range(5)])
    log.close()
    (tmp_path / "events.spool.sqlite").unlink()
    again = EventLog(folder)
    again.append([event(5), event(6)])
    again.close()
    assert logged(folder) == [f"i{number}" for number in range(7)]


def test_events_that_are_refused_after_all_leave_the_log_unless_a_part_file_has_them(tmp_path):
    folder = tmp_path / "events"
    log, other = EventLog(folder), EventLog(folder)  # of two processes
    assert log.append([event(0), event(1)]) == range(1, 3)
    assert other.append([event(2)]) == range(3, 4)
    log.remove(range(1, 3))
    assert other.waiting == 1
    # Numbers are never given twice, or a later event would be taken for one of a part file.
    assert log.append([event(3), event(4)]) == range(4, 6)
    other.flush()
    log.remove(range(4, 6))
    assert log.append([event(5)]) == range(6, 7)
    log.close()
    other.close()
    assert logged(folder) == ["i2", "i3", "i4", "i5"]


def test_events_that_are_on_disk_are_acknowledged_though_no_part_file_can_be_written(
    tmp_path, monkeypatch, caplog
):
    folder = tmp_path / "events"
    log = EventLog(folder, rows=2)

    def full(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as patched:
        patched.setattr("twotower.serving.events.parquet.write_table", full)
        log.append([event(0), event(1)])
        log.flush_full()  # an error would let them be sent again, and they would be there twice
    assert "no space left" in caplog.text and log.waiting == 2
    log.append([event(2)])
    log.flush_full()
    assert logged(folder) == ["i0", "i1", "i2"] and not [*folder.glob(".*")]


def test_a_disk_that_is_full_acknowledges_nothing(tmp_path):
    log = EventLog(tmp_path / "events")
    log._connection.execute("PRAGMA max_page_count = 4")
    with pytest.raises(sqlite3.Error):
        log.append([event(number) for number in range(10_000)])
    assert log.waiting == 0
    log.append([event(1)])
    assert log.waiting == 1


def test_two_processes_follow_one_journal(tmp_path):
    first, second = Journal(tmp_path / "items"), Journal(tmp_path / "items")
    assert first.exported("m1") == 0
    assert first.append([{"item_id": "n1", "title": "\u00dcber"}], []) == 1
    assert second.append([], ["n1", "n2"]) == 3
    assert [change.item_id for change in first.since(1)] == ["n1", "n2"]
    assert second.since(0)[0].item["title"] == "\u00dcber"
    # A bundle that is opened later was exported with the changes before.
    assert (second.exported("m2"), first.exported("m2"), first.exported("m1")) == (3, 3, 0)


def test_keys_of_another_program_are_no_sessions(redis_url):
    import redis

    store, client = RedisStore(redis_url), redis.Redis.from_url(redis_url)
    sessions = Sessions(store)
    client.set("twotower:session:done:text", "x")
    client.rpush("twotower:session:done:list", "no JSON", b"\xff", "[1]", "5", '["a", "b", {}, 1]')
    sessions.add([("list", Deed("a", "watch", 1)), ("good", Deed("b", "watch", 1))])
    found = sessions.of(["text", "list", "good"])
    assert [[deed.item_id for deed in some.liked] for some in found] == [[], ["a"], ["b"]]
    # An event of such a user is refused, and the sessions of all others are still read.
    with pytest.raises(StoreError, match=r"Redis refuses: .*WRONGTYPE"):
        sessions.add([("text", Deed("a", "watch", 1))])
    assert len(sessions.of(["good"])[0].liked) == 1
