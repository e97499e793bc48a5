"""Renders the tables of README.md and experiments/README.md from experiments/results/*.json.

    python experiments/render_results.py            # rewrites the pages
    python experiments/render_results.py --check    # fails where it would change something

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`. Nothing between them is
typed by hand.
"""

import pathlib
import re

from absl import app, flags

import ablation_tables  # isort: skip  (these four beside this script)
import retrieval_tables  # isort: skip
import sequence_tables  # isort: skip
import update_tables  # isort: skip
from retrieval_tables import origin, read, table  # isort: skip

FLAGS = flags.FLAGS
flags.DEFINE_bool("check", False, "Only check that the pages are up to date.")

ROOT = pathlib.Path(__file__).parent.parent
PAGES = (ROOT / "README.md", ROOT / "experiments" / "README.md")
NAMES = {"ease": "EASE", "ials": "iALS", "item_knn": "item-kNN"}
METRICS = ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500")


def metrics_table(*names: str) -> str:
    """Rows of evaluations, with the half width of the first metric's 95% interval; a baseline that
    several files have stands once."""
    rows = {row["name"]: row for name in reversed(names) for row in reversed(read(name)["rows"])}
    rows = list(reversed(rows.values()))
    body = []
    for row in rows:
        values = [row["metrics"][metric] for metric in METRICS]
        half = (values[0]["high"] - values[0]["low"]) / 2
        cells = [f"{value['mean']:.3f}" for value in values]
        cells[0] += f" ± {half:.3f}"
        body.append([NAMES.get(row["name"], row["name"]), *cells])
    title = f"`{rows[0]['protocol']}`, {rows[0]['part']}"
    ahead = [
        "User by user, {} is {:+.3f} [{:+.3f}, {:+.3f}] above {} in `{}`. ".format(
            rows[0]["name"], *row["ahead"][METRICS[0]].values(), NAMES[row["name"]], METRICS[0]
        )
        for row in rows
        if "ahead" in row
    ]
    source = "".join(ahead) + origin(rows[0])
    if len(names) > 1:
        files = ", ".join(f"`{name}.json`" for name in names[1:])
        source += f" The other rows' commands stand in {files}."
    return table([title, *(f"`{m}`" for m in METRICS)], body) + "\n\n" + source


def speed_table(name: str) -> str:
    """Training speed against the tutorial's loop."""
    result = read(name)
    body = []
    for row in result["rows"]:
        share = row.get("share_of_matrix_rate")
        parts = row.get("parts_seconds")
        where = ", ".join(f"{part} {1e3 * s:.0f}" for part, s in parts.items()) if parts else ""
        body.append(
            [
                row["name"],
                f"{row['examples_per_second']:,.0f}",
                f"{row['times_tutorial']:.1f}",
                f"{share:.0%}" if share else "",
                where,
            ]
        )
    header = ["batch 4096", "examples/s", "x tutorial", "of matrix rate", "ms of a step, by part"]
    rate = f"Matrix rate: {result['matrix_gflop_per_second']:.0f} GFLOP/s. "
    return table(header, body) + "\n\n" + rate + origin(result)


def latency_table(name: str) -> str:
    """One request, raw features to titles."""
    result = read(name)
    body = []
    for row in result["rows"]:
        recall = "" if row["recall@100"] is None else f"{row['recall@100']:.4f}"
        times = [f"{row[key]:.2f}" for key in ("p50_calm_ms", "p50_ms", "p99_ms")]
        body.append([row["name"], *times, recall])
    about = (
        f"{result['requests']:,} requests on one core, {result['num_items']:,} items, a median "
        f"history of {result['median_history']:.0f} items, all excluded. "
    )
    header = ["one request", "p50 ms, calmest block", "p50 ms", "p99 ms", "recall@100"]
    return table(header, body) + "\n\n" + about + origin(result)


TABLES = {
    "random": lambda: metrics_table("movielens_1m_best", "movielens_1m_random"),
    "best": lambda: metrics_table("movielens_1m_best"),
    "tutorial": lambda: metrics_table(
        *(
            f"random_100k_seen{step}"
            for step in ("_tutorial", "_adam", "_temperature", "_log_q", "_log_q_alone", "")
        )
    ),
    "speed": lambda: speed_table("training_speed"),
    "latency": lambda: latency_table("latency"),
    "million": retrieval_tables.million,
    "constrained": retrieval_tables.constrained,
    "growth": retrieval_tables.growth,
    "overhead": retrieval_tables.overhead,
    "wear": update_tables.wear,
    "drift": update_tables.drift,
    "ways": update_tables.ways,
    "swaps": update_tables.swaps,
    "mismatch": update_tables.mismatch,
    "claims": retrieval_tables.claims,
    "study": ablation_tables.study,
    "repeated": ablation_tables.repeated,
    "rules": ablation_tables.rules,
    "cold": ablation_tables.cold,
    "new_items": ablation_tables.new_items,
    "hidden_items": ablation_tables.hidden_items,
    "dimensions": ablation_tables.dimensions,
    "step_costs": ablation_tables.step_costs,
    "frequency": ablation_tables.frequency,
    "cross_encoder": ablation_tables.cross_encoder,
    "loo_5core": lambda: sequence_tables.results("loo-5core"),
    "loo_time": lambda: sequence_tables.results("loo+time"),
    "temporal_last": lambda: sequence_tables.results("temporal-last"),
    "temporal_successive": lambda: sequence_tables.results("temporal-successive"),
    "sequence_curves": sequence_tables.curves,
    "sessions": sequence_tables.sessions,
    "tokens": sequence_tables.tokens,
    "sequences": sequence_tables.study,
}


def rendered(text: str) -> str:
    """The text with every table rendered anew.

    Raises:
        ValueError: A marker that names no table.
    """

    def replace(match: re.Match) -> str:
        name = match.group(1)
        if name not in TABLES:
            raise ValueError(f"no table {name!r}; there are {sorted(TABLES)}.")
        return f"<!-- results:{name} -->\n{TABLES[name]()}\n<!-- /results -->"

    return re.sub(r"<!-- results:(\w+) -->\n.*?<!-- /results -->", replace, text, flags=re.S)


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    texts = {page: rendered(page.read_text()) for page in PAGES}
    texts[retrieval_tables.MEASURED] = retrieval_tables.measured()
    for path, text in texts.items():
        if path.exists() and path.read_text() == text:
            continue
        if FLAGS.check:
            raise SystemExit(f"{path.name} is not what the results say; run render_results.py.")
        path.write_text(text)


if __name__ == "__main__":
    app.run(main)
