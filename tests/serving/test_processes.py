"""A service as a process of its own: stopped, doubled, and given whatever comes."""

import concurrent.futures
import contextlib
import json
import os
import random
import re
import shlex
import shutil
import signal
import socket
import subprocess
import sys

import httpx2
import pyarrow.parquet as parquet
import pytest
import tiny
from serve_process import ENDED, SERVE, Process, free_port, gets_ready
from test_state import logged, redis_url  # noqa: F401 (a fixture)

from twotower.serving.registry import Registry


def test_a_quick_start_that_fails_says_why_without_a_traceback(tmp_path):
    command = [sys.executable, SERVE, f"--data_dir={tmp_path}/nowhere"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT)
    reason, end = done.stderr.strip().splitlines()
    assert done.returncode == 1 and f"'{tmp_path}/nowhere' is not an existing directory" in reason
    assert end == "serve.py: quickstart.py ended with status 1; it said why above."


@pytest.mark.parametrize("workers", [1, 2])
def test_a_port_in_use_is_found_before_anything_is_loaded(tmp_path, workers):
    """Without data and a bundle, loading would fail with another error."""
    with socket.create_server(("127.0.0.1", 0)) as other:
        port = other.getsockname()[1]
        given = [f"--port={port}", f"--data_dir={tmp_path}/nowhere", f"--workers={workers}"]
        command = [sys.executable, SERVE, *given, "--store=redis://127.0.0.1:1/0"]
        done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT)
    assert done.returncode == 1 and done.stdout == ""
    assert done.stderr == (
        f"serve.py: 127.0.0.1:{port} is in use: end the process that listens there, or give "
        "another --port. (--debug shows where.)\n"
    )


def test_several_processes_that_cannot_start_end_with_the_reason(bundle_folder, tmp_path):
    damaged = shutil.copytree(bundle_folder, tmp_path / "bundle")
    (damaged / "items" / "vectors.npy").write_bytes(b"")
    given = [f"--bundle={damaged}", f"--state={tmp_path}", "--port=0", "--workers=2"]
    command = [sys.executable, SERVE, *given, "--store=redis://127.0.0.1:1/0"]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tiny.ROOT, timeout=120)
    assert done.returncode == 1
    assert "vectors.npy is truncated or changed" in done.stderr + done.stdout
    assert "serve.py: no process could start; the reasons stand above." in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_whoever_was_let_in_is_answered_before_the_end(bundle_folder, tmp_path):
    served = Process(f"--bundle={bundle_folder}", f"--state={tmp_path}")
    upgrade = {
        "connection": "upgrade",
        "upgrade": "websocket",
        "sec-websocket-key": "dGhlIHNhbXBsZSBub25jZQ==",
        "sec-websocket-version": "13",
    }
    assert served.client.get("/readyz", headers=upgrade).status_code == 200
    event = {"user_id": "u", "item_id": "i00003"}
    assert served.post("/events", {"events": [event]}).status_code == 202
    with concurrent.futures.ThreadPoolExecutor(12) as pool:
        bodies = [{"history": [f"i{number:05d}"], "explain": True} for number in range(1, 13)]
        asked = [pool.submit(served.post, "/recommend", body) for body in bodies]
        concurrent.futures.wait(asked, return_when=concurrent.futures.FIRST_COMPLETED)
        assert served.end(signal.SIGTERM) == ENDED, served.log
        answers = []
        for future in asked:
            # Clients that come after the end are refused; no connection is reset.
            with contextlib.suppress(httpx2.ConnectError):
                answers.append(future.result())
    assert answers and {answer.status_code for answer in answers} == {200}
    assert served.log.count('"route": "/recommend"') == len(answers)
    # What was in no part file yet is written at the end, and each line of the log is JSON.
    assert logged(tmp_path / "events") == ["i00003"]


