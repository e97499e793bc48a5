"""axe-core finds no violation of WCAG 2.2 AA on the page, whatever it shows, in both colours."""

import importlib.util

import pytest
from browsing import needs_browser, opened, served

from twotower.serving.app import create_app
from twotower.serving.guard import Limits
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.service import Service

needs_axe = pytest.mark.skipif(
    not importlib.util.find_spec("selenium_axe_python"),
    reason="no axe-core: pip install selenium-axe-python",
)
TAGS = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa"]
# State -> the page's address after "#", and the element that shows it.
STATES = {
    "start": ("", ".list > li"),
    "liked": ("like=i00003&like=i00005&exclude=i00007", ".picked li"),
    "switched": ("like=i00003&index=exact&source=ease&diversity=0.5&genre=Drama", ".list > li"),
    "side by side": ("like=i00003&compare=1&versions=1", ".lists h3"),
    "map": ("like=i00003&map=1", ".plane[data-point]"),
    "odd link": ("k=-1&funnel=none&index=none", ".problem, [role=alert], [role=status]"),
}
REFUSED = "window.fetch = () => Promise.reject(new TypeError('no'))"


@needs_browser
@needs_axe
def test_axe_finds_nothing(bundle_folder, tmp_path):
    from selenium.webdriver.support.ui import WebDriverWait
    from selenium_axe_python import Axe

    pipelines = (Pipeline(bundle_folder), Pipeline(bundle_folder))
    service = Service(Live(pipelines, 0.1, ("old", "new")), tmp_path / "state")
    with served(create_app(service, Limits())) as address, opened(tmp_path) as browser:
        wait, axe = WebDriverWait(browser, 60), Axe(browser)
        problems = []

        def check(state):
            axe.inject()
            found = axe.run(options={"runOnly": TAGS})
            # Rules that applied and passed. An empty page would have no violations either.
            assert len(found["passes"]) > 15, (state, [rule["id"] for rule in found["passes"]])
            nodes = [(r["id"], node["html"]) for r in found["violations"] for node in r["nodes"]]
            problems.extend((state, *node) for node in nodes)

        for width, colours in ((1280, "light"), (360, "dark")):
            emulate = browser.execute_cdp_cmd
            screen = {"width": width, "height": 900, "deviceScaleFactor": 1, "mobile": False}
            emulate("Emulation.setDeviceMetricsOverride", screen)
            media = [{"name": "prefers-color-scheme", "value": colours}]
            emulate("Emulation.setEmulatedMedia", {"features": media})
            for state, (fragment, shown) in STATES.items():
                browser.get("about:blank")  # a change of the fragment alone loads nothing
                browser.get(f"{address}#{fragment}")
                wait.until(lambda _, css=shown: browser.find_elements("css selector", css))
                browser.execute_script(
                    "document.querySelectorAll('details').forEach(part => { part.open = true })"
                )
                check((state, width, colours))
            browser.execute_script(REFUSED)
            browser.find_element("css selector", ".list > li .row button").click()
            wait.until(lambda _: browser.find_elements("css selector", ".problem"))
            check(("no answer", width, colours))
        assert not problems, "\n".join(map(str, problems))
