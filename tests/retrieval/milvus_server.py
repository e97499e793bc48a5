"""A server of milvus-lite, and small indexes on it or inside this process."""

import os
import pathlib
import signal
import socket
import subprocess
import sys
import time

import numpy as np
import pymilvus

from twotower.retrieval import build
from twotower.retrieval.backends.milvus_index import MilvusIndex

# The query (4, 3, 2, 1) scores the four axes 4, 3, 2, 1.
KEYS, AXES = np.array([70, 20, 90, 40]), np.eye(4, dtype=np.float32)
QUERY = np.float32([[4, 3, 2, 1]])


def free_port() -> int:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return listener.getsockname()[1]


class Server:
    """`milvus-lite server` in a process of its own."""

    def __init__(self, folder: pathlib.Path) -> None:
        self.folder, self.port = folder, free_port()
        self.uri = f"http://127.0.0.1:{self.port}"
        self.start()

    def start(self) -> None:
        arguments = f"-m milvus_lite server --host 127.0.0.1 --port {self.port} --data-dir".split()
        self.process = subprocess.Popen(
            [sys.executable, *arguments, str(self.folder)],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
        )
        for _ in range(300):
            with socket.socket() as one:
                if one.connect_ex(("127.0.0.1", self.port)) == 0:
                    return
            time.sleep(0.1)
        raise TimeoutError("milvus-lite server did not start")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait()

    def hang(self) -> None:
        """Stop it, and return when its last thread stands still: until then it may answer."""
        self.process.send_signal(signal.SIGSTOP)
        os.waitid(os.P_PID, self.process.pid, os.WSTOPPED)

    def collections(self) -> list[str]:
        client = pymilvus.MilvusClient(self.uri, timeout=10, dedicated=True)
        names = client.list_collections()
        client.close()
        return names


def axes(metric="dot", **parameters) -> MilvusIndex:
    return build.build(build.IndexConfig("milvus", metric, parameters), KEYS, AXES)


def where(server, collection="films") -> dict:
    return {"uri": server.uri, "collection": collection}


def rows(index, k=4, **arguments):
    return index.search(QUERY, k, **arguments).keys.tolist()


def spied(index: MilvusIndex, name: str) -> list:
    """Arguments of the client's calls of `name` from now on: positional, and by name."""
    calls, real = [], getattr(index._client, name)

    def call(*args, **rest):
        calls.append((args, rest))
        return real(*args, **rest)

    setattr(index._client, name, call)
    return calls


def until(holds, seconds=10.0) -> bool:
    end = time.monotonic() + seconds
    while not holds() and time.monotonic() < end:
        time.sleep(0.05)
    return holds()


def run(code, *arguments):
    command = [sys.executable, "-c", code, *map(str, arguments)]
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
