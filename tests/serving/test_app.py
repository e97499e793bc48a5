"""The routes, through the app as uvicorn calls it."""

import gzip
import json

import numpy as np
import pytest
import tiny
from fastapi.testclient import TestClient

from twotower.data.tables import read_tables
from twotower.funnel.cold_start import most_popular, most_telling
from twotower.funnel.funnel import NoSourceError
from twotower.serving.app import create_app
from twotower.serving.asks import Ask
from twotower.serving.guard import Limits
from twotower.serving.histories import Histories
from twotower.serving.live import Live
from twotower.serving.map_view import MapView
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service
from twotower.serving.store import StoreError

LIMITS = Limits(body_bytes=200_000)


@pytest.fixture(scope="module")
def service(bundle_folder, tmp_path_factory):
    live = Live((Pipeline(bundle_folder),))
    state = tmp_path_factory.mktemp("state")
    return Service(live, state, histories=Histories(tiny.dataset()))


@pytest.fixture(scope="module")
def client(service):
    with TestClient(create_app(service, LIMITS)) as client:
        yield client


def recommend(client, **body):
    answer = client.post("/recommend", json=body)
    assert answer.status_code == 200, answer.text
    return answer.json()


def ids(answer) -> list[str]:
    return [item["item_id"] for item in answer["items"]]


def refused(client, path, body, status=422) -> dict:
    """The error of a body that is not taken."""
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(path, content=content, headers={"content-type": "application/json"})
    assert answer.status_code == status, answer.text
    return answer.json()["error"]


def test_history_in_items_out(client, bundle):
    found = recommend(client, history=["i00003", "i00007"], k=5)
    assert len({*ids(found)}) == 5 and not {*ids(found)} & {"i00003", "i00007"}
    assert found["model_version"] == bundle.model_version and found["funnel"] == "default"
    assert found["unknown"] == found["unread"] == [] and found["missing"] == {}
    # The answer is that of the bundle's own funnel.
    requests = bundle.encode and tiny.split().cases.take([0])
    history = bundle.catalogue.ids_of(requests.history.values).tolist()
    alone = bundle.recommend(history, k=8)
    assert ids(recommend(client, history=history, k=8, funnel="two_tower")) == alone.ids


def test_context_that_nothing_reads_is_named(client):
    asked = {"history": ["i00003"], "context": {"devise": "phone"}, "search_text": "war"}
    assert recommend(client, **asked)["unread"] == ["devise", "search_text"]


def test_filters_exclusions_and_unknown_items(client, bundle):
    items = bundle.catalogue.items
    genre = items["genres"].iloc[3][0]
    first = recommend(client, history=["i00003"], k=20, filters={"genres": [genre]})
    assert ids(first) and all(genre in item["genres"] for item in first["items"])
    less = recommend(
        client, history=["i00003"], k=20, filters={"genres": [genre]}, exclude=ids(first)[:2]
    )
    assert not {*ids(less)} & {*ids(first)[:2]}
    years = recommend(client, history=["i00003"], k=9, filters={"year": {"from": 2000}})
    assert all(item["year"] >= 2000 for item in years["items"])
    named = recommend(client, history=["zzz", "i00003", "\U0001f600\u0000"], exclude=["yyy"])
    assert named["unknown"] == ["zzz", "\U0001f600\u0000"] and len(ids(named)) == 10


def test_it_says_why(client):
    found = recommend(client, history=["i00003", "i00007"], k=3, explain=True)
    names = [stage["name"] for stage in found["stages"]]
    assert names == ["two_tower", "ease", "popularity", "merge", "filters"]
    for item in found["items"]:
        assert item["because"] in ("i00003", "i00007")
        assert item["sources"] and all(source["rank"] > 0 for source in item["sources"].values())


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


