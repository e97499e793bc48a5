"""Tables and claims from experiments/results/indexes/, for render_results.py."""

import json

from results import ROOT, origin, origin_of, read, table

MEASURED = ROOT / "twotower" / "retrieval" / "measured.json"
SETS = {"0.5": "noise .5", "2": "noise 2", "gaussian": "Gaussian"}


def recall_of(row: dict) -> float:
    return row[f"recall@{row['k']}"]


def tuned(rows: list[dict], constraint: str = "", **wanted) -> list[dict]:
    """Rows of tuned settings with these values."""
    return [
        row
        for row in rows
        if row["tuned"]
        and row["constraint"] == constraint
        and all(row[name] == value for name, value in wanted.items())
    ]


def million(name: str = "indexes/retrieval") -> str:
    """A million vectors: what each tuned index finds, costs and weighs."""
    result = read(name)
    found, body = tuned(result["rows"], num_items=1_000_000, dim=128, set="0.5"), []
    for row in found:
        hard = tuned(result["rows"], num_items=1_000_000, dim=128, set="2", variant=row["variant"])
        build = first_of(result["rows"], row)["build"]
        body.append(
            [
                row["variant"],
                f"{recall_of(row):.3f}",
                f"{row['p50_ms']:.2f}",
                f"{row['p99_ms']:.2f}",
                f"{row['qps']:,.0f}",
                f"{recall_of(hard[0]):.3f}" if hard else "",
                f"{hard[0]['p50_ms']:.2f}" if hard else "",
                f"{build['build_cpu_s'] / 60:.1f}",
                f"{row['bytes_per_vector']:.0f}",
                f"{build['memory_bytes_per_vector']:.0f}",
            ]
        )
    header = ["1,000,000 x 128", "recall@100", "p50 ms", "p99 ms", "queries/s"]
    header += ["recall, noise 2", "p50 ms", "build, core min", "index: bytes/vector", "in all"]
    source = origin_of(first_of(result["rows"], found[0]), result)
    source += f" The commands of the other rows stand in `experiments/results/{name}.json`."
    return table(header, body) + "\n\n" + source


def first_of(rows: list[dict], row: dict) -> dict:
    """The first row of a row's index, which has the build and the command."""
    unit = [row[name] for name in ("set", "num_items", "dim", "variant", "metric", "k")]
    return next(other for other in rows if other.get("unit") == unit)


def constrained(name: str = "indexes/retrieval") -> str:
    """The same indexes where much may not be answered."""
    rows, body = read(name)["rows"], []
    for key, title in SETS.items():
        for row in tuned(rows, num_items=1_000_000, dim=128, set=key):
            cells = [f"{row['variant']}, {title}"]
            for constraint in ("top 500 excluded", "2% near", "2% far"):
                one = tuned(
                    rows, constraint, num_items=1_000_000, dim=128, set=key, variant=row["variant"]
                )
                cells += (
                    [f"{recall_of(one[0]):.3f}", f"{one[0]['p50_ms']:.2f}"] if one else ["", ""]
                )
            if any(cells[1:]):
                body.append(cells)
    header = ["1,000,000 x 128", "top 500 excluded", "p50 ms", "2% filter, near", "p50 ms"]
    return table([*header, "2% filter, far", "p50 ms"], body)


def growth(name: str = "indexes/retrieval") -> str:
    """Median latency of tuned indexes by size."""
    rows = [row for row in tuned(read(name)["rows"], set="0.5") if row["dim"] == 64]
    sizes = sorted({row["num_items"] for row in rows})
    body = []
    for variant in dict.fromkeys(row["variant"] for row in rows):
        matching = {row["num_items"]: row for row in rows if row["variant"] == variant}
        body.append(
            [variant]
            + [
                f"{matching[size]['p50_ms']:.2f} ({recall_of(matching[size]):.3f})"
                if size in matching
                else ""
                for size in sizes
            ]
        )
    return table(["dim 64, p50 ms (recall)", *(f"{size:,}" for size in sizes)], body)


def overhead(name: str = "indexes/retrieval_overhead") -> str:
    """The interface against the library beneath it."""
    result, body = read(name), []
    for variant in dict.fromkeys(row["variant"] for row in result["rows"]):
        cells = [variant]
        for size in (1, 100):
            row = next(r for r in result["rows"] if (r["variant"], r["batch"]) == (variant, size))
            cells += [f"{row['library_us']:,.0f}", f"{row['more_us']:+,.0f}"]
            cells.append(f"{row['more_share']:+.1%}")
        body.append(cells)
    header = ["1,000,000 x 128, us", "one query", "interface", "", "100 queries", "interface", ""]
    return table(header, body) + "\n\n" + origin(result)


