"""The page at GET /: its files, its routes, and a browser that reads it."""

import asyncio
import contextlib
import importlib.util
import json
import pathlib
import re
import shutil
import socket
import threading
import time

import numpy as np
import pandas as pd
import pytest
import tiny
import uvicorn
from fastapi.testclient import TestClient
from setuptools import Distribution

from twotower.bundle.manifest import write_manifest
from twotower.serving import schemas
from twotower.serving.app import PAGE, create_app
from twotower.serving.guard import Limits
from twotower.serving.histories import Histories
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service

FILES = sorted(path for path in PAGE.rglob("*") if path.is_file())
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
MIDDLE = 210  # row of the item at (.5, .5) of the map's grid
REASON = "no browser: install chromium, chromium-driver and selenium"
HAS_BROWSER = bool(
    shutil.which("chromium")
    and shutil.which("chromedriver")
    and importlib.util.find_spec("selenium")
)


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


@contextlib.contextmanager
def served(app):
    """The address of an app on a free port of the loopback interface."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    server = uvicorn.Server(
        uvicorn.Config(app, port=port, log_config=None, timeout_graceful_shutdown=1)
    )
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        while not server.started:
            assert thread.is_alive()
            time.sleep(0.02)
        yield f"http://127.0.0.1:{port}/"
    finally:
        server.should_exit = True
        thread.join()


@contextlib.contextmanager
def opened(folder):
    """A browser whose files are in a folder."""
    from selenium import webdriver

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium")
    for flag in (
        "headless", "no-sandbox", "disable-gpu", "disable-quic", "no-first-run", "disable-sync",
        "disable-background-networking", "disable-component-update",
        f"user-data-dir={folder / 'browser'}",
    ):  # fmt: skip
        options.add_argument(f"--{flag}")
    driver = webdriver.ChromeService(shutil.which("chromedriver"))
    with webdriver.Chrome(options, driver) as browser:
        yield browser
        # An alert would have made each call fail; and no title became an element.
        assert not browser.execute_script("return document.querySelector('#root :is(script, img)')")
        assert not [e for e in browser.get_log("browser") if e["level"] == "SEVERE"]


@pytest.mark.skipif(not HAS_BROWSER, reason=REASON)
def test_clicks_change_the_list_and_titles_stay_text(bundle_folder, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import WebDriverWait

    service = Service(Live((Pipeline(bundle_folder),)), tmp_path / "state")
    item = schemas.Items.model_validate({"add": [{"item_id": "h&1", "title": HOSTILE}]})
    asyncio.run(service.change_items(item))
    app = create_app(service, Limits())
    with served(app) as address, opened(tmp_path) as browser:
        wait = WebDriverWait(browser, 60)

        def titles(selector=".list strong"):
            script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
            return browser.execute_script(script, selector)

        browser.get(f"{address}#like=h%261")
        wait.until(lambda _: any(HOSTILE in text for text in titles(".picked li")))
        first = wait.until(lambda _: titles())
        assert len(first) == 10

        def towers():
            """The words and the query vector of the steps that lead to the list."""
            words = browser.find_element(By.CSS_SELECTOR, ".flow").text.split("\n")
            bars = "return [...document.querySelectorAll('.flow rect')].map(e => e.style.transform)"
            return words, browser.execute_script(bars)

        # The model does not know the item that was added, so the query tower has nothing.
        wait.until(lambda _: "query vector, 8 numbers" in towers()[0])
        words, bars = towers()
        assert words[:3] == ["0", "titles you like", "query tower"] and len(bars) == 8
        assert "candidates of 3 sources" in words and max(map(len, bars)) > len("scaleY(0)")
        browser.find_element(By.CSS_SELECTOR, ".list > li .row button").click()
        second = wait.until(lambda _: (new := titles()) != first and new)
        assert first[0] not in second and len(titles(".picked li")) == 2
        assert browser.current_url.count("like=") == 2
        wait.until(lambda _: towers()[1] != bars)
        assert towers()[0][:2] == ["1", "title you like"]
        # The pressed button went with its row: the keyboard goes on at the list's heading.
        assert browser.switch_to.active_element.get_attribute("id") == "list"
        browser.back()
        wait.until(lambda _: titles() == first)
        # Nothing answers: the page says so where its reader is, and keeps its list.
        fail = "window.real = fetch; window.fetch = () => Promise.reject(new TypeError('no'))"
        browser.execute_script(f"scrollTo(0, document.body.scrollHeight); {fail}")
        browser.execute_script("document.querySelector('.list > li .row button').click()")
        problem = wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".problem"))[0]
        assert problem.text.startswith("The service does not answer.") and titles() == first
        box = "const box = arguments[0].getBoundingClientRect(); return [box.top, innerHeight]"
        top, height = browser.execute_script(box, problem)
        assert 0 <= top < height
        browser.execute_script("window.fetch = window.real")
        problem.find_element(By.TAG_NAME, "button").click()
        wait.until(lambda _: titles() == second)


# What a call of api.js gave whose body is called off, or breaks off, while it is read.
BROKEN = """
const [path, how, done] = arguments;
const gone = new AbortController();
const fetched = window.fetch;
window.fetch = (_, { signal }) => Promise.resolve(new Response(new ReadableStream({
  start(body) {
    signal.addEventListener("abort", () => body.error(signal.reason));
    setTimeout(() => how === "abort" ? gone.abort() : body.error(new TypeError("network")), 20);
  },
})));
import(path)
  .then(({ get }) => get("map", {}, gone.signal))
  .then((found) => ["found", JSON.stringify(found)], (wrong) => [wrong.name, wrong.message])
  .then((told) => { window.fetch = fetched; done(told); });
