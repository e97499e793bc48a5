"""Serves a bundle over HTTP: recommendations, vectors, sessions, items, deploys.

    python experiments/serve.py --bundle=W/bundle
    python experiments/serve.py
    python experiments/serve.py --registry=W/registry --store=redis://127.0.0.1:6379/0 --workers=2
    python experiments/serve.py --registry=W/registry --role=index --port=8001
    python experiments/serve.py --registry=W/registry --role=query --index_url=http://127.0.0.1:8001

Without a bundle and a registry it first makes the bundle of quickstart.py, with a funnel and a map.
Then, in another shell:

    curl -s 127.0.0.1:8000/recommend -H 'content-type: application/json' -d '{"k": 5}'

GET /openapi.json describes all routes. It listens on the loopback interface alone unless --host
says otherwise, and asks for a bearer token if TWOTOWER_TOKEN is in the environment; for changes of
items and deploys it asks for TWOTOWER_ADMIN_TOKEN, if that is there. A query process sends
TWOTOWER_INDEX_TOKEN to its index process.
"""

import os
import pathlib
import subprocess
import sys
import tempfile

from absl import flags

from twotower.commands import script

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of a bundle; one of quickstart.py by default.")
script.DEFINE_path("registry", None, "Folder of a registry, whose active version is followed.")
script.DEFINE_path("state", None, "Folder for events and changes of items; beside the bundle.")
script.DEFINE_path("data_dir", None, "Where to look up users' histories and columns.")
flags.DEFINE_string("store", "memory", "Of the sessions: memory, or redis://HOST:PORT/NUMBER.")
flags.DEFINE_string("host", "127.0.0.1", "Address to listen on.")
flags.DEFINE_integer("port", 8000, "Port to listen on.", 0, 65535)
flags.DEFINE_integer("workers", 1, "Processes; as many as cores, with Redis.", 1, 64)
flags.DEFINE_string("index", "", "Of the two-tower source and of searches; hnsw if there is one.")
flags.DEFINE_enum("role", "all", ["all", "query", "index"], "Towers, vectors, or both.")
flags.DEFINE_string("index_url", "", "Address of the index process, with --role=query.")
flags.DEFINE_string("trace", "", "OpenTelemetry collector, such as http://127.0.0.1:4318.")
flags.DEFINE_float("max_wait", 2.0, "Milliseconds that a request may wait for others.", 0)
flags.DEFINE_integer("max_batch", 64, "Most requests that are answered together.", 1)
flags.DEFINE_float("deadline", 2000.0, "Milliseconds after which a request is given up.", 1)
flags.DEFINE_float("source_deadline", 1000.0, "Milliseconds that one source may take.", 1)
flags.DEFINE_integer("body_bytes", None, "Largest body; 1 MB, and 64 MB of an index process.", 1)
flags.DEFINE_integer("concurrency", 256, "Requests under way at once, in each process.", 1)
flags.DEFINE_float("rate", 0.0, "Requests a second and caller; 0 for no limit.", 0)


def main() -> None:
    """Serves until it is stopped."""
    from twotower.serving.listeners import bound

    listeners = bound(FLAGS.host, FLAGS.port)
    # One thread in each process: NumPy and FAISS read these when they are first imported.
    for name in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
        os.environ.setdefault(name, "1")
    from twotower.serving.guard import Limits
    from twotower.serving.process import Settings, run
    from twotower.serving.service import Options

    bundle = FLAGS.bundle or ("" if FLAGS.registry else quickstart())
    beside = pathlib.Path(FLAGS.registry or bundle).resolve().parent
    # One call of a query process has the exclusions of a whole batch, and a filter is one, too.
    body_bytes = FLAGS.body_bytes or (64_000_000 if FLAGS.role == "index" else 1_000_000)
    settings = Settings(
        bundle=bundle,
        registry=FLAGS.registry or "",
        state=FLAGS.state or str(beside / "state"),
        data_dir=FLAGS.data_dir or "",
        store=FLAGS.store,
        index=FLAGS.index,
        source_deadline=FLAGS.source_deadline / 1e3,
        role=FLAGS.role,
        index_url=FLAGS.index_url,
        trace=FLAGS.trace,
        options=Options(FLAGS.max_batch, FLAGS.max_wait / 1e3, FLAGS.deadline / 1e3),
        limits=Limits(body_bytes, concurrency=FLAGS.concurrency, rate=FLAGS.rate),
    )
    port = listeners[0].getsockname()[1]
    print(f"http://{FLAGS.host}:{port} serves {FLAGS.registry or bundle}", flush=True)
    run(settings, FLAGS.host, listeners, FLAGS.workers)


def quickstart() -> str:
    """Makes the bundle of quickstart.py with a funnel and a map, each in a process of its own;
    returns its folder."""
    workdir = tempfile.mkdtemp(prefix="twotower-")
    data = [f"--data_dir={FLAGS.data_dir}"] if FLAGS.data_dir else []

    def run_script(name: str, *arguments: str) -> subprocess.CompletedProcess:
        command = [sys.executable, str(pathlib.Path(__file__).with_name(name)), *arguments, *data]
        return subprocess.run(command, stderr=sys.stderr)

    run_script("quickstart.py", f"--workdir={workdir}").check_returncode()
    bundle = f"{workdir}/bundle"
    for name in ("build_funnel.py", "build_map.py"):
        if run_script(name, f"--bundle={bundle}").returncode:
            print(f"The bundle is served without what {name} makes.", flush=True)
    return bundle


if __name__ == "__main__":
    script.run(main)