def claims(name: str = "indexes/retrieval") -> str:
    """What articles say of indexes, and what was measured."""
    rows = read(name)["rows"]

    def curve(variant: str, key: str = "0.5", **wanted) -> list[dict]:
        wanted = {"num_items": 1_000_000, "dim": 128, "set": key, "variant": variant} | wanted
        return [
            row
            for row in rows
            if not row["constraint"] and all(row[n] == value for n, value in wanted.items())
        ]

    def qps_at(variant: str, recall: float, key: str) -> float:
        return max((r["qps"] for r in curve(variant, key) if recall_of(r) >= recall), default=0)

    def ratios(one: str, other: str, recall: float) -> str:
        found = []
        for key, title in SETS.items():
            left, right = qps_at(one, recall, key), qps_at(other, recall, key)
            if left and right:
                found.append(f"{left / right:.1f}x ({title})")
        return ", ".join(found)

    def recalls(variant: str, constraint: str = "") -> str:
        found = []
        for key, title in SETS.items():
            some = tuned(rows, num_items=1_000_000, dim=128, set=key, variant=variant)
            if constraint:
                some = [
                    r
                    for r in rows
                    if (r["constraint"], r["variant"], r["set"]) == (constraint, variant, key)
                    and (r["num_items"], r["dim"]) == (1_000_000, 128)
                ]
            if some:
                found.append(f"{recall_of(some[0]):.3f} ({title})")
        return ", ".join(found)

    def probes(number: int) -> str:
        found = []
        for key, title in SETS.items():
            some = [r for r in curve("ivf", key) if r["parameters"]["num_probes"] == number]
            if some:
                found.append(f"{recall_of(some[0]):.3f} ({title})")
        return ", ".join(found)

    def overtakes() -> str:
        found = []
        sizes = sorted({r["num_items"] for r in tuned(rows, set="0.5") if r["dim"] == 64})
        for size in sizes:
            latencies = {
                r["variant"]: r["p50_ms"]
                for r in tuned(rows, set="0.5", num_items=size)
                if r["dim"] == 64
            }
            exact = min(latencies[v] for v in ("exact", "flat") if v in latencies)
            best = min((ms, v) for v, ms in latencies.items() if v not in ("exact", "flat"))
            found.append(f"{size:,}: exact {exact:.2f}, {best[1]} {best[0]:.2f} ms")
        return "; ".join(found)

    def grows() -> str:
        found = []
        for variant in ("flat", "hnsw-sq8", "ivf_pq", "scann"):
            latencies = {
                r["num_items"]: r["p50_ms"]
                for r in tuned(rows, set="0.5", variant=variant)
                if r["dim"] == 64
            }
            if len(latencies) > 1:
                low, high = min(latencies), max(latencies)
                found.append(f"{variant} {latencies[high] / latencies[low]:.0f}x")
        return "from the smallest to the largest size: " + ", ".join(found)

    code = tuned(rows, num_items=1_000_000, dim=128, variant="ivf_pq")
    smaller = 4 * 128 / code[0]["bytes_per_vector"] if code else 0
    body = [
        [
            "ScaNN 30-50% faster than FAISS",
            f"at recall .98 against HNSW: {ratios('scann', 'hnsw', 0.98)}; "
            f"against IVF: {ratios('scann', 'ivf', 0.98)}",
        ],
        ["IVF 92-97% recall", f"nprobe is what one makes it; at 64: {probes(64)}"],
        ["nprobe 1 drops recall to 60% (nlist 4096)", probes(1)],
        [
            "IVF-PQ 8-32x smaller",
            f"codes alone: {smaller:.0f}x; refined it needs the vectors, too, and saves nothing",
        ],
        [
            "IVF-PQ costs 5-10% recall",
            f"codes alone: {recalls('ivf_pq', 'codes alone')}; refined: {recalls('ivf_pq')}",
        ],
        ["exact is enough below 100K, or below 1M", overtakes()],
        ["HNSW O(log N)", grows()],
    ]
    body = [[said, found or "not measured"] for said, found in body]
    lines = [["the articles", "measured here"], ["---", "---"], *body]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def without_vectors(rows: list[dict], tuned_row: dict) -> dict:
    """Lowest recall of an index's codes alone at its size, of all sets; empty without them."""
    same = ("variant", "num_items")
    found = [
        recall_of(row)
        for row in rows
        if row["constraint"] == "codes alone" and all(row[n] == tuned_row[n] for n in same)
    ]
    return {"recall_of_codes": round(min(found), 4)} if found else {}


def measured(name: str = "indexes/retrieval") -> str:
    """The text of twotower/retrieval/measured.json: tuned rows, as planning needs them."""
    result = read(name)
    rows = [
        {
            "variant": row["variant"],
            "num_items": row["num_items"],
            "dim": row["dim"],
            "bytes_per_vector": round(row["bytes_per_vector"], 2),
            # To keep the vectors is not a build.
            "build_cpu_s": round(first_of(result["rows"], row)["build"]["build_cpu_s"], 2)
            if row["bytes_per_vector"]
            else 0.0,
            "p50_ms": round(row["p50_ms"], 4),
            "recall": round(recall_of(row), 4),
            **without_vectors(result["rows"], row),
        }
        for row in tuned(result["rows"], set="0.5")
    ]
    text = {name: result[name] for name in ("command", "commit", "hardware", "date")}
    return json.dumps({"rows": rows, **text}, indent=1) + "\n"
