"""Query towers and indexes as processes of their own."""

import base64
import contextlib
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import httpx2
import numpy as np
import pytest
import tiny
import urllib3
from fastapi.testclient import TestClient
from test_processes import DEADLINES, ENDED, SERVE, Process, free_port, fuzz

from twotower.bundle.bundle import Bundle
from twotower.ragged import Ragged
from twotower.serving.index_app import create_index_app
from twotower.serving.index_client import IndexCallError, IndexClient
from twotower.serving.index_service import IndexService
from twotower.serving.process import Settings, run
from twotower.serving.registry import Registry

# Its exit code says whether TensorFlow was imported: uvicorn hands SIGTERM on at the end.
INDEX = """
import runpy, signal, sys
signal.signal(signal.SIGTERM, lambda *_: sys.exit("tensorflow" in sys.modules))
runpy.run_path(sys.argv[0], run_name="__main__")
"""


class IndexProcess:
    """`serve.py --role=index` in a Python that has imported nothing yet."""

    def __init__(self, *arguments: str, port: int = 0) -> None:
        self.port = port or free_port()
        self.url = f"http://127.0.0.1:{self.port}"
        given = [SERVE, "--role=index", f"--port={self.port}", *DEADLINES, *arguments]
        self._log = tempfile.TemporaryFile("w+")  # noqa: SIM115 (as long as the process)
        environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
        code = f"import sys; sys.argv = {given!r}\n{INDEX}"
        self.process = subprocess.Popen(
            [sys.executable, "-c", code], stdout=self._log, stderr=self._log, env=environment
        )
        self.client = httpx2.Client(base_url=self.url, timeout=120)

    def wait(self) -> None:
        """Waits until it answers."""
        end = time.monotonic() + tiny.LIMIT
        while time.monotonic() < end and self.process.poll() is None:
            with contextlib.suppress(httpx2.TransportError):
                if self.client.get("/readyz").status_code == 200:
                    return
            time.sleep(0.05)
        raise AssertionError(self.log)

    @property
    def log(self) -> str:
        self._log.seek(0)
        return self._log.read()

    def end(self) -> int:
        """Its exit code: 0 where TensorFlow was never imported."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(60)


def ids(answer) -> list[str]:
    assert answer.status_code == 200, answer.text
    return [item["item_id"] for item in answer.json()["items"]]


def error(answer, status: int) -> dict:
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def waited_for(look, wanted) -> None:
    """Waits until `look()` is what is wanted."""
    end = time.monotonic() + 120
    while look() != wanted:
        assert time.monotonic() < end, look()
        time.sleep(0.05)


@pytest.fixture
def started(request):
    """Starts processes that end with the test."""

    def start(kind, *arguments, **more):
        process = kind(*arguments, **more)
        request.addfinalizer(process.process.kill)
        return process

    return start


def test_two_processes_answer_as_one_and_change_their_training_together(
    bundle_folder, other_folder, tmp_path, started
):
    registry = Registry(tmp_path / "registry")
    first, second = registry.put(bundle_folder), registry.put(other_folder)
    registry.activate(first)
    follows, index_state = f"--registry={registry.folder}", f"--state={tmp_path / 'index'}"
    index = started(IndexProcess, follows, index_state)
    where = f"--state={tmp_path / 'query'}", "--role=query", f"--index_url={index.url}"
    query = started(Process, follows, *where)  # which may be there before its index is
    index.wait()

    history = ["i00003", "i00007", "i00011"]
    body = {"history": history, "k": 8, "funnel": "two_tower"}
    old, new = Bundle(bundle_folder), Bundle(other_folder)
    truth = old.recommend(history, k=8, index="hnsw").ids
    later = new.recommend(history, k=20, index="hnsw").ids
    assert truth != later[:8]

    def answered(k: int = 400) -> list[str]:
        return ids(query.post("/recommend", {**body, "k": k}))

    # The answers are those of one process.
    assert answered(8) == truth
    whole = query.post("/recommend", {**body, "funnel": "", "explain": True}).json()
    assert whole["missing"] == {} and any("two_tower" in i["sources"] for i in whole["items"])
    search = query.post("/embed", {"requests": [{"history": history}]}).json()
    search |= {"k": 8, "exclude": history, "index": "hnsw"}
    del search["unknown"]
    for process in (query.client, index.client):
        (found,) = process.post("/search", json=search).json()["items"]
        assert [item["item_id"] for item in found] == truth

    # An item that is added at the query process is found through both, a removed one through none.
    item = {"item_id": "new-1", "title": "Tin Moon", "genres": ["g1"], "year": 2024}
    assert query.post("/items", {"add": [item]}).status_code == 200
    only = {**body, "filters": {"year": {"from": 2024, "to": 2024}}}
    (found,) = query.post("/recommend", only).json()["items"]
    assert (found["item_id"], found["title"]) == ("new-1", "Tin Moon")
    gone = ids(query.post("/similar", {"item_id": "new-1", "k": 3}))[0]
    assert query.post("/items", {"remove": [gone]}).status_code == 200
    (found,) = index.client.post("/search", json={**search, "k": 400}).json()["items"]
    for names in (answered(), [item["item_id"] for item in found]):
        assert "new-1" in names and gone not in names
    later = [name for name in later if name != gone]

    # A vector of another training is refused, and so is a deploy that the index does not have yet.
    versions = [old.model_version, new.model_version]
    mixed = {**search, "model_version": versions[1]}
    assert error(index.client.post("/search", json=mixed), 422)["field"] == "model_version"
    early = error(query.post("/deploys", {"version": second}), 422)
    assert "deploy the bundle at the index first" in early["message"]
    # The index holds both, then the query process changes to the other one.
    held = index.client.post("/deploys", json={"version": second}).json()
    assert held["model_versions"] == versions
    assert query.client.get("/readyz").json()["model_version"] == versions[0]
    addresses = f"--index_url={index.url}", f"--url=http://127.0.0.1:{query.port}"
    tiny.script(
        tiny.ROOT / "experiments" / "deploy.py", follows, f"--bundle={other_folder}", *addresses
    )
    assert query.client.get("/readyz").json()["model_version"] == versions[1]
    assert "new-1" in (names := answered())
    assert [name for name in names if name != "new-1"][:8] == later[:8]
    # Without calls both follow the registry.
    registry.roll_back()
    waited_for(lambda: query.client.get("/readyz").json()["model_version"], versions[0])
    assert {*truth} - {gone} <= {*answered(9)}

    # Without its index the funnel goes on without that source, and says so where it has no other.
    assert index.end() == 0, index.log
    rest = query.post("/recommend", {**body, "funnel": ""}).json()
    assert rest["items"] and "the index does not answer" in rest["missing"]["two_tower"]
    down = query.post("/recommend", body)
    assert error(down, 503)["code"] == "sources" and down.headers["retry-after"] == "1"
    assert "the index does not answer" in error(down, 503)["message"]
    assert error(query.post("/search", search), 503)["code"] == "index"
    assert error(query.post("/items", {"add": [{"item_id": "new-2"}]}), 503)["code"] == "index"
    # It comes back with its items, and hears of those that came meanwhile.
    index = started(IndexProcess, follows, index_state, port=index.port)
    index.wait()
    waited_for(lambda: {"new-1", "new-2"} <= {*answered()}, True)
    assert gone not in answered()
    assert query.end(signal.SIGTERM) == ENDED and index.end() == 0


@pytest.mark.slow
def test_nothing_that_the_description_of_an_index_allows_fails(bundle_folder, tmp_path, started):
    index = started(IndexProcess, f"--bundle={bundle_folder}", f"--state={tmp_path}")
    index.wait()
    fuzz(index.client, index.url, ["/search", "/retrieve", "/items", "/deploys"])
    assert index.end() == 0


@pytest.fixture(scope="module")
def service(bundle_folder, tmp_path_factory):
    return IndexService(tmp_path_factory.mktemp("index"), str(bundle_folder))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_index_app(service)) as client:
        yield client


def packed(vectors) -> str:
    return base64.b64encode(np.asarray(vectors, "<f4").tobytes()).decode()


def test_retrieve_takes_and_gives_bytes(client, bundle):
    vectors = bundle.sample_queries[:2]
    truth = bundle.retriever("exact").search(vectors, 4)
    names = bundle.catalogue.ids_of(truth.keys)
    body = {"model_version": bundle.model_version, "vectors": packed(vectors), "index": "exact"}
    found = client.post("/retrieve", json={**body, "k": 4}).json()
    assert found["items"] == names.tolist()
    scores = np.frombuffer(base64.b64decode(found["scores"]), "<f4")
    np.testing.assert_array_equal(scores, truth.scores.ravel())
    # Each vector has its own exclusions, and an item that is not here does no harm.
    exclude = [[names[0, 0], "never"], []]
    less = client.post("/retrieve", json={**body, "k": 3, "exclude": exclude}).json()["items"]
    assert less == [names[0, 1:].tolist(), names[1, :3].tolist()]


@pytest.mark.parametrize(
    "change, field",
    [
        ({"model_version": "another"}, "model_version"),
        ({"vectors": "***"}, "vectors"),
        ({"vectors": packed([1, 2, 3])}, "vectors"),
        ({"vectors": ""}, "vectors"),
        ({"vectors": packed([np.nan] * 8)}, "vectors"),
        ({"exclude": [[], []]}, "exclude"),
        ({"index": "ivf"}, "index"),
        ({"k": 0}, "k"),
    ],
)
def test_a_wrong_search_is_named(client, bundle, change, field):
    body = {"model_version": bundle.model_version, "vectors": packed(bundle.sample_queries[:1])}
    wrong = error(client.post("/retrieve", json={**body, **change}), 422)
    assert wrong["field"] == field and wrong["message"]


def test_wrong_vectors_change_nothing(client, bundle):
    before, version = client.get("/readyz").json()["num_items"], bundle.model_version
    add = [{"item_id": "n1", "vector": [0.5] * 8}]
    long, huge = ([{"item_id": "n2", "vector": v}] for v in ([0.5] * 9, [1e300] * 8))
    for body, field in (
        ({"model_version": version, "add": long}, "vectors"),
        ({"model_version": version, "add": huge}, "add"),
        ({"model_version": version, "add": add, "remove": ["n1"]}, "add"),
        ({"model_version": "another", "add": add}, "model_version"),
    ):
        assert error(client.post("/items", json=body), 422)["field"] == field
    assert client.get("/readyz").json()["num_items"] == before
    body = {"model_version": version, "add": add, "remove": ["never"]}
    assert client.post("/items", json=body).json()["num_items"] == before + 1
    assert "twotower_index_items 2" in client.get("/metrics").text


class Answers:
    """What an index process may answer, in the place of a pool of connections."""

    def __init__(self, *answers) -> None:
        self.answers = list(answers)

    def urlopen(self, *_, **__):
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        status, content = answer
        return urllib3.HTTPResponse(content, status=status)


CLOSED = urllib3.exceptions.ProtocolError("Connection aborted")
LATE = urllib3.exceptions.ReadTimeoutError(None, "/retrieve", "late")
FOUND = {"model_version": "v1", "items": [["a"], []], "scores": packed([2.0])}
FOREIGN = {"error": {"field": "model_version", "message": "this index holds vectors of ['v2']"}}
BUSY = {"error": {"field": "", "message": "too many requests are under way"}}


def answered(*answers):
    client = IndexClient("http://127.0.0.1:1")
    client._pool = Answers(*answers)
    return client.retrieve("v1", "hnsw", np.zeros((2, 3), np.float32), 5, Ragged.empty(2, object))


def test_a_connection_that_was_closed_is_opened_again():
    ids, scores = answered(CLOSED, (200, json.dumps(FOUND)))
    assert [row.tolist() for row in ids] == [["a"], []] and scores.tolist() == [2.0]


@pytest.mark.parametrize(
    "answers, match",
    [
        ([CLOSED, CLOSED], "does not answer; come back later"),
        ([LATE], "does not answer; come back later"),
        ([(422, json.dumps(FOREIGN))], "no vectors of model v1; deploy the bundle at the index"),
        ([(503, json.dumps(BUSY))], "answers 503: too many requests"),
        ([(502, "<html>Bad gateway")], "answers 502: no JSON"),
        ([(200, json.dumps({**FOUND, "model_version": "v2"}))], "for another training"),
    ],
)
def test_what_an_index_may_do_wrong_is_an_error_that_says_so(answers, match):
    with pytest.raises(IndexCallError, match=match):
        answered(*answers)


@pytest.mark.parametrize(
    "settings, workers, match",
    [
        ({"role": "query"}, 1, "--role=query --index_url"),
        ({"index_url": "http://127.0.0.1:8001"}, 1, "--role=query --index_url"),
        ({"role": "index"}, 2, "an index process is one"),
    ],
)
def test_roles_that_cannot_be(settings, workers, match):
    with pytest.raises(ValueError, match=match):
        run(Settings("W/bundle", "", "W/state", **settings), "127.0.0.1", 0, workers)
    with pytest.raises(ValueError, match=r"an address such as http://127\.0\.0\.1:8001; got 'file"):
        IndexClient("file:///etc/passwd")
