"""What users notice of deploys: failed requests, answers that mix two trainings, and delays.

    python experiments/benchmarks/deploys.py --bundles=A/bundle,B/bundle --output=deploys.json

Each client of a service sends its next request as soon as it has its answer, first without deploys
and then while two bundles replace each other. In every fifth deploy one byte of the bundle was
changed, so it must be refused. Each answer is compared with what its bundle answers by itself.
"""

import http.client
import itertools
import json
import os
import pathlib
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import threading
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance, write_result
from twotower.data.requests import Requests
from twotower.serving.registry import Registry

FLAGS = flags.FLAGS
flags.DEFINE_list("bundles", None, "Folders of two bundles with a graph index.", required=True)
flags.DEFINE_integer("deploys", 100, "Number of deploys.", 5)
flags.DEFINE_integer("clients", 4, "Clients that ask all the time.", 1, 64)
flags.DEFINE_float("calm", 20.0, "Seconds without a deploy at the start.", 0)
flags.DEFINE_float("pause", 1.0, "Seconds between a deploy and the next one.", 0)
script.DEFINE_path("output", None, "JSON file to write.")

INDEX, K, HISTORIES = "hnsw", 10, 10_000
SERVE = pathlib.Path(__file__).parents[1] / "serve.py"


def main() -> None:
    """Prints and writes what was counted."""
    bundles = [Bundle(folder) for folder in FLAGS.bundles]
    if len({bundle.model_version for bundle in bundles}) != 2:
        raise ValueError(f"expected two bundles of different trainings; got {FLAGS.bundles}.")
    rng, ids = np.random.default_rng(0), bundles[0].catalogue.ids_of(bundles[0].keys)
    histories = [rng.choice(ids, rng.integers(1, 20), False).tolist() for _ in range(HISTORIES)]
    truth = {bundle.model_version: alone(bundle, histories) for bundle in bundles}
    with tempfile.TemporaryDirectory() as folder:
        registry = Registry(pathlib.Path(folder) / "registry")
        first, second = (registry.put(bundle.directory) for bundle in bundles)
        versions = [second, first, damaged(registry, second), second, first]
        registry.activate(first)
        with serving(registry.folder, f"{folder}/state") as address:
            row = measured(address, histories, versions)
    row["mixed"] = sum(
        truth[answer["model_version"]][number] != [item["item_id"] for item in answer["items"]]
        for number, answer in row.pop("answers")
    )
    print(json.dumps(row, indent=1))
    if FLAGS.output:
        num_items = len(bundles[0].keys)
        write_result(FLAGS.output, {**row, "num_items": num_items, **provenance()})


def alone(bundle: Bundle, histories: list[list[str]]) -> list[list[str]]:
    """What a bundle answers to each history."""
    requests = Requests.of(bundle.catalogue, histories)
    found = bundle.retriever(INDEX).search(bundle.encode(requests), K, exclude=requests.exclude)
    return bundle.catalogue.ids_of(found.keys).tolist()


def damaged(registry: Registry, version: str) -> str:
    """The name of a copy of a version in which one byte of the vectors is changed."""
    name = f"{version[:-8]}00000000"
    copy = registry.folder / "versions" / name
    shutil.copytree(registry.path(version), copy)
    vectors = copy / "items" / "vectors.npy"
    data = bytearray(vectors.read_bytes())
    data[-1] ^= 1
    vectors.write_bytes(data)
    return name


class serving:
    """Runs a service of a registry: `with serving(registry, state) as (host, port)`."""

    def __init__(self, registry: pathlib.Path, state: str) -> None:
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.address = free.getsockname()
        command = [sys.executable, str(SERVE), f"--registry={registry}", f"--state={state}"]
        environment = os.environ | {"OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            [*command, f"--port={self.address[1]}"], env=environment, stderr=subprocess.DEVNULL
        )

    def __enter__(self) -> tuple[str, int]:
        for _ in range(600):
            try:
                if ask(http.client.HTTPConnection(*self.address), "GET", "/readyz")[0] == 200:
                    return self.address
            except OSError:
                time.sleep(0.1)
        raise TimeoutError("the service did not begin to answer within a minute.")

    def __exit__(self, *_: object) -> None:
        self._process.send_signal(signal.SIGTERM)
        self._process.wait(60)


