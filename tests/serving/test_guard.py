"""What is refused before it reaches a route, around an app that only says what it got."""

import asyncio
import json
import logging
import os
import socket

import httpx2
import pytest

from twotower.serving.guard import Guard, Limits
from twotower.serving.metrics import Metrics
from twotower.serving.process import LOOPBACK, SETTINGS, TOKEN, JsonLines, Settings, run


async def echo(scope, receive, send):
    """Answers with the length of the body."""
    body = b""
    if scope["path"] == "/slow":
        await asyncio.sleep(0.2)
    while True:
        message = await receive()
        body += message.get("body", b"")
        if not message.get("more_body"):
            break
    await send({"type": "http.response.start", "status": 200, "headers": []})
    await send({"type": "http.response.body", "body": str(len(body)).encode()})


def ask(limits, *calls):
    """Answers of calls (method, path, further arguments), which are made at once."""

    async def run():
        transport = httpx2.ASGITransport(Guard(echo, limits, Metrics()))
        async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
            return await asyncio.gather(*(client.request(m, p, **more) for m, p, more in calls))

    return asyncio.run(run())


def post(path="/recommend", content=b"x", **headers):
    headers = {name.replace("_", "-"): value for name, value in headers.items()}
    return "POST", path, {"content": content, "headers": headers}


def test_large_bodies_are_not_read():
    def parts():
        for _ in range(1000):
            yield b"x" * 100_000

    async def stream():
        for part in parts():
            read.append(len(part))
            yield part

    read: list[int] = []
    limits = Limits(body_bytes=250_000)
    # One that says its length, one that says a wrong one, and one of 100 MB that says none.
    calls = [post(content=b"x" * 300_000), post(content=b"x" * 200_000)]
    said, fits = ask(limits, *calls)
    assert said.status_code == 413 and said.json()["error"]["code"] == "too_large"
    assert fits.text == "200000"
    (streamed,) = ask(limits, ("POST", "/recommend", {"content": stream()}))
    assert streamed.status_code == 413


def test_slow_bodies_are_given_up():
    async def never():
        yield b"x"
        await asyncio.sleep(5)

    (answer,) = ask(Limits(body_seconds=0.05), ("POST", "/recommend", {"content": never()}))
    assert answer.status_code == 408


def test_more_at_once_than_allowed():
    calls = [*[post("/slow") for _ in range(3)], ("GET", "/page/main.js", {}), post("/healthz")]
    answers = ask(Limits(concurrency=2), *calls)
    assert [answer.status_code for answer in answers] == [200, 200, 503, 503, 200]
    assert answers[2].headers["retry-after"] == "1"


def test_too_many_in_a_time():
    answers = ask(Limits(rate=0.1, burst=2), *[post() for _ in range(3)])
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    assert 1 <= int(answers[2].headers["retry-after"]) <= 10


def test_a_new_token_is_no_new_caller():
    tokens = [f"Bearer {number}" for number in range(3)]
    answers = ask(Limits(rate=0.1, burst=2), *[post(authorization=token) for token in tokens])
    assert [answer.status_code for answer in answers] == [200, 200, 429]
    # Guesses are of an address, and the caller with the right token is another one.
    limits = Limits(rate=0.1, burst=2, token="right")
    calls = [*[post(authorization=token) for token in tokens], post(authorization="Bearer right")]
    assert [answer.status_code for answer in ask(limits, *calls)] == [401, 401, 429, 200]


def test_files_of_the_page_need_no_token_and_have_a_rate_of_their_own():
    # Ten files are a view of the page, so the rate lets ten times as many through: here 2 x 10.
    limits = Limits(rate=0.01, burst=2, token="right")
    files = [("GET", path, {}) for path in ["/", "/page/main.js"] * 11]
    answers = ask(limits, *files, post(authorization="Bearer right"), ("GET", "/healthz", {}))
    assert [answer.status_code for answer in answers] == [200] * 20 + [429] * 2 + [200] * 2


