"""The few figures that the README shows, each beside what it is compared with."""

from published import PUBLISHED
from results import read, table

MICRO, NDCG = "recall_micro@100", "ndcg@10"
OF_NEW = "recall_micro@100 of hidden"


def row_of(file: str, name: str) -> dict:
    """The row of that name in a result."""
    return next(row for row in read(file)["rows"] if row["name"] == name)


def mean(file: str, name: str, metric: str) -> str:
    return f"{row_of(file, name)['metrics'][metric]['mean']:.3f}"


def around(entry: dict) -> str:
    """A mean and half of its 95% interval."""
    return f"{entry['mean']:.3f} ± {(entry['high'] - entry['low']) / 2:.3f}"


def best_published(protocol: str) -> str:
    """The highest figure that others report of a protocol."""
    found = [row for row in PUBLISHED if row.protocol == protocol]
    best = max(found, key=lambda row: row.metrics[NDCG])
    return f"{best.name} {best.metrics[NDCG]:.3f}, published"


def headline() -> str:
    """A line a claim: ours, and what it is to be compared with."""
    ratings, seen = "movielens/movielens_1m_random", "movielens/random_100k_seen"
    best = row_of("movielens/movielens_1m_best", "two towers, best recipe")
    (funnel,) = read("funnel/random")["rows"]
    (ranked,) = [row for row in read("ranking/random")["rows"] if row["name"] == "default"]
    tuned = funnel["alone"]  # the funnel's iALS, whose parameters were chosen on validation
    body = [
        [
            "`random`",
            f"`{MICRO}`",
            f"{around(best['metrics'][MICRO])}, defaults {mean(ratings, 'two towers', MICRO)}",
            f"iALS {tuned['ials'][MICRO]['mean']:.3f}, EASE {mean(ratings, 'ease', MICRO)}, "
            f"popularity {mean(ratings, 'popularity', MICRO)}; "
            f"in a funnel {funnel['metrics'][MICRO]['mean']:.3f}, "
            f"then ranked {ranked['metrics'][MICRO]['mean']:.3f}",
        ]
    ]
    for protocol, file in (
        ("loo-5core", "sequence_loo_5core_0"),
        ("loo+time", "sequence_loo_time_0"),
        ("temporal-last", "sequence_temporal_last_0"),
    ):
        row = row_of(f"sequences/{file}", "causal transformer")
        ours = around(row["metrics"][NDCG])
        if protocol == "loo-5core":
            alone = row_of("sequences/sequence_ids_64_0", "causal transformer, ids alone")
            ours += f", of ids alone {alone['metrics'][NDCG]['mean']:.3f}"
        body.append([f"`{protocol}`", f"`{NDCG}`", ours, best_published(protocol)])
    tutorial = mean("movielens/tutorial", "as copied", MICRO)
    body.append(
        [
            "`random-100k+seen`",
            f"`{MICRO}`",
            around(row_of(seen, "this project")["metrics"][MICRO]),
            f"popularity {mean(seen, 'popularity', MICRO)}, the tutorials' model {tutorial}",
        ]
    )
    new = row_of("movielens/hidden_items_best", "two towers, best recipe")["hidden"][OF_NEW]
    other = row_of("movielens/hidden_items", "content_ials")["hidden"][OF_NEW]
    body.append(
        ["`random`, new items", f"`{MICRO}`", around(new), f"iALS from content {other['mean']:.3f}"]
    )
    exact, graph, tree = (row_of("speed/latency", name) for name in ("exact", "hnsw", "scann"))
    body.append(
        [
            "one request, features to titles",
            "median ms, undisturbed",
            f"exact search {exact['p50_calm_ms']:.2f}",
            f"through HNSW {graph['p50_calm_ms']:.2f}, through ScaNN {tree['p50_calm_ms']:.2f}",
        ]
    )
    recipe, loop = (row_of("speed/training_speed", name) for name in ("recipe", "tutorial"))
    body.append(
        [
            "a training step on two cores",
            "examples a second",
            f"{recipe['examples_per_second']:,.0f}",
            f"the tutorials' loop {loop['examples_per_second']:,.0f}",
        ]
    )
    return table(["protocol or task", "figure", "two towers", "beside it"], body)
