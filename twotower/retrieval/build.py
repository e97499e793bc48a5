"""From an IndexConfig to a Retriever, and to disk and back.

A saved index has a description, `index.json`, with the sha256 of every file, the dimension, the
metric, and the version of the model whose vectors it holds. `load` refuses a mismatch.
"""

import dataclasses
import importlib
import pathlib
from collections.abc import Collection

import numpy as np

from twotower import __version__
from twotower.limits import whole_number
from twotower.retrieval.base import Retriever
from twotower.storage import bundle_part, description, paths
from twotower.storage.replacing import replacing

FORMAT_VERSION = 1
# Backend -> its module and class; a module loads its library, so it is imported at first use.
CLASSES = {
    "exact": ("brute_force", "BruteForceIndex"),
    "flat": ("faiss_index", "FlatIndex"),
    "ivf": ("ivf", "IvfIndex"),
    "hnsw": ("hnsw", "HnswIndex"),
    "ivf_pq": ("ivf_pq", "IvfPqIndex"),
    "tiered": ("tiered", "TieredIndex"),
    "scann": ("scann_index", "ScannIndex"),
    "milvus": ("milvus_index", "MilvusIndex"),
}
BACKENDS = tuple(CLASSES)
# Entries of index.json besides its format version; `files` are compared with their hashes before
# they are read.
ENTRIES = {
    "backend": str,
    "metric": str,
    "parameters": dict,
    "dim": int,
    "num_items": int,
    "model_version": str,
    "tuned": dict,
    "files": dict,
}


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Which index to build.

    Attributes:
        backend: One of `BACKENDS`.
        metric: `dot`, `cosine` or `euclidean`.
        parameters: Fields of the backend's config -> their values; the others have their defaults.

    >>> config = IndexConfig("hnsw", "cosine", {"ef_search": 400})
    >>> make(config).config.ef_search
    400
    """

    backend: str
    metric: str = "dot"
    parameters: dict = dataclasses.field(default_factory=dict)


def make(config: IndexConfig) -> Retriever:
    """An empty Retriever.

    Raises:
        ValueError: An unknown backend or parameter.
    """
    if config.backend not in BACKENDS:
        raise ValueError(f"backend must be one of {BACKENDS}; got {config.backend!r}.")
    module, name = CLASSES[config.backend]
    kind = getattr(importlib.import_module(f"twotower.retrieval.backends.{module}"), name)
    try:
        chosen = kind.Config(**config.parameters) if config.parameters else None
        return kind(config.metric, chosen)
    except TypeError as error:
        raise ValueError(f"{config.backend}: {error}") from error


def build(config: IndexConfig, keys: np.ndarray, vectors: np.ndarray) -> Retriever:
    """An index over vectors `[num_items, dim]` with keys `[num_items]`; see `Retriever.build`."""
    return make(config).build(keys, vectors)


def save(retriever: Retriever, directory: str | pathlib.Path, model_version: str = "") -> None:
    """Writes an index to a temporary folder, which then replaces `directory`.

    Args:
        retriever: With its buffer and tombstones.
        directory: An index in it is replaced; a folder of anything else is refused.
        model_version: Version of the model of the vectors; `load` can require it.

    Raises:
        ValueError: An index that was not built, or a folder that may not be replaced (see
            `replacing`). That folder is not changed.
    """
    with replacing(directory, "index.json") as folder:
        write(retriever, folder, model_version)


def write(retriever: Retriever, folder: pathlib.Path, model_version: str = "") -> None:
    """Writes an index and its description into an empty folder; `save` does it safely."""
    retriever.save(folder)
    entries = {
        "format_version": FORMAT_VERSION,
        "backend": retriever.backend,
        "metric": retriever.metric,
        "parameters": dataclasses.asdict(retriever.config),
        "dim": retriever.dim,
        "num_items": len(retriever),
        "model_version": model_version,
        "tuned": retriever.tuned,
        "twotower": __version__,
        "files": description.hashes(folder),
    }
    description.write(folder / "index.json", entries)


def load(
    directory: str | pathlib.Path,
    model_version: str | None = None,
    mmap: bool = False,
    dim: int | None = None,
    allowed_uris: Collection[str] = (),
) -> Retriever:
    """Reads an index.

    A folder that is replaced meanwhile is read once more: the result is the old or the new index.

    Args:
        directory: What `save` wrote.
        model_version: If given, must be the one that the index was saved with.
        mmap: Whether the float32 vectors stay on disk until an exact scan needs them. Replace such
            a folder as a whole: a copy over its files changes the index, or ends the process.
        dim: If given, must be the length of its vectors: that of the query tower's output.
        allowed_uris: Addresses of Milvus servers and paths of milvus-lite files that the index may
            open. An index that names any other is refused before anything is opened.

    Raises:
        ValueError: No index, a newer format, a file that is missing, changed or not listed,
            vectors of another model or length, or an address that is not allowed; the message
            names the file. Or a text for `allowed_uris`.
    """
    directory = paths.encodable(directory)
    if isinstance(allowed_uris, str):  # parts of a text are in it, too
        raise ValueError(
            f"allowed_uris is a list of addresses, such as [{allowed_uris!r}]; got a text."
        )

    def read() -> Retriever:
        described = bundle_part.described(
            directory, "index.json", "an index", ENTRIES, FORMAT_VERSION
        )
        path, uri = directory / "index.json", described["parameters"].get("uri")
        if model_version is not None and described["model_version"] != model_version:
            raise ValueError(
                f"{path}: the index holds vectors of model {described['model_version']!r}, not of "
                f"{model_version!r}. Build it again from this bundle."
            )
        if dim is not None and described["dim"] != dim:
            raise ValueError(
                f"{path}: the index holds vectors [num_items, {described['dim']}]; expected "
                f"[num_items, {dim}]. Was it built for this query tower?"
            )
        if uri and uri not in allowed_uris:
            raise ValueError(
                f"{path} names {uri}. If this index may connect to it, load it with "
                f"allowed_uris=[{uri!r}]."
            )
        return _loaded(directory, described, mmap)

    return description.consistently(directory, read)


def _tuned(path: pathlib.Path, tuned: dict) -> dict:
    """What `tuning.tune` found, if a search can compute with it; empty if it never ran."""
    for name, least in (("k", 1), ("num_items", 0)):
        if name in tuned:
            whole_number(tuned[name], f"{path}: {name} of tuned", least)
    return tuned


def _loaded(directory: pathlib.Path, described: dict, mmap: bool) -> Retriever:
    """The index of a folder, from files that are those of its description."""
    retriever = make(
        IndexConfig(described["backend"], described["metric"], described["parameters"])
    )
    with description.checked(directory, described["files"]):
        description.require_no_more(directory, [*described["files"], "index.json"])
        retriever.load(directory, mmap)
    if (retriever.dim, len(retriever)) != (described["dim"], described["num_items"]):
        raise ValueError(
            f"{directory / 'index.json'} says {described['num_items']} items x "
            f"{described['dim']}; the arrays hold {len(retriever)} x {retriever.dim}."
        )
    retriever.tuned = _tuned(directory / "index.json", described["tuned"])
    return retriever
