"""A service as a process of its own: stopped, killed, doubled, and given whatever comes."""

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
import tempfile
import threading
import time

import httpx2
import pyarrow.parquet as parquet
import pytest
import tiny
from test_state import logged, redis_url  # noqa: F401 (a fixture)

from twotower.serving.registry import Registry

SERVE = str(tiny.ROOT / "experiments" / "serve.py")
# uvicorn stops, and then lets the signal do what it would have done.
ENDED = -signal.SIGTERM
DEADLINES = ("--deadline=60000", "--source_deadline=60000")


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def gets_ready(client, is_running) -> bool:
    """Waits until a service answers; whether it did before it ended."""
    end = time.monotonic() + tiny.LIMIT
    while time.monotonic() < end and is_running():
        with contextlib.suppress(httpx2.TransportError):
            if client.get("/readyz").status_code == 200:
                return True
        time.sleep(0.05)
    return False


class Process:
    """`experiments/serve.py` on a free port, ready to answer."""

    def __init__(self, *arguments: str) -> None:
        self.port = free_port()
        self._folder = tempfile.mkdtemp()
        given = [SERVE, f"--port={self.port}", *DEADLINES, *arguments]
        self.process = tiny.FORKS.Process(
            target=tiny._run, args=(given, str(tiny.ROOT), self._folder, dict(os.environ))
        )
        self.process.start()
        self.client = httpx2.Client(base_url=f"http://127.0.0.1:{self.port}", timeout=120)
        assert gets_ready(self.client, self.process.is_alive), self.log

    @property
    def log(self) -> str:
        paths = [os.path.join(self._folder, name) for name in ("stdout", "stderr")]
        return "".join(open(path).read() for path in paths if os.path.exists(path))

    def post(self, path: str, body: dict):
        return self.client.post(path, json=body)

    def end(self, how: int) -> int | None:
        """Sends a signal; returns the process' exit code."""
        os.kill(self.process.pid, how)
        self.process.join(60)
        self.client.close()
        return self.process.exitcode


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
    assert "serve.py: a process could not start; its error stands above." in done.stderr
    assert "Traceback" not in done.stderr + done.stdout


def test_whoever_was_let_in_is_answered_before_the_end(bundle_folder, tmp_path):
    served = Process(f"--bundle={bundle_folder}", f"--state={tmp_path}")
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
def test_killed_at_any_moment_it_comes_back_with_what_it_acknowledged(
    bundle_folder, other_folder, tmp_path
):
    registry = Registry(tmp_path / "registry")
    versions = [registry.put(folder) for folder in (bundle_folder, other_folder)]
    registry.activate(versions[0])
    rng, noted, added, removed = random.Random(0), 0, set(), set()
    arguments = (f"--registry={registry.folder}", f"--state={tmp_path / 'state'}")
    for round_number in range(31):
        served = Process(*arguments)
        for item in added:
            answer = served.post("/similar", {"item_id": item, "k": 1})
            assert answer.status_code == 200, (item, answer.text)
        for item in removed:
            assert served.post("/similar", {"item_id": item}).status_code == 422
        assert registry.active.version in versions
        if round_number == 30:
            break
        ended = threading.Event()

        def events(served=served, ended=ended):
            nonlocal noted
            while not ended.is_set():
                with contextlib.suppress(httpx2.TransportError):
                    body = {"events": [{"user_id": "u", "item_id": "i00003"}]}
                    noted += served.post("/events", body).status_code == 202

        def items(served=served, ended=ended, number=round_number):
            for count in range(1000):
                if ended.is_set():
                    return
                new, old = f"n{number}-{count}", f"i{rng.randrange(1, 290):05d}"
                with contextlib.suppress(httpx2.TransportError):
                    body = {"add": [{"item_id": new, "year": 2000 + count % 20}]}
                    if served.post("/items", body).status_code == 200:
                        added.add(new)
                    if count % 5 == 0:
                        answer = served.post("/items", {"remove": [old]})
                        if answer.status_code == 200:
                            removed.add(old)

        def deploys(served=served, ended=ended):
            while not ended.is_set():
                with contextlib.suppress(httpx2.TransportError):
                    served.post("/deploys", {"version": rng.choice(versions)})

        threads = [threading.Thread(target=some) for some in (events, items, deploys)]
        before, end = len(added), time.monotonic() + tiny.LIMIT
        for thread in threads:
            thread.start()
        # Every other time something was acknowledged before the end, however slow the machine is.
        while round_number % 2 and len(added) == before and time.monotonic() < end:
            time.sleep(0.01)
        time.sleep(rng.uniform(0.05, 3))
        served.end(signal.SIGKILL)
        ended.set()
        for thread in threads:
            thread.join()
    assert served.end(signal.SIGTERM) == ENDED
    # An event whose acknowledgement did not arrive may be there; none is missing.
    found = len(logged(tmp_path / "state" / "events"))
    assert noted <= found <= noted + 31
    assert added and removed


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
