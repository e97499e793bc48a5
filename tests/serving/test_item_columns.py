"""Columns of new items: missing ones, vectors of numbers, and what is none of these."""

import json

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient

from twotower.serving.app import create_app
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.served_bundle import ServedBundle
from twotower.serving.service import Service

SIZE = 16  # of `audio`


@pytest.fixture(scope="module")
def folder(folder_with_vectors):
    return folder_with_vectors


@pytest.fixture(scope="module")
def service(folder, state):
    return Service(Live((Pipeline(folder),)), state)


def post(client, **item):
    # In ASCII, as only there half a character can be sent.
    body = json.dumps({"add": [{"item_id": "n1"} | item]})
    return client.post("/items", content=body, headers={"content-type": "application/json"})


def indexed(service, item_id: str) -> np.ndarray:
    """The vector of an item that searches find."""
    bundle = service.live.pipelines[0].bundle
    keys, vectors = bundle.named("exact").live()
    return vectors[keys == bundle.items_now.keys_of([item_id])][0]


def test_the_example_of_the_description_can_be_added(client, service):
    schema = client.get("/openapi.json").json()["components"]["schemas"]["Items"]
    answer = client.post("/items", json=schema["examples"][0])
    assert answer.status_code == 200, answer.text
    # All that it does not say is missing: the values that the manifest declares for that.
    bundle = service.live.pipelines[0].bundle
    inputs = {
        "item_id": ["new-1"],
        "title": ["Tin Moon"],
        "description": [""],
        "genres": [["Drama"]],
        "maker": [""],
        "year": [np.nan],
        "quality": [np.nan],
        "audio": [[np.nan] * SIZE],
        "age": [0.0],
    }
    inputs = {name: np.array(v, object if name in TEXTS else None) for name, v in inputs.items()}
    np.testing.assert_allclose(indexed(service, "new-1"), bundle.item_tower(inputs)[0], atol=1e-6)


TEXTS = ("item_id", "title", "description", "genres", "maker")


def test_a_vector_of_numbers_is_read(client, service, folder):
    data, bundle = tiny.dataset(), ServedBundle(folder)
    row = data.items.iloc[bundle.keys[5]].drop("released").to_dict()
    row |= {"genres": [*row["genres"]], "audio": row["audio"].tolist()}
    _, _, (found,) = bundle.vectors_of([row])
    # The ages of the export are those at the end of training, which a bundle does not know.
    inputs = {name: np.array([row[name]]) for name in (*TEXTS, "year", "quality", "audio")} | {
        "age": np.zeros(1)
    }
    expected = bundle.item_tower(inputs)[0]
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert post(client, **row | {"item_id": "n2"}).status_code == 200
    (unknown,) = bundle.item_tower(inputs | {"item_id": np.array(["n2"])})
    np.testing.assert_allclose(indexed(service, "n2"), unknown, atol=1e-6)
    # Whole numbers are numbers, and an empty list is a missing one, as in a table.
    assert post(client, item_id="n3", audio=[1] * SIZE).status_code == 200
    assert post(client, item_id="n4", audio=[]).status_code == 200
    assert post(client, item_id="n5").status_code == 200
    *_, both = bundle.vectors_of([{"item_id": "n4", "audio": []}, {"item_id": "n5"}])
    np.testing.assert_allclose(both[0], both[1], atol=1e-6)
    np.testing.assert_allclose(indexed(service, "n4"), indexed(service, "n5"), atol=1e-6)
    assert np.abs(indexed(service, "n3") - indexed(service, "n4")).max() > 1e-3


WRONG = [
    (
        "audio",
        [0.1, 0.2],
        "audio is a list of numbers, 2 of them; the item tower reads a list of 16",
    ),
    ("audio", 0.5, "audio is 0.5; the item tower reads a list of 16 numbers"),
    ("audio", ["0.1", "0.2"], "audio is a list of texts, 2 of them; the item tower reads a list"),
    ("audio", ["0.1"] * SIZE, "audio is a list of texts, 16 of them; the item tower reads a list"),
    ("audio", "loud", "audio is 'loud'; the item tower reads a list of 16 numbers"),
    ("year", [1999], "year is [1999], not a number"),
    ("year", "old", "year is 'old', not a number"),
    ("quality", ["good"], "quality is ['good'], not a number"),
    ("title", [0.5], "title is [0.5], not text"),
    ("title", ["a"], "title is ['a'], not text"),
    ("maker", [], "maker is [], not text"),
    ("genres", "Drama", "genres is 'Drama', not a list"),
    ("genres", 5, "genres is 5, not a list"),
]


@pytest.mark.parametrize(("name", "value", "message"), WRONG, ids=[text for *_, text in WRONG])
def test_a_value_that_no_tower_reads_is_named(client, service, name, value, message):
    last = service.journal.last
    answer = post(client, **{name: value})
    assert answer.status_code == 422, answer.text
    error = answer.json()["error"]
    assert error["field"] == "add" and error["message"].startswith(f"items, row 0: {message}")
    # The same called directly, and nothing of it is kept.
    bundle = service.live.pipelines[0].bundle
    with pytest.raises(ValueError, match=f"items, row 1: {name} is"):
        bundle.vectors_of([{"item_id": "n8"}, {"item_id": "n9", name: value}])
    assert service.journal.last == last


