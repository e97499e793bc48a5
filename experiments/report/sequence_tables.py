"""Tables of sequential towers from experiments/results/, for render_results.py."""

import json

from ablation_tables import mean
from published import PUBLISHED
from results import RESULTS, origin, read, table

METRICS = ("hit_rate@10", "ndcg@10", "hit_rate@50", "hit_rate@200")
# Candidates of each protocol: those with five ratings or more where it keeps items of five
# (`protocols.py`), else all rated ones.
ITEMS = {"loo+time": "3,706"} | dict.fromkeys(
    ("loo-5core", "temporal-last", "temporal-successive"), "3,416"
)
# Inputs of a query tower besides the items' ids and order, by the field of its history.
EXTRA_INPUTS = {
    "ratings": "ratings",
    "gaps": "gaps",
    "time_bias": "time between events",
    "content": "titles, genres, years",
    "request_time": "time of the request",
    "time_told": "time of the request",  # the field's name in older results
}
# Encoders that read the time between events whatever their recipe says.
TIME_AWARE = ("attention", "hstu")


def results(protocol: str) -> str:
    """Test figures of a protocol from `sequence_*.json`, with intervals over users, and below them
    those that others report.

    Raises:
        ValueError: No result file has this protocol, or two rows have one recipe and seed.
    """
    found: dict[tuple[str, str], list[dict]] = {}
    files = {}
    for path in sorted(RESULTS.glob("sequences/sequence_*.json")):
        for row in read(f"sequences/{path.stem}")["rows"]:
            if (row["protocol"], row["part"]) != (protocol, "test"):
                continue
            files[path.name] = None
            recipe = row.get("recipe", {})  # a baseline has none
            task = recipe.get("task", {})
            # Results that are older than the field's name have mask_own.
            masked = task.get("mask_known_positives", task.get("mask_own", True))
            seen = "" if masked else ", seen items among its negatives"
            seeds = {part: recipe.get(part, {}) | {"seed": None} for part in ("examples", "fit")}
            of_all = recipe | seeds
            key = row["name"] + seen, json.dumps(of_all, sort_keys=True)
            rows = found.setdefault(key, [])
            if row.get("seed") not in [other.get("seed") for other in rows]:
                rows.append(row)
            elif recipe:
                raise ValueError(f"{path.name}: {key[0]} of seed {row['seed']} stands twice.")
    if not found:
        raise ValueError(f"no results/sequences/sequence_*.json has test figures of {protocol}.")
    body = []
    for (name, _), rows in found.items():
        cells = ["{:.3f} ± {:.3f}".format(*mean(rows, metric)) for metric in METRICS]
        extra = extra_inputs(rows[0].get("recipe", {}).get("query", {}))
        source, values = "here", [row["metrics"]["ndcg@10"]["mean"] for row in rows]
        if len(rows) > 1:
            source += f", {len(rows)} seeds: `ndcg@10` {min(values):.3f} to {max(values):.3f}"
        if "ann_recall@100" in rows[0]:  # without exclusions, with which an index may scan
            source += f", `recall@100` of the index {rows[0]['ann_recall@100']:.3f}"
        body.append([name, *cells, ITEMS[protocol], extra, source])
    for row in PUBLISHED:
        if row.protocol == protocol:
            figures = [row.metrics.get(metric) for metric in METRICS]
            cells = ["" if value is None else f"{value:.3f}" for value in figures]
            body.append([row.name, *cells, f"{row.items:,}", row.extra_inputs, row.source])
    header = [f"`{protocol}`, test", *(f"`{m}`" for m in METRICS), "items", "extra inputs"]
    header.append("source")
    first, *others = files
    source = origin(next(iter(found.values()))[0])
    if others:
        named = ", ".join(f"`{name}`" for name in others)
        source += f" The other rows' commands stand in `{first}`, {named}."
    return table(header, body) + "\n\n" + source


def extra_inputs(query: dict) -> str:
    """Inputs of a query tower's recipe besides the items' ids and order."""
    history = history_of(query)
    is_set = history | ({"time_bias": True} if history["encoder"] in TIME_AWARE else {})
    return ", ".join(text for field, text in EXTRA_INPUTS.items() if is_set.get(field))


def history_of(query: dict) -> dict:
    """The fields of a query tower's history. Older results have them in the query."""
    history = query.get("history", "mean")
    if isinstance(history, dict):
        return history
    fields = {name.removeprefix("history_"): value for name, value in query.items()}
    return fields | {"encoder": history}


