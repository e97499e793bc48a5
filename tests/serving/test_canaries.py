"""A canary of the same training: routes answer by the version of the user, or the one asked for."""

import asyncio
import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient

from twotower.bundle.bundle import Bundle
from twotower.bundle.item_map import ItemMap
from twotower.bundle.manifest import write_manifest
from twotower.ragged import Ragged
from twotower.serving import schemas
from twotower.serving.app import create_app
from twotower.serving.index_client import IndexClient
from twotower.serving.index_service import IndexService
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.registry import Registry
from twotower.serving.remote_index import QueryBundle
from twotower.serving.service import Service
from twotower.serving.shelf import Shelf

USER = {"user_id": "u00007"}


@pytest.fixture(scope="module")
def twin_folder(bundle_folder, tmp_path_factory):
    """A bundle of the same training without the index `hnsw`, with other titles, another list for
    new users, and the map turned around."""
    place = tmp_path_factory.mktemp("twin") / "bundle"
    folder = pathlib.Path(shutil.copytree(bundle_folder, place))
    shutil.rmtree(folder / "index")
    path = folder / "items" / "catalogue.parquet"
    items = pd.read_parquet(path)
    items["title"] = "Twin " + items["title"].astype(str)
    items.to_parquet(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("files", "sha256")})
    bundle = Bundle(folder)
    before = bundle.item_map()
    bundle.add_map(ItemMap(before.keys, 1 - before.points, 0.4))
    funnel = bundle.funnel("default")
    funnel.onboarding = funnel.onboarding[::-1]
    bundle.add_funnel(funnel)
    return folder


@pytest.fixture(scope="module")
def client(bundle_folder, twin_folder, tmp_path_factory):
    pipelines = Pipeline(bundle_folder), Pipeline(twin_folder)
    live = Live(pipelines, 1.0, ("old", "new"))  # the canary answers all known users
    with TestClient(create_app(Service(live, tmp_path_factory.mktemp("state")))) as client:
        yield client


def test_items_are_shown_as_the_version_of_the_user_knows_them(client):
    for user, version, is_twin in (({}, "old", False), (USER, "new", True)):
        answer = client.post("/recommend", json={**user, "history": ["i00003"]}).json()
        assert answer["version"] == version
        choices = client.get("/choices", params=user).json()
        assert choices["version"] == version and choices["versions"] == ["old", "new"]
        lists = [answer["items"]]
        for path, given in (
            ("/titles", {"search": "o"}),
            ("/titles", {"item_id": ["i00003"]}),
            ("/onboarding", {"size": 3}),
        ):
            lists.append(client.get(path, params={**user, **given}).json()["items"])
        similar = client.post("/similar", json={**user, "item_id": "i00003"})
        lists.append(similar.json()["items"])
        shown = [item["title"].startswith("Twin ") for items in lists for item in items]
        assert min(map(len, lists)) > 0 and {*shown} == {is_twin}
    # An index that only the live version has.
    body = {"item_id": "i00003", "index": "hnsw"}
    assert client.post("/similar", json=body).status_code == 200
    assert client.post("/similar", json={**body, **USER}).status_code == 422
    # Each has its own list for new users.
    first, second = (
        [item["item_id"] for item in client.get("/onboarding", params=user).json()["items"]]
        for user in ({}, USER)
    )
    assert first != second


def test_maps_and_indexes_of_one_training_are_distinguished(client, bundle):
    old, new, default = (
        client.get("/map", params={"model_version": bundle.model_version, **version})
        for version in ({"version": "old"}, {"version": "new"}, {})
    )
    assert default.json() == old.json() and old.headers["etag"] != new.headers["etag"]
    np.testing.assert_allclose(new.json()["x"], 1 - np.array(old.json()["x"]), atol=1e-9)
    (vector,) = client.post("/embed", json={"requests": [{"history": ["i00003"]}]}).json()[
        "vectors"
    ]
    body = {"vectors": [vector], "model_version": bundle.model_version, "k": 3}
    statuses = {}
    for version in ("", "old", "new"):
        answer = client.post("/search", json={**body, "index": "hnsw", "version": version})
        statuses[version] = answer.status_code
    assert statuses == {"": 200, "old": 200, "new": 422}
    (items,) = client.post("/search", json={**body, "version": "new"}).json()["items"]
    assert all(item["title"].startswith("Twin ") for item in items)
    # A version that is not there, and one of another training than the vectors.
    for wrong, field in (({"version": "x"}, "version"), ({"model_version": "y"}, "model_version")):
        for answer in (
            client.post("/search", json={**body, **wrong}),
            client.get("/map", params=wrong),
        ):
            assert answer.status_code == 422 and answer.json()["error"]["field"] == field
    mixed = client.post("/search", json={**body, "version": "new", "model_version": "y"})
    assert mixed.json()["error"]["message"] == (
        f"version new is of the training {bundle.model_version}"
    )


class Calls:
    """Stands for an index process, and notes the versions that are asked for."""

    def __init__(self) -> None:
        self.versions: list[str] = []

    def retrieve(self, model_version, index, vectors, k, exclude, version):
        self.versions.append(version)
        return Ragged.empty(len(vectors), object), np.empty(0, np.float32)


def test_an_index_process_searches_the_index_of_the_version(
    bundle_folder, twin_folder, tmp_path, monkeypatch
):
    registry = Registry(tmp_path / "registry")
    first, second = registry.put(bundle_folder), registry.put(twin_folder)
    registry.activate(first)
    service = IndexService(Shelf(tmp_path / "state", registry=registry))
    ready = {"model_versions": [first[:16]], "versions": [first]}
    client = IndexClient("http://127.0.0.1:1")
    monkeypatch.setattr(client, "_call", lambda *_: ready)
    assert client.lacks(first[:16], first) == client.lacks(first[:16]) == ""
    # The training is held, but not this version: a deploy waits for it.
    assert second in client.lacks(first[:16], second)
    asyncio.run(service.deploy(second))
    ready = service.status()
    assert client.lacks(first[:16], second) == ""
    vector = np.asarray(Bundle(bundle_folder).vectors[:1])
    body = {"vectors": vector.tolist(), "model_version": first[:16], "index": "hnsw"}
    for version, is_there in ((first, True), (second, False), ("", True), ("gone", True)):
        ask = service.search(schemas.Search(**body, version=version))
        if is_there:
            assert len(asyncio.run(ask)["items"][0]) == 10
        else:
            with pytest.raises(ValueError, match="expected one of"):
                asyncio.run(ask)
    # A query process names the version of its bundle at each search.
    calls = Calls()
    QueryBundle(registry.path(second), calls).named("exact").search(vector, 3)
    assert calls.versions == [second]
    asyncio.run(service.stop())
