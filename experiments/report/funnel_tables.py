"""Tables from experiments/results/funnel/*.json, for render_results.py."""

from results import origin, read, table

NAMES = {
    "two_tower": "two towers",
    "ease": "EASE",
    "ials": "iALS",
    "item_knn": "item-kNN",
    "popularity": "popularity",
    "union": "all sources together",
    "merge": "merged pool",
    "filters": "after the filters",
    "fresh": "fresh items",
    "exploration_slots": "after the slots",
    "rank": "after the ranker",
    "context": "context popularity",
    "trending": "trending",
}


def share(value: dict | float | None, digits: int = 3) -> str:
    """A figure, or nothing."""
    if value is None:
        return ""
    return f"{value['mean'] if isinstance(value, dict) else value:.{digits}f}"


def stages(name: str) -> str:
    """What each stage gives and loses."""
    (row,) = read(name)["rows"]
    body = [
        [
            NAMES[stage["name"]],
            *(share(stage["recall"][k]) for k in ("100", "500", "2000")),
            share(stage["only"], 4),
            share(stage["without"]),
            f"{stage['candidates']:.0f}",
        ]
        for stage in row["stages"]
    ]
    header = ["stage", "recall@100", "recall@500", "recall of all its items"]
    header += ["found by it alone", "pool without it", "items"]
    about = (
        f"`{row['protocol']}`, {row['part']}. Recall is the mean over users of the share of their "
        "targets among the first so many, or among all items that a stage returns; `found by it "
        "alone` is a share of all targets. "
    )
    return table(header, body) + "\n\n" + about + origin(row) + segments(row)


def segments(row: dict) -> str:
    """Figures of new users, niche users and cold items; "" for a result without them."""
    if "by_segment" not in row:
        return ""
    sources, body = [*row["alone"]], []
    everything = {**row["metrics"], "others": row["alone"]}
    for label, found in {"all": everything, **row["by_segment"]}.items():
        cells = [label.replace("_", " "), f"{found['num_cases']:,}" if "num_cases" in found else ""]
        if found.get("num_cases") == 0:
            body.append([*cells, *[""] * (2 + len(sources))])
            continue
        for metric in ("ndcg@10", "recall@500"):
            alone = [share(found["others"][source][metric]) for source in sources]
            body.append([*cells, f"`{metric}`", share(found[metric]), *alone])
            cells = ["", ""]
    header = ["queries of", "number", "", "the funnel", *(NAMES[source] for source in sources)]
    about = (
        "New users have fewer than 10 training rows. Niche users are the fifth whose history has "
        "the least popular items. Cold items are targets with fewer than 10 training rows; other "
        "targets of a query do not count there."
    )
    return "\n\n" + table(header, body) + "\n\n" + about


def ahead(name: str) -> str:
    """The end of the funnel, and its difference from each source alone, user by user."""
    (row,) = read(name)["rows"]
    metrics = ("hit_rate@10", "ndcg@10", "recall_micro@100", "recall@500")
    body = [["the funnel", *(share(row["metrics"][metric]) for metric in metrics)]]
    for source, figures in row["ahead"].items():
        cells = [
            f"{share(row['alone'][source][metric])} "
            f"({figures[metric]['mean']:+.4f} [{figures[metric]['low']:+.4f}, "
            f"{figures[metric]['high']:+.4f}])"
            for metric in metrics
        ]
        body.append([NAMES[source], *cells])
    about = (
        "In brackets: the funnel minus that source, paired by user, with its 95% interval. Of the "
        f"funnel's first ten items, {share(row['metrics']['genre_distance@10'])} is the mean genre "
        f"distance and {share(row['metrics']['novelty@10'])} bits the novelty. "
    )
    return table([f"`{row['protocol']}`, {row['part']}", *metrics], body) + "\n\n" + about


def new_items(name: str = "funnel/new_items") -> str:
    """Slots for items that no training row has."""
    (row,) = read(name)["rows"]
    found = row["exploration"]
    body = [
        ["items without a training row", f"{found['fresh_items']:.0f}"],
        ["of these shown to anybody in the first 20", share(found["shown_in_20"])],
        ["of these shown as often as asked for", share(found["shown_in_20 fully"])],
        ["`ndcg@10`", share(row["metrics"]["ndcg@10"])],
        ["`recall_micro@100`", share(row["metrics"]["recall_micro@100"])],
    ]
    return table([f"`{row['protocol']}`, {row['part']}", ""], body) + "\n\n" + origin(row)


def onboarding(name: str = "funnel/onboarding") -> str:
    """New users by what is known of them."""
    rows = read(name)["rows"]
    metrics = ("hit_rate@10", "ndcg@10", "recall@100")
    body = []
    for row in rows:
        gain = row.get("ahead", {}).get("demographics", {}).get("hit_rate@10")
        interval = f"{gain['mean']:+.3f} [{gain['low']:+.3f}, {gain['high']:+.3f}]" if gain else ""
        body.append([row["name"], *(share(row["metrics"][m]) for m in metrics), interval])
    header = ["a new user is known by", *metrics, "hit_rate@10 above demographics"]
    about = f"{rows[0]['num_cases']:,} users of whom no source has a row. "
    return table(header, body) + "\n\n" + about + origin(rows[0])


WAYS = {
    "mmr": "MMR",
    "dpp": "DPP",
    "calibration": "calibration",
}


def diversity(name: str = "funnel/diversity") -> str:
    """What variety costs, by the way lists are re-ranked."""
    rows = [row for row in read(name)["rows"] if row.get("part") != "validation"]
    first = rows[0]
    losses = [*next(row for row in rows if "more_distance at loss" in row)["more_distance at loss"]]
    figures = ("ndcg@10", "genre_distance@10", "divergence@10")
    start = [share(first["metrics"][figure]) for figure in figures]
    body = [["the funnel's order", *[""] * len(losses), "", *start, ""]]
    for way, title in WAYS.items():
        of_way = [row for row in rows if row["name"] == way]
        gains = next(
            row["more_distance at loss"] for row in of_way if "more_distance at loss" in row
        )
        chosen = next(row for row in of_way if row.get("chosen"))
        time = next(row["p50_processor_ms"] for row in of_way if "p50_processor_ms" in row)
        body.append(
            [
                title,
                *(f"{gain:+.1%}" for gain in gains.values()),
                f"{chosen['weight']:g}",
                *(share(chosen["metrics"][figure]) for figure in figures),
                f"{time:.1f}",
            ]
        )
    header = [
        f"`{first['protocol']}`, {first['part']}",
        *(f"distance at a loss of {loss}" for loss in losses),
        *("weight", "ndcg@10", "genre distance", "divergence", "median ms"),
    ]
    about = (
        "The loss is one of NDCG@10, relative to the funnel's order; the distance there lies "
        "between those of the two weights next to it. Of the weights that lose at most 2% on "
        "validation, the one with the most distance there was chosen. "
    )
    return table(header, body) + "\n\n" + about + origin(first)


def speed(name: str = "speed/funnel") -> str:
    """How fast a funnel answers."""
    rows = read(name)["rows"]
    body = []
    for row in rows:
        rate = row.get("requests_a_second")
        times = [f"{row[key]:.1f}" if key in row else "" for key in ("p50_ms", "p99_ms")]
        body.append([row["name"], *times, f"{rate:,.0f}" if rate else ""])
    about = f"{rows[0]['sources']} sources, {rows[0]['candidates']} candidates at the end. "
    return (
        table(["", "p50 ms", "p99 ms", "requests a second"], body)
        + "\n\n"
        + about
        + origin(rows[0])
    )
