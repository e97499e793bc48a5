"""Routes for operators: health, metrics and the description of the routes."""

from asking import recommend
from fastapi.testclient import TestClient

from twotower.funnel.answer import NoSourceError
from twotower.serving.app import create_app
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service


def test_head_answers_as_get(client):
    for path in ("/", "/healthz", "/readyz", "/choices", "/metrics", "/page/main.js"):
        answer = client.head(path)
        assert answer.status_code == 200, path
    assert client.head("/recommend").status_code == 405


def test_sources_that_all_fail_are_counted_and_trials_are_not(bundle_folder, tmp_path, monkeypatch):
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path)
    late = dict.fromkeys(("two_tower", "ease"), "not within its deadline of 30 ms")

    def fail(*_):
        raise NoSourceError(late)

    with TestClient(create_app(service)) as client:
        # Nobody has asked yet: what warmed the pipeline is not a latency of a request.
        assert "twotower_stage_seconds_count" not in client.get("/metrics").text
        recommend(client, history=["i00003"])
        assert "twotower_stage_seconds_count" in client.get("/metrics").text
        monkeypatch.setattr(service.live.pipelines[0].funnels["default"], "recommend", fail)
        assert client.post("/recommend", json={}).status_code == 503
        text = client.get("/metrics").text
    for name in late:
        assert f'twotower_sources_missing_total{{source="{name}"}} 1.0' in text


def test_health_metrics_and_the_description(client):
    recommend(client)
    assert client.get("/healthz").json() == {"status": "ok"}
    ready = client.get("/readyz").json()
    assert ready["status"] == "ready" and ready["indexes"] == ["exact", "hnsw"]
    text = client.get("/metrics").text
    assert 'twotower_requests_total{route="/recommend",status="200"}' in text
    assert 'twotower_requests_total{route="other"' not in text or "/no/such" not in text
    paths = client.get("/openapi.json").json()["paths"]
    assert {"/recommend", "/embed", "/search", "/similar", "/events", "/items"} <= {*paths}
    assert client.get("/no/such/path").status_code == 404
    wrong = client.get("/recommend")
    assert wrong.status_code == 405 and wrong.headers["allow"] == "POST"
