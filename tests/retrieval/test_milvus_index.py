"""Milvus over a server on loopback and inside this process: failures, what stays, what goes."""

import gc
import os
import pathlib
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time
import warnings

import numpy as np
import pytest
from clusters import clusters

from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.tuning import recall_against, tune

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import pymilvus

from twotower.retrieval.backends import milvus_index
from twotower.retrieval.backends.milvus_index import MilvusConfig, MilvusIndex

# The query (4, 3, 2, 1) scores the four axes 4, 3, 2, 1.
KEYS, AXES = np.array([70, 20, 90, 40]), np.eye(4, dtype=np.float32)
QUERY = np.float32([[4, 3, 2, 1]])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`milvus-lite server` in a process of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        arguments = f"-m milvus_lite server --host 127.0.0.1 --port {self.port} --data-dir".split()
        self.process = subprocess.Popen(
            [sys.executable, *arguments, str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("milvus-lite server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        """Stop it, and return when its last thread stands still: until then it may answer."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def collections(self) -> list[str]:
        client = pymilvus.MilvusClient(self.uri, timeout=10, dedicated=True)
        names = client.list_collections()
        client.close()
        return names


@pytest.fixture(scope="module")
def shared(tmp_path_factory):
    server = Server(tmp_path_factory.mktemp("server"))
    yield server
    server.kill()


@pytest.fixture
def own(tmp_path):
    """One that a test may kill."""
    server = Server(tmp_path / "server")
    yield server
    server.kill()


def axes(metric="dot", **parameters) -> MilvusIndex:
    return build.build(build.IndexConfig("milvus", metric, parameters), KEYS, AXES)


def where(server, collection="films") -> dict:
    return {"uri": server.uri, "collection": collection}


def rows(index, k=4, **arguments):
    return index.search(QUERY, k, **arguments).keys.tolist()


def spied(index: MilvusIndex, name: str) -> list:
    """Arguments of the client's calls of `name` from now on: positional, and by name."""
    calls, real = [], getattr(index._client, name)

    def call(*args, **rest):
        calls.append((args, rest))
        return real(*args, **rest)

    setattr(index._client, name, call)
    return calls


def until(holds, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary ones, here and in other processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


# The contract's main pieces, over the server.


@pytest.mark.parametrize("metric", ["dot", "cosine", "euclidean"])
def test_over_a_server(shared, metric, tmp_path):
    vectors, queries = clusters(1000, 20, 16)
    vectors, keys = 3 * vectors, np.arange(1000) * 2 + 5
    config = build.IndexConfig("milvus", metric, {"uri": shared.uri, "collection": f"c_{metric}"})
    index, exact = (
        build.build(one, keys, vectors) for one in (config, build.IndexConfig("exact", metric))
    )
    index._store.built.best = None  # nothing comes from the scan of the base class
    assert recall_against(exact.search(queries, 10), index.search(queries, 10)) >= 0.99
    wanted, found = exact.search(queries, 10), index.search(queries, 10)
    same = found.keys == wanted.keys
    np.testing.assert_allclose(found.scores[same], wanted.scores[same], rtol=1e-4, atol=1e-5)
    del index._store.built.best
    for one in (index, exact):
        one.remove(keys[:300])
        one.add(np.array([7, 4, 6]), 3 * queries[:3])  # 7 replaces one
        if one is index:
            one.absorb()
    assert index.search_built(queries[:3], 1).keys[:, 0].tolist() == [7, 4, 6]
    found, wanted = index.search(queries, 10), exact.search(queries, 10)
    assert recall_against(wanted, found) >= 0.99 and (found.counts == 10).all()
    banned = Ragged.from_rows([[4, 6, 7]] * 20)
    allow = keys[::2]
    found = index.search(queries, 10, exclude=banned, allow=allow)
    assert recall_against(exact.search(queries, 10, exclude=banned, allow=allow), found) >= 0.99
    build.save(index, tmp_path / "i")
    loaded = build.load(tmp_path / "i", allowed_uris=[shared.uri])
    np.testing.assert_array_equal(loaded.search(queries, 10).keys, index.search(queries, 10).keys)
    assert loaded.backend_bytes == 0 and loaded.config == index.config


def test_the_backend_itself_forgets_and_learns(shared):
    index = axes(**where(shared))
    index.remove(np.array([70]))
    index.add(np.array([5]), 2 * AXES[1:2])
    assert index.search_built(QUERY, 4).keys.tolist() == [[70, 20, 90, 40]]
    index.absorb()
    # 5 scores 6, before 20 with 3; the tombstone has left the collection.
    assert index.search_built(QUERY, 5).keys.tolist() == [[5, 20, 90, 40, -1]]
    count = index._client.query(index._name, filter="", output_fields=["count(*)"])
    assert count[0]["count(*)"] == 4


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_many_batches(shared, monkeypatch, metric):
    vectors, queries = clusters(700, 9, 8)
    index, exact = (
        build.build(build.IndexConfig(*one), np.arange(700), vectors)
        for one in (("milvus", metric, where(shared)), ("exact", metric))
    )
    searches, inserts = spied(index, "search"), spied(index, "insert")
    monkeypatch.setattr(milvus_index, "MAX_QUERIES", 2)
    found = index.search(queries, 5)
    assert [len(args[1]) for args, _ in searches] == [2, 2, 2, 2, 1]
    assert found.keys.tolist() == exact.search(queries, 5).keys.tolist()
    # 96 bytes hold two vectors of 32 + 16 bytes.
    monkeypatch.setattr(milvus_index, "MAX_BYTES", 96)
    index.add(np.arange(700, 705), -vectors[:5])
    index.absorb()
    assert [len(args[1]) for args, _ in inserts] == [2, 2, 1]
    assert index.search_built(-vectors[:5], 1).keys[:, 0].tolist() == [700, 701, 702, 703, 704]


def test_lite_makes_no_large_array_of_differences():
    # 2,048 x 128 floats are 2^20 bytes, and 2^26 holds 64 of them; 70 queries are two calls.
    vectors, queries = clusters(2048, 70, 128)
    sizes = {}
    for metric in ("dot", "euclidean"):
        index = build.build(build.IndexConfig("milvus", metric), np.arange(2048), vectors)
        searches = spied(index, "search")
        index.search(queries, 1)
        sizes[metric] = [len(args[1]) for args, _ in searches]
    assert sizes == {"dot": [70], "euclidean": [64, 6]}


def test_k_over_the_limit_of_milvus(shared):
    vectors = np.float32(np.random.default_rng(0).normal(size=(16_500, 2)))
    index = build.build(
        build.IndexConfig("milvus", "euclidean", where(shared)), np.arange(16_500), vectors
    )
    searches = spied(index, "search")
    positions, scores = index._search(vectors[:1], 16_500)
    assert (positions[0, 16_384:] == -1).all() and positions[0, 0] == 0
    assert (scores[0, 16_384:] == -np.inf).all() and searches
    assert index.search(vectors[:1], 16_500).counts.tolist() == [16_500]
    assert {rest["limit"] for _, rest in searches} == {16_384}


def test_one_dimension(shared):
    # A Milvus server wants 2 or more, and its refusal is a ValueError; milvus-lite takes 1.
    index = build.build(
        build.IndexConfig("milvus", "dot", where(shared)),
        np.arange(3),
        np.float32([[1], [3], [2]]),
    )
    assert index.search(np.float32([[1]]), 3).keys.tolist() == [[1, 2, 0]]


def test_what_is_inserted_is_sealed():
    # An index covers sealed rows alone, and milvus-lite reads others ten times slower.
    index = axes()
    flushes = spied(index, "flush")
    index.build(KEYS, AXES)
    assert len(flushes) == 1
    index.add(np.array([3]), AXES[:1])
    index.absorb()
    assert len(flushes) == 2


# Parameters.


@pytest.mark.parametrize("metric, kind", [("dot", "IP"), ("euclidean", "L2")])
def test_parameters_arrive(shared, metric, kind):
    index = axes(metric, **where(shared, "p"), timeout=9.0)
    described = index._client.describe_index("p", "vector")
    assert (described["index_type"], described["metric_type"]) == ("AUTOINDEX", kind)
    assert index._client.describe_collection("p")["consistency_level_name"] == "Strong"
    searches = spied(index, "search")
    index.search(QUERY, 2)
    (((name, _), rest),) = searches
    assert name == "p" and rest["limit"] == 2
    assert rest["consistency_level"] == "Strong" and rest["timeout"] == 9.0
    assert rest["output_fields"] == ["position"]
    # milvus-lite in this process scans.
    index = axes(metric)
    assert index._client.describe_index(index._name, "vector")["index_type"] == "FLAT"


def test_there_is_nothing_to_tune():
    with pytest.raises(ValueError, match="MilvusIndex has no parameter of search effort"):
        tune(axes(), QUERY, 2)


REFUSED = {
    "path": ({"uri": "vectors", "collection": "c"}, "uri must be .*'vectors'"),
    "password": ({"uri": "http://root:Milvus@host:1", "collection": "c"}, "MILVUS_TOKEN"),
    "file alone": ({"uri": "v.db"}, "go together"),
    "name alone": ({"collection": "c"}, "go together"),
    "address alone": ({"uri": "http://host:1"}, "go together"),
    **{
        f"collection {name[:9]!r}": (
            {"uri": "http://host:1", "collection": name},
            "at most 255 letters, digits and _",
        )
        for name in (
            "my-films",
            "1films",
            "no/such/name",
            "f\xe9vrier",
            " films",
            "films\n",
            256 * "a",
        )
    },
    "timeout": ({"timeout": 0}, "timeout must be 0.1 or more; got 0"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_parameters_that_are_refused(case):
    parameters, message = REFUSED[case]
    with pytest.raises(ValueError, match=message):
        build.make(build.IndexConfig("milvus", "dot", parameters))


def test_the_token_is_sent_and_not_written(shared, monkeypatch, tmp_path):
    seen, real = [], pymilvus.MilvusClient

    def client(uri, token, **rest):
        seen.append(token)
        return real(uri, token=token, **rest)

    monkeypatch.setattr(pymilvus, "MilvusClient", client)
    monkeypatch.setenv("MILVUS_TOKEN", "root:s3cr3t")
    build.save(axes(uri=shared.uri, collection="t"), tmp_path / "i")
    assert build.load(tmp_path / "i", allowed_uris=[shared.uri]).search(QUERY, 1).keys.tolist() == [
        [70]
    ]
    assert seen == ["root:s3cr3t"] * 2
    written = [path for path in (tmp_path / "i").rglob("*") if path.is_file()]
    assert len(written) == 7 and not [p for p in written if b"s3cr3t" in p.read_bytes()]
    axes()
    assert seen[2:] == [""]  # nobody to show it to


# Servers that fail.


def test_no_server():
    uri = f"http://127.0.0.1:{free_port()}"
    started = time.monotonic()
    with pytest.raises(ConnectionError, match=f"No Milvus at {uri}.*Is the server running there"):
        axes(uri=uri, collection="c", timeout=1.0)
    assert time.monotonic() - started < 3


def test_failures_are_told_once():
    code = (
        "import numpy as np\nfrom twotower.retrieval.backends.milvus_index import MilvusIndex\n"
        "index = MilvusIndex().build(np.array([3]), np.eye(1))\n"
        "index._client.drop_collection(index._name)\n"
        "try:\n    index.search(np.eye(1), 1)\nexcept ValueError:\n    print('told')"
    )
    done = run(code)
    assert done.stdout == "told\n" and "MilvusException" not in done.stderr, done.stderr


def test_a_server_that_says_nothing():
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        started = time.monotonic()
        with pytest.raises(ConnectionError, match="No Milvus at"):
            axes(uri=f"http://127.0.0.1:{listener.getsockname()[1]}", collection="c", timeout=1.0)
    assert time.monotonic() - started < 3


def test_killed_in_mid_query_and_started_again(own):
    index = axes(uri=own.uri, collection="c", timeout=2.0)
    caught = []

    def search():
        with pytest.raises(ConnectionError) as error:
            rows(index)
        caught.append(str(error.value))

    own.hang()  # so that the query is under way when it is killed
    thread = threading.Thread(target=search)
    thread.start()
    time.sleep(0.5)
    assert not caught
    own.kill()
    thread.join(15)
    assert f"Milvus at {own.uri}, collection c: no answer" in caught[0]
    with pytest.raises(ConnectionError, match="Try again when the server is back"):
        rows(index)
    # The base class needs no server for what it scans.
    assert rows(index, allow=np.array([20, 40])) == [[20, 40, -1, -1]]
    own.start()
    assert rows(index) == [[70, 20, 90, 40]]
    index.add(np.array([3]), 2 * AXES[:1])
    index.absorb()
    assert index.search_built(QUERY, 2).keys.tolist() == [[3, 70]]


def test_a_server_that_hangs(own):
    index = axes(**where(own), timeout=1.0)
    own.hang()
    started = time.monotonic()
    with pytest.raises(ConnectionError, match="no answer"):
        rows(index)
    assert time.monotonic() - started < 5
    own.process.send_signal(signal.SIGCONT)
    assert until(lambda: rows(index) == [[70, 20, 90, 40]])


def test_an_absorb_that_fails_half_way(shared, monkeypatch):
    index = axes(**where(shared))
    index.add(np.array([3]), 2 * AXES[:1])

    def gone(*args, **rest):
        raise pymilvus.MilvusException(message="quota")

    monkeypatch.setattr(index._client, "insert", gone)
    with pytest.raises(ValueError, match=r"refuses: .*quota"):
        index.absorb()
    monkeypatch.undo()
    # The collection lacks key 3: an answer would be wrong, so there is none.
    with pytest.raises(ValueError, match=r"call build\(\*index\.live\(\)\)"):
        rows(index)
    index.build(*index.live())
    assert rows(index) == [[3, 70, 20, 90]]


def test_a_collection_of_somebody_else(shared):
    client = pymilvus.MilvusClient(shared.uri)
    client.create_collection("theirs", dimension=4)
    with pytest.raises(ValueError, match=r"theirs .* other fields .* choose another name"):
        axes(uri=shared.uri, collection="theirs")
    assert "theirs" in shared.collections()


def test_the_longest_names_are_taken():
    for name in ("_", "Films_2", 255 * "a"):
        MilvusConfig("http://host:1", name)


def test_the_embedded_one_says_that_it_is_open_to_all():
    with pytest.warns(UserWarning, match="without a token: other users of the machine can read"):
        axes()


def test_a_server_is_no_reason_to_warn(shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes(**where(shared))


# What stays and what goes.


def test_closing(shared):
    index = axes(**where(shared))
    index.close()
    index.close()
    assert index._name in shared.collections()
    with pytest.raises(ValueError, match="is closed"):
        rows(index)
    index.build(*index.live())
    assert rows(index) == [[70, 20, 90, 40]]


def test_the_temporary_file_goes(temporary):
    closed, dropped = axes(), axes()
    assert len(list(temporary.iterdir())) == 2
    closed.close()
    assert len(list(temporary.iterdir())) == 1
    del dropped
    gc.collect()
    assert until(lambda: not list(temporary.iterdir()))


ENDS = """
import sys, numpy as np
from twotower.retrieval import build
indexes = [build.build(build.IndexConfig("milvus"), np.arange(4), np.eye(4))]
if sys.argv[1] == "just before":
    indexes.clear()
print("done")
"""


@pytest.mark.parametrize("garbage", ["never", "just before"])
def test_it_goes_when_python_ends(temporary, garbage):
    done = run(ENDS, garbage)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not list(temporary.iterdir())


WRITES = """
import sys, numpy as np
from twotower.retrieval import build
where = {"uri": sys.argv[1], "collection": "c"}
index = build.build(build.IndexConfig("milvus", "dot", where), np.arange(4) + 10, np.eye(4))
index.remove(np.array([11]))
index.add(np.array([3]), np.float32([[2, 0, 0, 0]]))
index.absorb()
build.save(index, sys.argv[2])
print("saved", flush=True)
sys.stdin.read()
"""
READS = """
import sys, numpy as np
from twotower.retrieval import build
index = build.load(sys.argv[2], allowed_uris=[sys.argv[1]])
index._build = None  # nothing is built again
print(index.search_built(np.float32([[4, 3, 2, 1]]), 4).keys.tolist())
"""


def test_a_file_with_a_name_in_one_process_after_another(tmp_path):
    file, saved = tmp_path / "v.db", tmp_path / "i"
    command = [sys.executable, "-c", WRITES, str(file), str(saved)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "saved\n"
        second = run(READS, file, saved)  # while the first one has it open
        assert "ConnectionError" in second.stderr and "no other process has it" in second.stderr
        first.stdin.close()
    second = run(READS, file, saved)
    assert second.stdout == "[[3, 10, 12, 13]]\n", second.stderr


@pytest.mark.parametrize("change", ["drop", "length", "count", "vectors", "absorb"])
def test_a_collection_that_changed_since(shared, tmp_path, change):
    where = {"uri": shared.uri, "collection": f"changed_{change}"}
    index = axes(**where)
    build.save(index, tmp_path / "i")
    assert rows(build.load(tmp_path / "i", allowed_uris=[shared.uri])) == [[70, 20, 90, 40]]
    if change == "drop":
        index._client.drop_collection(index._name)
    elif change == "length":
        index.build(KEYS, np.eye(4, 5, dtype=np.float32))
    elif change == "count":
        index.build(KEYS[:3], AXES[:3])
    elif change == "vectors":
        index.build(KEYS, AXES[::-1])
    else:  # as many as before, but one of them at a position that the saved index has not
        index.remove(KEYS[1:2])
        index.add(np.array([1]), AXES[1:2])
        index.absorb()
    wanted = {
        "drop": "is not there. Was it dropped",
        "length": "has vectors of length 5, not 4",
    }
    with pytest.raises(ValueError, match=wanted.get(change, "was changed since")):
        build.load(tmp_path / "i", allowed_uris=[shared.uri])


def test_a_large_collection_that_changed_since(shared, tmp_path):
    # Of 200 positions 16 are looked at, 1 and 2 are not among them; the count tells.
    vectors, _ = clusters(200, 0, 8)
    where = {"uri": shared.uri, "collection": "large"}
    index = build.build(build.IndexConfig("milvus", "dot", where), np.arange(200), vectors)
    build.save(index, tmp_path / "i")
    client, vector = index._client, vectors[1].tolist()
    client.delete("large", ids=[1])
    with pytest.raises(ValueError, match="was changed since"):
        build.load(tmp_path / "i", allowed_uris=[shared.uri])
    client.insert("large", [{"position": 200, "vector": vector}])  # as many, one of them beyond
    with pytest.raises(ValueError, match="was changed since"):
        build.load(tmp_path / "i", allowed_uris=[shared.uri])
    client.delete("large", ids=[200])
    client.insert("large", [{"position": 1, "vector": vector}])
    assert len(build.load(tmp_path / "i", allowed_uris=[shared.uri])) == 200


def test_without_a_name_the_vectors_build_it_again(tmp_path):
    index = axes()
    build.save(index, tmp_path / "i")
    assert not (tmp_path / "i" / milvus_index.DESCRIPTION).exists()
    loaded = build.load(tmp_path / "i")
    index.close()
    assert rows(loaded) == [[70, 20, 90, 40]]
    loaded.remove(KEYS[1:2])
    build.save(loaded.absorb(), tmp_path / "i")
    # What was forgotten stays so: position 1 is not built again.
    assert build.load(tmp_path / "i")._search(QUERY, 4)[0].tolist() == [[0, 2, 3, -1]]


# Threads, memory, imports.


@pytest.mark.parametrize("place", ["embedded", "server"])
def test_several_threads_search(shared, place):
    vectors, queries = clusters(500, 40, 16)
    config = build.IndexConfig("milvus", "dot", where(shared) if place == "server" else {})
    index = build.build(config, np.arange(500), vectors)
    wanted = index.search(queries, 10).keys
    wrong, done = [], []

    def search(start):
        for row in range(start, 40, 4):
            found = index.search(queries[row : row + 1], 10).keys[0]
            if found.tolist() != wanted[row].tolist():
                wrong.append(row)
            done.append(row)

    threads = [threading.Thread(target=search, args=(start,)) for start in range(4)]
    for thread in threads:
        thread.start()
    # Meanwhile another index is built and goes, and this one takes an item.
    axes(**(where(shared, "other") if place == "server" else {})).close()
    index.add(np.array([1000]), -vectors[:1])
    for thread in threads:
        thread.join()
    assert sorted(done) == list(range(40)) and not wrong


def test_memory_is_counted_where_it_is_ours(shared):
    vectors, _ = clusters(1000, 0, 64)
    index = build.build(build.IndexConfig("milvus"), np.arange(1000), vectors)
    # 8 copies of 4 x 64 bytes, and 100 bytes each.
    assert index.backend_bytes == 1000 * (8 * 4 * 64 + 100)
    assert axes(**where(shared)).backend_bytes == 0


def test_no_library_before_it_is_asked_for():
    done = run("import sys, twotower.retrieval.build; print('pymilvus' in sys.modules)")
    assert done.stdout == "False\n", done.stderr


@pytest.mark.parametrize("missing", ["pymilvus", "milvus_lite"])
def test_without_the_library(missing):
    code = (
        f"import sys; sys.modules['{missing}'] = None\n"
        "from twotower.retrieval import build\nbuild.make(build.IndexConfig('milvus'))"
    )
    last = run(code).stderr.splitlines()[-1]
    assert "milvus" in last and last.startswith("ImportError") and "pip install" in last
