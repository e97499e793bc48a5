"""Tables from experiments/results/indexes/index_*.json, for render_results.py."""

from results import origin, origin_of, read, table
from retrieval_tables import recall_of

PHASES = {"calm": "in calm", "exchange": "two loaded pairs", "load": "read from disk"}


def wear(name: str = "indexes/index_updates") -> str:
    """What tombstones and a buffer cost a search until they are absorbed."""
    result, body = read(name), []
    rows = [row for row in result["rows"] if row["strategy"] == "wear"]
    backends = list(dict.fromkeys(row["backend"] for row in rows))
    levels = dict.fromkeys((row["wear"], row["level"]) for row in rows)
    for kind, level in levels:
        title = f"{level:.0%} tombstones" if kind == "tombstones" else f"{level:,} in the buffer"
        cells = [kind if kind == "untouched" else title]
        for backend in backends:
            row = next(
                r for r in rows if (r["backend"], r["wear"], r["level"]) == (backend, kind, level)
            )
            cells += [f"{recall_of(row):.3f}", f"{row['p50_ms']:.2f}", f"{row['p50_ratio']:.2f}"]
        body.append(cells)
    header = [f"{rows[0]['num_items']:,} x {rows[0]['dim']}"]
    for backend in backends:
        header += [f"{backend}: recall", "p50 ms", "x"]
    return table(header, body) + "\n\n" + origin_of(rows[0], result)


SHOWN = (0.2, 1)  # of the shares of new items that were measured


def drift(name: str = "indexes/index_updates") -> str:
    """A catalogue that grows, absorbed or built anew, with and without drift."""
    result, body = read(name), []
    rows = [row for row in result["rows"] if row["strategy"] == "growth"]
    for row in rows:
        if row["new_share"] in SHOWN:
            k = row["k"]
            drifts = f"drift, {row['nearest_old']:.2f}" if row["drift"] else "more of the same"
            cells = [f"{row['backend']}, {drifts}", f"{row['new_share']:.0%}", row["way"]]
            cells += [f"{recall_of(row):.3f}", f"{row[f'recall_new@{k}']:.3f}"]
            body.append([*cells, f"{row['p50_ms']:.2f}", f"{row['update_s']:.1f}"])
    header = ["growth", "new items", "taken in by", "recall", "of new items", "p50 ms", "update s"]
    return table(header, body) + "\n\n" + origin_of(rows[0], result)


def ways(name: str = "indexes/index_updates") -> str:
    """Three ways to take in rounds of changes under queries."""
    result, body = read(name), []
    rows = [row for row in result["rows"] if "round" in row]
    for backend in dict.fromkeys(row["backend"] for row in rows):
        for way in dict.fromkeys(row["strategy"] for row in rows):
            matching = [
                r for r in rows if (r["backend"], r["strategy"]) == (backend, way) and r["round"]
            ]
            if matching:
                last = matching[-1]
                figures = {
                    key: max(r[key] for r in matching)
                    for key in ("visible_s", "update_s", "stall_ms")
                }
                cells = [f"{backend}, {way}", f"{len(matching)}", f"{recall_of(last):.3f}"]
                cells += [f"{last['p50_ms']:.2f}", f"{figures['visible_s']:.3f}"]
                cells += [f"{figures['update_s']:.1f}", f"{figures['stall_ms']:,.0f}"]
                body.append([*cells, f"{max(r['memory_updating_mib'] for r in matching):,.0f}"])
    header = ["way", "rounds", "recall at the end", "p50 ms", "seen after, s", "round, s"]
    header += ["longest search, ms", "peak MiB"]
    return table(header, body) + "\n\n" + origin_of(rows[0], result)


def swaps(name: str = "indexes/index_swap") -> str:
    """Requests while loaded pairs of tower and index are exchanged, and while one is read."""
    result, body = read(name), []
    for row in result["rows"]:
        cells = [PHASES[row["phase"]], f"{row['exchanges']}", f"{row['searches']:,}"]
        cells += [f"{row['mixed']}", f"{row['errors']}"]
        body.append([*cells, *(f"{row[f'{key}_ms']:.1f}" for key in ("p50", "p99", "longest"))])
    header = ["", "exchanges", "requests", "answers of two trainings", "errors"]
    return table([*header, "p50 ms", "p99 ms", "longest ms"], body) + "\n\n" + origin(result)


def mismatch(name: str = "indexes/index_mismatch") -> str:
    """Recall of each tower on each training's index."""
    result, body = read(name), []
    for row in result["rows"]:
        value = row["recall_micro@100"]
        half = (value["high"] - value["low"]) / 2
        body.append([row["tower"], row["index"] or "", f"{value['mean']:.3f} ± {half:.3f}"])
    header = ["query tower of", "index of", "`recall_micro@100`"]
    return table(header, body) + "\n\n" + origin(result)
