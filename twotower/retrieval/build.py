"""From an IndexConfig to a Retriever, and to disk and back.

A saved index describes itself (`index.json`) and refuses to be anything else: every file's sha256,
the dimension, the metric, and the version of the model whose vectors it holds.
"""

import contextlib
import ctypes
import dataclasses
import glob
import hashlib
import importlib
import json
import os
import pathlib
import shutil
import tempfile
from collections.abc import Iterator

import numpy as np

from twotower import __version__
from twotower.retrieval.base import Retriever

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


@dataclasses.dataclass(frozen=True)
class IndexConfig:
    """Which index to build.

    Attributes:
        backend: One of `BACKENDS`.
        metric: `dot`, `cosine` or `euclidean`.
        parameters: Fields of the backend's own config; its defaults where empty.
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
    kind = getattr(importlib.import_module(f"twotower.retrieval.{module}"), name)
    try:
        chosen = kind.Config(**config.parameters) if config.parameters else None
        return kind(config.metric, chosen)
    except TypeError as error:
        raise ValueError(f"{config.backend}: {error}") from error


def build(config: IndexConfig, keys: np.ndarray, vectors: np.ndarray) -> Retriever:
    """An index over vectors; see `Retriever.build`."""
    return make(config).build(keys, vectors)


def sha256(path: pathlib.Path) -> str:
    """Hex digest of a file."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextlib.contextmanager
def replacing(directory: str | pathlib.Path) -> Iterator[pathlib.Path]:
    """A temporary folder beside `directory` that takes its place when the block ends well.

    An interrupted block leaves the folder that was there, and a temporary one that the next call
    removes. On Linux the two are exchanged in one step, so that even `kill -9` leaves one or the
    other in its place; elsewhere the next call undoes half an exchange. One writer at a time.
    """
    directory = pathlib.Path(directory).absolute()
    directory.parent.mkdir(parents=True, exist_ok=True)
    prefix = f".{directory.name}.partial-"
    for left in directory.parent.glob(glob.escape(prefix) + "*"):
        if (left / "old").exists() and not directory.exists():
            os.rename(left / "old", directory)  # the last call ended between its two renames
        shutil.rmtree(left, ignore_errors=True)
    temporary = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
    temporary.chmod(0o755)
    try:
        yield temporary
    except BaseException:
        shutil.rmtree(temporary, ignore_errors=True)
        raise
    old = None
    if not directory.exists():
        os.rename(temporary, directory)
    elif _exchange(temporary, directory):
        old = temporary
    else:
        old = pathlib.Path(tempfile.mkdtemp(prefix=prefix, dir=directory.parent))
        os.rename(directory, old / "old")
        os.rename(temporary, directory)
    if old is not None:
        shutil.rmtree(old, ignore_errors=True)


def _exchange(one: pathlib.Path, other: pathlib.Path) -> bool:
    """Swaps two folders in one step; False where the system cannot. Python has no call for it."""
    renameat2 = getattr(ctypes.CDLL(None), "renameat2", None)
    if renameat2 is None:
        return False
    here, exchange = -100, 2  # AT_FDCWD, RENAME_EXCHANGE of renameat2(2)
    return renameat2(here, os.fsencode(one), here, os.fsencode(other), exchange) == 0


def save(retriever: Retriever, directory: str | pathlib.Path, model_version: str = "") -> None:
    """Writes an index to a temporary folder and renames it.

    Args:
        retriever: With its buffer and tombstones.
        directory: One that is there is replaced.
        model_version: Of the vectors; `load` can demand it.

    Raises:
        ValueError: An index without `build`; the folder that was there stays.
    """
    with replacing(directory) as folder:
        retriever.save(folder)
        described = {
            "format_version": FORMAT_VERSION,
            "backend": retriever.backend,
            "metric": retriever.metric,
            "parameters": dataclasses.asdict(retriever.config),
            "dim": retriever.dim,
            "num_items": len(retriever),
            "model_version": model_version,
            "tuned": retriever.tuned,
            "twotower": __version__,
            "files": {
                str(path.relative_to(folder)): sha256(path)
                for path in sorted(folder.rglob("*"))
                if path.is_file()
            },
        }
        (folder / "index.json").write_text(_text(described))


def _text(described: dict) -> str:
    """The text of index.json, whose last entry is the sha256 of the others."""
    digest = hashlib.sha256(json.dumps(described, indent=1).encode()).hexdigest()
    return json.dumps({**described, "sha256": digest}, indent=1) + "\n"


def load(
    directory: str | pathlib.Path,
    model_version: str | None = None,
    mmap: bool = False,
    dim: int | None = None,
) -> Retriever:
    """Reads an index.

    Args:
        directory: What `save` wrote.
        model_version: If given, must be the one that the index was saved with.
        mmap: Whether the float32 vectors stay on disk until an exact scan needs them.
        dim: If given, must be the length of its vectors: that of the query tower's output.

    Raises:
        ValueError: No index, a newer format, a file that is missing or changed, vectors of
            another model or length; the message names the file.
    """
    directory = pathlib.Path(directory)
    path = directory / "index.json"
    if not path.is_file():
        raise ValueError(f"{path} does not exist, so {directory} holds no index.")
    try:
        text = path.read_bytes().decode()
        described = json.loads(text)
        version, files = int(described["format_version"]), described["files"]
    except (ValueError, KeyError, TypeError) as error:
        raise ValueError(f"{path} does not describe an index: {error!r}.") from error
    if version > FORMAT_VERSION:
        raise ValueError(
            f"{path}: format {version} is newer than this code reads ({FORMAT_VERSION}). Update "
            "twotower or build the index again."
        )
    described.pop("sha256", None)
    if text != _text(described):
        raise ValueError(f"{path} is truncated or changed (its sha256 differs).")
    for name, expected in files.items():
        if not (directory / name).is_file():
            raise ValueError(f"{directory / name} is missing.")
        if sha256(directory / name) != expected:
            raise ValueError(f"{directory / name} is truncated or changed (its sha256 differs).")
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
    retriever = make(
        IndexConfig(described["backend"], described["metric"], described["parameters"])
    )
    retriever.load(directory, mmap)
    if (retriever.dim, len(retriever)) != (described["dim"], described["num_items"]):
        raise ValueError(
            f"{path} says {described['num_items']} items x {described['dim']}; the arrays hold "
            f"{len(retriever)} x {retriever.dim}."
        )
    retriever.tuned = described.get("tuned", {})
    return retriever
