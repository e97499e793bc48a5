"""Recommends titles to one user from a bundle.

    python experiments/recommend.py --bundle=W/bundle --user_id=42 --data_dir=ml-1m --k=10
    python experiments/recommend.py --bundle=W/bundle --history=260,1196,1210 --format=json

With --data_dir the user's own history and columns are looked up. Without, --history says what was
watched, oldest first; a user that the model does not know is placed by that history alone, and
with neither gets what unknown users like.
"""

import json
import time

import numpy as np
from absl import app, flags

import twotower  # noqa: F401  (first: sets the Keras switch before TensorFlow loads)
from twotower.bundle import Bundle
from twotower.data import load
from twotower.retrieval.candidates import Candidates

FLAGS = flags.FLAGS
flags.DEFINE_string("bundle", None, "Folder of the bundle.", required=True)
flags.DEFINE_string("data_dir", None, "Where to look up the user's history and columns.")
flags.DEFINE_string("user_id", "", "The user; '' for an unknown one.")
flags.DEFINE_list("history", [], "Item ids watched, oldest first; instead of --data_dir.")
flags.DEFINE_integer("time", None, "Seconds of the request, for protocols +time; now by default.")
flags.DEFINE_integer("k", 10, "How many items.", lower_bound=1)
flags.DEFINE_string("index", "exact", "exact, or an index of the bundle such as hnsw or scann.")
flags.DEFINE_list("allowed_uris", [], "Addresses that the index may connect to: a Milvus server's.")
flags.DEFINE_enum("format", "table", ["table", "json"], "How to print.")


def request(bundle: Bundle, dataset=None) -> dict[str, np.ndarray]:
    """Raw inputs of the query tower for the flags' user, each with a batch dimension of 1.

    Raises:
        ValueError: A history item that is not in the catalogue, or a user whom the data lacks.
    """
    history, times, ratings, user = list(FLAGS.history), None, None, {"user_id": FLAGS.user_id}
    unknown = [item for item in history if bundle.catalogue.keys_of([item])[0] < 0]
    if unknown:
        raise ValueError(f"items {unknown} are not in the bundle's catalogue; --history takes ids.")
    if dataset is not None:
        found = dataset.users[dataset.users["user_id"] == FLAGS.user_id]
        if found.empty:
            raise ValueError(f"{dataset.name} has no user {FLAGS.user_id!r}.")
        user = found.iloc[0].to_dict()
        watched = dataset.interactions[dataset.positive]
        rows = watched[watched["user_id"] == FLAGS.user_id]
        rows = rows.sort_values("timestamp", kind="stable")
        if not history:
            history = rows["item_id"].to_list()
            times = rows["timestamp"].to_numpy()
            ratings = rows["rating"].to_numpy() if "rating" in rows else None
    length = len(history)
    sequences = {
        "history": np.array([history], object).reshape(1, length),
        "history_time": np.array(times if times is not None else [-1] * length).reshape(1, length),
        "history_rating": np.array(ratings if ratings is not None else [np.nan] * length).reshape(
            1, length
        ),
        "time": np.array([FLAGS.time or int(time.time())]),
    }
    inputs = {}
    for spec in bundle.manifest["query_inputs"]:
        name = spec["name"]
        inputs[name] = sequences.get(name, np.array([user.get(name, "")], object))
    return inputs


def answer(bundle: Bundle, inputs: dict[str, np.ndarray]) -> tuple[Candidates, float]:
    """The best k items that are not in the history, and the seconds that it took."""
    from twotower.ragged import Ragged

    retriever = bundle.retriever(FLAGS.index, FLAGS.allowed_uris)
    seen = bundle.catalogue.keys_of(inputs.get("history", np.empty((1, 0), object)))
    bundle.query_tower(inputs)  # the first call is slower: it sets up the graph
    started = time.perf_counter()
    exclude = Ragged.from_rows([seen[0][seen[0] >= 0]])
    found = retriever.search(bundle.query_tower(inputs), FLAGS.k, exclude=exclude)
    return found, time.perf_counter() - started


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    bundle = Bundle(FLAGS.bundle)
    dataset = load(bundle.manifest["dataset"], FLAGS.data_dir) if FLAGS.data_dir else None
    inputs = request(bundle, dataset)
    found, seconds = answer(bundle, inputs)
    count = found.counts[0]
    items = bundle.catalogue.items.iloc[found.keys[0, :count]]
    titles = items["title"] if "title" in items else [""] * count
    rows = [
        {"item_id": item, "title": title, "score": round(float(score), 4)}
        for item, title, score in zip(items["item_id"], titles, found.scores[0])
    ]
    if FLAGS.format == "json":
        print(json.dumps({"user_id": FLAGS.user_id, "index": FLAGS.index, "items": rows}, indent=1))
        return
    print(f"user {FLAGS.user_id or 'unknown'}, {FLAGS.index}, {1e3 * seconds:.2f} ms")
    for rank, row in enumerate(rows, 1):
        print(f"{rank:3d}  {row['score']:7.4f}  {row['item_id']:>7s}  {row['title']}")
    if count < FLAGS.k:
        print(f"({count} items: all others are in the history or not in the catalogue)")


if __name__ == "__main__":
    app.run(main)
