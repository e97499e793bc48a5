"""Tables from experiments/results/serving/*.json, for render_results.py."""

from results import origin, read, table

# Reports of load_test.py, in the order of the table.
LOADS = (
    *("two_towers", "two_towers_open", "two_towers_2", "two_towers_open_2", "unbatched"),
    *("funnel", "funnel_2"),
)


def loads() -> str:
    """Throughput and latency of a service under each load."""
    body = []
    for report in (read(f"serving/load_{name}") for name in LOADS):
        for row in report["rows"]:
            closed = row["kind"] == "closed"
            clients = f"{row['number']} client{'s' * (row['number'] > 1)}"
            times = [f"{row[name]:.1f}" for name in ("p50", "p95", "p99")]
            body.append(
                [
                    report["name"],
                    clients if closed else f"{row['number']:,} a second",
                    f"{row['requests_per_second']:,.0f}",
                    *times,
                    str(row["failed"]),
                    f"{row['loader_cores']:.2f}",
                ]
            )
    header = ["service", "load", "answers a second", "p50 ms", "p95", "p99", "failed", "loader"]
    about = (
        f"{report['num_items']:,} items; histories of up to 20 items, lists of ten. `loader`: the "
        "cores that the loader takes. "
    )
    return table(header, body) + "\n\n" + about + origin(report)


def stages() -> str:
    """Where the time of a request goes, at one client."""
    reports = [read(f"serving/load_{name}") for name in ("two_towers", "funnel")]
    rows = [next(row for row in report["rows"] if row["number"] == 1) for report in reports]
    names = [name for name in rows[1]["mean_stage_ms"] if not name.startswith("batch")]
    body = []
    for report, row in zip(reports, rows):
        figures = {"mean": row["mean_stage_ms"]}
        for figure in ("p50", "p99"):
            figures[figure] = {name: times[figure] for name, times in row["stage_ms"].items()}
        for figure, times in figures.items():
            cells = [f"{times[name]:.2f}" if name in times else "" for name in names]
            body.append([f"{report['name']}, {figure}", *cells])
    return table(["ms", *(name.replace("_", " ") for name in names)], body)


def batching() -> str:
    """One call for all against a call each."""
    result = read("serving/batching")
    body = [
        [row["stage"], f"{row['together']:.2f}", f"{row['each']:.2f}", f"{row['ratio']:.1f}"]
        for row in result["rows"]
    ]
    header = [f"{result['requests']} requests", "together, ms", "one by one, ms", "ratio"]
    return table(header, body) + "\n\n" + origin(result)


def page() -> str:
    """How long a click takes in the playground."""
    result = read("serving/page")
    times = [f"{result[name]:.0f}" for name in ("p50", "p95", "p99")]
    header = ["from a click to the new list", "p50 ms", "p95", "p99"]
    return table(header, [[f"{result['clicks']} clicks", *times]]) + "\n\n" + origin(result)


def deploys() -> str:
    """What users notice."""
    result = read("serving/deploys")
    memory = [
        (number, result["resident_mib"][number])
        for number in ("10", "50", "100")
        if number in result["resident_mib"]
    ]
    body = [
        ["deploys, as expected", f"{result['deploys']}, {result['deploys_as_expected']}"],
        ["of damaged bundles, refused", f"{result['refused']}"],
        ["requests meanwhile", f"{result['requests']:,}"],
        ["failed", f"{result['failed']}"],
        ["not what the named bundle answers", f"{result['mixed']}"],
        ["seconds of a deploy, median", f"{result['seconds_of_a_deploy']:.1f}"],
        *(
            [
                f"{name[:3]} ms, no deploy / during one",
                f"{t['calm']:.1f} / {t['during deploys']:.1f}",
            ]
            for name, t in (("p50", result["p50_ms"]), ("p99", result["p99_ms"]))
        ),
        *([f"resident MiB after {number} deploys", f"{mib:,.0f}"] for number, mib in memory),
    ]
    return table(["", f"{result['clients']} clients"], body) + "\n\n" + origin(result)


def targets() -> str:
    """What companies are said to reach, and what was measured."""
    latency = {row["name"]: row for row in read("speed/latency")["rows"]}
    session = read("speed/session_64")
    towers, funnel = (
        {(row["kind"], row["number"]): row for row in read(f"serving/load_{name}")["rows"]}
        for name in ("two_towers_2", "funnel_2")
    )
    one, whole = towers["closed", 1], funnel["closed", 1]
    event = next(row for row in session["rows"] if row["name"] == "step")

    def of(p50: float, p99: float) -> str:
        return f"{p50:.1f} / {p99:.1f}"

    body = [
        [
            "10",
            "candidates from a request's features (HNSW)",
            of(latency["hnsw"]["p50_ms"], latency["hnsw"]["p99_ms"]),
        ],
        ["5", "the same over HTTP, one client", of(one["p50"], one["p99"])],
        [
            "3",
            "one more event of a user, to the new query vector",
            of(event["p50_ms"], event["p99_ms"]),
        ],
        [
            "50",
            "several sources, merge, filters and ranking, over HTTP",
            of(whole["p50"], whole["p99"]),
        ],
        [
            "100",
            "the same with 8 clients at once",
            of(funnel["closed", 8]["p50"], funnel["closed", 8]["p99"]),
        ],
    ]
    return table(["said to be, ms", "what", "measured p50 / p99 ms"], body)
