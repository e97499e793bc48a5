"""One process of a service: opens its bundle, state and store as settings say, and makes the app.

Processes of one service share the listening socket, the state's folder and the store. Each has its
own copy of the bundle. `processes.py` starts them again if they die. On SIGTERM they take no new
connections, answer what has come, and end (`draining.py`).
"""

import contextlib
import dataclasses
import functools
import gc
import json
import logging
import multiprocessing
import os
import pathlib
import socket
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from typing import TYPE_CHECKING, Any

from twotower.bundle.manifest import BundleError, read_manifest
from twotower.data import load_dataset
from twotower.data.dataset import Dataset
from twotower.serving.app import create_app
from twotower.serving.guard import Limits
from twotower.serving.histories import Histories
from twotower.serving.index_app import create_index_app
from twotower.serving.index_client import IndexClient
from twotower.serving.index_service import IndexService
from twotower.serving.live import Live
from twotower.serving.pipeline import Pipeline
from twotower.serving.registry import Registry
from twotower.serving.service import Options, Service
from twotower.serving.shelf import Shelf
from twotower.serving.store import open_store

if TYPE_CHECKING:  # an extra, which is imported where traces are asked for
    from twotower.serving.tracing import Tracing

LOG = logging.getLogger("twotower.serving")
# The environment passes settings to the processes that uvicorn starts. It also passes the tokens.
# They are not flags, since every user of a machine can read the flags of a process.
SETTINGS = "TWOTOWER_SERVING"
TOKEN, ADMIN_TOKEN = "TWOTOWER_TOKEN", "TWOTOWER_ADMIN_TOKEN"
# What a query process sends to its index process.
INDEX_TOKEN = "TWOTOWER_INDEX_TOKEN"
LOOPBACK = ("127.0.0.1", "localhost", "::1")
# Collections of the middle generation between two full garbage collections; Python's default is 10.
FULL_COLLECTION = 1000
# Seconds that requests under way have to end, after SIGTERM.
GRACE = 20


@dataclasses.dataclass(frozen=True)
class Settings:
    """What a process needs to know.

    Attributes:
        bundle: Folder of a bundle; "" for the registry's active one.
        registry: Folder of a registry; "" for none. A bundle is put into it and made active where
            nothing else is.
        state: Folder for events and changes of items.
        data_dir: Data with the histories and columns of users; "" for none.
        store: Where sessions are kept: `memory`, or an address of Redis.
        index: Of the two-tower funnel and of searches; "" for `hnsw` if there is one.
        source_deadline: Seconds that a source of a funnel may take.
        role: `query` has towers, funnels and sessions, and asks an index process;
            `index` has vectors and indexes; `all` has both in one process.
        index_url: Address of the index process, for the role `query`.
        trace: Address of an OpenTelemetry collector; "" for no traces.
        options: Sizes of batches, waits and the deadline.
        limits: Sizes, rates and callers that are refused.
    """

    bundle: str
    registry: str
    state: str
    data_dir: str = ""
    store: str = "memory"
    index: str = ""
    source_deadline: float = 1.0
    role: str = "all"
    index_url: str = ""
    trace: str = ""
    options: Options = dataclasses.field(default_factory=Options)
    limits: Limits = dataclasses.field(default_factory=Limits)

    @classmethod
    def from_json(cls, text: str) -> "Settings":
        """The settings of `json.dumps(dataclasses.asdict(settings))`."""
        entries = json.loads(text)
        options, limits = Options(**entries.pop("options")), Limits(**entries.pop("limits"))
        return cls(**entries, options=options, limits=limits)


