"""Recommends titles from a bundle to one person or several.

    twotower recommend --bundle=W/bundle --data_dir=ml-1m --user_id=42,7
    twotower recommend --bundle=W/bundle --history=260,1196,1210 --genres=Comedy --years=1980-1999

With --data_dir the user's own history and columns are looked up. Without, --history says what was
liked, oldest first; somebody whom the model does not know is placed by that history alone. With
neither user nor history the answer is what unknown users like.

`near` names the item of the history whose vector is nearest to a title's.
"""

import json
import re
import time
from collections.abc import Collection
from typing import TYPE_CHECKING, Any

from absl import flags

from twotower.commands import script

if TYPE_CHECKING:
    from twotower.data.dataset import Dataset

FLAGS = flags.FLAGS
FIRST = ("bundle", "user_id", "data_dir", "history", "k")


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    script.DEFINE_path("data_dir", None, "Where to look up users' histories and columns.")
    flags.DEFINE_list("user_id", [], "One user or several; none for an unknown one.")
    flags.DEFINE_list("history", [], "Ids of items liked, oldest first; instead of --data_dir.")
    flags.DEFINE_list("exclude", [], "Ids of further items not to recommend.")
    flags.DEFINE_list("genres", [], "Only items with one of these genres.")
    flags.DEFINE_string(
        "years", None, "Only items of these years: 1980-1999, 1990, 1990- or -1979."
    )
    flags.DEFINE_integer(
        "time", None, "Seconds of the request, for protocols +time; now by default."
    )
    flags.DEFINE_integer("k", 10, "How many items.", lower_bound=1)
    flags.DEFINE_string("index", "exact", "exact, or an index of the bundle such as hnsw or scann.")
    flags.DEFINE_list(
        "allowed_uris", [], "Addresses that the index may connect to: a Milvus server's."
    )
    flags.DEFINE_bool("json", False, "Print a JSON object for each user, one a line.")
    flags.DEFINE_integer("shown", 5, "Last items of the history to print.", lower_bound=0)


def conditions() -> dict[str, Any]:
    """What the flags ask of the catalogue's columns.

    Raises:
        ValueError: Years that are not a range.
    """
    found: dict[str, Any] = {"genres": FLAGS.genres} if FLAGS.genres else {}
    if FLAGS.years is not None:
        years = re.fullmatch(r"(?=.*\d)(\d*)(-?)(\d*)", FLAGS.years.strip())
        if years is None:
            raise ValueError(f"--years takes 1980-1999, 1990, 1990- or -1979; got {FLAGS.years!r}.")
        low, dash, high = years.groups()
        high = high if dash else low
        if low and high and int(low) > int(high):
            raise ValueError(f"--years={FLAGS.years} ends before it begins: give {high}-{low}.")
        found["year"] = (int(low) if low else None, int(high) if high else None)
    return found


def of_user(dataset: "Dataset", user_id: str, names: Collection[str]) -> dict[str, Any]:
    """What the data knows of a user, as arguments of `Bundle.recommend`.

    Args:
        dataset: Where to look.
        user_id: Whom.
        names: Inputs of the query tower.

    Raises:
        ValueError: The data does not have the user.
    """
    found = dataset.users[dataset.users["user_id"] == user_id]
    if found.empty:
        raise ValueError(f"{dataset.name} has no user {user_id!r}.")
    liked = dataset.interactions[dataset.positive]
    liked = liked[liked["user_id"] == user_id].sort_values("timestamp", kind="stable")
    known = {name: value for name, value in found.iloc[0].items() if name in names}
    return {
        "inputs": known,
        "history": liked["item_id"].to_list(),
        "times": liked["timestamp"].to_list(),
        "ratings": liked["rating"].to_list() if "rating" in liked else None,
    }


def main() -> None:
    """Prints a table, or a line of JSON, for each user."""
    # Here, so that --help and wrong flags need no pandas.
    from twotower.bundle.bundle import Bundle
    from twotower.bundle.recommendations import described
    from twotower.data import load_dataset

    where = conditions()
    bundle = Bundle(FLAGS.bundle)
    names = [spec["name"] for spec in bundle.manifest["query_inputs"]]
    dataset, reading = None, bundle.manifest.get("dataset_reading", {})
    if FLAGS.data_dir:
        dataset = load_dataset(bundle.manifest["dataset"], FLAGS.data_dir, **reading)
    if FLAGS.history and len(FLAGS.user_id) > 1:
        raise ValueError("--history is that of one user; give --data_dir for several.")
    retriever = bundle.retriever(FLAGS.index, FLAGS.allowed_uris)
    bundle.recommend(k=1, index=retriever)  # the first call is slower: it sets up the graph
    for user_id in FLAGS.user_id or [""]:
        known = {} if dataset is None or not user_id else of_user(dataset, user_id, names)
        if FLAGS.history:
            known = {"inputs": known.get("inputs"), "history": FLAGS.history}
        started = time.perf_counter()
        found = bundle.recommend(
            k=FLAGS.k,
            user_id=user_id,
            time=FLAGS.time,
            exclude=FLAGS.exclude,
            where=where,
            index=retriever,
            **known,
        )
        seconds = time.perf_counter() - started
        if FLAGS.json:
            answer = {"user_id": user_id, "history": len(found.history), "index": FLAGS.index}
            print(json.dumps({**answer, "items": found.rows()}, ensure_ascii=False))
            continue
        print(f"user {user_id or 'unknown'}, {FLAGS.index}, {1e3 * seconds:.2f} ms")
        liked = found.history.iloc[len(found.history) - min(FLAGS.shown, len(found.history)) :]
        if len(liked):
            print(f"liked {len(found.history):,} items, the last of them:")
            for item, text in zip(liked["item_id"], described(liked)):
                print(f"     {'':7s}  {item:>7s}  {text}")
            print("recommended:")
        if len(found):
            print(found)
        if len(found) < FLAGS.k:
            print(f"({len(found)} items: no others {'meet the filters' if where else 'are left'})")
