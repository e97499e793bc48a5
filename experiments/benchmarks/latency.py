"""Times one request, in process: raw features to titles, through each index of a bundle.

    python experiments/benchmarks/latency.py --bundle=W/bundle --data_dir=ml-1m --output=out.json

A request begins with a user's raw features and the whole history, whose items are excluded from the
answer, and ends with ten titles. Rows `hnsw`, `scann` and `exact` run the query tower's SavedModel
signature and a Retriever; `retrieve` and `retrieve_scann` are one SavedModel each. The variants
take turns in blocks of requests, so that drift of the machine affects all of them. Each block
starts warm, like a service. `p50_calm_ms` is the median of the fastest block of a variant, and
`p50_ms` that of all its blocks. On a shared machine, whose speed may change by the second, the
first shows the cost of the code, the second what a user gets. `recall@100` is against exact search
over the same queries without exclusions, so that an index cannot fall back to a scan.

One thread and one core, for the reasons in `single_requests.py`.
"""

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
import single_requests  # isort: skip  (first: numpy's threads)

import time

import numpy as np
from absl import flags

from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import provenance, write_result
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.tuning import recall_against
from twotower.tf import tf

BLOCK, WARM_UP = 50, 10

FLAGS = flags.FLAGS
single_requests.define()
flags.DEFINE_integer("requests", 2000, "Requests a variant.", lower_bound=10)
flags.DEFINE_integer("k", 10, "Titles a request.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")


def through_retriever(bundle: Bundle, name: str, titles: np.ndarray):
    """Raw inputs and excluded keys -> titles, by the query tower and a Retriever."""
    retriever, tower = bundle.retriever(name), bundle.query_tower

    def answer(inputs, excluded):
        exclude = Ragged(excluded, np.array([0, len(excluded)]))
        found = retriever.search(tower(inputs), FLAGS.k, exclude=exclude)
        return titles[found.keys[0, : found.counts[0]]]

    return answer


def saved_model(bundle: Bundle, name: str):
    """`call(inputs, k, exclude)` of a SavedModel: raw inputs and excluded ids -> its outputs."""
    if name == "retrieve_scann":
        import scann  # noqa: F401  (registers its ops)

    model = tf.saved_model.load(str(bundle.directory / name))
    signature = model.signatures["serving_default"]

    def call(inputs, k, exclude):
        return signature(k=k, exclude=exclude, **bundle.query_tensors(inputs))

    call.model = model  # keeps the variables alive
    return call


def through_saved_model(bundle: Bundle, call, titles_by_id: dict):
    """The same by one SavedModel."""
    k = tf.constant(FLAGS.k)

    def answer(inputs, excluded):
        ids = bundle.catalogue.ids_of(excluded)[None]
        found = call(inputs, k, tf.constant(ids, tf.string))
        return [titles_by_id[i.decode()] for i in found["ids"].numpy()[0] if i]

    return answer


def layer_recall(bundle: Bundle, call, requests: list, exact: Candidates) -> float:
    """recall@100 of the ScaNN layer inside its SavedModel, nothing excluded."""
    k, nothing = tf.constant(100), tf.constant([[""]])
    found = [call(inputs, k, nothing) for inputs, _ in requests]
    ids, scores = (
        np.concatenate([answer[name].numpy() for answer in found]) for name in ("ids", "scores")
    )
    keys = bundle.catalogue.keys_of(np.char.decode(ids.astype(bytes)))
    return recall_against(exact, Candidates(keys, scores, (keys >= 0).sum(1)))


def main():
    bundle, split, raw = single_requests.open_bundle()
    rows = np.random.default_rng(0).permutation(len(split.cases))[: FLAGS.requests]
    requests = [(raw(case), case.exclude.values) for case in split.cases.take(rows).batches(1)]
    lengths = [len(excluded) for _, excluded in requests]

    items = bundle.catalogue.items
    titles = items["title"].to_numpy(object)
    titles_by_id = dict(zip(items["item_id"], titles))
    variants = {
        name: through_retriever(bundle, name, titles) for name in ["exact", *bundle.indexes]
    }
    calls = {
        name: saved_model(bundle, name)
        for name in ("retrieve", "retrieve_scann")
        if (bundle.directory / name).exists()
    }
    for name, call in calls.items():
        variants[name] = through_saved_model(bundle, call, titles_by_id)
    variants["query tower alone"] = lambda inputs, excluded: bundle.query_tower(inputs)

    blocks = {name: [] for name in variants}
    for start in range(0, len(requests), BLOCK):
        block = requests[start : start + BLOCK]
        for name, answer in variants.items():
            for inputs, excluded in block[:WARM_UP]:
                answer(inputs, excluded)
            blocks[name].append([])
            for inputs, excluded in block:
                started = time.perf_counter()
                answer(inputs, excluded)
                blocks[name][-1].append(time.perf_counter() - started)
    seconds = {name: np.concatenate(times) for name, times in blocks.items()}

    vectors = np.concatenate([bundle.query_tower(inputs) for inputs, _ in requests])
    exact = bundle.retriever("exact").search(vectors, 100)
    recall = {
        name: recall_against(exact, bundle.retriever(name).search(vectors, 100))
        for name in bundle.indexes
    }
    if "retrieve_scann" in calls:
        recall["retrieve_scann"] = layer_recall(bundle, calls["retrieve_scann"], requests, exact)
    rows = [
        {
            "name": name,
            "p50_calm_ms": 1e3 * min(float(np.median(block)) for block in blocks[name]),
            "p50_ms": 1e3 * float(np.quantile(times, 0.5)),
            "p90_ms": 1e3 * float(np.quantile(times, 0.9)),
            "p99_ms": 1e3 * float(np.quantile(times, 0.99)),
            "recall@100": recall.get(name),
        }
        for name, times in seconds.items()
    ]
    for row in rows:
        found = "" if row["recall@100"] is None else f"  recall@100 {row['recall@100']:.4f}"
        times = f"p50 {row['p50_ms']:6.2f} ms (calmest block {row['p50_calm_ms']:.2f})"
        print(f"{row['name']:18s} {times}  p99 {row['p99_ms']:6.2f} ms{found}")
    if FLAGS.output:
        result = {
            "rows": rows,
            "requests": len(requests),
            "core": FLAGS.core,
            "num_items": len(bundle.keys),
            "median_history": float(np.median(lengths)),
            **provenance(),
        }
        write_result(FLAGS.output, result)


if __name__ == "__main__":
    script.run(main)
