"""The page at GET /: its files, and the routes that it asks."""

import pathlib
import re

import pytest
import tiny
from browsing import HOSTILE
from fastapi.testclient import TestClient
from setuptools import Distribution

from twotower.serving.app import PAGE, create_app
from twotower.serving.guard import Limits
from twotower.serving.histories import Histories
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service

FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())


@pytest.fixture(scope="module")
def client(bundle_folder, tmp_path_factory):
    live = Live((Pipeline(bundle_folder),))
    service = Service(live, tmp_path_factory.mktemp("state"), histories=Histories(tiny.dataset()))
    with TestClient(create_app(service, Limits())) as client:
        added = client.post("/items", json={"add": [{"item_id": "h&1", "title": HOSTILE}]})
        assert added.status_code == 200, added.text
        yield client


def test_the_page_is_served_with_all_it_needs(client):
    page = client.get("/")
    assert page.status_code == 200 and page.headers["content-type"].startswith("text/html")
    policy = page.headers["content-security-policy"]
    assert "default-src 'none'" in policy and "unsafe" not in policy
    size, todo, seen = len(page.content), re.findall(r'(?:src|href)="([^"]+)"', page.text), set()
    while todo:
        path = todo.pop()
        if path in seen:
            continue
        seen.add(path)
        answer = client.get(f"/{path}")
        assert answer.status_code == 200, path
        size += len(answer.content)
        if path.endswith(".js"):
            assert "javascript" in answer.headers["content-type"]
            folder = pathlib.PurePosixPath(path).parent
            todo += [str(folder / name) for name in re.findall(r'from "\./([^"]+)"', answer.text)]
    unused = {f"page/{path.relative_to(PAGE)}" for path in FILES} - seen
    assert {pathlib.PurePosixPath(path).name for path in unused} == {
        "index.html", "README.md", "LICENSE.htm", "LICENSE.preact"
    }  # fmt: skip
    assert size <= 150_000
    assert client.get("/page/../app.py").status_code == 404
    assert client.get("/page/%2e%2e/app.py").status_code == 404


def test_no_file_names_another_host_or_sets_html():
    # Names of XML namespaces, which are never asked for.
    names = ("http://www.w3.org/2000/svg", "http://www.w3.org/1999/")
    for path in FILES:
        text = path.read_text()
        if path.suffix in (".js", ".html", ".css", ".svg"):
            for name in names:
                text = text.replace(name, "")
            assert not re.search(r"https?://|url\(|@import|['\"]//", text), path
        if path.suffix == ".js" and path.parent.name != "vendor":
            wrong = r"innerHTML|outerHTML|insertAdjacent|document\.write|\beval\b|new Function"
            assert not re.search(wrong, text), path


def test_every_file_is_in_the_wheel(monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    build = Distribution()
    build.parse_config_files(["setup.cfg"])
    command = build.get_command_obj("build_py")
    command.ensure_finalized()
    command.manifest_files = {}
    packed = command.find_data_files("twotower.serving", "twotower/serving")
    assert {pathlib.Path(path).resolve() for path in packed} >= {*FILES}


def test_titles_are_found_by_their_words(client):
    def found(**query):
        answer = client.get("/titles", params=query)
        assert answer.status_code == 200, answer.text
        return answer.json()["items"]

    items = tiny.dataset().items
    title = items["title"].iloc[7]
    assert title in [item["title"] for item in found(search=title.upper())]
    assert found(search=f"{title} zzz") == [] and len(found(k=3)) == 3
    ids = [item["item_id"] for item in found(item_id=["i00005", "none", "i00002"])]
    assert ids == ["i00005", "i00002"]
    assert client.get("/titles", params={"k": 0}).status_code == 422
    # A removed item is not offered.
    client.post("/items", json={"add": [{"item_id": "gone", "title": "Quixotic zebra"}]})
    assert found(search="quix ZEB") and client.post("/items", json={"remove": ["gone"]})
    assert found(search="quix ZEB") == []


def test_hostile_titles_are_data_alone(client):
    answer = client.get("/titles", params={"search": "<script>alert"})
    assert answer.headers["content-type"] == "application/json"
    assert answer.headers["x-content-type-options"] == "nosniff"
    assert answer.json()["items"][0]["title"] == HOSTILE


def test_choices_are_those_of_the_bundle(client):
    choices = client.get("/choices").json()
    assert choices["funnels"]["default"]["sources"] == ["two_tower", "ease", "popularity"]
    assert choices["default_funnel"] == "default" and choices["indexes"] == ["exact", "hnsw"]
    assert choices["has_onboarding"] and choices["dataset"] == tiny.dataset().name
    assert choices["inputs"] == ["user_id", "history"] and choices["knows_histories"]
    genres = {genre for genres in tiny.dataset().items["genres"] for genre in genres}
    assert choices["genres"] == sorted(genres)


def test_choices_are_those_of_the_version_that_answers(bundle_folder, poor_folder, tmp_path):
    pipelines = Pipeline(bundle_folder), Pipeline(poor_folder)
    service = Service(Live(pipelines, 1.0, ("old", "new")), tmp_path)  # it answers all known users
    with TestClient(create_app(service, Limits())) as client:
        found = [client.get("/choices", params=user).json() for user in ({}, {"user_id": "u00007"})]
        for choices, body in zip(found, ({}, {"user_id": "u00007"})):
            answer = client.post("/recommend", json=body).json()
            assert choices["model_version"] == answer["model_version"]
    assert [choices["indexes"] for choices in found] == [["exact", "hnsw"], ["exact"]]
    assert [choices["has_map"] for choices in found] == [True, False]
    assert [choices["versions"] for choices in found] == 2 * [["old", "new"]]


def test_an_explained_answer_names_the_history(client):
    body = {"history": ["i00003", "i00007"], "explain": True}
    named = client.post("/recommend", json=body).json()["history"]
    assert [item["item_id"] for item in named] == ["i00003", "i00007"] and named[0]["title"]


def test_the_page_needs_no_token_and_the_data_do(bundle_folder, tmp_path):
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path)
    client = TestClient(create_app(service, Limits(token="t")))
    assert client.get("/").status_code == client.get("/page/main.js").status_code == 200
    for path in ("/titles", "/choices", "/onboarding", "/map", "/pages"):
        assert client.get(path).status_code == 401, path
    assert client.get("/page/%2e%2e/titles").status_code == 404
