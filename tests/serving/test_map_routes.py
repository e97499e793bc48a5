"""The map of the items over HTTP, and where a query is on it."""

import numpy as np
import pytest
from asking import refused

from twotower.serving.map_view import MapView


def test_the_map_is_sent_once(client, bundle, monkeypatch):
    made, without = [], MapView.without
    monkeypatch.setattr(MapView, "without", lambda *some: made.append(1) or without(*some))
    answer = client.get("/map")
    found = answer.json()
    assert found["ids"] == bundle.catalogue.ids_of(bundle.keys).tolist()
    assert (found["x"][41], found["y"][41]) == (0.1, 0.05)  # the third row of the grid, its second
    genres = bundle.catalogue.items["genres"]
    assert found["genres"][found["genre"][7]] == genres.iloc[bundle.keys[7]][0]
    assert found["model_version"] == bundle.model_version and found["trustworthiness"] == 0.5
    tag = {"if-none-match": answer.headers["etag"]}
    again = client.get("/map", params={"model_version": bundle.model_version}, headers=tag)
    assert again.status_code == 304 and again.content == b""
    assert len(made) == 1
    wrong = client.get("/map", params={"model_version": "x"})
    assert wrong.status_code == 422 and bundle.model_version in wrong.json()["error"]["message"]
    # A removed item is on no map, so the map is another one.
    client.post("/items", json={"remove": [found["ids"][3]]})
    less = client.get("/map", headers=tag)
    assert less.status_code == 200 and found["ids"][3] not in less.json()["ids"]
    # What was added is on no map, and changes none.
    client.post("/items", json={"add": [{"item_id": "not-on-the-map"}]})
    same = client.get("/map")
    assert same.content == less.content and same.headers["etag"] == less.headers["etag"]
    assert client.get("/map").content == less.content and len(made) == 3
    # An item that was replaced has its new genre.
    client.post("/items", json={"add": [{"item_id": found["ids"][7], "genres": ["Quixotic"]}]})
    now = client.get("/map").json()
    assert now["genres"][now["genre"][now["ids"].index(found["ids"][7])]] == "Quixotic"
    (item,) = bundle.catalogue.items.iloc[bundle.keys[7:8]].to_dict("records")
    back = {name: [*item[name]] if name == "genres" else item[name] for name in ("title", "genres")}
    client.post("/items", json={"add": [{"item_id": found["ids"][7], **back}]})


def test_where_a_query_is_on_the_map(client, service, bundle, monkeypatch):
    body = {"requests": [{"history": ["i00003", "i00007"]}, {}], "on_map": True}
    found = client.post("/embed", json=body).json()
    there = client.get("/map").json()["ids"]
    rows = np.isin(bundle.catalogue.ids_of(bundle.keys), there)
    points = bundle.item_map().points[rows]
    for vector, point in zip(found["vectors"], found["points"]):
        scores = np.float32(vector) @ bundle.vectors[rows].T
        best = np.argsort(-scores)[:10]
        weights = np.exp(scores[best] / scores[best].std())
        expected = (weights[:, None] * points[best]).sum(0) / weights.sum()
        assert point == pytest.approx(expected, abs=2e-3)
    assert "points" not in client.post("/embed", json={"requests": [{}]}).json()
    # Of a bundle without a map.
    (pipeline,) = service.live.pipelines
    monkeypatch.setattr(pipeline, "_map", None)
    assert not client.get("/choices").json()["has_map"]
    assert "build_map" in refused(client, "/embed", body)["message"]
    assert client.get("/map").status_code == 422
