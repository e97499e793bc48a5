"""The routes, through the app as uvicorn calls it."""

import pytest
from fastapi.testclient import TestClient

from twotower.serving.app import create_app
from twotower.serving.guard import Limits
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service


@pytest.fixture(scope="module")
def client(bundle_folder, tmp_path_factory):
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path_factory.mktemp("state"))
    with TestClient(create_app(service, Limits(body_bytes=100_000))) as client:
        yield client


def test_history_in_items_out(client, bundle):
    answer = client.post("/recommend", json={"history": ["i00003", "i00007"], "k": 5})
    assert answer.status_code == 200, answer.text
    found = answer.json()
    ids = [item["item_id"] for item in found["items"]]
    assert len({*ids}) == 5 and not {*ids} & {"i00003", "i00007"}
    assert found["model_version"] == bundle.model_version and found["funnel"] == "default"
