"""Tables of losses and negatives from experiments/results/, for render_results.py."""

import functools

import numpy as np
from results import origin, read, table

FIRST = "recall_micro@100"
LATER = "temporal-successive"
BASE = ("base", "in-batch softmax, log-Q, hits masked")
COSTS = (("bytes_per_vector", 0), ("build_s", 1), ("p50_ms", 2), ("recall@100", 3))
# What is said of losses and negatives: (claim, the side it favours, the other side, metric).
RULES = (
    ("log-Q helps in-batch softmax", BASE, ("correction", "none"), FIRST),
    ("log-Q widens what is answered", BASE, ("correction", "none"), "coverage@10"),
    ("full softmax is the ideal", ("loss", "softmax over the catalogue"), BASE, FIRST),
    ("softmax beats triplets", BASE, ("loss", "triplet, all"), FIRST),
    (
        "semi-hard triplets beat all",
        ("loss", "triplet, semi-hard"),
        ("loss", "triplet, all"),
        FIRST,
    ),
    ("softmax beats cross-entropy", BASE, ("loss", "binary cross-entropy, 64"), FIRST),
    (
        "gBCE mends cross-entropy",
        ("loss", "gBCE, 64, t = .75"),
        ("loss", "binary cross-entropy, 64"),
        FIRST,
    ),
    (
        "mixed negatives beat the batch's alone",
        ("sampler", "mixed: batch and uniform, 1024"),
        BASE,
        FIRST,
    ),
    ("larger batches are better", ("batch", "8192"), ("batch", "512"), FIRST),
    (
        "log-Q is worth more than a large batch",
        ("batch", "512"),
        ("batch", "8192, no correction"),
        FIRST,
    ),
    ("a temperature under 1 is needed", BASE, ("temperature", "1, as in tutorials"), FIRST),
    ("one of .05 to .1 is better than .2", ("temperature", "0.07"), ("temperature", "0.2"), FIRST),
    ("about 10% mined negatives help", ("hard", "10%"), ("hard", "0%"), FIRST),
    ("mined negatives need a warm-up", ("hard", "10%"), ("hard", "10%, no warm-up"), FIRST),
    (
        "they need it where they weigh as draws",
        ("hard, as draws", "10%"),
        ("hard, as draws", "10%, no warm-up"),
        FIRST,
    ),
    ("too many mined negatives do harm", ("hard", "10%"), ("hard", "50%"), FIRST),
    (
        "too many do where they weigh as draws",
        ("hard, as draws", "10%"),
        ("hard, as draws", "50%"),
        FIRST,
    ),
    ("normalised vectors are better", BASE, ("norm", "vectors as they come"), FIRST),
    ("content helps beside ids", BASE, ("items", "id alone"), FIRST),
)
# The same, where it is enough that the first side is not the worse one: even says that it may be.
SUFFICIENT = (
    (
        "stratified sampling is enough in place of log-Q",
        ("correction", "strata, all items alike"),
        BASE,
        FIRST,
    ),
    ("64 dimensions are enough", ("dim", "64"), ("dim", "512"), FIRST),
    ("128 dimensions are enough", BASE, ("dim", "512"), FIRST),
    (
        "one tower for both sides is enough",
        ("towers", "one tower, id alone"),
        ("towers", "separate, id alone"),
        FIRST,
    ),
)


@functools.cache
def rows() -> list[dict]:
    """All runs."""
    return read("studies/ablation")["rows"]


def runs(group: str, name: str, protocol: str = "random") -> list[dict]:
    """Of one change, by seed."""
    return [
        row
        for row in rows()
        if (row["group"], row["name"], row["protocol"]) == (group, name, protocol)
    ]


def mean(found: list[dict], metric: str = FIRST) -> tuple[float, float]:
    """Of a figure over seeds, and half of its 95% interval over users (that of the first seed)."""
    entry = found[0]["metrics"][metric]
    value = float(np.mean([row["metrics"][metric]["mean"] for row in found]))
    return value, (entry["high"] - entry["low"]) / 2 if "high" in entry else 0.0


def study() -> str:
    """Every run's first seed on `random`, by group."""
    body = []
    for row in rows():
        if row["protocol"] != "random" or row is not runs(row["group"], row["name"])[0]:
            continue
        value, half = mean([row])
        cells = [f"{value:.3f} ± {half:.3f}"]
        cells += [f"{mean([row], f'{metric}@10')[0]:.3f}" for metric in ("ndcg", "coverage")]
        cells += [f"{mean([row], 'mean_popularity@10')[0]:,.0f}"]
        norm = row.get("norm_popularity_correlation")
        cells += [f"{norm:.2f}" if norm is not None else "", f"{row['training_seconds']:.0f}"]
        body.append([row["group"], row["name"], *cells])
    header = ["", "change", f"`{FIRST}`", "`ndcg@10`", "`coverage@10`", "popularity@10"]
    header += ["norm ~ popularity", "training s"]
    machines = ", ".join(sorted({row["hardware"] for row in rows()}))
    source = (
        "`random`, validation; intervals over users. Each row's command, commit and machine stand "
        f"in `experiments/results/studies/ablation.json` ({machines}): a command holds at its "
        "commit, and times, of one core a run, compare within a machine."
    )
    return table(header, body) + "\n\n" + source


