"""Sockets are bound before a bundle is loaded, and listen afterwards."""

import socket
import sys
import threading

import pytest
import uvicorn

from twotower.serving import listeners
from twotower.serving.draining import DrainingServer
from twotower.serving.listeners import bound

on_linux = pytest.mark.skipif(sys.platform != "linux", reason="elsewhere two cannot bind a port")


def port_of(listener: socket.socket) -> int:
    return listener.getsockname()[1]


def test_a_bound_socket_refuses_clients_until_it_listens():
    (listener,) = bound("127.0.0.1", 0)
    with listener:
        address = listener.getsockname()
        with pytest.raises(ConnectionRefusedError):
            socket.create_connection(address, 10)
        listener.listen()
        with socket.create_connection(address, 10), listener.accept()[0]:
            pass


@pytest.mark.parametrize("elsewhere", ["127.0.0.1", "0.0.0.0"])
def test_a_port_at_which_another_process_listens_is_refused(elsewhere, monkeypatch):
    monkeypatch.setattr(listeners, "PATIENCE", 0.1)
    with socket.create_server((elsewhere, 0)) as other:
        port = port_of(other)
        with pytest.raises(OSError, match=rf"^127\.0\.0\.1:{port} is in use: .* another --port"):
            bound("127.0.0.1", port)


def test_the_port_of_a_service_that_ends_is_waited_for():
    other = socket.create_server(("127.0.0.1", 0))
    port = port_of(other)
    threading.Timer(0.3, other.close).start()
    (listener,) = bound("127.0.0.1", port)
    with listener:
        assert port_of(listener) == port


def test_connections_that_have_ended_keep_no_port():
    with socket.create_server(("127.0.0.1", 0)) as ended:
        port = port_of(ended)
        client = socket.create_connection(("127.0.0.1", port), 10)
        ended.accept()[0].close()  # the side that closes first waits in TIME_WAIT
        client.close()
    (listener,) = bound("127.0.0.1", port)
    with listener:
        listener.listen()


def test_each_address_of_a_host_is_bound(monkeypatch):
    """Addresses of a family that the machine lacks are left out, such as IPv6 in a container."""
    stream, named = socket.SOCK_STREAM, []

    def found(host, port, *, type, flags):
        named.append(host)
        # 192.0.2.1 is reserved for documentation (RFC 5737), so no machine has it.
        addresses = ("127.0.0.1", "127.0.0.1", "127.0.0.2", "192.0.2.1")
        return [(socket.AF_INET, stream, 6, "", (address, port)) for address in addresses]

    monkeypatch.setattr(socket, "getaddrinfo", found)
    every = bound("", 0)
    assert [one.getsockname()[0] for one in every] == ["127.0.0.1", "127.0.0.2"]
    assert len({*map(port_of, every)}) == 1  # a free one, and the same for both
    assert named == [None]  # all interfaces
    for listener in every:
        listener.close()


def test_a_free_port_is_free_at_each_address(monkeypatch):
    """The kernel's first choice is in use at the second address."""
    stream, others = socket.SOCK_STREAM, [socket.socket()]
    addresses = [(socket.AF_INET, stream, 6, "", (f"127.0.0.{n}", 0)) for n in (1, 2)]
    taken: list[socket.socket] = []
    monkeypatch.setattr(socket, "getaddrinfo", lambda *_, **__: addresses)

    class Listener(socket.socket):
        def bind(self, address):
            super().bind(address)
            for other in others:
                other.bind(("127.0.0.2", port_of(self)))
            taken.extend(others)
            others.clear()

    monkeypatch.setattr(socket, "socket", Listener)
    every = bound("localhost", 0)
    assert [one.getsockname()[0] for one in every] == ["127.0.0.1", "127.0.0.2"]
    (port,) = {*map(port_of, every)}
    assert [port_of(other) == port for other in taken] == [False]
    for listener in [*every, *taken]:
        listener.close()


@pytest.mark.parametrize("host", ["192.0.2.1", "no.such.host.invalid"])
def test_a_host_that_is_no_address_of_this_machine(host):
    with pytest.raises(OSError, match=f"^cannot listen on {host}:8000: "):
        bound(host, 8000)


@on_linux
@pytest.mark.parametrize("loop", ["asyncio", "uvloop"])
def test_a_server_that_finds_its_port_taken_when_it_listens_ends_its_app(loop):
    heard = []

    async def app(scope, receive, send):
        while (message := (await receive())["type"]) != "lifespan.shutdown":
            heard.append(message)
            await send({"type": f"{message}.complete"})
        heard.append(message)
        await send({"type": f"{message}.complete"})

    (first,) = bound("127.0.0.1", 0)
    port = port_of(first)
    with first, bound("127.0.0.1", port)[0] as second:  # neither listens so far
        first.listen()
        server = DrainingServer(uvicorn.Config(app, port=port, loop=loop, lifespan="on"))
        with pytest.raises(OSError, match=rf"^127\.0\.0\.1:{port} is in use: "):
            server.run([second])
    assert heard == ["lifespan.startup", "lifespan.shutdown"]