@pytest.mark.slow
def test_the_workers_of_one_service_log_and_count_together(
    bundle_folder,
    tmp_path,
    redis_url,  # noqa: F811
):
    url = f"http://127.0.0.1:{free_port()}"
    given = [f"--bundle={bundle_folder}", f"--state={tmp_path}", f"--store={redis_url}"]
    command = [sys.executable, SERVE, *given, "--workers=2", f"--port={url.split(':')[-1]}"]
    environment = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    log = tmp_path / "log"
    with log.open("w") as file:
        served = subprocess.Popen(command, stdout=file, stderr=file, env=environment)
    bodies = [{"history": [f"i{number:05d}"], "k": 3} for number in range(1, 31)]
    try:
        with httpx2.Client(base_url=url, timeout=60) as client:
            assert gets_ready(client, lambda: served.poll() is None), log.read_text()
            for body in bodies:
                # A connection for each request, so that both processes get some.
                assert httpx2.post(f"{url}/recommend", json=body, timeout=60).status_code == 200
            counted = [
                float(line.split()[-1])
                for line in client.get("/metrics").text.splitlines()
                if line.startswith("twotower_requests_total") and '"/recommend"' in line
            ]
    finally:
        served.terminate()
        served.wait(60)
    assert sum(counted) == len(bodies)
    assert log.read_text().count('"route": "/recommend"') == len(bodies)
    first, *lines = log.read_text().splitlines()
    assert first.startswith(url) and all(json.loads(line) for line in lines)


@pytest.mark.slow
def test_replicas_agree_through_redis(bundle_folder, tmp_path, redis_url):  # noqa: F811
    replicas = [
        Process(
            f"--bundle={bundle_folder}", f"--state={tmp_path / str(number)}", f"--store={redis_url}"
        )
        for number in range(2)
    ]
    for number in range(10):
        asked = replicas[number % 2].post("/recommend", {"user_id": "u", "k": 1})
        (item,) = asked.json()["items"]
        event = {"user_id": "u", "item_id": item["item_id"], "event": "watch"}
        assert replicas[number % 2].post("/events", {"events": [event]}).status_code == 202
        other = replicas[1 - number % 2].post("/recommend", {"user_id": "u", "k": 50})
        assert item["item_id"] not in [found["item_id"] for found in other.json()["items"]]
    assert [replica.end(signal.SIGTERM) for replica in replicas] == [ENDED, ENDED]


def fuzz(client, url: str, paths: list[str]) -> None:
    """Asks all that the description of a service allows, and posts bytes of any kind."""
    schemathesis = pytest.importorskip("schemathesis")
    import hypothesis

    schema = schemathesis.openapi.from_url(f"{url}/openapi.json")
    statuses = []

    for result in schema.get_all_operations():
        operation = result.ok()

        @hypothesis.given(case=operation.as_strategy())
        @hypothesis.settings(
            max_examples=40, deadline=None, suppress_health_check=[*hypothesis.HealthCheck]
        )
        def ask(case):
            answer = case.call()
            statuses.append(answer.status_code)
            assert answer.status_code < 500, (case.as_curl_command(), answer.text)

        ask()
    assert 200 in statuses and 422 in statuses
    # Bytes of any kind, to each route.
    rng = random.Random(0)
    for number in range(300):
        path = rng.choice(paths)
        content = rng.randbytes(rng.randrange(200))
        if number % 2:
            content = b'{"' + content + b'": 1}'
        headers = {"content-type": "application/json"}
        assert client.post(path, content=content, headers=headers).status_code < 500


@pytest.mark.slow
def test_nothing_that_the_description_allows_fails(bundle_folder, tmp_path):
    served = Process(f"--bundle={bundle_folder}", f"--state={tmp_path}")
    paths = ["/recommend", "/embed", "/search", "/similar", "/events", "/items"]
    fuzz(served.client, f"http://127.0.0.1:{served.port}", paths)
    assert served.post("/recommend", {"k": 3}).status_code == 200
    assert served.end(signal.SIGTERM) == ENDED


