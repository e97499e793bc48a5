"""Committed results: their form, and the Markdown that tables are made of.

A run's output has everything that was measured. Its committed form keeps the figures that tables,
plots and claims read, to five digits, and where they come from: protocol, part, seed, command,
commit, hardware and date. It has a row a line.
"""

import json
import pathlib
import re

from twotower.bundle.provenance import result_text

ROOT = pathlib.Path(__file__).parents[2]
RESULTS = ROOT / "experiments" / "results"

# The metrics that are reported. A run's output has all of them at six cut-offs.
METRICS = (
    *("recall@100", "recall@500", "recall_micro@100", "hit_rate@10", "hit_rate@50", "hit_rate@200"),
    *("ndcg@1", "ndcg@10", "mrr@500", "coverage@10", "mean_popularity@10"),
)
FAMILIES = "recall|recall_micro|hit_rate|precision|ndcg|mrr|coverage|mean_popularity"
METRIC = re.compile(rf"({FAMILIES})@\d+")
# Figures that no page shows. A run's output has them.
LEFT_OUT = {
    *("segments", "versions", "python", "mining_seconds", "wall_seconds", "new_in_answers"),
    *("disk_bytes_per_vector", "peak_rss_gib", "peak_rss_gib_searching"),
    *("norm_spread", "by_epoch", "isotonic", "scored", "memory_mib", "needs_rebuild"),
    *("build_parameters", "mining", "about", "load_before", "resident_mib_before"),
}


def committed(value):
    """A result, or a part of it, in its committed form."""
    if isinstance(value, float):
        return float(f"{value:.5g}")
    if isinstance(value, list):
        return [committed(entry) for entry in value]
    if not isinstance(value, dict):
        return value
    return {
        name: committed(entry)
        for name, entry in value.items()
        if name not in LEFT_OUT and (name in METRICS or not METRIC.fullmatch(name))
    }


def read(name: str) -> dict:
    """A committed result, by its folder and name: `indexes/retrieval`."""
    return json.loads((RESULTS / f"{name}.json").read_text())


def text_of(path: pathlib.Path) -> str:
    """The text that a result's file is to have."""
    return result_text(committed(json.loads(path.read_text())))


def table(header: list[str], rows: list[list[str]]) -> str:
    """Markdown; all but the first column to the right."""
    lines = [header, ["---"] + ["---:"] * (len(header) - 1), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines)


def origin(result: dict) -> str:
    """The line beneath a table."""
    return (
        f"`{result['command']}` at commit `{result['commit']}`, {result['hardware']}, "
        f"{result['date']}."
    )


def origin_of(row: dict, result: dict) -> str:
    """The line beneath a table of which each row has another command."""
    return origin({**result, "command": row["command"], "commit": row["commit"]})
