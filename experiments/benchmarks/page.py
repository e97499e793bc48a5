"""Times the playground in a browser: from a click on "Like" until the new list is on the screen.

    python experiments/serve.py --bundle=W/bundle
    python experiments/benchmarks/page.py --output=page.json

Needs Chromium with its driver, and selenium of the extra `dev`. The time begins with the click and
ends at the frame after the one that shows the new list: the page's code, the request, the answer
and the drawing. The browser runs on the same cores as the service.
"""

import shutil
import tempfile

import numpy as np
from absl import flags

from twotower.bundle.provenance import provenance, write_result
from twotower.commands import script

FLAGS = flags.FLAGS
flags.DEFINE_string("url", "http://127.0.0.1:8000", "Address of the service.")
flags.DEFINE_integer("clicks", 100, "Clicks that are timed.", 10)
script.DEFINE_path("output", None, "JSON file to write.")

# So many titles are liked before the page begins anew.
LIKED = 10
CLICK = """
const done = arguments[arguments.length - 1];
const list = document.querySelector(".list");
const observer = new MutationObserver(() => {
  observer.disconnect();
  requestAnimationFrame(() => requestAnimationFrame((now) => done(now - begun)));
});
observer.observe(list, { childList: true, subtree: true, characterData: true });
const begun = performance.now();
list.querySelector("button").click();
"""
READY = 'return document.querySelectorAll(".list > li").length'


def main() -> None:
    """Prints the percentiles and writes them."""
    from selenium import webdriver
    from selenium.webdriver.support.ui import WebDriverWait

    options = webdriver.ChromeOptions()
    options.binary_location = shutil.which("chromium") or ""
    service = webdriver.ChromeService(shutil.which("chromedriver"))
    milliseconds: list[float] = []
    with tempfile.TemporaryDirectory() as folder:
        for flag in ("headless", "no-sandbox", "disable-gpu", f"user-data-dir={folder}"):
            options.add_argument(f"--{flag}")
        with webdriver.Chrome(options, service) as browser:
            wait = WebDriverWait(browser, 30)
            while len(milliseconds) < FLAGS.clicks:
                browser.get("about:blank")  # another fragment alone would not begin anew
                browser.get(FLAGS.url)
                wait.until(lambda _: browser.execute_script(READY))
                browser.execute_async_script(CLICK)  # warms the page's code
                milliseconds += [browser.execute_async_script(CLICK) for _ in range(LIKED)]
    row = {
        "clicks": len(milliseconds),
        **{f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)},
    }
    print(row)
    if FLAGS.output:
        write_result(FLAGS.output, {**row, **provenance()})


if __name__ == "__main__":
    script.run(main)