def run(
    settings: Settings, host: str, listeners: Sequence[socket.socket], workers: int = 1
) -> None:
    """Serves until SIGTERM or Ctrl-C.

    Args:
        settings: For each process.
        host: Address or name of the service, for messages.
        listeners: Its bound sockets (`listeners.bound`). They listen when a process can answer.
        workers: Number of processes.

    Raises:
        OSError: Another process has begun to listen since the sockets were bound, or none of
            several processes could start.
        ValueError: Several processes whose sessions or vectors would differ; or an address of an
            index for another role than `query`.
    """
    import uvicorn

    from twotower.serving.draining import DrainingServer
    from twotower.serving.processes import Processes
    from twotower.serving.protocol import BoundedHeaders

    if settings.trace:
        import twotower.serving.tracing  # noqa: F401 (an error here is easier to read)
    if (settings.role == "query") != bool(settings.index_url):
        raise ValueError(
            "a query process, and no other, has the address of its index: give --role=query "
            f"--index_url=http://127.0.0.1:8001; got the role {settings.role!r} and the address "
            f"{settings.index_url!r}."
        )
    if workers > 1 and settings.role == "index":
        raise ValueError(
            f"an index process is one, which searches in as many threads as there are cores; got "
            f"--workers={workers}."
        )
    if workers > 1 and settings.store == "memory":
        raise ValueError(
            f"{workers} processes need a store that they share, or a user's next request would "
            "meet another session: give --store=redis://HOST:PORT/0, or --workers=1."
        )
    # By default, uvicorn would believe X-Forwarded-For from every process of this machine.
    has_proxy = "FORWARDED_ALLOW_IPS" in os.environ
    if host in LOOPBACK and not has_proxy and not os.environ.get(TOKEN):
        limits = dataclasses.replace(settings.limits, hosts=LOOPBACK)
        settings = dataclasses.replace(settings, limits=limits)
    os.environ[SETTINGS] = json.dumps(dataclasses.asdict(settings))
    with tempfile.TemporaryDirectory() as counts:
        if workers > 1:
            # Processes inherit file descriptor 2, which `commands/script.py` points to /dev/null.
            os.dup2(sys.stderr.fileno(), 2)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = counts
            log_as_json()  # of the process that starts the others
        config = uvicorn.Config(
            "twotower.serving.process:app",
            factory=True,
            host=host,
            port=listeners[0].getsockname()[1],
            workers=workers,
            http=BoundedHeaders,
            loop="uvloop",
            ws="none",  # a request for a WebSocket is answered as any other, not with a 500
            proxy_headers=has_proxy,
            access_log=False,
            server_header=False,
            log_config=None,
            timeout_graceful_shutdown=GRACE,
        )
        with contextlib.suppress(KeyboardInterrupt):
            if workers > 1:
                processes = Processes(config, [*listeners])
                processes.run()
                if processes.could_not_start:
                    raise OSError("no process could start; the reasons stand above.")
            else:
                DrainingServer(config).run([*listeners])


def app() -> Any:
    """The app of the settings in the environment; uvicorn calls it in each process.

    One of several processes that cannot start says why in a line of the log, and ends.
    """
    try:
        return _app()
    except Exception as error:
        if multiprocessing.parent_process() is None:
            raise
        from uvicorn.config import STARTUP_FAILURE

        LOG.error("%s", error)
        raise SystemExit(STARTUP_FAILURE) from error


def _app() -> Any:
    # A thread that loads a bundle lets go of the interpreter sooner for one that answers.
    sys.setswitchinterval(0.001)
    log_as_json()
    settings = Settings.from_json(os.environ[SETTINGS])
    limits = dataclasses.replace(
        settings.limits,
        token=os.environ.get(TOKEN, ""),
        admin_token=os.environ.get(ADMIN_TOKEN, ""),
    )
    if settings.role != "index":  # which never needs TensorFlow
        import tensorflow as tf

        # Several threads for a small request cost more than they give, and other processes' cores.
        tf.config.threading.set_intra_op_parallelism_threads(1)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    # A full garbage collection walks through all objects while every request waits. The modules
    # stay, so they are frozen: with TensorFlow's 350,000 objects a collection takes 0.25 s. With
    # those of a bundle it still takes 70 ms, and under load there was more than one a second. So
    # full collections are also made rare.
    gc.collect()
    gc.freeze()
    gc.set_threshold(*gc.get_threshold()[:2], FULL_COLLECTION)
    if settings.role == "index":
        return create_index_app(index_service_of(settings), limits)
    return create_app(service_of(settings), limits)


def tracing_of(settings: Settings) -> "Tracing | None":
    """What makes the spans of settings, or None.

    Raises:
        ImportError: The extra `tracing` is not installed.
    """
    if not settings.trace:
        return None
    from twotower.serving.tracing import Tracing

    name = "twotower" if settings.role == "all" else f"twotower-{settings.role}"
    return Tracing.to(settings.trace, name)