def repeated() -> str:
    """The rows that rules depend on, over seeds and on `temporal-successive`."""
    body = []
    names = list(dict.fromkeys((row["group"], row["name"]) for row in rows()))
    for group, name in names:
        found = {protocol: runs(group, name, protocol) for protocol in ("random", LATER)}
        if len(found["random"]) < 2 and not found[LATER]:
            continue
        cells = []
        for metric in (FIRST, "coverage@10"):
            values = [row["metrics"][metric]["mean"] for row in found["random"]]
            spread = f" ± {np.std(values, ddof=1):.4f}" if len(values) > 1 else ""
            cells.append(f"{np.mean(values):.4f}{spread}")
        for metric in (FIRST, "hit_rate@10", "coverage@10"):
            cells.append(f"{mean(found[LATER], metric)[0]:.4f}" if found[LATER] else "")
        body.append([f"{group}: {name}", str(len(found["random"])), *cells])
    header = ["", "seeds", f"`random`: `{FIRST}`", "`coverage@10`"]
    header += [f"`{LATER}`: `{FIRST}`", "`hit_rate@10`", "`coverage@10`"]
    below = f"Mean and standard deviation over seeds; `{LATER}`: one seed, three epochs."
    return table(header, body) + "\n\n" + below


def verdict(rule: tuple, protocol: str) -> list[str]:
    """Both figures that a rule hangs on, and whether they differ by more than chance; empty cells
    where a side was not run."""
    _, better, worse, metric = rule
    sides = [runs(*better, protocol), runs(*worse, protocol)]
    if not all(sides):
        return ["", "", ""]
    (one, half), (other, other_half) = (mean(side, metric) for side in sides)
    # Both sides answer the same users, so this is on the careful side.
    noise = max(half, other_half) or 0.01
    better = one >= other if rule in SUFFICIENT else one - other > noise
    found = "holds" if better else "does not" if other - one > noise else "even"
    return [f"{one:.3f}", f"{other:.3f}", found]


def rules() -> str:
    """Each rule with the two figures it hangs on, on both protocols."""
    body = []
    for rule in (*RULES, *SUFFICIENT):
        claim, better, worse, _ = rule
        names = [f"{name} ({group})" for group, name in (better, worse)]
        body.append([claim, *names, *verdict(rule, "random"), *verdict(rule, LATER)])
    header = ["the rule", "the run it favours", "the other"]
    for protocol in ("random", LATER):
        header += [f"`{protocol}`: favoured", "other", "the rule"]
    below = (
        f"Mean over seeds of `{FIRST}` at the best epoch; for the width that log-Q brings, of "
        "`coverage@10`. Two runs are even when they differ by less than the wider of their 95% "
        "intervals over users: a strict test, since both runs answer the same users. A rule that "
        "calls something enough holds when the figure is not lower."
    )
    return table(header, [row for row in body if any(row[3:])]) + "\n\n" + below


def step_costs(name: str = "speed/negatives_cost") -> str:
    """A step of training with each kind of negatives."""
    result = read(name)
    sizes = sorted({row["batch_size"] for row in result["rows"]})
    body = []
    for kind in dict.fromkeys(row["name"] for row in result["rows"]):
        matching = [row for row in result["rows"] if row["name"] == kind]
        matching.sort(key=lambda row: row["batch_size"])
        cells = [
            text for row in matching for text in (f"{row['step_ms']:.0f}", f"{row['ratio']:.2f}")
        ]
        mining = [f"{row['mining_s']:.1f}" for row in matching if row["mining_s"]]
        body.append([kind, *cells, ", ".join(mining)])
    header = ["columns"]
    for size in sizes:
        header += [f"batch {size}: ms a step", "x in-batch"]
    return table([*header, "one mining, s"], body) + "\n\n" + origin(result)


def frequency(name: str = "studies/frequency") -> str:
    """The error of the streaming estimate of p_c against the counts."""
    result, body = read(name), []
    for row in result["rows"]:
        cells = [f"{row['epochs']}", f"{row['buckets_per_item']:g}", f"{row['hashes']}"]
        body.append([row["time"], *cells, f"{row['median_error']:.1%}", f"{row['p90_error']:.1%}"])
    header = ["time counted in", "passes", "buckets an item", "hashes", "median error", "p90"]
    about = f"Items seen 50 times or more, {result['rows'][0]['items']:,} of them. "
    return table(header, body) + "\n\n" + about + origin(result)


