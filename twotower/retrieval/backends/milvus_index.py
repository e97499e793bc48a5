"""Milvus: vectors in a collection, of a server or of milvus-lite inside this process.

The float32 vectors stay in the base class, too, so exact scans, exclusions and the buffer need no
server; a plain search does. What milvus-lite is good for: the same code in tests as on a server.
milvus-lite listens on a port of this machine and asks for no token, so every other user of the
machine can read its collections and drop them. Use it on a machine of your own.
"""

import contextlib
import dataclasses
import importlib.util
import itertools
import json
import pathlib
import re
import urllib.parse
import uuid
import weakref

import numpy as np

from twotower.limits import at_least
from twotower.retrieval.backends.milvus_connection import (
    HINT,
    connect,
    errors,
    is_address,
    pymilvus,
)
from twotower.retrieval.base import Retriever
from twotower.retrieval.candidates import NO_SCORE

DESCRIPTION = "milvus.json"
# Milvus answers no more than MAX_K, and takes messages of 64 MB; half of it is room enough.
MAX_K, MAX_BYTES, MAX_QUERIES, MAX_HITS = 16_384, 1 << 25, 16_384, 1 << 22
AGAIN = "Build the index again, from its keys.npy and vectors.npy if they are still wanted."
INDEX_TYPES = ("FLAT", "HNSW", "IVF_FLAT")
# Names that a server accepts; milvus-lite accepts more.
COLLECTION = re.compile(r"[A-Za-z_][A-Za-z0-9_]{0,254}", re.ASCII)


@dataclasses.dataclass(frozen=True)
class MilvusConfig:
    """Where the vectors are, and how they are indexed there.

    A server's token is no parameter, since these are saved with an index: it is read from the
    environment variable MILVUS_TOKEN (`user:password`, or an API key).

    Attributes:
        uri: `http://host:port` of a server, or the path of a milvus-lite file, ending in .db (one
            process at a time); "" for a file in a temporary folder, which goes with the index.
        collection: Name of a collection that outlives the index and that `build` replaces: at most
            255 letters, digits and _, no digit first. "" for a new one, which is dropped with the
            index. A .db file needs a name; a temporary file takes none.
        index_type: FLAT scans; HNSW and IVF_FLAT look at a part. milvus-lite spends more time on
            Python than on distances, so FLAT is its quickest up to 100,000 vectors or so.
        neighbours: HNSW: links of a vector in each layer (M).
        ef_construction: HNSW: candidates kept while a vector is linked in.
        ef_search: HNSW: candidates kept while a query walks; at least k is used.
        num_lists: IVF_FLAT: lists (nlist); 0 for 4 sqrt(num_items).
        num_probes: IVF_FLAT: lists that a query looks into (nprobe).
        timeout: Seconds to wait for a connection.
        search_timeout: Seconds to wait for an answer. Building waits as long as the server works.
    """

    uri: str = ""
    collection: str = ""
    index_type: str = "FLAT"
    neighbours: int = 32
    ef_construction: int = 200
    ef_search: int = 200
    num_lists: int = 0
    num_probes: int = 32
    timeout: float = 5.0
    search_timeout: float = 60.0

    def __post_init__(self) -> None:
        at_least(self, neighbours=2, ef_construction=1, ef_search=1, num_lists=0, num_probes=1)
        at_least(self, timeout=0.1, search_timeout=0.1)
        if self.index_type not in INDEX_TYPES:
            raise ValueError(f"index_type must be one of {INDEX_TYPES}; got {self.index_type!r}.")
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
        if not self.is_remote and bool(self.uri) != bool(self.collection):
            raise ValueError(
                "a .db file and the name of a collection go together, so that both stay; got uri "
                f"{self.uri!r} and collection {self.collection!r}."
            )

    @property
    def is_remote(self) -> bool:
        """Whether `uri` is an address and not a path."""
        return is_address(self.uri)


