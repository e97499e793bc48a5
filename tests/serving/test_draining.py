"""A server that shuts down answers the connections that wait at its socket, and takes no more."""

import asyncio
import contextlib
import socket
import sys
import threading
import time

import pytest
import uvicorn
from uvicorn.supervisors import multiprocess

from twotower.serving.draining import (
    DRAIN_SECONDS,
    DrainingServer,
    has_waiting_connection,
)
from twotower.serving.listeners import bound
from twotower.serving.processes import Processes

ASK = b"GET / HTTP/1.1\r\nhost: x\r\n\r\n"
on_linux = pytest.mark.skipif(sys.platform != "linux", reason="packet filters need Linux")


async def app(scope, receive, send):
    await send({"type": "http.response.start", "status": 204, "headers": []})
    await send({"type": "http.response.body"})


def connected(port: int, seconds: float = 30) -> socket.socket:
    return socket.create_connection(("127.0.0.1", port), timeout=seconds)


@contextlib.asynccontextmanager
async def started(loop: str):
    """A server that listens, its sockets and its port. It accepts connections only while the test
    awaits."""
    config = uvicorn.Config(app, lifespan="off", loop=loop, timeout_graceful_shutdown=5)
    config.load()
    server = DrainingServer(config)
    server.lifespan = config.lifespan_class(config)
    listeners = bound("127.0.0.1", 0)
    await server.startup(listeners)
    yield server, listeners, listeners[0].getsockname()[1]


def in_loop(loop: str, test) -> None:
    config = uvicorn.Config(app, loop=loop)
    with asyncio.Runner(loop_factory=config.get_loop_factory()) as runner:
        runner.run(test())


@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_whoever_waits_at_the_socket_is_answered(loop):
    async def test():
        async with started(loop) as (server, listeners, port):
            waiting = [connected(port) for _ in range(20)]
            for client in waiting[:10]:
                client.sendall(ASK)
            ending = asyncio.create_task(server.shutdown(listeners))
            await asyncio.sleep(DRAIN_SECONDS / 2)
            # Those that had not asked yet, and one that asks again: they are told to close.
            for client in waiting[9:]:
                client.sendall(ASK)
            await ending
            answers = [client.recv(1000) for client in waiting]
            assert all(answer.startswith(b"HTTP/1.1 204") for answer in answers)
            assert all(b"connection: close" in answer for answer in answers[10:])
            for client in waiting:
                client.close()

    in_loop(loop, test)


@on_linux
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_who_comes_too_late_meets_the_next_process(loop):
    async def test():
        async with started(loop) as (server, listeners, port):
            ending = asyncio.create_task(server.shutdown(listeners))
            await asyncio.sleep(DRAIN_SECONDS / 4)
            late = asyncio.create_task(asyncio.to_thread(connected, port))
            await ending
            # The kernel sends the first packet again after a second.
            with (
                socket.create_server(("127.0.0.1", port)) as following,
                await late as client,
                following.accept()[0] as taken,
            ):
                taken.sendall(b"hello")
                assert client.recv(5) == b"hello"

    in_loop(loop, test)


@on_linux
def test_nobody_waits_at_a_socket_that_does_not_listen_yet():
    (listener,) = bound("127.0.0.1", 0)
    with listener:
        assert not has_waiting_connection(listener)
        listener.listen()
        assert not has_waiting_connection(listener)
        with socket.create_connection(listener.getsockname()):
            assert has_waiting_connection(listener)


def test_processes_end_once_nobody_waits_at_their_common_socket(monkeypatch):
    monkeypatch.setattr(multiprocess, "SIGNALS", {})  # keeps the handlers of this process
    ended = []
    monkeypatch.setattr(
        multiprocess.Multiprocess, "terminate_all", lambda self: ended.append(time.monotonic())
    )
    with socket.create_server(("127.0.0.1", 0)) as listening:
        port = listening.getsockname()[1]
        config = uvicorn.Config(app, workers=2, timeout_graceful_shutdown=60)
        processes = Processes(config, sockets=[listening])
        with connected(port) as waiting:
            thread = threading.Thread(target=processes.terminate_all)
            thread.start()
            time.sleep(3 * DRAIN_SECONDS)
            assert has_waiting_connection(listening) and not ended
            with pytest.raises(TimeoutError):
                connected(port, 0.1)
            with listening.accept()[0] as taken:
                thread.join(30)
                taken.sendall(b"hello")
                assert waiting.recv(5) == b"hello" and len(ended) == 1
