"""Draining: a server of uvicorn that resets no connection when it shuts down.

The kernel accepts connections before the process does. If a listening socket is closed, connections
that still wait at it are reset, and their clients cannot know whether a request was read. So the
kernel first stops taking new connections. Then the process accepts those that wait, and closes the
socket when none is left. A client that comes meanwhile gets no answer to its first packet. Its
kernel sends the packet again after a second, and then reaches the next process or is refused.
"""

import asyncio
import contextlib
import ctypes
import errno
import os
import select
import socket
import struct
import sys
import time

import uvicorn

from twotower.serving.listeners import refused

# Seconds to wait for handshakes that have begun, and for the next request of each open connection,
# which is answered with `connection: close`.
DRAIN_SECONDS = 0.2
# Linux: attaches a BPF program that sees each packet to a socket, here from its TCP header on. The
# program reads the flags (byte 13). It drops a packet with the flag SYN (2), which begins a
# connection, and keeps any other.
SO_ATTACH_FILTER = 26
DROP_SYN = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF))


def drop_new_connections(listener: socket.socket) -> None:
    """Lets the kernel drop new connections to a listening socket, for all processes that share it.

    It does nothing on systems other than Linux, where new connections are still taken.
    """
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in DROP_SYN))
    described = struct.pack("@HP", len(DROP_SYN), ctypes.addressof(program))
    with contextlib.suppress(OSError):  # not permitted: some connections may be reset
        listener.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def has_waiting_connection(listener: socket.socket) -> bool:
    """Whether a connection waits to be accepted by a process."""
    poll = select.poll()
    poll.register(listener, select.POLLIN)
    # A socket that does not listen yet has the event POLLHUP.
    return any(event & select.POLLIN for _, event in poll.poll(0))


class DrainingServer(uvicorn.Server):
    """A server of one process, on sockets that `listeners.bound` made.

    It shuts down when all waiting connections are accepted, and the requests under way are
    answered.
    """

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`.

        Raises:
            OSError: Another process has begun to listen since the sockets were bound.
        """
        try:
            await super().startup(sockets)
            # A socket that cannot listen is closed by uvloop, which goes on without it.
            if any(listener.fileno() < 0 for listener in sockets or ()):
                raise OSError(errno.EADDRINUSE, os.strerror(errno.EADDRINUSE))
        except OSError as error:
            await self.lifespan.shutdown()
            raise refused(self.config.host, self.config.port, error) from error

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        listeners = sockets or []
        for listener in listeners:
            drop_new_connections(listener)
        # Tells clients that keep a connection open to send no further request on it.
        state = self.server_state
        state.default_headers = [*state.default_headers, (b"connection", b"close")]
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or DRAIN_SECONDS)
        await asyncio.sleep(DRAIN_SECONDS)
        while any(map(has_waiting_connection, listeners)) and time.monotonic() < end:
            await asyncio.sleep(0.01)
        await super().shutdown(sockets)
