"""`experiments/serve.py` as a process of its own, for tests that end it."""

import contextlib
import os
import signal
import socket
import tempfile
import time

import httpx2
import tiny

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
