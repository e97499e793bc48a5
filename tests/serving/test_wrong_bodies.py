"""Wrong bodies and parameters are refused, and the answer names what is wrong."""

import gzip

import pytest
from asking import refused

NESTED = b"[" * 100_000


@pytest.mark.parametrize(
    "path, body, field",
    [
        ("/recommend", {"k": -1}, "k"),
        ("/recommend", {"k": 10.0}, "k"),
        ("/recommend", {"k": True}, "k"),
        ("/recommend", {"k": 10**30}, "k"),
        ("/recommend", {"kk": 1}, "kk"),
        ("/recommend", {"history": "260"}, "history"),
        ("/recommend", {"history": ["a"] * 2001}, "history"),
        ("/recommend", {"exclude": ["a"] * 10_001}, "exclude"),
        ("/recommend", {"history": ["a"], "times": []}, "times"),
        ("/embed", {"requests": [{"history": ["a"], "ratings": [1, 2]}]}, "requests.0.ratings"),
        ("/recommend", {"history": "a", "times": [1]}, "history"),
        ("/recommend", {"history": ["a"], "ratings": [float("nan")]}, "ratings.0"),
        ("/recommend", {"user_id": "\ud800"}, "user_id"),
        ("/recommend", {"funnel": "../../etc/passwd"}, "funnel"),
        ("/recommend", {"objective_weights": {"watch": 1.0}}, "objective_weights"),
        ("/recommend", {"filters": {"no_column": 1}}, "filters"),
        ("/recommend", {"filters": {"year": {"since": 1}}}, "filters.year"),
        ("/recommend", {"filters": {"year": "old"}}, "filters"),
        ("/recommend", {"filters": {"year": None}}, "filters.year"),
        ("/recommend", {"filters": {"year": [[1990]]}}, "filters.year"),
        ("/search", {"vectors": [[float("nan")]], "model_version": "a"}, "vectors.0.0"),
        ("/search", {"vectors": [], "model_version": "a"}, "vectors"),
        ("/events", {"events": [{"user_id": "", "item_id": "a"}]}, "events.0.user_id"),
        ("/events", {"events": [{"user_id": "a", "item_id": "a", "event": "x"}]}, "events.0.event"),
        ("/events", {"events": [{"user_id": " u", "item_id": "a"}]}, "events.0.user_id"),
        ("/events", {"events": [{"user_id": "NULL", "item_id": "a"}]}, "events.0.user_id"),
        ("/events", {"events": [{"user_id": "u", "item_id": "a\n"}]}, "events.0.item_id"),
        ("/events", {"events": [{"user_id": "u", "item_id": "nan"}]}, "events.0.item_id"),
        ("/items", {}, "add"),
        ("/items", {"add": [{"item_id": "1.23E+17"}]}, "add.0.item_id"),
        ("/items", {"add": [{"item_id": "a", "x": {"y": 1}}]}, "add.0"),
        ("/deploys", {"version": "../x"}, "version"),
    ],
)
def test_a_wrong_field_is_named(client, path, body, field):
    wrong = refused(client, path, body)
    assert wrong["field"] == field and wrong["message"] and wrong["code"] == "invalid"
    assert "/work" not in wrong["message"] and "twotower." not in wrong["message"]
    assert "Value error" not in wrong["message"]


def test_a_wrong_parameter_is_named_as_it_is_sent(client):
    answer = client.get("/titles", params={"k": "many"})
    assert answer.status_code == 422 and answer.json()["error"]["field"] == "k"


def test_an_unknown_parameter_is_refused(client):
    wrong = client.get("/onboarding", params={"k": 5})
    assert wrong.status_code == 422 and wrong.json()["error"]["field"] == "k"
    message = "unknown parameter; this route takes size, user_id"
    assert wrong.json()["error"]["message"] == message
    wrong = client.post("/recommend", params={"k": 5}, json={})
    assert wrong.status_code == 422 and "takes none" in wrong.json()["error"]["message"]
    # Probes and links may add some where there are none.
    assert client.get("/healthz", params={"from": "proxy"}).status_code == 200
    assert client.get("/", params={"utm_source": "mail"}).status_code == 200


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"", 422, "expected a JSON object"),
        (b"[]", 422, "expected a JSON object"),
        (b"null", 422, "expected a JSON object"),
        (b"{", 400, "at character 1"),
        (b'{"k": 1, "k": 2}', 400, "'k' is there twice"),  # other readers keep the first value
        (b'{"filters": {"year": 1, "year": 2}}', 400, "'year' is there twice"),
        (b'{"k": ' + b"9" * 5_000 + b"}", 400, "shorter numbers"),
        (b"\xff\xfe", 400, "JSON"),  # the mark of UTF-16, and nothing behind it
        (b'{"user_id": "\xff"}', 400, "JSON in UTF-8"),
        (gzip.compress(b"{}", mtime=0), 400, "not compressed"),
        (NESTED, 400, "fewer lists inside lists"),
    ],
)
def test_what_is_no_body(client, body, status, message):
    wrong = refused(client, "/recommend", body, status)
    assert wrong["field"] == "" and message in wrong["message"]
    assert wrong["code"] == ("json" if status == 400 else "invalid")


def test_a_filter_on_no_column_is_named_whatever_its_name(client):
    wrong = refused(client, "/recommend", {"filters": {"self": 1}})
    assert wrong["message"].startswith("the catalogue has no column 'self'")


def test_a_body_that_is_not_said_to_be_json(client):
    answer = client.post("/recommend", content=b'{"k": 3}')  # as `curl -d` without a header
    assert answer.status_code == 422
    assert "content-type: application/json" in answer.json()["error"]["message"]
