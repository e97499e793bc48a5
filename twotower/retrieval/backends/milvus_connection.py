"""Connections to Milvus: opened, kept as long as an index needs them, and their errors named."""

import atexit
import contextlib
import logging
import os
import pathlib
import shutil
import tempfile
import threading
import warnings

HINT = 'pip install "pymilvus>=3.0" "milvus-lite>=3.2"'
try:
    import grpc
    import pymilvus
except ImportError as error:  # pragma: no cover
    raise ImportError(f"The milvus index needs pymilvus: {HINT}") from error

# Both log each failed call with its traceback; here every one of them becomes an exception.
for _name in ("pymilvus", "milvus_lite"):
    logging.getLogger(_name).setLevel(logging.CRITICAL)
LOST = grpc.RpcError, grpc.FutureTimeoutError
FAILED = pymilvus.MilvusException, *LOST


OPEN_TO_ALL = (
    "milvus-lite listens on a port of this machine without a token: other users of the machine can "
    "read its collections and drop them. Where there are others, give the address of a Milvus "
    "server and its MILVUS_TOKEN, or take another index."
)


def is_address(uri: str) -> bool:
    """Whether `uri` is a server's address and not a path."""
    return "://" in uri


class Lease:
    """What goes with an index: its connection, a collection without a name, a temporary file.

    `close` does it once: at `MilvusIndex.close`, when the index is garbage, or when Python ends.
    """

    def __init__(self, file: str) -> None:
        self.client, self.collection, self._files = None, "", [file]
        self._lock = threading.Lock()
        atexit.register(self.close)

    def close(self) -> None:
        with self._lock:  # at exit this waits for the thread of `close_later`
            for file in self._files:
                with contextlib.suppress(Exception):  # a server that is gone has nothing to drop
                    if self.collection:
                        self.client.drop_collection(self.collection, timeout=5)
                    self.client.close()
                if file:
                    from milvus_lite.server_manager import server_manager_instance

                    server_manager_instance.release_server(file)
                    shutil.rmtree(pathlib.Path(file).parent, ignore_errors=True)
            self._files = []
        atexit.unregister(self.close)

    def close_later(self) -> None:
        """Garbage is collected at any moment, so perhaps inside a lock that closing would take."""
        if self._files:
            threading.Thread(target=self.close, daemon=True).start()


def is_lost(error: BaseException | None) -> bool:
    """Whether gRPC failed, as against a server that answered with a refusal."""
    if error is None or isinstance(error, LOST):
        return error is not None
    # pymilvus raises an error from itself on its way up.
    return any(is_lost(e) for e in (error.__cause__, error.__context__) if e is not error)


def connect(uri: str, timeout: float) -> tuple[Lease, bool]:
    """A connection of its own, and whether milvus-lite answers there.

    Args:
        uri: `http://host:port`, a path that ends in .db, or "" for a file in a temporary folder.
        timeout: Seconds to wait.

    Warns:
        UserWarning: milvus-lite is open to all users of this machine.

    Raises:
        ConnectionError: No server answers, or it refuses the token.
    """
    file = ""
    if not is_address(uri):
        warnings.warn(OPEN_TO_ALL, stacklevel=2)
    if not uri:
        file = str(pathlib.Path(tempfile.mkdtemp(prefix="twotower-milvus-")) / "vectors.db")
    lease = Lease(file)
    try:
        # A channel of its own, which does not know that the address was silent a moment ago: else
        # the first search after a server is back would fail, too.
        lease.client = pymilvus.MilvusClient(
            file or uri,
            token=os.environ.get("MILVUS_TOKEN", "") if is_address(uri) else "",
            timeout=timeout,
            dedicated=True,
            grpc_options={"grpc.use_local_subchannel_pool": 1},
        )
        return lease, lease.client.get_server_version().startswith("milvus_lite")
    except FAILED as error:
        lease.close()
        what_to_do = (
            "Is the server running there, and is MILVUS_TOKEN set if it asks for one?"
            if is_address(uri)
            else "Is its folder there, and no other process has it open? For several processes run "
            "`milvus-lite server` and give its address."
        )
        raise ConnectionError(f"No Milvus at {file or uri}: {error}. {what_to_do}") from error


@contextlib.contextmanager
def errors(where: str):
    """Those of pymilvus, as ConnectionError or, where the server refuses, as ValueError."""
    try:
        yield
    except FAILED as error:
        if is_lost(error):
            raise ConnectionError(
                f"{where}: no answer ({error}). Try again when the server is back; it waits "
                "search_timeout seconds for an answer."
            ) from error
        raise ValueError(f"{where} refuses: {error}") from error
