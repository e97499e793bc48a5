"""Processes of a service that die are started again; one that cannot start ends no other."""

import contextlib
import os
import pathlib
import re
import shutil
import signal
import subprocess
import sys
import time

import httpx2
import pytest
import tiny
import uvicorn
from serve_process import SERVE, free_port, gets_ready
from uvicorn.supervisors import multiprocess

from twotower.serving import processes
from twotower.serving.processes import Processes


class Fake:
    """Stands for a process of uvicorn. A test sets its `state`: `loads`, `serves` or `ended`."""

    made = 0

    def __init__(self, config, sockets) -> None:
        Fake.made += 1
        self.pid, self.process, self.state, self.exitcode = Fake.made, self, "made", None

    def start(self) -> None:
        self.state = "loads"

    def is_alive(self, timeout=None) -> bool:
        return self.state in ("loads", "serves")

    def is_ready(self, timeout) -> bool:
        return self.state == "serves"

    def kill(self) -> None:
        self.exitcode = 3

    terminate = join = lambda self: None


@pytest.fixture
def clock(monkeypatch):
    now = [0.0]
    monkeypatch.setattr(processes.time, "monotonic", lambda: now[0])
    return now


@pytest.fixture
def two(monkeypatch, tmp_path, clock):
    """Two processes, which load."""
    monkeypatch.setattr(multiprocess, "SIGNALS", {})  # keeps the handlers of this process
    monkeypatch.setenv("PROMETHEUS_MULTIPROC_DIR", str(tmp_path))
    for module in (processes, multiprocess):
        monkeypatch.setattr(module, "Process", Fake)
    made = Processes(uvicorn.Config("app", workers=2), [])
    made.init_processes()
    return made


def test_the_pauses_between_tries_double_while_the_other_process_serves(two, clock, caplog):
    two.processes[0].state = "serves"
    tried, last = [], two.processes[1]
    last.state = "ended"
    for second in range(400):
        clock[0] = float(second)
        two.keep_subprocess_alive()
        if two.processes[1] is not last:
            tried.append(second)
            last = two.processes[1]
            last.state = "ended"
    # It is found a second after each try that it has ended, and pauses for 1, 2, 4, ... 60 seconds.
    assert tried == [1, 4, 9, 18, 35, 68, 129, 190, 251, 312, 373]
    lines = [line for line in caplog.messages if "could not start" in line]
    assert len(lines) == len(tried) + 1 and not two.should_exit.is_set()
    assert "is tried again in 4 s; 1 of 2 processes are left" in lines[2]
    # Once it has served, the next death costs no pause.
    last.state = "serves"
    clock[0] = 500.0
    two.keep_subprocess_alive()
    two.processes[1].state = "serves"
    two.keep_subprocess_alive()
    before = two.processes[1]
    before.state = "ended"
    two.keep_subprocess_alive()
    assert two.processes[1] is not before and two.processes[1].state == "loads"


def test_the_service_ends_when_no_process_is_left_and_none_could_start(two, clock):
    first, second = two.processes
    first.state = "ended"
    two.keep_subprocess_alive()
    assert not two.should_exit.is_set()  # the second one may start
    second.state = "ended"
    two.keep_subprocess_alive()
    assert two.should_exit.is_set() and two.could_not_start


def test_processes_that_served_and_die_together_are_started_again(two):
    for process in two.processes:
        process.state = "serves"
    two.keep_subprocess_alive()
    for process in two.processes:
        process.state = "ended"
    two.keep_subprocess_alive()
    assert [process.state for process in two.processes] == ["loads", "loads"]
    assert not two.should_exit.is_set()


def test_the_metrics_leave_out_what_an_ended_process_was_doing(two, tmp_path):
    for name in ("gauge_liveall_{}.db", "gauge_livesum_{}.db", "counter_{}.db"):
        (tmp_path / name.format(two.processes[0].pid)).touch()
    two.processes[0].state = "ended"
    two.keep_subprocess_alive()
    assert [path.name.split("_")[0] for path in tmp_path.iterdir()] == ["counter"]


@pytest.mark.slow
@pytest.mark.skipif(sys.platform != "linux", reason="finds the processes in /proc")
def test_one_process_that_cannot_start_again_leaves_the_others_serving(bundle_folder, tmp_path):
    folder = pathlib.Path(shutil.copytree(bundle_folder, tmp_path / "bundle"))
    vectors = folder / "items" / "vectors.npy"
    good = vectors.read_bytes()
    url, log = f"http://127.0.0.1:{free_port()}", tmp_path / "log"
    given = [f"--bundle={folder}", f"--state={tmp_path}", f"--port={url.split(':')[-1]}"]
    command = [sys.executable, SERVE, *given, "--workers=2", "--store=redis://127.0.0.1:1/0"]
    with log.open("w") as file:
        served = subprocess.Popen(
            command, stdout=file, stderr=file, env={**os.environ, "PYTHONPATH": str(tiny.ROOT)}
        )

    def asked(path: str) -> str:
        """Of a connection of its own, and "" where there is none: the process may just be dying."""
        with contextlib.suppress(httpx2.TransportError):
            return httpx2.get(f"{url}{path}", timeout=60).text
        return ""

    def wait(reached) -> None:
        end = time.monotonic() + tiny.LIMIT
        while not reached():
            assert time.monotonic() < end and served.poll() is None, log.read_text()
            time.sleep(0.1)

    def has_processes(count: int) -> bool:
        return f"twotower_processes {count}.0" in asked("/metrics")

    def kill(count: int) -> None:
        children = pathlib.Path(f"/proc/{served.pid}/task/{served.pid}/children").read_text()
        # One child is multiprocessing's own.
        workers = [
            pid
            for pid in children.split()
            if "spawn_main" in pathlib.Path(f"/proc/{pid}/cmdline").read_text()
        ]
        for pid in workers[:count]:
            os.kill(int(pid), signal.SIGKILL)

    try:
        with httpx2.Client(base_url=url, timeout=60) as client:
            assert gets_ready(client, lambda: served.poll() is None), log.read_text()
        wait(lambda: has_processes(2))
        vectors.write_bytes(b"")
        kill(1)
        wait(lambda: "could not start (exit code 3)" in log.read_text())
        assert has_processes(1)
        assert httpx2.post(f"{url}/recommend", json={"k": 3}, timeout=60).status_code == 200
        vectors.write_bytes(good)
        wait(lambda: has_processes(2))
        vectors.write_bytes(b"")
        kill(2)
        assert served.wait(tiny.LIMIT) == 1
    finally:
        served.kill()
        served.wait()
    lines = log.read_text()
    # Each try that failed has its reason.
    tries = len(re.findall(r"could not start \(exit code 3\)", lines)) + 1
    assert lines.count("vectors.npy is truncated or changed") == tries
    assert lines.splitlines()[-1].startswith("serve.py: no process could start")
