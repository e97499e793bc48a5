"""What the routes answer, through the app as uvicorn calls it."""

import dataclasses
import sqlite3

import tiny
from asking import ids, recommend, refused

from twotower.data.tables import read_tables
from twotower.funnel.cold_start import most_popular, most_telling
from twotower.serving.asks import Ask
from twotower.serving.events import EventLog
from twotower.serving.pipeline import Pipeline
from twotower.serving.store import StoreError


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


def test_the_data_of_the_service_may_have_other_items_in_another_order(bundle_folder):
    """The data are read once, at the start; bundles with newer items are deployed later."""
    data, asks = tiny.dataset(), [Ask(history=["i00200", "i00003"], user_id="u00001", k=9)]
    (alone,) = Pipeline(bundle_folder, source_deadline=60).recommend(asks)
    rows = data.interactions[data.interactions["item_id"] < "i00150"]
    items = data.items[:150].iloc[::-1]
    older = dataclasses.replace(data, interactions=rows, items=items)
    (found,) = Pipeline(bundle_folder, older, source_deadline=60).recommend(asks)
    assert ids(found) == ids(alone) and found["unknown"] == []


def test_a_request_that_a_tower_cannot_read_costs_the_others_nothing(service):
    (pipeline,) = service.live.pipelines
    good = Ask(history=["i00003"], k=5)
    alone, whole = pipeline.recommend([good])[0], {"two_tower", "ease", "popularity"}
    # Half a character is not a text for TensorFlow. The bodies of requests refuse it.
    bad, found = pipeline.recommend([Ask(user_id="\ud800", k=5), good])
    assert bad["missing"].keys() == {"two_tower"} and whole > bad["missing"].keys()
    assert found == alone and found["missing"] == {}


def full(*_):
    raise sqlite3.OperationalError("database or disk is full")


def test_without_the_store_there_are_answers_but_no_events(client, service, monkeypatch, caplog):
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
    # If the disk is full, too, the log keeps the event, and the answer is the same.
    with monkeypatch.context() as patched:
        patched.setattr(service.event_log, "remove", full)
        assert client.post("/events", json=body).status_code == 503
    assert service.event_log.waiting == waiting + 1 and "disk is full" in caplog.text


def test_events_are_in_their_sessions_before_a_part_file_has_them(
    client, service, tmp_path, monkeypatch
):
    """Events in a part file cannot be removed when the store of the sessions refuses them."""
    log, add, waiting = EventLog(tmp_path / "events", rows=2), service.sessions.add, []
    monkeypatch.setattr(service, "event_log", log)
    monkeypatch.setattr(
        service.sessions, "add", lambda deeds: waiting.append(log.waiting) or add(deeds)
    )
    for item in ("i00003", "i00004", "i00005"):
        body = {"events": [{"user_id": "u", "item_id": item}]}
        assert client.post("/events", json=body).status_code == 202
    # The second event makes a part file, after it is in the session.
    assert waiting == [1, 2, 1] and log.waiting == 1
    log.close()


def test_on_a_full_disk_there_are_answers_and_what_is_not_kept_may_come_again(
    client, service, monkeypatch
):
    monkeypatch.setattr(service.event_log, "append", full)
    monkeypatch.setattr(service.journal, "append", full)
    for path, body in (
        ("/events", {"events": [{"user_id": "unlucky", "item_id": "i00003"}]}),
        ("/items", {"add": [{"item_id": "new-1"}]}),
    ):
        wrong = refused(client, path, body, 503)
        assert wrong["code"] == "state" and "cannot be kept" in wrong["message"]
    assert not service.sessions.of(["unlucky"])[0].liked
    assert len(ids(recommend(client, user_id="unlucky", history=["i00007"]))) == 10
    assert refused(client, "/similar", {"item_id": "new-1"})["field"] == "item_id"


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
