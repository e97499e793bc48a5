"""A picture of recall against queries a second."""

import pathlib

from retrieval_unit import VARIANTS


def plot(rows: list[dict], path: pathlib.Path) -> None:
    """Recall against queries a second, a picture for each set and size of the largest dimension."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot

    dim = max(row["dim"] for row in rows)
    some = [row for row in rows if row["dim"] == dim and not row["constraint"] and "qps" in row]
    largest = max(row["num_items"] for row in some)
    some = [row for row in some if row["num_items"] == largest]
    sets = list(dict.fromkeys(row["set"] for row in some))
    figure, places = pyplot.subplots(
        1, len(sets), figsize=(5 * len(sets), 4), sharey=True, squeeze=False
    )
    colours = {name: f"C{number}" for number, name in enumerate(VARIANTS)}
    for place, name in zip(places[0], sets):
        for variant in dict.fromkeys(row["variant"] for row in some):
            own = [r for r in some if (r["variant"], r["set"]) == (variant, name)]
            recall = f"recall@{own[0]['k']}" if own else ""
            curve = sorted((row[recall], row["qps"]) for row in own if not row["tuned"])
            if curve:
                place.plot(*zip(*curve), ".-", color=colours[variant], label=variant)
            for row in own:
                if row["tuned"]:
                    label = None if curve else variant
                    place.plot(row[recall], row["qps"], "o", color=colours[variant], label=label)
        title = f"noise {name}" if name[0].isdigit() else name
        place.set(yscale="log", xlim=(0.6, 1.005), xlabel=recall, title=title)
        place.grid(alpha=0.3)
    places[0][0].set(ylabel="queries a second, one thread")
    places[0][-1].legend(fontsize=8)
    figure.suptitle(f"{largest:,} vectors x {dim}; dots: tuned")
    figure.tight_layout()
    figure.savefig(path, dpi=90)