def ask(connection: http.client.HTTPConnection, method: str, path: str, body=None):
    """Status and body of an answer."""
    headers = {"content-type": "application/json"}
    connection.request(method, path, None if body is None else json.dumps(body), headers)
    answer = connection.getresponse()
    return answer.status, answer.read()


def measured(address: tuple[str, int], histories: list[list[str]], versions: list[str]) -> dict:
    """What happened to requests without deploys and with them."""
    # When, milliseconds, status, number of the history, body.
    asked: list[tuple[float, float, int, int, bytes]] = []
    done = threading.Event()

    def client(number: int) -> None:
        connection = http.client.HTTPConnection(*address)
        # Each history comes seldom: a known query vector costs nothing.
        for turn in itertools.count(number, FLAGS.clients):
            if done.is_set():
                return
            which = turn % HISTORIES
            body = {"history": histories[which], "k": K, "funnel": "two_tower"}
            begun = time.perf_counter()
            try:
                status, text = ask(connection, "POST", "/recommend", body)
            except OSError as error:
                status, text = 0, str(error).encode()
                connection.close()
            asked.append((begun, 1e3 * (time.perf_counter() - begun), status, which, text))

    clients = [threading.Thread(target=client, args=(n,)) for n in range(FLAGS.clients)]
    for thread in clients:
        thread.start()
    control = http.client.HTTPConnection(*address, timeout=120)
    time.sleep(2)  # connections, caches
    before = time.perf_counter()
    time.sleep(FLAGS.calm)
    statuses, seconds, memory, swaps = [], [], [], []
    for number in range(FLAGS.deploys):
        begun = time.perf_counter()
        status, _ = ask(control, "POST", "/deploys", {"version": versions[number % 5]})
        swaps.append((begun, time.perf_counter()))
        statuses.append(status)
        seconds.append(swaps[-1][1] - begun)
        memory.append(resident_mib(control))
        time.sleep(FLAGS.pause)
    done.set()
    for thread in clients:
        thread.join()
    when, ms = np.array([a[0] for a in asked]), np.array([a[1] for a in asked])
    calm = (when > before) & (when < swaps[0][0])
    # All requests that were under way during a deploy, or began within it.
    during = np.zeros(len(asked), bool)
    for begun, ended in swaps:
        during |= (when + ms / 1e3 > begun) & (when < ended)
    expected = [409 if number % 5 == 2 else 200 for number in range(FLAGS.deploys)]
    return {
        "requests": len(asked),
        "failed": sum(status != 200 for _, _, status, *_ in asked),
        "deploys": FLAGS.deploys,
        "deploys_as_expected": sum(a == b for a, b in zip(statuses, expected)),
        "refused": statuses.count(409),
        "clients": FLAGS.clients,
        "seconds_of_a_deploy": float(np.median(seconds)),
        "p50_ms": {"calm": percentile(ms[calm], 50), "during deploys": percentile(ms[during], 50)},
        "p99_ms": {"calm": percentile(ms[calm], 99), "during deploys": percentile(ms[during], 99)},
        "resident_mib": {str(n + 1): mib for n, mib in enumerate(memory) if n % 10 == 9 or n == 4},
        "answers": [(n, json.loads(text)) for _, _, status, n, text in asked if status == 200],
    }


def resident_mib(connection: http.client.HTTPConnection) -> float:
    """Memory of the service."""
    _, text = ask(connection, "GET", "/metrics")
    found = re.search(rb"^process_resident_memory_bytes (\S+)", text, re.M)
    return float(found[1]) / 2**20 if found else float("nan")


def percentile(values: np.ndarray, q: float) -> float:
    """NaN of none."""
    return float(np.percentile(values, q)) if len(values) else float("nan")


if __name__ == "__main__":
    script.run(main)
