"""Canaries: a second version, which answers a share of the users and whoever names it."""

import asyncio
import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest
from fastapi.testclient import TestClient
from two_versions import BODY, served

from twotower.bundle.bundle import Bundle
from twotower.bundle.item_map import ItemMap
from twotower.bundle.manifest import write_manifest
from twotower.data.requests import Requests
from twotower.ragged import Ragged
from twotower.serving import schemas
from twotower.serving.app import create_app
from twotower.serving.asks import FieldError
from twotower.serving.index_client import IndexClient
from twotower.serving.index_service import IndexService
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.registry import Registry
from twotower.serving.remote_index import QueryBundle
from twotower.serving.service import Service
from twotower.serving.shelf import Shelf

USER = {"user_id": "u00007"}


def test_canaries_take_a_share_of_the_users(bundle_folder):
    live = Pipeline(bundle_folder)
    both = Live((live, live), 0.25)
    numbers = [both.number_of(f"u{number}") for number in range(400)]
    assert 60 < sum(numbers) < 140 and numbers == [both.number_of(f"u{n}") for n in range(400)]
    assert both.number_of("") == 0 and Live((live,)).number_of("u1") == 0
    named = Live((live, live), 0.25, ("old", "new"))
    assert {named.number_of(f"u{number}", "new") for number in range(9)} == {1}
    assert named.number_of("", "old") == 0 and Live((live,)).names == [live.model_version]
    with pytest.raises(FieldError, match="not loaded; there are old, new"):
        named.number_of("", live.model_version)


def test_a_request_may_name_a_loaded_version(tmp_path, bundle_folder, other_folder):
    service, first, second, _ = served(tmp_path, bundle_folder, other_folder)
    asyncio.run(service.deploy(second, 0.5))
    assert service.choices()["versions"] == service.status()["versions"] == [first, second]
    bodies = [schemas.Recommend(**BODY, version=version) for version in (second, "x", first)]
    new, wrong, old = service._recommend([(body, None) for body in bodies])
    assert (new["model_version"], old["model_version"]) == (second[:16], first[:16])
    assert isinstance(wrong, FieldError) and wrong.field == "version"
    asyncio.run(service.roll_back())
    (gone,) = service._recommend([(bodies[0], None)])
    assert str(gone) == f"not loaded; there are {first}"
    asyncio.run(service.stop())


def test_vectors_are_of_the_version_that_recommends_to_the_user(
    tmp_path, bundle_folder, other_folder
):
    service, first, second, _ = served(tmp_path, bundle_folder, other_folder)
    asyncio.run(service.deploy(second, 0.5))
    users, history = [f"u{number}" for number in range(8)], BODY["history"]
    answers = service._recommend([(schemas.Recommend(**BODY, user_id=u), None) for u in users])
    chosen = [answer["model_version"] for answer in answers]
    assert {*chosen} == {first[:16], second[:16]}
    requests = [schemas.Request(user_id=user, history=history) for user in users]

    def embedded(requests: list) -> dict:
        return asyncio.run(service.embed(schemas.Embed(requests=requests, on_map=True)))

    # Each user alone, and all of them in one body, of which no single version can be named.
    alone = [embedded([request]) for request in requests]
    assert [answer["model_version"] for answer in alone] == chosen
    together = embedded(requests)
    assert together["model_version"] == "" and together["model_versions"] == chosen
    for name in ("vectors", "points", "unknown"):
        assert together[name] == [answer[name][0] for answer in alone]
    # The vectors are those of the version's query tower.
    for folder in (bundle_folder, other_folder):
        bundle = Bundle(folder)
        truth = bundle.encode(Requests.of(bundle.catalogue, [history]))[0]
        found = together["vectors"][chosen.index(bundle.model_version)]
        np.testing.assert_allclose(found, truth, atol=1e-6)
    # An unknown user gets the live one.
    assert embedded([schemas.Request()])["model_version"] == first[:16]
    asyncio.run(service.stop())


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