def cross_encoder(name: str = "studies/cross_encoder") -> str:
    """Two towers against a network over pairs."""
    result, body = read(name), []
    for row in result["rows"]:
        values = [row["metrics"][metric] for metric in (FIRST, "ndcg@10")]
        cells = [f"{v['mean']:.3f} ± {(v['high'] - v['low']) / 2:.3f}" for v in values]
        body.append(
            [row["name"], *cells, f"{row['training_seconds']:.0f}", f"{row['answer_ms']:.1f}"]
        )
    header = ["`random`, validation", f"`{FIRST}`", "`ndcg@10`", "training s", "ms an answer"]
    return table(header, body) + "\n\n" + origin(result)


def dimensions(name: str = "studies/dimension") -> str:
    """What a longer vector finds, and what it costs an index."""
    trained = {int(row["name"]): row for row in rows() if row["group"] == "dim"}
    trained[128] = runs(*BASE)[0]
    result, body = read(name), []
    plain = [row for row in result["rows"] if row["tuned"] and not row["constraint"]]
    costs = {(row["dim"], row["variant"]): row for row in plain}
    for dim, row in sorted(trained.items()):
        value, half = mean([row])
        flat, graph = costs[dim, "flat"], costs[dim, "hnsw"]
        cells = [f"{value:.3f} ± {half:.3f}", f"{row['training_seconds']:.0f}"]
        cells += [f"{4 * dim}", f"{flat['p50_ms']:.2f}"]
        cells += [f"{graph[cost]:.{places}f}" for cost, places in COSTS]
        body.append([str(dim), *cells])
    header = ["dimension", f"`{FIRST}`", "training s", "flat: bytes", "p50 ms"]
    header += ["HNSW: bytes besides the vectors", "build s", "p50 ms", "`recall@100`"]
    size = (
        f"Indexes of {result['rows'][0]['num_items']:,} vectors around the run's own items, by the "
        f"same command for each run's bundle: "
    )
    return table(header, body) + "\n\n" + size + origin(result)


def new_items() -> str:
    """What each sampler leaves of the items that no training row has, in the mean over its seeds.

    Raises:
        ValueError: The study has no in-batch row to compare with.
    """
    found: dict[str, list[dict]] = {}
    for row in read("studies/new_items")["rows"]:
        found.setdefault(row["name"], []).append(row)
    if "in-batch" not in found:
        raise ValueError("run it first: python experiments/studies/ablate.py --study=new_items ...")

    def of_new(rows: list[dict]) -> float:
        return float(np.mean([row["hidden_items"][FIRST]["mean"] for row in rows]))

    body = []
    for name, rows in found.items():
        by_seed = ", ".join(f"{row['hidden_items'][FIRST]['mean']:.3f}" for row in rows)
        cells = [by_seed, f"{of_new(rows) / of_new(found['in-batch']):.2f}"]
        body.append([name, *cells, f"{mean(rows)[0]:.3f}"])
    first = found["in-batch"][0]
    header = ["columns", f"`{FIRST}` of new items, by seed", "of in-batch", f"`{FIRST}` of all"]
    about = (
        f"{first['hidden_items']['num_targets']:,} choices are of items without a training row. "
        "Each row's command stands in `experiments/results/studies/new_items.json`; the first "
        "one's: "
    )
    return table(header, body) + "\n\n" + about + origin(first)


def hidden_items() -> str:
    """What the recipes find of MovieLens' items when a tenth of them has no training row."""
    results = [read(f"movielens/{name}") for name in ("hidden_items", "hidden_items_best")]
    among, everywhere = "recall@20 among hidden", "recall_micro@100 of hidden"
    found = [row for result in results for row in result["rows"]]
    body = []
    for row in found:
        cells = [row["hidden"][name] for name in (among, everywhere)]
        cells.append(row["metrics"][FIRST])
        shown = [f"{one['mean']:.3f} ± {(one['high'] - one['low']) / 2:.3f}" for one in cells]
        body.append([row["name"], *shown])
    chance = found[0]["hidden"]["chance@20 among hidden"]
    body.append(["in a random order", f"{chance:.3f}", "", ""])
    header = ["`random`, test", f"`{among}`", f"`{everywhere}`", f"`{FIRST}` of all"]
    sources = " ".join(origin(result["rows"][0]) for result in results)
    return table(header, body) + "\n\n" + sources


def cold() -> str:
    """What each kind of item features finds of items with few training rows, or none."""
    found = {row["name"]: row for row in rows() if row["group"] == "cold items"}
    if not found:
        raise ValueError("run it first: python experiments/studies/ablate.py '--groups=cold items'")
    segments = list(
        dict.fromkeys(name for row in found.values() for name in row["item_popularity"])
    )
    body = []
    for name, row in found.items():
        cells = [row["item_popularity"].get(segment) for segment in segments]
        body.append([name, *(f"{cell[FIRST]['mean']:.3f}" if cell else "" for cell in cells)])
    numbers = next(iter(found.values()))["item_popularity"]
    header = [f"{one}: {numbers[one]['num_targets']:,} targets" for one in segments]
    return table([f"`{FIRST}` by training rows of the item", *header], body)
