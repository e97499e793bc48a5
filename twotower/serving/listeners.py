"""Listeners: the sockets of a service, bound before its bundle is loaded, which takes long.

So a port at which another process listens is found at once. A bound socket refuses clients, as if
it were not there. The server lets it listen once the service can answer.
"""

import contextlib
import errno
import socket
import time

# Of an address whose family the machine lacks, such as IPv6 in a container.
ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
# Seconds to wait for a port: a service that was told to end may still answer its last requests.
PATIENCE = 5.0


def bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host, bound and not listening.

    On Linux, two processes can bind a port while neither listens. Of two services that start at the
    same time, the second one is refused only when it listens. SO_REUSEADDR is the reason: without
    it, connections that have ended would keep the port for a minute.

    Args:
        host: Address or name; "" for all interfaces.
        port: Its port; 0 for a free one.

    Raises:
        OSError: Another process still listens there after `PATIENCE` seconds, or no address of the
            host is one of this machine.
    """
    end = time.monotonic() + PATIENCE
    while True:
        try:
            return _bound(host, port)
        except OSError as error:
            if error.errno != errno.EADDRINUSE or time.monotonic() > end:
                raise refused(host, port, error) from error
        time.sleep(0.05)


def _bound(host: str, port: int) -> list[socket.socket]:
    with contextlib.ExitStack() as stack:
        listeners: list[socket.socket] = []
        absent = OSError("it has no address")
        found = socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        )
        for family, kind, protocol, _, address in dict.fromkeys(found):
            try:
                listener = stack.enter_context(socket.socket(family, kind, protocol))
                listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
                if family == socket.AF_INET6:  # IPv4 has a socket of its own
                    listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
                listener.bind(address)
                listeners.append(listener)
            except OSError as error:
                if error.errno not in ABSENT:
                    raise
                absent = error
        if not listeners:
            raise absent
        stack.pop_all()
        return listeners


def refused(host: str, port: int, error: OSError) -> OSError:
    """What says to whoever starts a service why it cannot listen."""
    if error.errno == errno.EADDRINUSE:
        return OSError(
            f"{host}:{port} is in use: end the process that listens there, or give another --port."
        )
    return OSError(f"cannot listen on {host}:{port}: {error.strerror or error}.")