def test_a_request_that_a_tower_cannot_read_costs_the_others_nothing(service):
    (pipeline,) = service.live.pipelines
    good = Ask(history=["i00003"], k=5)
    alone, whole = pipeline.recommend([good])[0], {"two_tower", "ease", "popularity"}
    # Half a character is not a text for TensorFlow. The bodies of requests refuse it.
    bad, found = pipeline.recommend([Ask(user_id="\ud800", k=5), good])
    assert bad["missing"].keys() == {"two_tower"} and whole > bad["missing"].keys()
    assert found == alone and found["missing"] == {}


def test_without_the_store_there_are_answers_but_no_events(client, service, monkeypatch):
    def fail(*_):
        raise StoreError("Redis does not answer")

    monkeypatch.setattr(service.store, "read", fail)
    monkeypatch.setattr(service.store, "append", fail)
    found = recommend(client, user_id="u", history=["i00003"])
    assert len(ids(found)) == 10 and [*found["missing"]] == ["sessions"]
    waiting = service.event_log.waiting
    body = {"events": [{"user_id": "u", "item_id": "i00003"}]}
    answer = client.post("/events", json=body)
    assert answer.status_code == 503 and answer.headers["retry-after"] == "1"
    assert service.event_log.waiting == waiting


def test_known_users_bring_their_histories(client):
    data = tiny.dataset()
    user = data.users["user_id"].iloc[0]
    positives = data.interactions[data.positive]
    watched = {*positives["item_id"][positives["user_id"] == user]}
    found = recommend(client, user_id=user, k=50)
    assert not {*ids(found)} & watched
    assert ids(found) != ids(recommend(client, user_id="nobody", k=50))


def test_an_event_changes_the_next_answer(client, service):
    before = recommend(client, user_id="new", k=20)
    chosen, skipped, shown = ids(before)[:3]
    events = [
        {"user_id": "new", "item_id": chosen, "event": "watch", "timestamp": 978300760},
        {"user_id": "new", "item_id": skipped, "event": "skip"},
        {"user_id": "new", "item_id": shown, "event": "impression", "device": "tv"},
    ]
    answer = client.post("/events", json={"events": events})
    assert answer.status_code == 202 and answer.json() == {"accepted": 3}
    after = recommend(client, user_id="new", k=20, explain=True)
    assert not {chosen, skipped} & {*ids(after)} and shown in ids(after)
    assert {item["because"] for item in after["items"]} == {chosen}
    assert shown not in ids(recommend(client, user_id="new", k=20, hide_shown=1))
    # The log is what training reads.
    service.event_log.flush()
    dataset = read_tables(str(service.event_log.folder))
    rows = dataset.interactions.iloc[-3:]
    assert rows["item_id"].tolist() == [chosen, skipped, shown]
    assert dataset.positive[-3:].tolist() == [True, False, False]
    assert dataset.timestamps[-3] == 978300760


def test_vectors_out_and_in(client, bundle):
    answer = client.post("/embed", json={"requests": [{"history": ["i00003", "zzz"]}]}).json()
    assert answer["unknown"] == [["zzz"]] and len(answer["vectors"][0]) == 8
    body = {name: answer[name] for name in ("vectors", "model_version")}
    body |= {"k": 4, "exclude": ["i00009"]}
    found = client.post("/search", json=body).json()
    truth = bundle.recommend(["i00003"], k=4, exclude=["i00009"])
    assert [i for i in ids({"items": found["items"][0]}) if i != "i00003"][:3] == truth.ids[:3]
    wrong = refused(client, "/search", {**body, "model_version": "0" * 16})
    assert wrong["field"] == "model_version" and bundle.model_version in wrong["message"]
    short = refused(client, "/search", {**body, "vectors": [[1.0]]})
    assert short["message"] == "expected 8 numbers each; got 1"
    huge = refused(client, "/search", {**body, "vectors": [[1e300] * 8]})
    assert huge["field"] == "vectors"


