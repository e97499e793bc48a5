"""The page at GET / in a browser: clicks, switches, the map, and answers that do not come."""

import asyncio
import json
import pathlib
import shutil

import numpy as np
import pandas as pd
import pytest
import tiny
from browsing import HOSTILE, needs_browser, opened, served
from PIL import Image

from twotower.bundle.manifest import write_manifest
from twotower.serving import schemas
from twotower.serving.app import create_app
from twotower.serving.guard import Limits
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service

MIDDLE = 210  # row of the item at (.5, .5) of the map's grid


@needs_browser
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


@needs_browser
def test_the_switches(bundle_folder, tmp_path):
    from selenium.webdriver.common.by import By
    from selenium.webdriver.support.ui import Select, WebDriverWait

    service = Service(Live((Pipeline(bundle_folder),)), tmp_path / "state")
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        wait = WebDriverWait(browser, 60)

        def texts(selector):
            script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
            return browser.execute_script(script, selector)

        def sources():
            return {text.split()[0] for text in texts(".list .source")}

        def field(words):
            path = f"//label[contains(., '{words}')]/*[self::input or self::select]"
            return browser.find_element(By.XPATH, path)

        def source(name):
            path = f"//fieldset//label[normalize-space()='{name}']/input"
            return browser.find_element(By.XPATH, path)

        def switched(address_has):
            wait.until(lambda _: address_has in browser.current_url)
            wait.until(lambda _: browser.find_elements(By.CSS_SELECTOR, "[aria-busy=false]"))

        # A link has the choices of its sender.
        browser.get(f"{address}#like=i00003&index=exact&source=ease&source=popularity")
        wait.until(lambda _: sources() == {"ease", "popularity"})
        assert "candidates of 2 sources" in browser.find_element(By.CSS_SELECTOR, ".flow").text
        assert Select(field("Index of two_tower")).first_selected_option.text == "exact"
        assert not source("two_tower").is_selected() and source("ease").is_selected()
        source("popularity").click()
        wait.until(lambda _: sources() == {"ease"})
        assert not source("ease").is_enabled()  # somebody has to find something
        source("popularity").click()
        source("two_tower").click()
        switched("index=exact")
        wait.until(lambda _: len(sources()) == 3)
        assert "source=" not in browser.current_url  # all of them, whichever those are
        before = texts(".list strong")
        move = (
            "arguments[0].value = 0.8;"
            "arguments[0].dispatchEvent(new Event('change', {bubbles: true}))"
        )
        browser.execute_script(move, field("Diversity"))
        wait.until(lambda _: texts(".list strong") != before)
        switched("diversity=0.8")
        assert "mmr" in texts("#funnel ~ .scroll tbody th")
        Select(field("Funnel")).select_by_value("two_tower")
        switched("funnel=two_tower")
        wait.until(lambda _: sources() == {"two_tower"})
        assert "diversity" not in browser.current_url and "index=exact" in browser.current_url


# What a call of api.js gave whose body is called off, or breaks off, while it is read.
BROKEN = """
const [path, how, done] = arguments;
const gone = new AbortController();
const fetched = window.fetch;
window.fetch = (path, options) => path !== "map?" + how ? fetched(path, options) :
  Promise.resolve(new Response(new ReadableStream({
    start(body) {
      const { signal } = options;
      signal.addEventListener("abort", () => body.error(signal.reason));
      setTimeout(() => how === "abort" ? gone.abort() : body.error(new TypeError("network")), 20);
    },
  })));
import(path)
  .then(({ get }) => get("map?" + how, {}, gone.signal))
  .then((found) => ["found", JSON.stringify(found)], (wrong) => [wrong.name, wrong.message])
  .then((told) => { window.fetch = fetched; done(told); });
"""


@needs_browser
def test_half_a_body_is_no_answer(bundle_folder, tmp_path):
    service = Service(Live((Pipeline(bundle_folder),)), tmp_path / "state")
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        browser.get(address)
        api = f"{address}page/api.js"
        aborted = browser.execute_async_script(BROKEN, api, "abort")
        assert aborted[0] == "AbortError", aborted
        broken = browser.execute_async_script(BROKEN, api, "break")
        assert broken == ["Error", "The service's answer broke off, or is none of its own."]


@needs_browser
def test_clicks_are_timed(bundle_folder, tmp_path):
    service, output = Service(Live((Pipeline(bundle_folder),)), tmp_path), tmp_path / "page.json"
    script = tiny.ROOT / "experiments" / "benchmarks" / "page.py"
    with served(create_app(service, Limits())) as address:
        given = f"--url={address}", "--clicks=10", f"--output={output}"
        tiny.script(script, *given, f"--picture={tmp_path / 'page.png'}")
    assert Image.open(tmp_path / "page.png").size == (1100, 1660)
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


@needs_browser
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
