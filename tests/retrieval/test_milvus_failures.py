"""Servers of Milvus that are not there, hang, die or refuse, and what is said of them."""

import signal
import socket
import threading
import time
import warnings

import numpy as np
import pytest

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

import pymilvus
from milvus_server import AXES, QUERY, Server, axes, free_port, rows, run, until, where


@pytest.fixture
def own(tmp_path):
    """One that a test may kill."""
    server = Server(tmp_path / "server")
    yield server
    server.kill()


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


def test_the_embedded_one_says_that_it_is_open_to_all():
    with pytest.warns(UserWarning, match="without a token: other users of the machine can read"):
        axes()


def test_a_server_is_no_reason_to_warn(shared):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        axes(**where(shared))
