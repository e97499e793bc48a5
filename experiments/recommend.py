"""Recommends titles to one user from a bundle.

    python experiments/recommend.py --bundle=W/bundle --user_id=42 --data_dir=ml-1m --k=10
    python experiments/recommend.py --bundle=W/bundle --history=260,1196,1210 --format=json

With --data_dir the user's own history and columns are looked up. Without, --history says what was
watched, oldest first; a user that the model does not know is placed by that history alone. With
neither user nor history the answer is what unknown users like.
"""

import json
import time

import numpy as np
from absl import app, flags

import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.data import load_dataset
from twotower.retrieval.candidates import Candidates

FLAGS = flags.FLAGS
script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
script.DEFINE_path("data_dir", None, "Where to look up the user's history and columns.")
flags.DEFINE_string("user_id", "", "The user; '' for an unknown one.")
flags.DEFINE_list("history", [], "Item ids watched, oldest first; instead of --data_dir.")
flags.DEFINE_integer("time", None, "Seconds of the request, for protocols +time; now by default.")
flags.DEFINE_integer("k", 10, "How many items.", lower_bound=1)
flags.DEFINE_string("index", "exact", "exact, or an index of the bundle such as hnsw or scann.")
flags.DEFINE_list("allowed_uris", [], "Addresses that the index may connect to: a Milvus server's.")
flags.DEFINE_enum("format", "table", ["table", "json"], "How to print.")


def knows(bundle: Bundle, user_id: str) -> bool:
    """Whether the query tower has a vector for the id."""
    path = bundle.directory / "training" / "vocabularies.json"
    return user_id in json.loads(path.read_text()).get("query_tower/user_id", [])


def request(bundle: Bundle, dataset=None) -> tuple[dict[str, np.ndarray], list[str]]:
    """Raw inputs of the query tower for the flags' user, each with a batch dimension of 1; and the
    ids of the items that were watched, which are not answered.

    Raises:
        ValueError: A history item that is not in the catalogue, a user whom the data lacks, or one
            of whom nothing is given.
    """
    history, times, ratings, user = list(FLAGS.history), None, None, {"user_id": FLAGS.user_id}
    unknown = [item for item in history if bundle.catalogue.keys_of([item])[0] < 0]
    if unknown:
        raise ValueError(f"items {unknown} are not in the bundle's catalogue; --history takes ids.")
    names = {spec["name"] for spec in bundle.manifest["query_inputs"]}
    by_id_alone = names <= {"user_id", "time"} and knows(bundle, FLAGS.user_id)
    if FLAGS.user_id and dataset is None and not history and not by_id_alone:
        raise ValueError(
            f"of user {FLAGS.user_id!r} nothing is given that this bundle answers from (it takes "
            f"{sorted(names)}). Give --data_dir, where histories are looked up, or --history; or "
            "no --user_id, for what unknown users like."
        )
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
    inputs = {name: sequences.get(name, np.array([user.get(name, "")], object)) for name in names}
    return inputs, history


def answer(
    bundle: Bundle, inputs: dict[str, np.ndarray], history: list[str]
) -> tuple[Candidates, float]:
    """The best k items that are not in the history, and the seconds that it took."""
    from twotower.ragged import Ragged

    retriever = bundle.retriever(FLAGS.index, FLAGS.allowed_uris)
    seen = bundle.catalogue.keys_of(history)
    bundle.query_tower(inputs)  # the first call is slower: it sets up the graph
    started = time.perf_counter()
    exclude = Ragged.from_rows([seen[seen >= 0]])
    found = retriever.search(bundle.query_tower(inputs), FLAGS.k, exclude=exclude)
    return found, time.perf_counter() - started


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    bundle = Bundle(FLAGS.bundle)
    dataset = load_dataset(bundle.manifest["dataset"], FLAGS.data_dir) if FLAGS.data_dir else None
    inputs, history = request(bundle, dataset)
    found, seconds = answer(bundle, inputs, history)
    count = found.counts[0]
    items = bundle.catalogue.items.iloc[found.keys[0, :count]]
    titles = items["title"] if "title" in items else [""] * count
    rows = [
        {"item_id": item, "title": title, "score": round(float(score), 4)}
        for item, title, score in zip(items["item_id"], titles, found.scores[0])
    ]
    if FLAGS.format == "json":
        asked = {"user_id": FLAGS.user_id, "history": len(history), "index": FLAGS.index}
        print(json.dumps({**asked, "items": rows}, indent=1))
        return
    print(f"user {FLAGS.user_id or 'unknown'}, {FLAGS.index}, {1e3 * seconds:.2f} ms")
    if FLAGS.user_id and not history and not knows(bundle, FLAGS.user_id):
        print("(no history, and an id that the model does not know: what unknown users like)")
    for rank, row in enumerate(rows, 1):
        print(f"{rank:3d}  {row['score']:7.4f}  {row['item_id']:>7s}  {row['title']}")
    if count < FLAGS.k:
        print(f"({count} items: all others are in the history or not in the catalogue)")


if __name__ == "__main__":
    app.run(main)
