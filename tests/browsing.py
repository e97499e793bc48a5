"""A service on a port of this machine, and a browser that looks at its page."""

import contextlib
import importlib.util
import shutil
import socket
import threading
import time

import pytest
import uvicorn

# A title that would run a script if the page made HTML of it.
HOSTILE = "<script>alert(1)</script><img src=x onerror=alert(2)>"
HAS_BROWSER = bool(
    shutil.which("chromium")
    and shutil.which("chromedriver")
    and importlib.util.find_spec("selenium")
)
needs_browser = pytest.mark.skipif(
    not HAS_BROWSER, reason="no browser: install chromium, chromium-driver and selenium"
)


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
        # A refused request is the service's to answer; errors of scripts and missing files are not.
        log = [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"]
        assert not [entry for entry in log if "status of 422" not in entry["message"]], log