class MilvusIndex(Retriever):
    """A collection of positions (the primary key) and vectors, searched with Strong consistency:
    what was added or removed counts for the next search.

    One index writes a collection at a time; others may have it loaded. A collection with a name
    is not copied into a saved index, which then names it and holds the vectors for exact scans:
    loading fails unless the collection is there with the same vectors. One without a name goes
    with the index, so nothing of it is saved, and loading builds it again from the vectors.

    Args:
        metric: As in Retriever.
        config: Where, and how.

    Raises:
        ImportError: No milvus-lite, where `uri` asks for it.
        ConnectionError: (building, loading, searching) The server does not answer. After a failed
            search nothing is lost: once the server is back, the next one works.
    """

    backend = "milvus"
    Config = MilvusConfig
    can_append = True
    can_forget = True

    def __init__(self, metric: str = "dot", config: MilvusConfig | None = None) -> None:
        super().__init__(metric, config)
        if not self.config.is_remote and importlib.util.find_spec("milvus_lite") is None:
            raise ImportError(f"A milvus index without a server needs milvus-lite: {HINT}")
        self._client = None
        self._name = self.config.collection or f"twotower_{uuid.uuid4().hex}"
        # Whether the collection holds what the base class believes.
        self._is_whole = False

    def close(self) -> None:
        """Ends the connection; what has no name (a collection, a temporary file) is removed.

        Happens by itself, a little later, when the index is garbage.
        """
        if self._client is not None:
            self._lease.close()
            self._client, self._is_whole = None, False

    def _connect(self) -> None:
        if self._client is not None:
            return
        lease, self._is_lite = connect(self.config.uri, self.config.timeout)
        if self.config.uri and not self.config.collection:
            lease.collection = self._name
        self._client, self._lease = lease.client, lease
        # At exit the lease closes itself: a thread would not be waited for.
        weakref.finalize(self, lease.close_later).atexit = False

    def _errors(self):
        """Of pymilvus, as ConnectionError or, where the server refuses, as ValueError."""
        where = self.config.uri or "a temporary file"
        return errors(f"Milvus at {where}, collection {self._name}")

    def _build(self, vectors: np.ndarray) -> None:
        self._is_whole = False
        self._connect()
        client, name, config = self._client, self._name, self.config
        with self._errors():
            if client.has_collection(name):
                self._require_ours()
                client.drop_collection(name)
            schema = client.create_schema(auto_id=False, enable_dynamic_field=False)
            schema.add_field("position", pymilvus.DataType.INT64, is_primary=True)
            schema.add_field("vector", pymilvus.DataType.FLOAT_VECTOR, dim=vectors.shape[1])
            client.create_collection(name, schema=schema, consistency_level="Strong")
            alive = np.flatnonzero(self._store.built.keys >= 0)  # not those that were forgotten
            self._insert(alive)
            client.flush(name)  # seals what is inserted, so that the index covers it
            num_lists = config.num_lists or int(4 * np.sqrt(len(alive)))
            parameters = {
                "FLAT": {},
                "HNSW": {"M": config.neighbours, "efConstruction": config.ef_construction},
                "IVF_FLAT": {"nlist": max(1, min(num_lists, 65_536))},
            }[config.index_type]
            index = client.prepare_index_params()
            if self._is_lite:  # pymilvus 3.0 spreads them, and lite 3.2 reads only this one entry
                parameters = {"params": parameters}
            kind = "L2" if self.metric == "euclidean" else "IP"
            index.add_index("vector", config.index_type, metric_type=kind, params=parameters)
            # Lite has built it when it answers; waiting would ask again only after half a second.
            client.create_index(name, index, sync=not self._is_lite)
            client.load_collection(name)
        self._is_whole = True

    def _require_ours(self) -> int:
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
        with self._changing(), self._errors():
            num = len(self._vectors)
            self._insert(np.arange(num - len(vectors), num))
            if self._is_lite:  # reads unsealed rows ten times slower, where a server does not
                self._client.flush(self._name)

    def _discard(self, positions: np.ndarray) -> None:
        with self._changing(), self._errors():
            for start in range(0, len(positions), 10_000):
                self._client.delete(self._name, ids=positions[start : start + 10_000].tolist())

    @contextlib.contextmanager
    def _changing(self):
        """The base class has changed its mind already, so a failure leaves the two apart."""
        self._require_whole()
        self._is_whole = False
        yield
        self._is_whole = True

    def _require_whole(self) -> None:
        if not self._is_whole:
            raise ValueError(
                f"collection {self._name} is closed, or a build or absorb failed half-way: call "
                "build(*index.live())."
            )

    def _search(self, queries: np.ndarray, k: int) -> tuple[np.ndarray, np.ndarray]:
        self._require_whole()
        limit = min(k, MAX_K)  # the base class scans for the rest
        block = min(MAX_QUERIES, MAX_BYTES // (4 * self.dim), MAX_HITS // limit)
        if self._is_lite and self.metric == "euclidean":
            # It makes an array of all differences, [num_queries, num_items, dim].
            block = min(block, (1 << 26) // max(1, self._vectors.nbytes))
        block = max(1, block)
        positions = np.full((len(queries), k), -1, np.int64)
        scores = np.full((len(queries), k), NO_SCORE, np.float32)
        for start in range(0, len(queries), block):
            rows = self._ask(queries[start : start + block], limit, self.config_at(k))
            filled = np.arange(k) < np.array([len(row.ids) for row in rows])[:, None]
            found = itertools.chain.from_iterable(row.ids for row in rows)
            distances = itertools.chain.from_iterable(row.distances for row in rows)
            positions[start : start + block][filled] = np.fromiter(found, np.int64)
            sign = -1 if self.metric == "euclidean" else 1  # of squared distances
            scores[start : start + block][filled] = sign * np.fromiter(distances, np.float32)
        return positions, scores

    def _ask(self, queries: np.ndarray, k: int, config: MilvusConfig):
        """Hits of each query, best first; ids and distances, no vectors."""
        effort = {
            "FLAT": {},
            "HNSW": {"ef": min(max(k, config.ef_search), 32_768)},
            "IVF_FLAT": {"nprobe": min(config.num_probes, 65_536)},
        }[config.index_type]

        def search():
            return self._client.search(
                self._name,
                list(queries),
                limit=k,
                output_fields=["position"],
                search_params={"params": effort},
                consistency_level="Strong",
                timeout=config.search_timeout,
            )

        with self._errors():
            try:
                return search()
            except pymilvus.MilvusException as error:
                if error.code != 101:  # not loaded: a lite server, once started again, forgot it
                    raise
            self._client.load_collection(self._name)
            return search()

    def efforts(self, k: int) -> dict[str, list[int]]:
        if self.config.index_type == "HNSW":
            return {"ef_search": [k * step // 4 for step in (4, 5, 6, 8, 10, 12, 16, 24, 32, 64)]}
        if self.config.index_type == "IVF_FLAT":
            num_lists = self.config.num_lists or int(4 * np.sqrt(len(self._vectors)))
            ladder = (1, 2, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128, 192, 256, 384, 512)
            return {"num_probes": [value for value in ladder if value < num_lists] or [1]}
        return {}

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
            if (dim := self._require_ours()) != self.dim:
                raise ValueError(f"{there} has vectors of length {dim}, not {self.dim}. {AGAIN}")
            self._client.load_collection(self._name)
            if not self._is_same():
                raise ValueError(f"{there} was changed since this index of it was saved. {AGAIN}")
        self._is_whole = True

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
        vectors = {row["position"]: np.float32(row["vector"]) for row in found}
        return all(np.array_equal(vectors.get(one), built.vectors[one]) for one in some)

    @property
    def backend_bytes(self) -> int:
        """Of milvus-lite in this process, 0 for a server. An estimate, after the growth that was
        measured of a process with 20,000 and 60,000 vectors of 16 and 128 dimensions: 7 to 8 times
        the vectors (Arrow tables, Python lists, arrays), one more in a graph."""
        if self.config.is_remote:
            return 0
        copies, links = (
            (9, 8 * self.config.neighbours) if self.config.index_type == "HNSW" else (8, 0)
        )
        return self._count * (copies * 4 * self.dim + 100 + links)
