"""Servers of uvicorn that lose no connection at their end.

The kernel takes connections before a process does. Those that wait at the listening socket when it
is closed are reset, and their clients cannot know whether somebody has read what they sent. So the
socket takes no new ones first, then who waits is let in, and it is closed once nobody does. A
client that came too late tries again within a second, as after a lost packet: it meets the process
that follows, or is told that nobody listens.
"""

import asyncio
import contextlib
import ctypes
import os
import select
import socket
import struct
import sys
import time

import uvicorn
from uvicorn.supervisors import Multiprocess

# Seconds for connections that the kernel has half taken, and for the next request of each
# connection, whose answer says that it is the last one.
LINGER = 0.2
# Linux: runs a program on each packet that comes to a socket, here on its TCP header. The byte at
# 13 holds its flags, and 2 is the one that begins a connection. 0 drops a packet.
SO_ATTACH_FILTER = 26
DROP_NEW = ((0x30, 0, 0, 13), (0x45, 0, 1, 2), (6, 0, 0, 0), (6, 0, 0, 0xFFFFFFFF))


def take_no_more(listening: socket.socket) -> None:
    """Has the kernel drop what begins a connection to a listening socket, in all processes that
    share it. Elsewhere than on Linux it goes on to take them."""
    if sys.platform != "linux":
        return
    program = ctypes.create_string_buffer(b"".join(struct.pack("=HBBI", *row) for row in DROP_NEW))
    described = struct.pack("@HP", len(DROP_NEW), ctypes.addressof(program))
    with contextlib.suppress(OSError):  # not allowed here: then a few may be reset
        listening.setsockopt(socket.SOL_SOCKET, SO_ATTACH_FILTER, described)


def somebody_waits(listening: socket.socket) -> bool:
    """Whether a connection waits to be taken by a process."""
    poll = select.poll()
    poll.register(listening, select.POLLIN)
    return bool(poll.poll(0))


class DrainingServer(uvicorn.Server):
    """A server of one process, which ends once everybody is let in and answered."""

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """See `uvicorn.Server`."""
        with contextlib.ExitStack() as stack:
            # uvloop gives no sockets to set options of, so these are copies.
            listening = [
                stack.enter_context(socket.socket(fileno=os.dup(some.fileno())))
                for server in self.servers
                for some in server.sockets
            ]
            for some in listening:
                take_no_more(some)
            # Who keeps a connection learns that it ends before the next request is lost with it.
            state = self.server_state
            state.default_headers = [*state.default_headers, (b"connection", b"close")]
            end = time.monotonic() + (self.config.timeout_graceful_shutdown or LINGER)
            await asyncio.sleep(LINGER)
            while any(map(somebody_waits, listening)) and time.monotonic() < end:
                await asyncio.sleep(0.01)
            await super().shutdown(sockets)


class DrainingProcesses(Multiprocess):
    """The process that starts the others, which end once everybody who waits is let in."""

    def terminate_all(self) -> None:
        """See `Multiprocess`."""
        for some in self.sockets:
            take_no_more(some)
        end = time.monotonic() + (self.config.timeout_graceful_shutdown or LINGER)
        time.sleep(LINGER)
        while any(map(somebody_waits, self.sockets)) and time.monotonic() < end:
            time.sleep(0.01)
        super().terminate_all()
