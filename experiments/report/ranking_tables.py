"""Tables from experiments/results/ranking/*.json, for render_results.py."""

import numpy as np
from published import CTR_1M
from results import origin, read, table

NETWORKS = {"dcn": "DCN-v2", "deepfm": "DeepFM", "dlrm": "DLRM", "mlp": "MLP"}
RANKED = ("ndcg@1", "ndcg@10", "mrr@500", "recall_micro@100")
ORDERS = {
    "given": "**the order given (the merge)**",
    "default": "**ranker**",
    "likes": "ranker, with a second head for likes",
    "trees": "LambdaMART, the same columns",
    "random": "ranker, random negatives",
    "shuffled": "ranker, shuffled labels",
}
TASKS = {"shared_bottom": "shared bottom", "mmoe": "MMoE", "ple": "PLE"}


def spread(values: list[float]) -> str:
    """Mean of seeds, and how far the extremes lie from it."""
    mean = float(np.mean(values))
    if len(values) == 1:
        return f"{mean:.4f}"
    return f"{mean:.4f} ± {max(abs(value - mean) for value in values):.4f}"


def ctr(name: str = "ranking/ctr_1m") -> str:
    """Rankers on the published task; a row for each kind of inputs and network."""
    rows = read(name)["rows"]
    groups: dict[tuple[str, str], list[dict]] = {}
    for row in sorted(rows, key=lambda row: (row["name"] != "seven fields", row["name"])):
        groups.setdefault((row["name"], row["interaction"]), []).append(row)
    body = []
    for (inputs, network), found in groups.items():
        plain = [row["metrics"]["none"] for row in found]
        platt = [row["metrics"]["platt"]["calibration_error"] for row in found]
        published = CTR_1M.get(network) if inputs == "seven fields" else None
        body.append(
            [
                f"{NETWORKS[network]}, {inputs}, {len(found)} "
                + ("seeds" if len(found) > 1 else "seed"),
                spread([metrics["auc"] for metrics in plain]),
                spread([metrics["log_loss"] for metrics in plain]),
                spread([metrics["calibration_error"] for metrics in plain]),
                spread(platt),
                f"{published[0]:.4f} / {published[1]:.4f}" if published else "",
            ]
        )
    header = [
        "`ctr-1m`, test",
        "AUC",
        "LogLoss",
        "calibration error",
        "after Platt",
        "RecBole's AUC / LogLoss",
    ]
    about = (
        "Means of seeds with the furthest one. Expected calibration error over 15 bins; Platt's "
        "calibration is fitted on validation. "
    )
    return table(header, body) + "\n\n" + about + origin(rows[0])


def multi_task(name: str = "ranking/multi_task") -> str:
    """What each task gains or loses when all share a network."""
    result = read(name)
    body = []
    weights = {row["name"]: row["weights_without_tables"] for row in result["rows"]}
    alone = {gain["task"]: f"{gain['alone']:.3f}" for gain in result["gains"]}
    body.append([f"one task each, {weights['one task']:,} weights", *alone.values()])
    for network, title in TASKS.items():
        cells = [f"{title}, {weights[network]:,} weights"]
        for gain in (gain for gain in result["gains"] if gain["network"] == network):
            low, high = min(gain["gain_by_seed"]), max(gain["gain_by_seed"])
            cells.append(f"{gain['together']:.3f} ({gain['gain']:+.3f} [{low:+.3f}, {high:+.3f}])")
        body.append(cells)
    names = {"logit": "AUC", "number": "R²"}
    header = ["made-up data, test"]
    header += [f"{task.replace('_', ' ')}, {names[kind]}" for task, kind in result["kinds"].items()]
    num_seeds = min(len(gain["gain_by_seed"]) for gain in result["gains"])
    about = (
        f"Seeds: {num_seeds}. In brackets: all tasks "
        "together minus the task alone, with the least and the largest difference of the seeds. "
        "Weights are those of the network, without the vectors of codes. "
    )
    return table(header, body) + "\n\n" + about + origin(result)


def rankers(name: str) -> str:
    """What rankers make of the order that they are given; a row for each, and for each source."""
    rows = read(f"ranking/{name}")["rows"]
    ranked = [row for row in rows if "ahead" in row]
    body = []
    for row in sorted(rows, key=lambda row: row["metrics"]["ndcg@10"]["mean"]):
        cells = [ORDERS.get(row["name"], row["name"].replace("_", " "))]
        cells += [f"{row['metrics'][metric]['mean']:.4f}" for metric in RANKED]
        if "ahead" in row:
            cells += [signed(row["ahead"]["given"][metric]) for metric in RANKED[:2]]
            cells.append(f"{row['calibration_error']:.4f}" if "calibration_error" in row else "")
        else:
            cells += ["", "", ""]
        body.append(cells)
    header = [f"`{rows[0]['protocol']}`, {rows[0]['part']}", *(f"`{m}`" for m in RANKED)]
    header += [f"`{metric}` above given" for metric in RANKED[:2]] + ["calibration error"]
    times = ", ".join(
        f"{row['name']} {row['milliseconds']['50']:.1f} / {row['milliseconds']['99']:.1f}"
        for row in ranked
        if "milliseconds" in row
    )
    about = f"One request, p50 / p99 in ms: {times}. " if times else ""
    if "users" in rows[0]:
        about += f"{rows[0]['users']} users, drawn at random. "
    return table(header, body) + "\n\n" + about + origin(rows[0])


def signed(value: dict) -> str:
    """A difference with its interval."""
    if value["low"] is None:
        return f"{value['mean']:+.4f}"
    return f"{value['mean']:+.4f} [{value['low']:+.4f}, {value['high']:+.4f}]"
