"""The page at GET / in a browser: it shows what it asks for and what the answering version has."""

import urllib.parse

import numpy as np
from browsing import HOSTILE, needs_browser, opened, served

from twotower.funnel.filters import Filter, Filters, Seen
from twotower.serving.app import create_app
from twotower.serving.guard import Limits
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service

pytestmark = needs_browser

MOVE = """
arguments[0].value = arguments[1];
arguments[0].dispatchEvent(new Event('change', {bubbles: true}));
"""


class Page:
    """A page in a browser."""

    def __init__(self, browser, address):
        from selenium.webdriver.support.ui import WebDriverWait

        self.browser, self.address, self._wait = browser, address, WebDriverWait(browser, 60)

    def open(self, link):
        self.browser.get(f"{self.address}{link}")

    def until(self, condition):
        """What the condition gives as soon as that is true."""
        return self._wait.until(lambda _: condition())

    def texts(self, selector):
        script = "return [...document.querySelectorAll(arguments[0])].map(e => e.textContent)"
        return self.browser.execute_script(script, selector)

    def text(self, selector):
        return " ".join(" ".join(self.texts(selector)).split())

    def titles(self):
        return self.texts(".list strong")

    def slider(self, objective):
        path = f"//fieldset//label[starts-with(normalize-space(), '{objective}:')]/input"
        return self.browser.find_element("xpath", path)

    def weights(self):
        """What the page says of each objective, and where its slider is."""
        labels = self.browser.find_elements("xpath", "//fieldset/label[input/@type='range']")
        script = "return [arguments[0].textContent.trim(), arguments[0].children[0].value]"
        return [tuple(self.browser.execute_script(script, label)) for label in labels]

    def press(self, words):
        self.browser.find_element("xpath", f"//button[contains(., '{words}')]").click()

    def section(self, heading):
        """Selects the section of a heading."""
        return f"section[aria-labelledby='{heading}']"


def service_of(folder, *pipelines, names=()):
    """A service whose canary, if there is one, answers all known users; and the bodies it gets."""
    service, asked = Service(Live(pipelines, float(len(pipelines) > 1), names), folder), []
    recommend = service.recommend

    async def noted(body):
        asked.append(body)
        return await recommend(body)

    service.recommend = noted
    return service, asked


def test_weights_are_sent_as_they_are_shown(ranked_pipeline, tmp_path):
    service, asked = service_of(tmp_path / "state", ranked_pipeline)
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        page = Page(browser, address)

        def sent(weights):
            """Waits until these weights are asked for and answered."""
            page.until(lambda: asked and asked[-1].objective_weights == weights)
            page.until(lambda: page.texts("[aria-busy=false]"))
            assert not page.texts(".problem")

        page.open("#like=i00003")
        first = page.until(page.titles)
        page.until(page.weights)
        sent({})
        assert page.weights() == [("like: 0, as exported", "0"), ("relevance: 1, as exported", "1")]
        browser.execute_script(MOVE, page.slider("like"), 0.5)
        sent({"like": 0.5, "relevance": 1.0})
        assert page.weights() == [("like: 0.5", "0.5"), ("relevance: 1", "1")]
        # With p the chance by `relevance`, that by `like` is 1 - p: p + .5 (1 - p) grows with p.
        assert page.titles() == first
        browser.execute_script(MOVE, page.slider("like"), 0)
        sent({"like": 0.0, "relevance": 1.0})
        browser.execute_script(MOVE, page.slider("like"), 2)
        sent({"like": 2.0, "relevance": 1.0})  # p + 2 (1 - p) falls
        page.until(lambda: page.titles() != first)
        assert "weight.like=2&weight.relevance=1" in browser.current_url
        page.press("Weights as exported")
        sent({})
        page.until(lambda: page.titles() == first)
        assert "weight" not in browser.current_url and "exported" in page.weights()[0][0]
        # A link with one weight, beyond the slider's usual end.
        page.open("#like=i00003&weight.like=-5")
        sent({"like": -5.0, "relevance": 1.0})
        assert page.weights() == [("like: -5", "-5"), ("relevance: 1", "1")]