@pytest.mark.slow
def test_what_users_do_trains_the_next_bundle(bundle_folder, tmp_path):
    """Events and items in, Parquet out, and by BUILD.md's commands a training on both, whose bundle
    goes live in the same service."""
    text = (tiny.ROOT / "BUILD.md").read_text().replace("\\\n", "")
    train, deploy = re.findall(r"^ +python (experiments/\S+ .*W_next.*)$", text, re.M)
    registry = Registry(tmp_path / "W" / "registry")
    arguments = (f"--registry={registry.folder}", f"--state={tmp_path / 'W' / 'state'}")
    served = Process(f"--bundle={bundle_folder}", *arguments)
    rng, first = random.Random(0), registry.active.version
    new = {"item_id": "new-1", "title": "Tin Moon", "genres": ["Drama"], "year": 2024}
    replaced, unseen = ({"item_id": i, "title": "Tin Star"} for i in ("i00003", "new-2"))
    body = {"add": [new, replaced, unseen], "remove": ["i00250"]}
    assert served.post("/items", body).status_code == 200
    for user in range(60):
        # A user likes what the page lists, or shares or watches it.
        event, start = ("like", "share", "watch")[user % 3], 1_700_000_000
        rows = [(f"i{n:05d}", event, start + 60 * n) for n in rng.sample(range(1, 200), 12)]
        if user < 10:
            rows.append(("new-1", "like", start))
        if event == "watch":  # and then likes the first one, which makes no second target of it
            rows.append((rows[0][0], "like", start + 20_000))
        events = [
            {"user_id": f"n{user}", "item_id": item, "event": event, "timestamp": when}
            for item, event, when in rows
        ]
        assert served.post("/events", {"events": events}).status_code == 202
    assert served.end(signal.SIGTERM) == ENDED
    items = parquet.read_table(tmp_path / "W" / "state" / "items.parquet")["item_id"].to_pylist()
    assert "new-1" in items and "i00250" not in items
    script, *given = shlex.split(train)
    given += ["--epochs=1", "--indexes=hnsw"]
    said = tiny.script(tiny.ROOT / script, *given, cwd=tmp_path).stdout
    # 60 users with 12 items each, 10 with new-1, and 20 likes of what was watched.
    assert "rows     750 interactions, of which 730 are positives, 12.2 a user" in said
    assert "have no row in their table" not in said
    served = Process(*arguments)
    script, *given = shlex.split(deploy.replace(":8000", f":{served.port}"))
    tiny.script(tiny.ROOT / script, *given, cwd=tmp_path)
    version = registry.active.version
    assert version != first
    found = served.post("/recommend", {"history": ["new-1"], "k": 3}).json()
    assert found["model_version"] == version[:16] and len(found["items"]) == 3
    assert found["unknown"] == []
    titles = served.client.get("/titles", params={"search": "tin moon"}).json()["items"]
    assert titles == [new]
    for item, title in (("i00003", "Tin Star"), ("new-2", "Tin Star")):
        (card,) = served.client.get("/titles", params={"item_id": item}).json()["items"]
        assert card["title"] == title
    # An item that nobody has used is answered, and one that was removed is not.
    assert served.post("/similar", {"item_id": "new-2"}).status_code == 200
    assert served.post("/similar", {"item_id": "i00250"}).status_code == 422
    assert served.end(signal.SIGTERM) == ENDED


def test_the_flags_of_the_examples_are_those_of_the_script():
    """The Dockerfile, compose file and systemd unit are not run, so that a flag may be gone."""
    folder = tiny.ROOT / "experiments"
    known = {*re.findall(r'DEFINE_\w+\(\s*"(\w+)"', (folder / "serve.py").read_text())}
    lines = "".join(path.read_text() for path in (folder / "serving").iterdir()).splitlines()
    calls = [line for line in lines if re.match(r'ENTRYPOINT|ExecStart=|\s*command: \["--', line)]
    used = {flag for call in calls for flag in re.findall(r"--(\w+)=", call)}
    assert {"role", "index_url", "store", "workers", "host", "state"} <= used <= known