def curves() -> str:
    """Validation figures over the epochs of the trainings in `training_sequence_*.json`.

    Raises:
        ValueError: There is none.
    """
    runs = [
        read(f"sequences/{path.stem}")
        for path in sorted(RESULTS.glob("sequences/training_sequence_*.json"))
    ]
    if not runs:
        raise ValueError(
            "no results/sequences/training_sequence_*.json: copy the metrics.json of a training."
        )
    body = []
    for run in runs:
        for entry in run["log"]:
            if "ndcg@10" in entry:
                chosen = " (chosen)" * (entry["epoch"] == run["epoch"])
                spent = sum(e["seconds"] for e in run["log"][: entry["epoch"]]) / 60
                figures = [
                    f"{entry[name]:.3f}" for name in ("hit_rate@10", "ndcg@10", "hit_rate@50")
                ]
                body.append(
                    [run["protocol"], f"{entry['epoch']}{chosen}", *figures, f"{spent:.0f}"]
                )
    header = ["validation", "epoch", "`hit_rate@10`", "`ndcg@10`", "`hit_rate@50`", "minutes"]
    return table(header, body) + "\n\n" + "\n\n".join(map(origin, runs))


def tokens() -> str:
    """Tokens a second of trainings on an otherwise idle machine, in the order in which they ran.

    `tokens_*.json` is the `metrics.json` of train.py. A token is an event that is both read and a
    target; padding does not count.
    """
    paths, body = sorted(RESULTS.glob("speed/tokens_*.json")), []
    runs = [read(f"speed/{path.stem}") for path in paths]
    for run in runs:
        seconds = [entry["seconds"] for entry in run["log"]]
        number = run["examples_per_second"] * sum(seconds)  # of all epochs
        figures = [f"{number / len(seconds) / one:,.0f}" for one in seconds]
        body.append([f"commit `{run['commit']}`", *figures])
    header = [f"epoch {entry['epoch']}" for entry in runs[0]["log"]]
    return table(["tokens a second", *header], body) + "\n\n" + origin(runs[-1])


def sessions() -> str:
    """What one more event of a user costs, against encoding the whole history: `session_*.json`.

    Raises:
        ValueError: There is none.
    """
    found = [read(f"speed/{path.stem}") for path in sorted(RESULTS.glob("speed/session_*.json"))]
    if not found:
        raise ValueError("no results/speed/session_*.json: run benchmarks/session.py.")
    body = []
    for one in found:
        history, times = history_of(one["query"]), {row["name"]: row for row in one["rows"]}
        name = f"{history['encoder']}, {history['layers']} blocks of {history['dim']}"
        cells = [
            f"{times[kind][figure]:.2f}" if kind in times else ""
            for kind in ("step", "reread", "encode")
            for figure in ("p50_ms", "p99_ms")
        ]
        first = f"{times['first']['p50_ms']:.0f}" if "first" in times else ""
        body.append([name, *cells, first, f"{one['difference']:.0e}"])
    header = ["one event, ms", "p50", "p99", "window read anew: p50", "p99", "whole history: p50"]
    about = f"After {found[0]['events']} events and more, one core. "
    header += ["p99", "first of a process", "difference"]
    return table(header, body) + "\n\n" + about + origin(found[0])


def study(name: str = "sequences/sequences") -> str:
    """What each piece gives: the base recipe with one change."""
    rows, body = read(name)["rows"], []
    rows = [row for row in rows if row["protocol"] == rows[0]["protocol"]]
    for row in rows:
        if row["seed"] != rows[0]["seed"]:
            continue
        same = [r for r in rows if (r["group"], r["name"]) == (row["group"], row["name"])]
        value, half = mean(same, "ndcg@10")
        cells = [f"{value:.3f} ± {half:.3f}"]
        cells += [f"{mean(same, metric)[0]:.3f}" for metric in METRICS if metric != "ndcg@10"]
        cells += [f"{len(same)}", f"{row['training_seconds'] / 60:.0f}"]
        body.append([row["group"], row["name"], *cells])
    header = ["", "change", "`ndcg@10`"]
    header += [f"`{metric}`" for metric in METRICS if metric != "ndcg@10"]
    one = rows[0]
    source = (
        f"`{one['protocol']}`, validation, {one['hardware']}, {one['cores']} of the cores a run; "
        f"intervals over users. Commands and commits stand in `experiments/results/{name}.json`."
    )
    return table([*header, "seeds", "minutes"], body) + "\n\n" + source
