"""The Parquet file of items beside the events, and a training that reads both."""

import pandas as pd
import pyarrow.parquet as parquet
import pytest
from fastapi.testclient import TestClient

from twotower.bundle.bundle import Bundle
from twotower.data.tables import read_tables
from twotower.serving.app import create_app
from twotower.serving.items_file import ItemsFile
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service

NEW = {"item_id": "new-1", "title": "Tin Moon", "genres": ["Drama"]}
CHANGES = {"add": [NEW, {"item_id": "i00003", "title": "Tin Star", "year": 2031}]}


def post(client, path: str, body: dict) -> None:
    assert client.post(path, json=body).is_success


@pytest.fixture
def service(bundle_folder, tmp_path):
    return Service(Live((Pipeline(bundle_folder),)), tmp_path / "state")


def read(path) -> pd.DataFrame:
    return parquet.read_table(path).to_pandas().set_index("item_id")


def test_items_that_came_changed_and_went_are_in_the_file_that_training_reads(
    service, bundle_folder, tmp_path
):
    path = tmp_path / "state" / "items.parquet"
    with TestClient(create_app(service)) as client:
        post(client, "/items", CHANGES | {"remove": ["i00009"]})
        liked = [{"user_id": f"u{n}", "item_id": "new-1", "event": "like"} for n in range(3)]
        post(client, "/events", {"events": liked})
        assert not path.exists()
        service._flush()  # as once a minute
        table = read(path)
        post(client, "/items", {"add": [{"item_id": "new-2"}]})
    # At the end, too.
    assert {*read(path).index} == {*table.index, "new-2"}
    assert "i00009" not in table.index
    assert table.loc["new-1", ["title", "maker"]].tolist() == ["Tin Moon", ""]
    assert table.loc["new-1", "genres"].tolist() == ["Drama"]
    # Of an item that was replaced, only the new columns are known.
    assert table.loc["i00003", ["title", "year", "maker"]].tolist() == ["Tin Star", 2031, ""]
    # Training reads the other items as the bundle has them, and the likes of the new one.
    dataset = read_tables(tmp_path / "state" / "events", path)
    before = Bundle(bundle_folder).catalogue.items.set_index("item_id")
    same = before.index.difference(["i00003", "i00009"], sort=False)
    found = dataset.items.set_index("item_id").loc[same]
    pd.testing.assert_frame_equal(found, before.loc[same], check_dtype=False)
    assert dataset.positive.tolist() == [True] * 3
    assert dataset.catalogue.where(title="Tin Moon", genres="Drama").tolist() == [
        dataset.item_keys[0]
    ]


def test_a_training_says_which_vectors_the_file_lacks(folder_with_vectors, tmp_path):
    """The tower reads `audio`. No tower reads `mood`, which an item was added with."""
    service = Service(Live((Pipeline(folder_with_vectors),)), tmp_path)
    with TestClient(create_app(service)) as client:
        post(client, "/items", {"add": [NEW | {"audio": [0.5] * 16, "mood": [1, 2]}]})
        post(client, "/events", {"events": [{"user_id": "u", "item_id": "new-1"}]})
    notes = read_tables(tmp_path / "events", tmp_path / "items.parquet").notes
    assert [note for note in notes if "the columns audio, mood to the table of items" in note]


def test_the_file_is_written_where_it_lacks_a_change(bundle_folder, other_folder, tmp_path):
    behind, ahead = map(Pipeline, [bundle_folder] * 2)
    service = Service(Live((ahead,)), tmp_path / "state")
    file = ItemsFile(tmp_path / "items.parquet", service.journal.id)
    assert file.write(behind) and not file.write(behind)
    service.journal.append([NEW], [])
    service._catch_up()
    assert file.write(ahead) and not file.write(ahead)
    # A process that has not heard of the change yet does not take it back.
    assert not file.write(behind) and "new-1" in read(file.path).index
    # Another training has another catalogue; and half a file is none.
    assert file.write(Pipeline(other_folder)) and file.write(ahead)
    file.path.write_bytes(file.path.read_bytes()[:100])
    assert file.write(behind) and len(read(file.path)) == len(behind.catalogue)
    assert [path.name for path in tmp_path.iterdir()].count("items.parquet") == 1


def test_a_new_journal_counts_from_one_again(service, bundle_folder, tmp_path):
    """Its first changes have smaller numbers than the file has from the lost journal."""
    state = tmp_path / "state"
    with TestClient(create_app(service)) as client:
        post(client, "/items", {"add": [{"item_id": f"old-{n}"} for n in range(5)]})
    assert "old-4" in read(state / "items.parquet").index
    for path in state.glob("items.sqlite*"):
        path.unlink()
    again = Service(Live((Pipeline(bundle_folder),)), state)
    with TestClient(create_app(again)) as client:
        post(client, "/items", {"add": [NEW]})
    assert read(state / "items.parquet").loc["new-1", "title"] == "Tin Moon"


def test_a_full_disk_costs_neither_the_old_file_nor_the_end(service, tmp_path, monkeypatch, caplog):
    state = tmp_path / "state"
    with TestClient(create_app(service)) as client:
        service._flush()
        before = (state / "items.parquet").read_bytes()
        post(client, "/items", CHANGES)
        post(client, "/events", {"events": [{"user_id": "u", "item_id": "new-1"}]})

        monkeypatch.setattr("twotower.serving.items_file.parquet", FullDisk)
    assert "no space left" in caplog.text and (state / "items.parquet").read_bytes() == before
    assert len([*(state / "events").glob("*.parquet")]) == 1
    assert not [*state.glob(".*")]


def test_events_that_no_part_file_can_take_are_there_at_the_next_start(
    service, bundle_folder, tmp_path, monkeypatch, caplog
):
    with monkeypatch.context() as full, TestClient(create_app(service)) as client:
        post(client, "/events", {"events": [{"user_id": "u", "item_id": "i00003"}]})
        full.setattr("twotower.serving.events.parquet", FullDisk)
    assert "no space left" in caplog.text
    again = Service(Live((Pipeline(bundle_folder),)), tmp_path / "state")
    again.event_log.flush()
    assert read_tables(tmp_path / "state" / "events").interactions["item_id"].tolist() == ["i00003"]


class FullDisk:
    """`pyarrow.parquet` where nothing can be written."""

    read_schema = staticmethod(parquet.read_schema)

    @staticmethod
    def write_table(*_):
        raise OSError("no space left on device")
