"""Query towers and indexes as processes of their own."""

import dataclasses
import gc
import json
import os
import signal
import subprocess
import sys
import tempfile
import time

import httpx2
import pytest
import tiny
from serve_process import DEADLINES, ENDED, SERVE, Process, free_port, gets_ready
from test_processes import fuzz

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError
from twotower.serving import process
from twotower.serving.index_client import IndexClient
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
        assert gets_ready(self.client, lambda: self.process.poll() is None), self.log

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
    embedded = query.post("/embed", {"requests": [{"history": history}]}).json()
    search = {name: embedded[name] for name in ("vectors", "model_version")}
    search |= {"k": 8, "exclude": history, "index": "hnsw"}
    for one in (query.client, index.client):
        (found,) = one.post("/search", json=search).json()["items"]
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
    kept = query.post("/items", {"add": [{"item_id": "new-2"}]})
    assert kept.status_code == 200 and "searched once the index has them" in kept.json()["note"]
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
        run(Settings("W/bundle", "", "W/state", **settings), "127.0.0.1", [], workers)
    with pytest.raises(ValueError, match=r"an address such as http://127\.0\.0\.1:8001; got 'file"):
        IndexClient("file:///etc/passwd")


def test_garbage_collections_are_seldom_and_leave_the_modules_out(tmp_path, monkeypatch):
    settings = Settings(str(tmp_path / "none"), "", str(tmp_path / "state"), role="index")
    monkeypatch.setenv(process.SETTINGS, json.dumps(dataclasses.asdict(settings)))
    monkeypatch.setattr(process, "log_as_json", lambda: None)
    monkeypatch.setattr(sys, "setswitchinterval", lambda seconds: None)
    gc.unfreeze()
    before = gc.get_threshold()
    with pytest.raises(BundleError):  # which is opened last
        process.app()
    assert gc.get_freeze_count() > 10_000
    assert gc.get_threshold() == (*before[:2], process.FULL_COLLECTION)
    gc.unfreeze()
    gc.set_threshold(*before)
