"""Items that come, change and do not fit, through the routes and after a restart."""

import numpy as np
import pytest

from twotower.serving.journal import ADD, Change
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.service import Service


@pytest.fixture(scope="module")
def service(bundle_folder, state):
    return Service(Live((Pipeline(bundle_folder),)), state)


def add(client, status=200, **item) -> dict:
    answer = client.post("/items", json={"add": [item]})
    assert answer.status_code == status, answer.text
    return answer.json()


def titled(client, item_id: str) -> dict:
    return client.get("/titles", params={"item_id": item_id}).json()["items"][0]


def test_an_item_takes_the_place_of_the_one_that_was_there(client):
    add(client, item_id="n1", title="Tin Moon", year=1990, genres=["Drama"])
    before = add(client, item_id="n2", title="Tin Sun", year=1991)["num_items"]
    answer = add(client, item_id="n1", title="Tin Moon II", year=2031, genres=["War"])
    assert answer["num_items"] == before
    card = {"item_id": "n1", "title": "Tin Moon II", "genres": ["War"], "year": 2031}
    assert titled(client, "n1") == card
    # Conditions read the new columns, too. So does an exported item.
    add(client, item_id="i00003", title="Tin Star", year=2031)
    body = {"k": 9, "filters": {"year": 2031}, "funnel": "two_tower"}
    found = client.post("/recommend", json=body).json()["items"]
    assert {item["item_id"]: item["title"] for item in found} == {
        "n1": "Tin Moon II",
        "i00003": "Tin Star",
    }
    assert titled(client, "n2")["title"] == "Tin Sun"


def test_each_item_is_embedded_once(client, service, monkeypatch):
    bundle, asked = service.live.pipelines[0].bundle, []
    tower = bundle.item_tower

    def counted(inputs):
        asked.append(len(inputs["title"]))
        return tower(inputs)

    monkeypatch.setattr(bundle, "item_tower", counted)
    both = [{"item_id": "o1", "title": "Tin Owl"}, {"item_id": "o2", "title": "Tin Fox"}]
    assert client.post("/items", json={"add": both}).status_code == 200
    assert asked == [2]
    # One that another process adds meanwhile is there, too, with a vector of its title.
    check = Pipeline.check_items

    def meanwhile(pipeline, items):
        check(pipeline, items)
        service.journal.append([{"item_id": "o3", "title": "Tin Elk"}], [])

    monkeypatch.setattr(Pipeline, "check_items", meanwhile)
    add(client, item_id="o4", title="Tin Emu")
    keys, vectors = bundle.named("exact").live()
    for item in ("o3", "o4"):
        title = titled(client, item)["title"]
        *_, (expected,) = bundle.vectors_of([{"item_id": item, "title": title}])
        (found,) = vectors[keys == bundle.items_now.keys_of([item])]
        np.testing.assert_allclose(found, expected, atol=1e-6)


def test_an_item_that_does_not_fit_those_before_is_refused_and_the_next_is_taken(
    client, bundle_folder, state
):
    add(client, item_id="n3", brand="a")
    assert add(client, 422, item_id="n4", brand=["x"])["error"]["field"] == "add"
    before = add(client, item_id="n5", brand=5)["num_items"]  # text "5", as in a table
    # All changes come back in one table, where a text and a number stand in one column.
    again = Service(Live((Pipeline(bundle_folder),)), state)
    (pipeline,) = again.live.pipelines
    assert pipeline.bundle.num_items == before
    assert pipeline.catalogue.where(brand="5").tolist() == pipeline.catalogue.keys_of(["n5"])


def test_the_item_tower_gives_exported_items_the_vectors_of_the_export(bundle_folder):
    bundle = ServedBundle(bundle_folder)
    rows = bundle.catalogue.items.iloc[bundle.keys[:3]].to_dict("records")
    items = [{n: [*v] if isinstance(v, tuple) else v for n, v in row.items()} for row in rows]
    _, keys, vectors = bundle.vectors_of(items)
    assert keys.tolist() == bundle.keys[:3].tolist()
    np.testing.assert_allclose(vectors, bundle.vectors[:3], atol=1e-6)


def test_a_change_that_fits_no_longer_costs_the_others_nothing(bundle_folder, caplog):
    pipeline = Pipeline(bundle_folder)
    before = pipeline.bundle.num_items
    items = [{"item_id": "a", "year": "old"}, {"item_id": "b", "title": "Tin Moon"}]
    pipeline.apply([Change(n, ADD, item["item_id"], item) for n, item in enumerate(items, 1)])
    assert pipeline.bundle.num_items == before + 1 and pipeline.sequence == 2
    assert "item 'a' is left out: items, row 0: year is 'old'" in caplog.text


def test_an_index_that_is_opened_later_has_the_new_vector_of_an_old_item(bundle_folder):
    bundle = ServedBundle(bundle_folder, "hnsw")
    items, keys, vectors = bundle.vectors_of([{"item_id": "i00003", "title": "Tin Moon"}])
    bundle.add_items(items, keys, vectors)
    found_keys, found = bundle.named("exact").live()
    np.testing.assert_allclose(found[found_keys == keys[0]], vectors, atol=1e-6)
    assert not np.allclose(bundle.vectors[bundle.keys == keys[0]], vectors, atol=1e-3)


@pytest.mark.parametrize("name", ["", "x" * 65])
def test_a_column_needs_a_name(client, name):
    wrong = add(client, 422, **{"item_id": "n6", name: 1})["error"]
    assert "1 to 64 characters" in wrong["message"]


def test_an_added_item_that_no_training_has_seen_is_added_to_the_next_bundle(bundle_folder):
    """Its row came with the file of items, and its vector did not: nobody had used it."""
    pipeline = Pipeline(bundle_folder)
    bundle = pipeline.bundle
    unseen = np.setdiff1d(bundle.catalogue.keys, bundle.keys)[0]
    ids = bundle.catalogue.ids_of(np.array([unseen, bundle.keys[0]])).tolist()
    titles = [titles_of(bundle, item) for item in ids]
    changes = [Change(n, ADD, i, {"item_id": i, "title": "Tin Moon"}) for n, i in enumerate(ids, 1)]
    pipeline.apply(changes, exported=2)
    assert pipeline.bundle.named("exact").knows(np.array([unseen])).tolist() == [True]
    assert [titles_of(bundle, item) for item in ids] == ["Tin Moon", titles[1]]


def titles_of(bundle, item_id: str) -> str:
    return bundle.items_of([item_id])[0]["title"]
