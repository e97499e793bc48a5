"""Times the playground in a browser: from a click on "Like" until the new list is on the screen.

    python experiments/serve.py --bundle=W/bundle
    python experiments/benchmarks/page.py --output=page.json
    python experiments/benchmarks/page.py --picture=experiments/report/pictures/playground.png

`--picture` draws the page that README shows, with three liked titles and the map. Use a bundle of
synthetic data with a funnel and a map, since MovieLens may not be redistributed.

Needs Chromium with its driver, and selenium and pillow of the extra `dev`. The time begins with the
click and ends at the frame after the one that shows the new list: the page's code, the request, the
answer and the drawing. The browser runs on the same cores as the service.
"""

import io
import json
import pathlib
import shutil
import tempfile
import urllib.request
from typing import Any

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: its errors are one line)
from PIL import Image

from twotower.bundle.provenance import provenance, write_result

FLAGS = flags.FLAGS
flags.DEFINE_string("url", "http://127.0.0.1:8000", "Address of the service.")
flags.DEFINE_integer("clicks", 100, "Clicks that are timed.", 10)
script.DEFINE_path("output", None, "JSON file to write.")
script.DEFINE_path("picture", None, "PNG file to write, of the page with liked titles.")

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
DRAWN = "return !document.querySelector('.plane') || document.querySelector('.plane').dataset.point"
SIZE = 1100, 1660  # of the picture
COLOURS = 128


def picture(browser: Any) -> bytes:
    """The page with three of the titles that it suggests, and the map if there is one, as PNG."""
    from selenium.webdriver.support.ui import WebDriverWait

    with urllib.request.urlopen(f"{FLAGS.url.rstrip('/')}/onboarding?size=3") as answer:
        likes = [f"like={item['item_id']}" for item in json.load(answer)["items"]]
    browser.get("about:blank")
    browser.set_window_size(*SIZE)
    browser.get(f"{FLAGS.url}#{'&'.join(likes)}&k=6&map=1")
    wait = WebDriverWait(browser, 30)
    wait.until(lambda _: browser.execute_script(READY))
    wait.until(lambda _: browser.execute_script(DRAWN))
    # The window has a frame; and a canvas that was drawn smaller is drawn again.
    inner = browser.execute_script("return [innerWidth, innerHeight]")
    browser.set_window_size(*(2 * size - got for size, got in zip(SIZE, inner)))
    browser.execute_script("document.documentElement.style.overflow = 'hidden'")
    browser.execute_async_script("requestAnimationFrame(() => setTimeout(arguments[0], 500))")
    image = Image.open(io.BytesIO(browser.get_screenshot_as_png())).convert("RGB")
    content = io.BytesIO()
    image.quantize(COLOURS, dither=Image.Dither.NONE).save(content, "png", optimize=True)
    return content.getvalue()


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
            if FLAGS.picture:
                pathlib.Path(FLAGS.picture).write_bytes(picture(browser))
    row = {
        "clicks": len(milliseconds),
        **{f"p{q}": float(np.percentile(milliseconds, q)) for q in (50, 95, 99)},
    }
    print(row)
    if FLAGS.output:
        write_result(FLAGS.output, {**row, **provenance()})


if __name__ == "__main__":
    script.run(main)