"""


@pytest.mark.skipif(not HAS_BROWSER, reason=REASON)
def test_half_a_body_is_no_answer(bundle_folder, tmp_path):
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path / "state")
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        browser.get(address)
        api = f"{address}page/api.js"
        aborted = browser.execute_async_script(BROKEN, api, "abort")
        assert aborted[0] == "AbortError", aborted
        broken = browser.execute_async_script(BROKEN, api, "break")
        assert broken == ["Error", "The service's answer broke off, or is none of its own."]


@pytest.mark.skipif(not HAS_BROWSER, reason=REASON)
def test_clicks_are_timed(bundle_folder, tmp_path):
    service, output = Service(Live((Pipeline(bundle_folder),)), tmp_path), tmp_path / "page.json"
    script = tiny.ROOT / "experiments" / "benchmarks" / "page.py"
    with served(create_app(service, Limits())) as address:
        tiny.script(script, f"--url={address}", "--clicks=10", f"--output={output}")
    found = json.loads(output.read_text())
    assert found["clicks"] == 10 and 1 < found["p50"] <= found["p95"] <= found["p99"]


@pytest.fixture
def hostile_folder(bundle_folder, tmp_path):
    """The bundle with a hostile title on its map, in the middle of the grid."""
    folder = pathlib.Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    path = folder / "items" / "catalogue.parquet"
    items = pd.read_parquet(path)
    items.loc[items.index[np.load(folder / "items" / "keys.npy")[MIDDLE]], "title"] = HOSTILE
    items.to_parquet(path)
    manifest = json.loads((folder / "manifest.json").read_text())
    write_manifest(folder, {k: v for k, v in manifest.items() if k not in ("files", "sha256")})
    return folder


@pytest.mark.skipif(not HAS_BROWSER, reason=REASON)
def test_the_map_and_the_versions(hostile_folder, bundle_folder, tmp_path):
    from selenium.webdriver.common.action_chains import ActionChains
    from selenium.webdriver.common.by import By
    from selenium.webdriver.common.keys import Keys
    from selenium.webdriver.support.ui import WebDriverWait

    pipelines = (Pipeline(hostile_folder), Pipeline(bundle_folder))
    service = Service(Live(pipelines, 0.1, ("old", "new")), tmp_path / "state")
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        wait = WebDriverWait(browser, 60)
        liked = [item["item_id"] for item in pipelines[0].bundle.titles("", 2)]
        browser.get(f"{address}#like={liked[0]}&versions=1")
        boxes = "[...document.querySelectorAll('.lists h3')].map(e => e.parentElement.innerText)"
        first, second = wait.until(lambda _: browser.execute_script(f"return {boxes}"))
        # Two bundles of one training: the same items.
        assert first.startswith("old\n") and "It shares 10 of 10 with the other" in second
        # What the map needs is asked for when somebody opens it.
        asked = "return performance.getEntriesByType('resource').map(e => e.name).join(' ')"
        assert "/map?" not in browser.execute_script(asked)
        browser.find_element(By.XPATH, "//label[contains(., 'on a map')]/input").click()
        plane = wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, ".plane"))[0]
        before = wait.until(lambda _: plane.get_attribute("data-point"))
        assert "/map?" in browser.execute_script(asked) and "map=1" in browser.current_url

        def pointed_at() -> str:
            return browser.find_element(By.CSS_SELECTOR, ".active span").text

        browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", plane)
        ActionChains(browser).move_to_element(plane).perform()
        wait.until(lambda _: pointed_at().startswith(HOSTILE))
        assert browser.find_element(By.CSS_SELECTOR, ".tip").text.startswith(HOSTILE)
        ActionChains(browser).click().perform()
        wait.until(lambda _: plane.get_attribute("data-point") != before)
        assert browser.current_url.count("like=") == 2
        words = browser.find_element(By.CSS_SELECTOR, ".map ~ details").text
        assert HOSTILE in words and "Recommended" in words
        # The grid's next column, and back to where the query is.
        plane.send_keys(Keys.ARROW_RIGHT)
        right = pipelines[0].bundle.items_of(
            [pipelines[0].map.without(pipelines[0].bundle.removed)["ids"][MIDDLE + 20]]
        )[0]["title"]
        wait.until(lambda _: pointed_at().startswith(right))
        plane.send_keys(Keys.HOME)
        wait.until(lambda _: not pointed_at().startswith(right))