def test_similar_items(client, bundle):
    found = client.post("/similar", json={"item_id": "i00003", "k": 3}).json()
    row = bundle.vectors[list(bundle.keys).index(bundle.catalogue.keys_of(["i00003"])[0])]
    best = bundle.keys[(-(bundle.vectors @ row)).argsort()]
    expected = [i for i in bundle.catalogue.ids_of(best) if i != "i00003"][:3]
    assert ids(found) == expected
    assert refused(client, "/similar", {"item_id": "zzz"})["field"] == "item_id"
    assert refused(client, "/similar", {"item_id": "i00003", "index": "../x"})["field"] == "index"


def test_onboarding_lists_the_items_that_tell_most(client, service, monkeypatch):
    def asked(size):
        answer = client.get("/onboarding", params={"size": size}).json()
        return ids(answer), answer["chosen"]

    lists = [make(tiny.dataset(), tiny.split().train, 50) for make in (most_telling, most_popular)]
    telling, popular = [tiny.dataset().catalogue.ids_of(keys).tolist() for keys in lists]
    assert telling[:3] != popular[:3] and asked(3) == (telling[:3], "telling")
    # A longer list goes on with popular items, none of them twice.
    rest = [item for item in popular if item not in telling]
    assert asked(50 + len(rest)) == (telling + rest, "telling")
    # A bundle of which no funnel has such a list.
    for funnel in service.live.pipelines[0].funnels.values():
        monkeypatch.setattr(funnel, "onboarding", ())
    assert asked(3) == (popular[:3], "popular")
    assert client.get("/onboarding", params={"size": 0}).status_code == 422


def test_items_come_and_go(client):
    item = {"item_id": "new-1", "title": "<script>Tin Moon</script>", "genres": ["g1"]}
    item["year"] = 2024
    answer = client.post("/items", json={"add": [item]})
    assert answer.status_code == 200, answer.text
    before = answer.json()["num_items"]
    (found,) = client.post("/similar", json={"item_id": "new-1", "k": 1}).json()["items"]
    only = recommend(client, history=["i00003"], filters={"year": {"from": 2024, "to": 2024}})
    assert ids(only) == ["new-1"] and only["items"][0]["title"] == item["title"]
    # A model that has not seen an item cannot read it in a history.
    later = recommend(client, history=["new-1", "i00003"])
    assert later["unknown"] == ["new-1"] and "new-1" not in ids(later)
    gone = client.post("/items", json={"remove": ["new-1", found["item_id"]]}).json()
    assert gone["num_items"] == before - 2
    for funnel in ("default", "two_tower"):
        answer = recommend(client, history=["i00003"], k=400, funnel=funnel)
        assert not {"new-1", found["item_id"]} & {*ids(answer)}
    client.post("/items", json={"add": [{"item_id": found["item_id"]}]})
    assert refused(client, "/items", {"remove": ["never"]})["message"].startswith("not in the")
    assert refused(client, "/items", {"add": [{"item_id": "n", "year": "old"}]})["field"] == "add"


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


@pytest.mark.parametrize(
    "body, status, message",
    [
        (b"", 422, "expected a JSON object"),
        (b"[]", 422, "expected a JSON object"),
        (b"null", 422, "expected a JSON object"),
        (b"{", 400, "at character 1"),
        (b"\xff\xfe", 400, "JSON"),  # the mark of UTF-16, and nothing behind it
        (b'{"user_id": "\xff"}', 400, "JSON in UTF-8"),
        (gzip.compress(b"{}", mtime=0), 400, "not compressed"),
        (NESTED, 400, "JSON"),
    ],
)
def test_what_is_no_body(client, body, status, message):
    wrong = refused(client, "/recommend", body, status)
    assert wrong["field"] == "" and message in wrong["message"]
    assert wrong["code"] == ("json" if status == 400 else "invalid")


def test_a_body_that_is_not_said_to_be_json(client):
    answer = client.post("/recommend", content=b'{"k": 3}')  # as `curl -d` without a header
    assert answer.status_code == 422
    assert "content-type: application/json" in answer.json()["error"]["message"]


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
