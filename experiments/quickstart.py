"""Five minutes from nothing to ten titles: train, evaluate, export, index, recommend.

    python experiments/quickstart.py
    python experiments/quickstart.py --data_dir=ml-1m
    python experiments/quickstart.py --interactions=log.csv --columns=user_id=customer

It takes the first of these that there is: your own files (--interactions); the MovieLens in
--data_dir; MovieLens 1M from TFDS, prepared or downloaded; or synthetic data, whose best possible
score is known. The figures are on validation. For test figures use experiments/train.py and
experiments/evaluate.py.
"""

import dataclasses
import tempfile
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.export import add_index, export
from twotower.data import flags as data_flags
from twotower.data import movielens, splits, synthetic
from twotower.data.examples import ExamplesConfig
from twotower.data.summary import summarise
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import evaluate, from_scores
from twotower.retrieval.backends.scann_index import available
from twotower.retrieval.build import IndexConfig
from twotower.storage import paths
from twotower.towers.history.config import MeanConfig
from twotower.towers.item import ItemConfig
from twotower.towers.query import QueryConfig
from twotower.training.defaults import describe, recipe_for
from twotower.training.fitting import fit
from twotower.training.recipe import FitConfig, Recipe
from twotower.training.training import Training

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "Or movielens/100k, ..., or tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your files'.")
data_flags.define()
flags.DEFINE_string("split", "", "Protocol; random for MovieLens and loo for your own by default.")
flags.DEFINE_bool("synthetic", False, "Take the made-up catalogue even where MovieLens is there.")
script.DEFINE_path("workdir", None, "Where the bundle goes; a temporary folder by default.")
flags.DEFINE_integer("epochs", 4, "Passes over the training rows.", lower_bound=1)
flags.DEFINE_integer("k", 10, "Titles to print.", lower_bound=1)
flags.DEFINE_string("user_id", "", "Whose; a user with a middling history by default.")

# Training rows of which a few epochs are enough for a first look.
LARGE = 65_536
SHOWN = ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500")


def find_data():
    """(split, dataset, recipe, oracle): MovieLens 1M, or made-up data where there is none.

    The oracle is None, or computes the true scores of all items for cases with a request time.
    """
    fit_config = FitConfig(epochs=FLAGS.epochs, warmup_steps=50, patience=0)
    if not FLAGS.synthetic:
        try:
            if FLAGS.data_dir and not FLAGS.interactions and not FLAGS["dataset"].present:
                FLAGS.dataset = movielens.dataset_in(FLAGS.data_dir)
            dataset = data_flags.dataset()
            is_movielens = dataset.name.startswith("movielens")
            protocol = FLAGS.split or ("random" if is_movielens else "loo")
            split = splits.make_split(dataset, protocol)
            recipe = recipe_for(dataset, split)
            if len(split.train) >= LARGE or FLAGS["epochs"].present:
                recipe = dataclasses.replace(recipe, fit=fit_config)
            return split, dataset, recipe, None
        except movielens.MovieLensUnavailable as error:
            if FLAGS.data_dir:
                raise
            print(f"\n*** NO MOVIELENS 1M HERE, SO THIS RUNS ON MADE-UP DATA. *** {error}\n")
    made = synthetic.generate()
    dataset = made.dataset
    recipe = Recipe(
        query=QueryConfig(
            features=(
                "user_id",
                "gender",
                "age",
                "occupation",
                "history",
                "time",
                "device",
                "search_text",
            ),
            unknown_rate=0.1,
            history=MeanConfig(dropout=0.2),
        ),
        item=ItemConfig(
            features=(
                "item_id",
                "title",
                "description",
                "genres",
                "maker",
                "year",
                "quality",
                "audio",
                "age",
            ),
        ),
        # Few rows: smaller batches, and so more, smaller steps.
        examples=ExamplesConfig(batch_size=512, max_history=100),
        fit=dataclasses.replace(fit_config, learning_rate=1e-3),
    )
    users = {user_id: row for row, user_id in enumerate(dataset.users["user_id"])}

    def oracle(cases):
        rows = np.array([users[user_id] for user_id in cases.user_id])
        context = cases.context
        return made.scores_of(rows, cases.time, context["device"], context["search_text"])

    return splits.make_split(dataset, "loo+time"), dataset, recipe, oracle


