"""What an index process answers, through its app, and which trainings it holds."""

import asyncio
import base64
import gc
import os
import weakref
from threading import Event

import numpy as np
import pytest
from fastapi.testclient import TestClient
from two_versions import registered

from twotower.serving import schemas
from twotower.serving.deployer import DeployRefused
from twotower.serving.index_app import create_index_app
from twotower.serving.index_service import IndexService
from twotower.serving.registry import Registry
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.shelf import Shelf


@pytest.fixture(scope="module")
def service(bundle_folder, tmp_path_factory):
    return IndexService(Shelf(tmp_path_factory.mktemp("index"), str(bundle_folder)))


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
    answer = client.post("/retrieve", json={**body, **change})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == field


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
        answer = client.post("/items", json=body)
        assert answer.status_code == 422 and answer.json()["error"]["field"] == field
    assert client.get("/readyz").json()["num_items"] == before
    body = {"model_version": version, "add": add, "remove": ["never"]}
    assert client.post("/items", json=body).json()["num_items"] == before + 1
    assert "twotower_index_items 2" in client.get("/metrics").text


def test_opening_an_index_keeps_nobody_else_waiting(bundle_folder, tmp_path, monkeypatch):
    service, opened = IndexService(Shelf(tmp_path, str(bundle_folder), index="exact"), 60), Event()
    (bundle,) = (held.bundle for held in service._shelf.held)
    open_index = bundle._open_index

    def slow(name, uris):
        assert opened.wait(30)
        return open_index(name, uris)

    monkeypatch.setattr(bundle, "_open_index", slow)
    vector = np.asarray(bundle.vectors[:1])
    some = {"model_version": bundle.model_version, "k": 3}

    def asked(index: str):
        return (
            service.retrieve(schemas.Retrieve(vectors=packed(vector), index=index, **some)),
            service.search(schemas.Search(vectors=vector.tolist(), index=index, **some)),
        )

    async def play():
        try:
            # More than there are threads to search in.
            calls = [call for _ in range(2 * (os.cpu_count() or 1)) for call in asked("hnsw")]
            waiting = [asyncio.ensure_future(call) for call in calls]
            await asyncio.sleep(0.1)
            found = [await asyncio.wait_for(call, 20) for call in asked("")]
            assert not any(call.done() for call in waiting)
            opened.set()
            return found + [await call for call in waiting]
        finally:
            opened.set()
            await service.stop()

    answers = asyncio.run(play())
    counts = {len(answer["items"][0]) for answer in answers}
    assert counts == {3} and len(answers) > 2


def test_it_holds_what_the_registry_names_and_what_it_was_asked_for(
    bundle_folder, other_folder, tmp_path
):
    registry, first, second, bad = registered(tmp_path, bundle_folder, other_folder)
    service = IndexService(Shelf(tmp_path / "state", registry=registry))

    def held(look: bool = True) -> list[str]:
        if look:
            service._shelf.look()
        return service.status()["versions"]

    assert held() == [first]
    # Asked for before it is active, and kept while the others are what they were.
    assert asyncio.run(service.deploy(second))["versions"] == [first, second]
    assert held() == [first, second]
    with pytest.raises(DeployRefused, match="sha256 differs"):
        asyncio.run(service.deploy(bad))
    assert held() == [first, second] and registry.refused(bad)
    # The registry's order: the live one is first, and the previous one goes on to answer.
    registry.activate(second)
    assert held() == [second, first]
    service._shelf._asked = ""
    registry.activate(bad)  # nobody checked it: it is not held, and the others answer
    assert held() == [second]
    asyncio.run(service.stop())


def test_bundles_that_have_left_are_freed_before_another_is_opened(
    bundle_folder, other_folder, tmp_path, monkeypatch
):
    """Reference cycles hold a bundle, and full collections are rare (`process.py`)."""
    registry, opened, left = Registry(tmp_path / "registry"), [], []

    class Open(ServedBundle):
        def __init__(self, *arguments):
            left.append(sum(bundle() is not None for bundle in opened))
            super().__init__(*arguments)
            self.cycle = self
            opened.append(weakref.ref(self))

    monkeypatch.setattr("twotower.serving.shelf.ServedBundle", Open)
    first, second = registry.put(bundle_folder), registry.put(other_folder)
    registry.activate(first)
    shelf = Shelf(tmp_path / "state", registry=registry)
    gc.disable()
    try:
        shelf.deploy(second)
        shelf._asked = ""  # as if another version were asked for: the second one leaves
        shelf.look()
        shelf.deploy(second)
    finally:
        gc.enable()
        shelf.close()
    # When the second one is opened again, only the first one is there.
    assert left == [0, 1, 1]
