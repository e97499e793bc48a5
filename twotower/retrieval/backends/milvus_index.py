"""Milvus: vectors in a collection, of a server or of milvus-lite inside this process.

The float32 vectors stay in the base class, too, so exact scans, exclusions and the buffer need no
server; a plain search does. With milvus-lite, tests run the same code as on a server. It listens on
a port of this machine without a token, so every other user of the machine can read its collections
and drop them. Use it only on a machine without other users.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import logging
import os
import pathlib
import re
import tempfile
import threading
import urllib.parse
import warnings
import weakref
from collections.abc import Iterator
from typing import Any

import numpy as np

from twotower.limits import at_least, typed
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import NO_SCORE

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

DESCRIPTION = "milvus.json"
# Milvus answers no more than MAX_K, and takes messages of 64 MB; half of it is room enough.
MAX_K, MAX_BYTES, MAX_QUERIES = 16_384, 1 << 25, 256
AGAIN = "Build the index again, from its keys.npy and vectors.npy if they are still wanted."
# Names that a server accepts; milvus-lite accepts more.
COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)
OPEN_TO_ALL = (
    "milvus-lite listens on a port of this machine without a token: other users of the machine can "
    "read its collections and drop them. Where there are others, give the address of a Milvus "
    "server and its MILVUS_TOKEN, or take another index."
)


@dataclasses.dataclass(frozen=True)
class MilvusConfig:
    """Where the vectors are.

    The token of a server is not a parameter, since parameters are saved with an index. It is read
    from the environment variable MILVUS_TOKEN (`user:password`, or an API key).

    Attributes:
        uri: `http://host:port` of a server, which chooses the kind of index itself (AUTOINDEX); or
            the path of a milvus-lite file, ending in .db (one process at a time), which is scanned;
            "" for a file in a temporary folder, which goes with the index.
        collection: Name of a collection that outlives the index and that `build` replaces: at most
            255 letters, digits and _, no digit first. It goes together with `uri`.
        timeout: Seconds to wait for a connection or an answer. Building waits as long as the server
            works.

    >>> MilvusConfig("http://localhost:19530", "my-films")
    Traceback (most recent call last):
    ValueError: a collection's name has at most 255 letters, digits and _, and begins with no \
digit, or a Milvus server refuses it; got 'my-films'.
    """

    uri: str = ""
    collection: str = ""
    timeout: float = 10.0

    def __post_init__(self) -> None:
        typed(self)
        at_least(self, timeout=0.1)
        if self.uri and not self.is_remote and not self.uri.endswith(".db"):
            raise ValueError(
                f"uri must be http://host:port, a path that ends in .db, or empty; got {self.uri!r}"
            )
        if self.collection and not COLLECTION.fullmatch(self.collection):
            raise ValueError(
                "a collection's name has at most 255 letters, digits and _, and begins with no "
                f"digit, or a Milvus server refuses it; got {self.collection!r}."
            )
        if "@" in urllib.parse.urlsplit(self.uri).netloc:
            raise ValueError(
                "uri must not hold a password, since it is saved with the index: put "
                "user:password into the environment variable MILVUS_TOKEN."
            )
        if bool(self.uri) != bool(self.collection):
            raise ValueError(
                "a uri and the name of a collection go together, so that both stay; got uri "
                f"{self.uri!r} and collection {self.collection!r}."
            )

    @property
    def is_remote(self) -> bool:
        """Whether `uri` is an address and not a path."""
        return "://" in self.uri


class MilvusIndex(Retriever):
    """A collection of positions (the primary key) and vectors, searched with Strong consistency:
    what was added or removed counts for the next search.

    One index writes a collection at a time; others may have it loaded. A collection with a name
    is not copied into a saved index, which then names it and holds the vectors for exact scans:
    loading fails unless the collection is there with the same vectors. A temporary file goes with
    the index, so nothing of it is saved, and loading builds it again from the vectors.

    Args:
        metric: As in Retriever.
        config: Where.

    Raises:
        ImportError: `uri` is a file, and milvus-lite is not installed.
        ConnectionError: (building, loading, searching) The server does not answer. After a failed
            search nothing is lost: once the server is back, the next one works.

        config = MilvusConfig("http://localhost:19530", "films")
        index = MilvusIndex("dot", config).build(keys, vectors)
        index.search(queries, 100)
    """

    backend = "milvus"
    Config = MilvusConfig
    can_append = True
    can_forget = True

    def __init__(self, metric: str = "dot", config: MilvusConfig | None = None) -> None:
        super().__init__(metric, config)
        if not self.config.is_remote and importlib.util.find_spec("milvus_lite") is None:
            raise ImportError(f"A milvus index without a server needs milvus-lite: {HINT}")
        self._client: Any = None
        self._name = self.config.collection or "twotower"
        self._is_open = False

    def close(self) -> None:
        """Ends the connection and removes a temporary file.

        It also happens when the index is garbage-collected, a little later.
        """
        if self._client is not None and self._closing.detach():
            _close(*self._opened)
            self._client, self._is_open = None, False

    def _connect(self) -> None:
        if self._client is not None:
            return
        uri, folder = self.config.uri, None
        if not self.config.is_remote:
            warnings.warn(OPEN_TO_ALL, stacklevel=5)
        if not uri:
            folder = tempfile.TemporaryDirectory(prefix="twotower-milvus-")
            uri = str(pathlib.Path(folder.name) / "vectors.db")
        try:
            # A separate channel, which does not remember that the address did not answer just now:
            # else the first search after a server is back would fail, too.
            self._client = pymilvus.MilvusClient(
                uri,
                token=os.environ.get("MILVUS_TOKEN", "") if self.config.is_remote else "",
                timeout=self.config.timeout,
                dedicated=True,
                grpc_options={"grpc.use_local_subchannel_pool": 1},
            )
            self._is_lite = self._client.get_server_version().startswith("milvus_lite")
        except FAILED as error:
            self._client = None
            what_to_do = (
                "Is the server running there, and is MILVUS_TOKEN set if it needs one?"
                if self.config.is_remote
                else "Is its folder there, and no other process has it open? For several processes "
                "run `milvus-lite server` and give its address."
            )
            raise ConnectionError(f"No Milvus at {uri}: {error}. {what_to_do}") from error
        # In a thread, since garbage is collected at any moment, so perhaps inside a lock that
        # closing would take. When Python ends, the folder removes itself.
        self._opened = self._client, uri, folder
        thread = threading.Thread(target=_close, args=self._opened)
        self._closing = weakref.finalize(self, thread.start)
        self._closing.atexit = False

    @contextlib.contextmanager
    def _errors(self) -> Iterator[None]:
        """Those of pymilvus, as ConnectionError or, where the server refuses, as ValueError."""
        where = f"Milvus at {self.config.uri or 'a temporary file'}, collection {self._name}"
        try:
            yield
        except FAILED as error:
            if _is_lost(error):
                raise ConnectionError(
                    f"{where}: no answer ({error}). Try again when the server is back; it waits "
                    "timeout seconds for an answer."
                ) from error
            raise ValueError(f"{where} refuses: {error}") from error

    def _build(self, vectors: np.ndarray) -> None:
        self._is_open = False
        self._connect()
        client, name = self._client, self._name
        with self._errors():
            if client.has_collection(name):
                self._checked_dim()
                client.drop_collection(name)
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("position", pymilvus.DataType.INT64, is_primary=True)
            schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=vectors.shape[1])
            client.create_collection(name, schema=schema, consistency_level="Strong")
            alive = np.flatnonzero(self._store.built.keys >= 0)  # not those that were forgotten
            self._insert(alive)
            client.flush(name)  # seals what is inserted, so that the index covers it
            index = client.prepare_index_params()
            metric = "L2" if self.metric == "euclidean" else "IP"
            # milvus-lite spends more time on Python than on distances: a scan is its quickest.
            kind = "AUTOINDEX" if self.config.is_remote else "FLAT"
            index.add_index("vector", kind, metric_type=metric)
            # Lite has built it when it answers; waiting would poll only after half a second.
            client.create_index(name, index, sync=not self._is_lite)
            client.load_collection(name)
        self._is_open = True

    def _checked_dim(self) -> int:
        """The length of the collection's vectors; raises ValueError if it has other fields."""
        fields = self._client.describe_collection(self._name)["fields"]
        if [field["name"] for field in fields] != ["position", "vector"]:
            raise ValueError(
                f"collection {self._name} at {self.config.uri} has other fields than an index "
                "of twotower: choose another name, or drop it."
            )
        return int(fields[1]["params"]["dim"])

    def _insert(self, positions: np.ndarray) -> None:
        vectors = np.asarray(self._vectors)
        size = max(1, MAX_BYTES // (4 * vectors.shape[1] + 16))
        for start in range(0, len(positions), size):
            rows = [
                {"position": position, "vector": vectors[position]}
                for position in positions[start : start + size].tolist()
            ]
            self._client.insert(self._name, rows)

    def _append(self, vectors: np.ndarray) -> None:
        self._require_open()
        with self._errors():
            num = len(self._vectors)
            self._insert(np.arange(num - len(vectors), num))
            if self._is_lite:  # reads unsealed rows ten times slower, where a server does not
                self._client.flush(self._name)

    def _discard(self, positions: np.ndarray) -> None:
        self._require_open()
        with self._errors():
            for start in range(0, len(positions), 10_000):
                self._client.delete(self._name, ids=positions[start : start + 10_000].tolist())

    def _require_open(self) -> None:
        if not self._is_open:
            raise ValueError(f"collection {self._name} is closed: call build(*index.live()).")

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self._require_open()
        batch = MAX_QUERIES
        if self._is_lite and self.metric == "euclidean":
            # It makes an array of all differences, [num_queries, num_items, dim].
            batch = max(1, min(batch, (1 << 26) // max(1, self._vectors.nbytes)))
        positions = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), NO_SCORE, np.float32)
        for start in range(0, len(queries), batch):
            # The base class scans for what is beyond MAX_K.
            rows = self._hits(queries[start : start + batch], min(k, MAX_K))
            filled = np.arange(k) < np.array([len(row.ids) for row in rows])[:, None]
            found = itertools.chain.from_iterable(row.ids for row in rows)
            distances = itertools.chain.from_iterable(row.distances for row in rows)
            positions[start : start + batch][filled] = np.fromiter(found, np.int64)
            sign = -1 if self.metric == "euclidean" else 1  # of squared distances
            scores[start : start + batch][filled] = sign * np.fromiter(distances, np.float32)
        return positions, scores

    def _hits(self, queries: np.ndarray, k: int) -> Any:
        """Hits of each query, best first; ids and distances, no vectors."""
        arguments = {
            "limit": k,
            "output_fields": ["position"],
            "consistency_level": "Strong",
            "timeout": self.config.timeout,
        }
        with self._errors():
            try:
                return self._client.search(self._name, list(queries), **arguments)
            except pymilvus.MilvusException as error:
                if error.code != 101:  # not loaded: a lite server, once started again, forgot it
                    raise
            self._client.load_collection(self._name)
            return self._client.search(self._name, list(queries), **arguments)

    def _save(self, directory: pathlib.Path) -> None:
        if self.config.collection:
            described = {"uri": self.config.uri, "collection": self._name, "count": self._count}
            (directory / DESCRIPTION).write_text(json.dumps(described, indent=1) + "\n")

    @property
    def _count(self) -> int:
        """Positions that the collection should hold."""
        return int((self._store.built.keys >= 0).sum())

    def _load(self, directory: pathlib.Path) -> None:
        if not self.config.collection:
            self._build(self._vectors)
            return
        there = f"{directory / DESCRIPTION}: collection {self._name} at {self.config.uri}"
        self._connect()
        with self._errors():
            if not self._client.has_collection(self._name):
                raise ValueError(f"{there} is not there. Was it dropped? {AGAIN}")
            if (dim := self._checked_dim()) != self.dim:
                raise ValueError(f"{there} has vectors of length {dim}, not {self.dim}. {AGAIN}")
            self._client.load_collection(self._name)
            if not self._is_same():
                raise ValueError(f"{there} was changed since this index of it was saved. {AGAIN}")
        self._is_open = True

    def _is_same(self) -> bool:
        """Whether the collection holds as many vectors, none at other positions, and the same 16
        of them."""

        def count(rule: str) -> int:
            return self._client.query(self._name, rule, ["count(*)"])[0]["count(*)"]

        built = self._store.built
        if not count("") == count(f"position < {len(built)}") == self._count:
            return False
        alive = np.flatnonzero(built.keys >= 0)
        some = alive[np.linspace(0, len(alive) - 1, min(16, len(alive))).astype(int)].tolist()
        found = self._client.get(self._name, some, ["vector"]) if some else []
        vectors = {row["position"]: np.array(row["vector"], np.float32) for row in found}
        return all(row in vectors and (vectors[row] == built.vectors[row]).all() for row in some)

    @property
    def backend_bytes(self) -> int:
        """Of milvus-lite in this process, 0 for a server. An estimate, after the growth that was
        measured of a process with 20,000 and 60,000 vectors of 16 and 128 dimensions: 8 times the
        vectors (Arrow tables, Python lists, arrays)."""
        return 0 if self.config.is_remote else self._count * (8 * 4 * self.dim + 100)


def _close(client: Any, file: str, folder: tempfile.TemporaryDirectory | None) -> None:
    """Ends a connection, and milvus-lite over a temporary file, whose folder is removed."""
    with contextlib.suppress(Exception):  # a server that is gone has nothing to close
        client.close()
    if folder is not None:
        from milvus_lite.server_manager import server_manager_instance

        server_manager_instance.release_server(file)
        folder.cleanup()


def _is_lost(error: BaseException | None) -> bool:
    """Whether gRPC failed, as against a server that answered with a refusal."""
    if error is None or isinstance(error, LOST):
        return error is not None
    # pymilvus raises an error from itself on its way up.
    return any(_is_lost(e) for e in (error.__cause__, error.__context__) if e is not error)