@pytest.mark.parametrize(
    "path, given, status",
    [
        ("/recommend", "", 401),
        ("/recommend", "Bearer wrong", 401),
        ("/recommend", "Basic all", 401),
        ("/recommend", "bearer all", 200),
        ("/recommend", "Bearer \u00e4", 401),
        ("/items", "Bearer all", 401),
        ("/items", "Bearer admin", 200),
        ("/deploys/rollback", "Bearer all", 401),
        ("/healthz", "", 200),
    ],
)
def test_tokens(path, given, status):
    limits = Limits(token="all", admin_token="admin")
    headers = {"authorization": given.encode()} if given else {}
    (answer,) = ask(limits, ("POST", path, {"content": b"x", "headers": headers}))
    assert answer.status_code == status
    assert ("www-authenticate" in answer.headers) == (status == 401)


@pytest.mark.parametrize(
    "headers, status",
    [
        ({}, 200),  # no browser
        ({"sec_fetch_site": "same-origin", "origin": "https://any.example"}, 200),
        ({"sec_fetch_site": "none"}, 200),
        ({"sec_fetch_site": "cross-site"}, 403),
        ({"sec_fetch_site": "same-site", "origin": "http://test"}, 403),
        ({"origin": "http://test"}, 200),
        ({"origin": "http://test:81"}, 403),
        ({"origin": "http://evil.example"}, 403),
        ({"origin": "null"}, 403),
    ],
)
def test_a_page_of_another_origin_changes_nothing(headers, status):
    (answer,) = ask(Limits(), post("/deploys/rollback", content=b"", **headers))
    assert answer.status_code == status
    _, path, more = post("/choices", content=b"", **headers)
    (read,) = ask(Limits(), ("GET", path, more))
    assert read.status_code == 200  # which the browser does not show that page


def test_a_name_that_leads_here_is_not_answered_without_a_token():
    limits = Limits(hosts=("127.0.0.1", "localhost", "::1"))
    for host, status in (
        ("127.0.0.1:8000", 200),
        ("LOCALHOST", 200),
        ("[::1]:8000", 200),
        ("[::1]", 200),
        ("evil.example:8000", 403),
        ("evil.example", 403),
        ("127.0.0.1.evil.example", 403),
        ("[::2]:8000", 403),
    ):
        _, path, more = post("/choices", content=b"", host=host)
        (answer,) = ask(limits, ("GET", path, more))
        assert answer.status_code == status, host
    (probe,) = ask(limits, ("GET", "/healthz", {"headers": {"host": "10.0.0.7"}}))
    assert probe.status_code == 200


@pytest.mark.parametrize(
    "host, environment, hosts, has_proxy",
    [
        ("127.0.0.1", {}, list(LOOPBACK), False),
        ("0.0.0.0", {}, [], False),
        ("127.0.0.1", {TOKEN: "secret"}, [], False),
        ("127.0.0.1", {"FORWARDED_ALLOW_IPS": "127.0.0.1"}, [], True),
    ],
)
def test_callers_are_believed_only_where_a_proxy_is_named(
    host, environment, hosts, has_proxy, monkeypatch
):
    monkeypatch.delenv("FORWARDED_ALLOW_IPS", raising=False)
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    given = []
    monkeypatch.setattr("uvicorn.Server.run", lambda server, _: given.append(server.config))
    monkeypatch.setenv(SETTINGS, "")
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        run(Settings("bundle", "", "state"), host, [listener])
    assert [config.proxy_headers for config in given] == [has_proxy]
    assert json.loads(os.environ[SETTINGS])["limits"]["hosts"] == hosts


def test_request_ids_cannot_write_into_the_log(caplog):
    caplog.set_level(logging.INFO, "twotower.serving")
    given = ["abc-123", 'a"b', "x" * 65, "a%0ab"]
    answers = ask(Limits(), *[post(x_request_id=some) for some in given])
    found = [answer.headers["x-request-id"] for answer in answers]
    assert found[0] == given[0] and not {*found[1:]} & {*given}
    lines = [json.loads(JsonLines().format(record)) for record in caplog.records]
    assert [line["request_id"] for line in lines] == found
    assert all(line["status"] == 200 and line["ms"] >= 0 for line in lines)