def print_table(rows: dict[str, dict], split) -> None:
    """One line for each recommender."""
    print(
        f"\n{split.protocol}, {split.part}: {len(split.cases):,} users, whole catalogue of "
        f"{len(split.candidates):,} items, seen items excluded"
    )
    print(f"{'':22s}" + "".join(f"{name:>18s}" for name in SHOWN))
    for name, values in rows.items():
        print(f"{name:22s}" + "".join(f"{values[key]['mean']:18.4f}" for key in SHOWN))
    print()


def main():
    started = time.perf_counter()
    split, dataset, recipe, oracle = find_data()
    case = pick_case(split)
    workdir = paths.literal(FLAGS.workdir or tempfile.mkdtemp(prefix="twotower-"))
    print(summarise(dataset))
    print(describe(dataset, split, recipe))

    training = Training(dataset, split, recipe)
    result = fit(training, workdir)
    print(
        f"trained {result.epoch} epochs in {result.seconds:.0f} s, "
        f"{result.examples_per_second:,.0f} examples/s"
    )

    popularity = baselines.Popularity().fit(dataset, split.train, split.candidates)
    rows = {
        "popularity": evaluate(popularity.recommend, split, dataset).metrics,
        "two towers": training.validate(),
    }
    if oracle is not None:
        best = from_scores(oracle, split.candidates)
        rows["best possible"] = evaluate(best, split, dataset).metrics
    print_table(rows, split)

    bundle = export(training, workdir / "bundle")
    print(f"exported {bundle.directory}")
    names = ["exact", "hnsw"] + ["scann"] * available()
    for name in names[1:]:
        before = time.perf_counter()
        add_index(bundle, name, IndexConfig(name))
        print(f"built index {name} in {time.perf_counter() - before:.1f} s")

    inputs = training.raw_query_inputs(case)
    bundle.query_tower(inputs)  # the first call sets up the graph
    for name in names:
        recommend(bundle, name, inputs, case)
    print(f"all in {time.perf_counter() - started:.0f} s; everything is in {workdir}")


def pick_case(split):
    """The asked user's case, or that of a user with a middling history."""
    if FLAGS.user_id:
        rows = np.flatnonzero(split.cases.user_id == FLAGS.user_id)
        if not len(rows):
            raise ValueError(f"user {FLAGS.user_id!r} is not among the validation cases.")
    else:
        lengths = split.cases.history.lengths
        rows = np.argsort(lengths, kind="stable")[[len(lengths) // 2]]
    return split.cases.take(rows[:1])


def recommend(bundle, name: str, inputs: dict, case) -> None:
    """Prints k titles from one index, and how long raw features to titles took."""
    retriever, items = bundle.retriever(name), bundle.catalogue.items
    titles = items["title" if "title" in items else "item_id"].to_numpy()
    retriever.search(bundle.query_tower(inputs), FLAGS.k, exclude=case.exclude)
    before = time.perf_counter()
    found = retriever.search(bundle.query_tower(inputs), FLAGS.k, exclude=case.exclude)
    answer = titles[found.keys[0, : found.counts[0]]]
    milliseconds = 1e3 * (time.perf_counter() - before)
    print(f"\nuser {case.user_id[0]}, {name}, {milliseconds:.2f} ms from raw features to titles")
    for rank, (title, score) in enumerate(zip(answer, found.scores[0]), 1):
        print(f"{rank:3d}  {score:7.4f}  {title}")


if __name__ == "__main__":
    script.run(main)
