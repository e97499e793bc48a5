"""What variety costs: accuracy against the genre distance of lists, for each way to re-rank.

    python experiments/studies/diversity.py --bundle=W/bundle --data_dir=ml-1m \\
        --output=diversity.json

The funnel's lists of 500 are re-ranked with a range of weights. The weight of each way is chosen on
validation: the one with the most distance of those that lose at most 2% of NDCG@10. The same curve
is measured on test. Then each way re-ranks the list of a single request from 500 to 40, to see how
long that takes.
"""

import pathlib
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance, write_result
from twotower.commands import judging
from twotower.data import splits
from twotower.data.cases import EvalCases
from twotower.evaluation import intervals, metrics
from twotower.funnel.stage import Stage
from twotower.reranking.calibration import Calibration
from twotower.reranking.making import WAYS
from twotower.reranking.similarity import genre_table
from twotower.retrieval.candidates import Candidates

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of a bundle with a funnel.", required=True)
script.DEFINE_path("data_dir", None, "The data it was trained on.")
flags.DEFINE_string("name", "default", "Name of the funnel, one that does not re-rank.")
flags.DEFINE_list("ways", ["mmr", "dpp", "calibration"], f"Ways to re-rank: {', '.join(WAYS)}.")
flags.DEFINE_integer("repeats", 300, "Single requests whose time is taken.", lower_bound=10)
script.DEFINE_path("output", None, "JSON file to write.")

WEIGHTS = (0.05, 0.1, 0.15, 0.2, 0.25, 0.3, 0.35, 0.4)
POOL, SHOWN, TOP = 500, 40, 10
# Shares of NDCG@10 that are lost; a weight that is chosen loses at most the last of them.
LOSSES = (0.005, 0.01, 0.02)
# A way is given up beyond this loss.
TOO_MUCH = 0.03
WARM = 20


def lists_of(bundle: Bundle, part: str, dataset) -> tuple[EvalCases, Candidates]:
    """The cases of a part, and the funnel's lists for them."""
    manifest = bundle.manifest
    split = splits.make_split(dataset, manifest["protocol"], part, manifest["split_seed"])
    judging.check_unseen(bundle, dataset, split)
    bundle.encode = bundle.encoder(dataset)
    funnel = bundle.funnel(FLAGS.name)
    found = [funnel(cases, POOL) for cases in split.cases.batches(1024)]
    bare = [Candidates(part.keys, part.scores, part.counts) for part in found]
    return split.cases, Candidates.concat(bare)


def measured(cases: EvalCases, candidates: Candidates, tags: np.ndarray) -> dict[str, np.ndarray]:
    """Figures of the first ten items of each list."""
    # One more, to know whether a tie goes on past the end.
    top = candidates.head(TOP + 1)
    targets = cases.targets
    ranks = metrics.target_ranks(
        top.keys, top.scores, top.counts, targets.values, targets.offsets, TOP + 1
    )
    return {
        "ndcg@10": metrics.ndcg(ranks, TOP),
        "genre_distance@10": metrics.tag_distance(top.keys, tags > 0, TOP),
        "divergence@10": Calibration(tags, 0.0).divergence(cases, top.keys[:, :TOP]),
    }


def curve(
    way: str, model: Bundle, cases: EvalCases, lists: Candidates, tags: np.ndarray
) -> list[dict]:
    """A row for each weight, from none on to where too much is lost."""
    base = measured(cases, lists, tags)
    rows: list[dict] = []
    for weight in (0.0, *WEIGHTS):
        stage = WAYS[way](model, weight, TOP)
        values = measured(cases, stage(cases, lists), tags)
        means = {name: float(value.mean()) for name, value in values.items()}
        row = {
            "name": way,
            "weight": weight,
            "metrics": {name: intervals.interval(value) for name, value in values.items()},
            "loss": 1 - means["ndcg@10"] / float(base["ndcg@10"].mean()),
            "more_distance": means["genre_distance@10"] / float(base["genre_distance@10"].mean())
            - 1,
            "ndcg@10 minus none": intervals.paired_difference(values["ndcg@10"], base["ndcg@10"]),
        }
        change = f"loss {row['loss']:+.4f} distance {row['more_distance']:+.4f}"
        print(f"{way} {weight} {change} divergence {means['divergence@10']:.4f}", flush=True)
        rows.append(row)
        if row["loss"] > TOO_MUCH:
            break
    return rows


def at_loss(rows: list[dict], wanted: float) -> float:
    """The gain of distance where the curve crosses a loss, between the two weights next to it."""
    loss, gain = ([row[name] for row in rows] for name in ("loss", "more_distance"))
    behind = next((i for i, value in enumerate(loss) if value > wanted), None)
    if behind is None:
        return gain[-1]
    share = (wanted - loss[behind - 1]) / (loss[behind] - loss[behind - 1])
    return gain[behind - 1] + share * (gain[behind] - gain[behind - 1])


def timed(stage: Stage, cases: EvalCases, lists: Candidates) -> dict[str, float]:
    """Milliseconds of a stage, one request after the other: by the clock, and of the processor,
    which other work on the machine disturbs less."""
    rows = np.random.default_rng(0).integers(len(cases), size=FLAGS.repeats + WARM)
    seconds = []
    for row in rows:
        request, candidates = cases.take(np.array([row])), lists.take(np.array([row]))
        begun = time.perf_counter(), time.thread_time()
        stage(request, candidates)
        seconds.append((time.perf_counter() - begun[0], time.thread_time() - begun[1]))
    clock, processor = 1e3 * np.array(seconds[WARM:]).T
    p50, p99 = np.percentile(clock, [50, 99])
    busy = {"p50_processor_ms": float(np.median(processor))}
    return {"p50_ms": float(p50), "p99_ms": float(p99), **busy, "requests": FLAGS.repeats}


def main() -> None:
    final, before = Bundle(FLAGS.bundle), judging.to_judge(FLAGS.bundle, "validation")
    dataset = judging.dataset_of(final, FLAGS.data_dir)
    judging.check(final, dataset, None, None)
    tags = genre_table(dataset.catalogue)
    common = {"protocol": final.manifest["protocol"]}
    rows: list[dict] = []
    chosen: dict[str, float] = {}
    for part, bundle in (("validation", before), ("test", final)):
        cases, lists = lists_of(bundle, part, dataset)
        for way in FLAGS.ways:
            found = curve(way, bundle, cases, lists, tags)
            if part == "validation":
                fit = [row for row in found if row["loss"] <= LOSSES[-1]]
                chosen[way] = max(fit, key=lambda row: row["more_distance"])["weight"]
            rows += [
                row | {"chosen": row["weight"] == chosen[way], "part": part} | common
                for row in found
            ]
            gains = {f"{loss:.1%}": at_loss(found, loss) for loss in LOSSES}
            print(f"{part}: {way}, distance by loss: {gains}", flush=True)
            rows.append({"name": way, "more_distance at loss": gains, "part": part} | common)
    for way in FLAGS.ways:
        stage = WAYS[way](final, chosen[way] or 0.1, SHOWN)
        times = timed(stage, cases, lists)
        print(way, times)
        rows.append({"name": way, "one request": f"{POOL} to {SHOWN}", **times, **common})
    rows = [row | provenance() for row in rows]
    if FLAGS.output:
        write_result(pathlib.Path(FLAGS.output), {"rows": rows})


if __name__ == "__main__":
    script.run(main)
