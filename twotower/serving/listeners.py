"""Listeners: the sockets of a service, which are bound before its bundle is loaded.

Loading takes long, and a port in use is found before it. Until a bound socket listens, clients are
refused as if it did not exist. The server lets it listen when the service can answer.
"""

import contextlib
import errno
import socket
import time

# Errors for an address whose family the machine lacks, such as IPv6 in a container.
ABSENT = (errno.EAFNOSUPPORT, errno.EADDRNOTAVAIL)
# Seconds to wait for a port. A service that was told to end may still be answering requests.
PATIENCE = 5.0


def bound(host: str, port: int) -> list[socket.socket]:
    """A socket for each address of a host, bound and not listening.

    The sockets have SO_REUSEADDR, since connections that have ended would otherwise keep the port
    for a minute. With this option, two processes on Linux can bind one port while neither listens.
    So if two services start at the same time, the later one fails only when it begins to listen.

    Args:
        host: Address or name; "" for all interfaces.
        port: The port; 0 for one that is free at each address.

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
                listener.bind((address[0], port, *address[2:]))
                port = listener.getsockname()[1]  # a free one is the same for all addresses
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
    """The error that tells an operator why a service cannot listen."""
    if error.errno == errno.EADDRINUSE:
        return OSError(
            f"{host}:{port} is in use: end the process that listens there, or give another --port."
        )
    return OSError(f"cannot listen on {host}:{port}: {error.strerror or error}.")
