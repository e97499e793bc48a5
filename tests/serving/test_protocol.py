"""Connections whose headers do not end are closed, and no other ones."""

import contextlib
import socket
import threading
import time

import pytest
import uvicorn

from twotower.serving.listeners import bound
from twotower.serving.protocol import MAX_HEADER_BYTES, BoundedHeaders


async def echo(scope, receive, send):
    """Answers with the number of bytes of the body."""
    size, more = 0, True
    while more:
        message = await receive()
        size, more = size + len(message.get("body", b"")), message.get("more_body", False)
    body = str(size).encode()
    headers = [(b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": 200, "headers": headers})
    await send({"type": "http.response.body", "body": body})


@pytest.fixture(scope="module")
def port():
    listeners = bound("127.0.0.1", 0)
    config = uvicorn.Config(echo, http=BoundedHeaders, lifespan="off", log_config=None)
    server = uvicorn.Server(config)
    thread = threading.Thread(target=server.run, args=(listeners,))
    thread.start()
    while not server.started:
        time.sleep(0.01)
    yield listeners[0].getsockname()[1]
    server.should_exit = True
    thread.join(10)


def answer_to(port, *packets):
    """What is answered to the packets until the connection is closed or silent."""
    with socket.create_connection(("127.0.0.1", port), timeout=1) as connection:
        received = b""
        with contextlib.suppress(TimeoutError, ConnectionError):
            for packet in packets:
                connection.sendall(packet)
                time.sleep(0.01)
            while data := connection.recv(2**16):
                received += data
        return received


@pytest.mark.parametrize(
    "endless",
    [b"GET / HTTP/1.1\r\nhost: a\r\nx: ", b"GET /", b"GET / HTTP/1.1\r\n" + b"a: b\r\n" * 2000],
)
def test_headers_without_end(port, endless):
    received = answer_to(port, endless, *[b"x" * 2**14] * (MAX_HEADER_BYTES // 2**14 + 1))
    assert received.startswith((b"HTTP/1.1 431", b"HTTP/1.1 400"))


def test_long_bodies_and_many_requests_of_a_connection(port):
    head = b"POST / HTTP/1.1\r\nhost: a\r\ncontent-length: %d\r\nx: %s\r\n\r\n"
    size, filler = 3 * MAX_HEADER_BYTES, b"y" * (MAX_HEADER_BYTES // 3)
    request = head % (size, filler) + b"b" * size
    half = len(filler) // 2  # the headers come in two packets
    received = answer_to(port, *[request[:half], request[half:]] * 4)
    assert received.count(b"HTTP/1.1 200") == 4 and received.count(b"\r\n\r\n196608") == 4
