"""Renders tables and pictures of the pages from experiments/results/.

    python experiments/report/render_results.py            # rewrites the pages
    python experiments/report/render_results.py --check    # fails where it would change something

A table stands between `<!-- results:NAME -->` and `<!-- /results -->`, in README.md or in the page
of a folder of results. Nothing between them is typed by hand. The results are brought into their
committed form first (results.py).
"""

import pathlib
import re

import ablation_tables
import drawing
import funnel_tables
import ranking_tables
import results
import retrieval_tables
import sequence_tables
import serving_tables
import simulation_tables
import update_tables
from ablation_tables import mean
from absl import app, flags
from headline import headline
from results import ROOT, origin, read, table

FLAGS = flags.FLAGS
flags.DEFINE_bool("check", False, "Only check that the pages are up to date.")

PAGES = (ROOT / "README.md", *sorted(results.RESULTS.glob("*/README.md")))
PICTURES = pathlib.Path(__file__).parent / "pictures"
BASELINES = {"popularity": "popularity", "ease": "EASE", "ials": "iALS", "item_knn": "item-kNN"}
# The best recipe of `random`: three seeds, and these side by side as one bundle.
BEST = (
    *(f"movielens/movielens_1m_best{end}" for end in ("", "_1", "_2")),
    "movielens/concatenated_random",
)
METRICS = ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500")


def metrics_table(*names: str) -> str:
    """Rows of evaluations, models above baselines, with the half width of the first metric's 95%
    interval. Models of one name are one recipe's seeds, whose mean stands; a baseline of one name
    is the same in every file."""
    found: dict[str, list[dict]] = {}
    for row in (row for name in names for row in read(name)["rows"]):
        rows = found.setdefault(row["name"], [])
        if not rows or row["name"] not in BASELINES:
            rows.append(row)
    found = {name: found[name] for name in sorted(found, key=BASELINES.__contains__)}
    body, ahead = [], []
    for name, rows in found.items():
        cells = [f"{mean(rows, metric)[0]:.3f}" for metric in METRICS]
        cells[0] += f" ± {mean(rows, METRICS[0])[1]:.3f}"
        seeds = f", {len(rows)} seeds" if len(rows) > 1 else ""
        body.append([BASELINES.get(name, name) + seeds, *cells])
        if "ahead" in rows[0]:
            ahead.append((BASELINES[name], rows[0]["ahead"][METRICS[0]]))
    best, (first, *others) = next(iter(found.items()))
    seed = f" (seed {first['seed']})" if others else ""
    source = "".join(
        "User by user, {}{} is {:+.3f} [{:+.3f}, {:+.3f}] above {} in `{}`. ".format(
            best, seed, *difference.values(), name, METRICS[0]
        )
        for name, difference in ahead
    ) + origin(first)
    if len(names) > 1:
        files = ", ".join(f"`{pathlib.PurePath(name).name}.json`" for name in names[1:])
        source += f" The other rows' commands stand in {files}."
    title = f"`{first['protocol']}`, {first['part']}"
    return table([title, *(f"`{m}`" for m in METRICS)], body) + "\n\n" + source


def tutorial_changes() -> str:
    """The accuracy of tutorial.py with each of its changes."""
    rows = read("movielens/tutorial")["rows"]
    body = [[row["name"], f"{row['metrics'][METRICS[0]]['mean']:.3f}"] for row in rows]
    return table(["`tutorial.py`", f"`{METRICS[0]}`"], body) + "\n\n" + origin(rows[0])


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


def pipeline_table(name: str) -> str:
    """The input pipeline alone."""
    result = read(name)
    body = [
        [row["name"], f"{row['examples_per_second']:,.0f}", f"{row['per_cpu_second']:,.0f}"]
        for row in result["rows"]
    ]
    about = f"Histories of {result['max_history']} events at most. "
    return (
        table(["batches of", "examples/s", "a CPU second"], body) + "\n\n" + about + origin(result)
    )


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


def side_by_side() -> str:
    """One request to the bundle of one seed, and to that of three seeds side by side."""
    one, three = read("speed/latency_one_seed"), read("speed/latency_three_seeds")
    body = []
    for row, other in zip(one["rows"], three["rows"], strict=True):
        times = [found["p50_ms"] for found in (row, other)]
        cells = [f"{ms:.2f}" for ms in times] + [f"{times[1] / times[0]:.1f}"]
        body.append([row["name"], *cells, *(f"{found['p99_ms']:.2f}" for found in (row, other))])
    header = ["one request, ms", "one seed, p50", "three seeds, p50", "times", "one, p99"]
    return table([*header, "three, p99"], body) + "\n\n" + origin(three)


TABLES = {
    "headline": headline,
    "random": lambda: metrics_table(*BEST, "movielens/movielens_1m_random"),
    "tutorial_changes": tutorial_changes,
    "tutorial": lambda: metrics_table("movielens/random_100k_seen"),
    "speed": lambda: speed_table("speed/training_speed"),
    "pipeline": lambda: pipeline_table("speed/input_pipeline"),
    "side_by_side": side_by_side,
    "latency": lambda: latency_table("speed/latency"),
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
    "funnel_random": lambda: funnel_tables.stages("funnel/random"),
    "funnel_wide": lambda: funnel_tables.stages("funnel/wide"),
    "funnel_temporal": lambda: funnel_tables.stages("funnel/temporal_last"),
    "funnel_temporal_wide": lambda: funnel_tables.stages("funnel/temporal_wide"),
    "funnel_newest": lambda: funnel_tables.ahead("funnel/temporal_newest"),
    "funnel_ahead": lambda: funnel_tables.ahead("funnel/random"),
    "funnel_new_items": funnel_tables.new_items,
    "onboarding": funnel_tables.onboarding,
    "diversity": funnel_tables.diversity,
    "funnel_speed": funnel_tables.speed,
    "ranking_random": lambda: ranking_tables.rankers("random"),
    "ranking_random_three": lambda: ranking_tables.rankers("random_three"),
    "ranking_loo": lambda: ranking_tables.rankers("loo_5core"),
    "ranking_temporal_last": lambda: ranking_tables.rankers("temporal_last"),
    "ranking_temporal_successive": lambda: ranking_tables.rankers("temporal_successive"),
    "ctr": ranking_tables.ctr,
    "multi_task": ranking_tables.multi_task,
    "serving_loads": serving_tables.loads,
    "serving_stages": serving_tables.stages,
    "serving_batching": serving_tables.batching,
    "serving_deploys": serving_tables.deploys,
    "serving_page": serving_tables.page,
    "serving_targets": serving_tables.targets,
    "sessions": sequence_tables.sessions,
    "tokens": sequence_tables.tokens,
    "sequences": sequence_tables.study,
    "bandits": simulation_tables.bandits,
    "estimators": simulation_tables.estimators,
    "ab_tests": simulation_tables.tests,
    "sample_ratio": simulation_tables.ratios,
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
    files = sorted(results.RESULTS.glob("*/*.json"))
    texts = {path: results.text_of(path) for path in files}
    texts |= {page: rendered(page.read_text()) for page in PAGES}
    texts |= {PICTURES / name: picture for name, picture in drawing.pictures().items()}
    texts[retrieval_tables.MEASURED] = retrieval_tables.measured()
    for path, text in texts.items():
        if path.exists() and path.read_text() == text:
            continue
        if FLAGS.check:
            where = path.relative_to(ROOT)
            raise SystemExit(f"{where} is not what the results say; run render_results.py.")
        path.parent.mkdir(exist_ok=True)
        path.write_text(text)


if __name__ == "__main__":
    app.run(main)