def service_of(settings: Settings) -> Service:
    """The service of settings.

    Raises:
        BundleError: A bundle that is damaged.
        OSError: A state folder that cannot be written.
        ValueError: Neither a bundle nor an active version of a registry.
    """
    registry = registry_of(settings)
    bundle = pathlib.Path(settings.bundle)
    folders = [bundle]
    if registry is not None:
        names = registry.active.version, registry.active.previous
        folders = [registry.path(name) for name in names if name in registry.versions]
    dataset = _dataset(folders, settings.data_dir)
    client = None
    if settings.index_url:
        token = os.environ.get(INDEX_TOKEN, "")
        client = IndexClient(settings.index_url, settings.source_deadline, token)
    load = functools.partial(
        Pipeline,
        dataset=dataset,
        source_deadline=settings.source_deadline,
        index=settings.index,
        client=client,
    )
    live = Live((load(bundle),)) if registry is None else started(registry, load)
    with _writing(settings.state):
        return Service(
            live,
            settings.state,
            store=open_store(settings.store),
            histories=None if dataset is None else Histories(dataset),
            options=settings.options,
            registry=registry,
            load=load,
            lacks=None if client is None else client.lacks,
            tracing=tracing_of(settings),
        )


@contextlib.contextmanager
def _writing(state: str) -> Iterator[None]:
    """Raises OSError, which names the folder, for a database there that cannot be written."""
    try:
        yield
    except sqlite3.OperationalError as error:
        raise OSError(
            f"the state folder {state} cannot be written: {error}. Free space on its disk, make it "
            "writable, or give another --state."
        ) from error


def started(registry: Registry, load: Callable[[pathlib.Path], Pipeline]) -> Live:
    """The pipelines of what a registry names; a damaged version is refused.

    Args:
        registry: With an active version.
        load: Opens a bundle's folder as a pipeline.

    Raises:
        BundleError: Neither the active version nor the previous one can be loaded.
    """
    wanted = registry.active
    version, pipeline = registry.first_good(load)
    if version != wanted.version:
        LOG.error("version %s is refused, and %s serves", wanted.version, version)
    elif wanted.canary in registry.versions:
        try:
            canary = load(registry.path(wanted.canary))
            return Live((pipeline, canary), wanted.share, (version, wanted.canary))
        except BundleError as error:
            registry.refuse(wanted.canary, [str(error)])
            LOG.error("the canary %s is refused: %s", wanted.canary, error)
    return Live((pipeline,), 0.0, (version,))


def index_service_of(settings: Settings) -> IndexService:
    """The index process of settings.

    Raises:
        BundleError: A bundle that is damaged.
        OSError: A state folder that cannot be written.
        ValueError: Neither a bundle nor an active version of a registry.
    """
    registry = registry_of(settings)
    with _writing(settings.state):
        shelf = Shelf(settings.state, settings.bundle, registry, settings.index)
    return IndexService(shelf, settings.options.deadline, tracing_of(settings))


def registry_of(settings: Settings) -> Registry | None:
    """The registry of settings, with an active version, or None.

    Raises:
        BundleError: A bundle that is damaged.
        ValueError: Neither a bundle nor an active version of a registry.
    """
    registry = Registry(settings.registry) if settings.registry else None
    if registry is not None and not registry.active.version and settings.bundle:
        registry.activate(registry.put(settings.bundle))
    if not settings.bundle and (registry is None or not registry.active.version):
        raise ValueError("there is nothing to serve: give a bundle, or a registry with one.")
    return registry


def _dataset(bundles: Sequence[pathlib.Path], data_dir: str) -> Dataset | None:
    """The data of the first bundle that is not damaged, if there is a folder to look for them."""
    for bundle in bundles if data_dir else ():
        try:
            manifest = read_manifest(bundle)
        except BundleError:  # who loads it says so
            continue
        return load_dataset(manifest["dataset"], data_dir, **manifest.get("dataset_reading", {}))
    return None


class JsonLines(logging.Formatter):
    """Each record as a line of JSON, so that nothing in a message can begin another record."""

    def format(self, record: logging.LogRecord) -> str:
        line: dict[str, Any] = {
            "time": time.strftime("%Y-%m-%dT%H:%M:%S", time.gmtime(record.created)),
            "level": record.levelname,
            "logger": record.name,
        }
        line |= record.msg if isinstance(record.msg, dict) else {"message": record.getMessage()}
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line)


def log_as_json() -> None:
    """Writes the logs of this package and of uvicorn to standard error, as lines of JSON."""
    handler = logging.StreamHandler()
    handler.setFormatter(JsonLines())
    for name in ("twotower.serving", "uvicorn", "absl", "opentelemetry", "urllib3"):
        logger = logging.getLogger(name)
        logger.handlers, logger.propagate = [handler], False
        is_ours = name in ("twotower.serving", "uvicorn")
        logger.setLevel(logging.INFO if is_ours else logging.WARNING)