KINDS = [
    (None, "got null"),
    (True, "got true or false"),
    ({"y": 1}, "got an object"),
    ([[0.1]], "got a list with a list"),
    ([None], "got a list with null"),
    ([True] * SIZE, "got a list with true or false"),
    ([1.0, "a"], "got a list of texts and others"),
    (10**400, "got a number that is not within 2**53"),
    ([1e300], "got a list with a number that is not within 2**53"),
    (["a"] * 101, "got a list of 101 entries, where 100 are the most"),
    ([0.5] * 8193, "got a list of 8,193 entries, where 8,192 are the most"),
    (["a" * 257], "got a list with a text of 257 characters, where 256 are the most"),
    ("a" * 10_001, "got a text of 10,001 characters, where 10,000 are the most"),
    ("\ud800", "got a text with half a character"),
    (["\udfff"], "got a list with a text with half a character"),
]


@pytest.mark.parametrize(("value", "message"), KINDS, ids=[message for _, message in KINDS])
@pytest.mark.parametrize("name", ["audio", "brand"])
def test_a_value_of_no_kind_is_named_with_what_came(client, name, value, message):
    answer = post(client, **{name: value})
    error = answer.json()["error"]
    assert answer.status_code == 422 and error["field"] == "add.0"
    expected = f"{name}: expected a text, a number, or a list of texts or of numbers; {message}"
    assert error["message"].startswith(expected)


def test_columns_that_no_table_of_items_can_have(client):
    assert post(client, **{"\ud800": 1}).status_code == 422
    wrong = post(client, user_id="u")
    assert wrong.status_code == 422 and "user_id" in wrong.json()["error"]["message"]


def test_a_vector_that_no_tower_reads_is_left_out(bundle_folder, tmp_path):
    """As an export leaves it out of a catalogue; the journal keeps it for the next tower."""
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path)
    with TestClient(create_app(service)) as client:
        for item, size in (("n1", 2), ("n2", 3)):
            assert post(client, item_id=item, title="Tin Moon", audio=[0.5] * size).is_success
        items = service.live.pipelines[0].catalogue.items
        assert "audio" not in items and items["title"].iloc[-2:].tolist() == ["Tin Moon"] * 2
        assert service.journal.since(0)[0].item["audio"] == [0.5, 0.5]


def test_a_column_of_vectors_stays_one(bundle_folder, tmp_path):
    """No tower reads `mood`, so the catalogue has no such column whose kind could be compared."""
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path)
    with TestClient(create_app(service)) as client:
        # Of refused items, no column is kept.
        assert post(client, mood=[1, 2], year="old").status_code == 422
        assert post(client, item_id="n0", tone="calm", mood=[]).is_success
        assert post(client, item_id="n1", mood=[0.5, 1]).is_success
        for wrong, what in (("sad", "'sad'"), (3, "3"), (["a"], "a list of texts, 1 of them")):
            answer = post(client, item_id="n2", mood=wrong)
            message = f"items, row 0: mood is {what}; items were added with lists of numbers"
            assert answer.status_code == 422 and answer.json()["error"]["message"].startswith(
                message
            )
        assert post(client, item_id="n2", mood=[1, 2, 3]).is_success
        assert (
            post(client, item_id="n3", mood=[]).is_success and post(client, item_id="n4").is_success
        )
        items = service.live.pipelines[0].catalogue.items
        assert "mood" not in items and items["item_id"].iloc[-5:].tolist() == [
            "n0",
            "n1",
            "n2",
            "n3",
            "n4",
        ]


def test_items_directly_from_a_table(folder):
    """What pandas and NumPy hold in place of lists, and what they hold for missing values."""
    bundle, sound = ServedBundle(folder), np.linspace(0, 1, SIZE)
    *_, (first, *alike) = bundle.vectors_of(
        [
            {"item_id": f"n{number}", "audio": audio}
            for number, audio in enumerate((sound.tolist(), sound, np.float32(sound), tuple(sound)))
        ]
    )
    np.testing.assert_allclose(alike, [first] * 3, atol=1e-6)
    gaps = (None, float("nan"), [], np.full(SIZE, np.nan))
    *_, missing = bundle.vectors_of(
        [{"item_id": f"n{number}", "audio": gap} for number, gap in enumerate(gaps)]
    )
    np.testing.assert_allclose(missing, [missing[0]] * 4, atol=1e-6)
    with pytest.raises(ValueError, match="audio has an infinite number"):
        bundle.vectors_of([{"item_id": "n1", "audio": [np.inf] * SIZE}])
    with pytest.raises(ValueError, match=r"lack 'item_id'"):
        bundle.vectors_of([{"audio": sound}])


def test_a_tower_that_is_called_directly_checks_its_inputs(folder):
    bundle = ServedBundle(folder)
    numbers = dict.fromkeys(("year", "quality", "age"), np.zeros(1))
    texts = {name: np.array([""]) for name in TEXTS} | {"genres": np.array([[""]])}
    good = numbers | texts | {"audio": np.zeros((1, SIZE))}
    assert bundle.item_tower(good).shape == (1, 8)
    for wrong in (np.zeros(1), np.zeros((1, 2)), np.array([["0.5"] * SIZE])):
        with pytest.raises(ValueError, match="audio: expected"):
            bundle.item_tower(good | {"audio": wrong})


def test_vectors_come_back_after_a_restart(client, service, folder, state):
    sound = np.linspace(-1, 1, SIZE).tolist()
    assert post(client, item_id="n6", audio=sound).status_code == 200
    again = Service(Live((Pipeline(folder),)), state)
    np.testing.assert_allclose(indexed(again, "n6"), indexed(service, "n6"), atol=1e-6)