def test_what_a_link_has_and_the_bundle_has_not_is_left_out(bundle_folder, tmp_path):
    service, asked = service_of(tmp_path / "state", Pipeline(bundle_folder))
    hostile = urllib.parse.quote(f"weight.{HOSTILE}")
    link = (
        "#like=i00003&funnel=constructor&index=none&source=ease&source=nobody&genre=Quixotic"
        f"&weight.nope=3&{hostile}=1&k=1000&diversity=2"
    )
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        page = Page(browser, address)
        page.open(link)
        assert len(page.until(page.titles)) == 10
        assert {text.split()[0] for text in page.texts(".list .source")} == {"ease"}
        (notice,) = page.texts("[role=status] .notice")
        for left_out in (
            "funnel constructor", "index none", "source nobody", "genre Quixotic",
            "objective nope", f"objective {HOSTILE}", "k 1000", "diversity 2",
        ):  # fmt: skip
            assert left_out in notice
        assert "source ease" not in notice and not page.texts(".problem")
        (body,) = asked
        given = body.model_dump(include={"funnel", "index", "objective_weights", "filters"})
        assert not any(given.values()) and body.sources == ["ease"] and body.diversity is None
        # The next choice takes them out of the address.
        browser.find_element("css selector", ".list > li .row button").click()
        page.until(lambda: not page.texts(".notice"))
        assert urllib.parse.urlsplit(browser.current_url).fragment.count("=") == 3


def test_the_page_of_a_canary_s_user(bundle_folder, poor_folder, tmp_path):
    pipelines = Pipeline(bundle_folder), Pipeline(poor_folder)
    live, canary = (pipeline.model_version for pipeline in pipelines)
    service, _ = service_of(tmp_path / "state", *pipelines, names=("old", "new"))
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        page = Page(browser, address)
        compare, versions = (page.section(name) for name in ("compare", "versions"))
        page.open("#user=u00007&index=hnsw&compare=1&versions=1&map=1")
        page.until(lambda: page.texts(f"{compare} h3") == ["exact"])
        page.until(lambda: page.texts(f"{versions} h3") == ["old", "new"])
        assert len(page.texts(f"{compare} .lists li")) == 10
        assert len(page.texts(f"{versions} .lists li")) == 20
        assert f"model {canary}, version new." in page.text("header > p")
        assert "Search exact, all that version new has," in page.text(f"{compare} label")
        assert "Version new has no map" in page.text(page.section("map"))
        assert "version new does not offer it: index hnsw" in page.text(".notice")
        assert f"Live, model {live}." in page.text(versions)
        assert not page.texts(".problem") and page.titles()
        # Without a user the live version answers.
        page.open("#like=i00003&compare=1&map=1")
        page.until(lambda: page.texts(f"{compare} h3") == ["exact", "hnsw"])
        page.until(lambda: page.texts(".plane"))
        page.until(lambda: f"model {live}" in page.text("header > p"))
        assert not page.texts(".problem, .notice")


def test_a_part_that_fails_leaves_the_others(bundle_folder, tmp_path, monkeypatch):
    pipeline = Pipeline(bundle_folder)
    # Choices of a moment ago: the bundle has neither the map nor the index any more.
    choices = {**pipeline.choices(), "indexes": ["exact", "gone", "hnsw"]}
    monkeypatch.setattr(pipeline, "choices", lambda: choices)
    monkeypatch.setattr(pipeline, "_map", None)
    service, _ = service_of(tmp_path / "state", pipeline)
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        page = Page(browser, address)
        page.open("#like=i00003&compare=1&map=1")
        compare = page.section("compare")
        page.until(lambda: page.texts(f"{compare} h3") == ["exact", "gone", "hnsw"])
        found = [len(page.texts(f"{compare} .lists > div:nth-child({n}) li")) for n in (1, 2, 3)]
        assert found == [10, 0, 10] and "expected one of" in page.text(compare)
        page.until(lambda: "no map" in page.text(f"{page.section('map')} [role=alert]"))
        assert "query vector, 8 numbers" in page.text(".flow")
        assert not page.texts(".problem") and len(page.titles()) == 10


def test_what_had_no_effect_is_named(bundle_folder, tmp_path):
    class Nothing(Filter):
        """Keeps nothing, so it lets all pass."""

        kind, strict = "nothing", False

        def keep(self, requests, candidates):
            return np.zeros(candidates.keys.shape, bool)

    pipeline = Pipeline(bundle_folder)
    pipeline.funnels["default"].stages = [Filters([Seen(), Nothing()])]
    service, _ = service_of(tmp_path / "state", pipeline)
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        page = Page(browser, address)
        page.open("#like=i00003&search=war")
        page.until(page.titles)
        assert "Relaxed, since nothing would be left: nothing." in page.text(page.section("funnel"))
        # No part of this funnel reads a search text.
        assert "Not read by this funnel: search_text." in page.text(page.section("list"))
        assert "search text" not in page.text(".flow")
        page.until(lambda: "Search text, which this funnel does not read" in page.text("label"))
