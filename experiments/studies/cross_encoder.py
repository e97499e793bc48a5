"""What two towers give up: a network over query and item together, which no index can serve.

    python experiments/studies/cross_encoder.py \
        --flagfile=experiments/flags/studies/cross_encoder.flags \
        --data_dir=ml-1m --workdir=W --output=out.json

Trains two models with the same towers, columns and epochs. The score is the dot product in one, and
in the other the cross-encoder MLP([q, i, q * i]) (the deep part of NeuMF, He et al., WWW 2017,
section 3.3, with its product), which can represent more than a dot product of two vectors. A column
costs so much that the flag file draws only a few, uniformly from the catalogue, for both models.
The figures are on validation, with the time of training and of an answer over the whole catalogue.
"""

import dataclasses
import pathlib
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset, splits
from twotower.evaluation.evaluate import evaluate, from_scores
from twotower.objective.task import RetrievalTask
from twotower.tf import tf
from twotower.training import flags as recipe_flags
from twotower.training.fitting import fit
from twotower.training.recipe import Recipe
from twotower.training.training import Training

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "movielens/1m, movielens/100k, synthetic, tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_string("split", "random", "Protocol.")
script.DEFINE_path("workdir", None, "Folder of the two trainings.", required=True)
flags.DEFINE_integer("width", 64, "Of the hidden layer over a pair.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")
recipe_flags.define()

TIMED_CASES = 100


class CrossRetrieval(RetrievalTask):
    """The retrieval task with MLP([q, i, q * i]) for a score.

    The first layer over [q, i] is a sum of one layer over q and one over i, so that only the
    product is computed for each pair.
    """

    def __init__(self, width: int, *args) -> None:
        super().__init__(*args)
        self.of_query = tf.keras.layers.Dense(width)
        self.of_item = tf.keras.layers.Dense(width, use_bias=False)
        self.of_product = tf.keras.layers.Dense(width, use_bias=False)
        self.out = tf.keras.layers.Dense(1)

    def _score(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        hidden = self.of_query(queries) + self.of_item(items) + self.of_product(queries * items)
        return self.out(tf.nn.relu(hidden))[..., 0]

    def pairs(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        return self._score(queries, items)

    def matrix(self, queries: tf.Tensor, items: tf.Tensor) -> tf.Tensor:
        return self._score(queries[:, None], items[None])


class CrossTraining(Training):
    """A training whose model scores pairs, and is validated by scoring all of them."""

    def __init__(self, dataset, split, recipe: Recipe, width: int) -> None:
        super().__init__(dataset, split, recipe)
        model = self.model
        model.task = CrossRetrieval(width, recipe.task, model.num_items, recipe.negatives)
        model.task.pairs(*[tf.zeros([1, recipe.query.dim])] * 2)  # builds its weights
        self.score = tf.function(model.task.matrix, reduce_retracing=True)

    def recommender(self):
        vectors = self.item_vectors(np.arange(self.model.num_items))

        def score(cases):
            return self.score(self.query_vectors(cases), vectors).numpy()

        return from_scores(score, self.split.candidates, batch_size=64)


def recipes() -> tuple[Recipe, Recipe]:
    """Of the two towers, as the flags say, and of the cross-encoder: an MLP needs no cosine, and no
    temperature to stretch it."""
    base = recipe_flags.recipe()
    # The last epoch counts: a checkpoint of the best one has the towers alone.
    base = dataclasses.replace(base, fit=dataclasses.replace(base.fit, keep_best=False, patience=0))
    return base, dataclasses.replace(
        base,
        query=dataclasses.replace(base.query, l2_normalise=False),
        item=dataclasses.replace(base.item, l2_normalise=False),
        task=dataclasses.replace(base.task, temperature=1.0),
    )


def answer_ms(training: Training) -> float:
    """Median time of one query's best 100 of the whole catalogue, its vector included."""
    recommend, seconds = training.recommender(), []
    for number in range(min(TIMED_CASES, len(training.split.cases))):
        begun = time.perf_counter()
        recommend(training.split.cases.take(np.array([number])), 100)
        seconds.append(time.perf_counter() - begun)
    return 1e3 * float(np.median(seconds))


def main():
    towers, cross = recipes()
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split, rows = splits.make_split(dataset, FLAGS.split, "validation"), []
    for name, make in (
        ("two towers", lambda: Training(dataset, split, towers)),
        ("cross-encoder", lambda: CrossTraining(dataset, split, cross, FLAGS.width)),
    ):
        training = make()
        result = fit(training, pathlib.Path(FLAGS.workdir) / name.replace(" ", "_"))
        report = evaluate(training.recommender(), split, dataset)
        row = {
            "name": name,
            "protocol": split.protocol,
            "part": split.part,
            "metrics": report.metrics,
            "log": result.log,
            "training_seconds": round(result.seconds, 1),
            "answer_ms": answer_ms(training),
        }
        rows.append(row)
        found = report.metrics["recall_micro@100"]
        print(
            f"{name:14s} recall_micro@100 {found['mean']:.4f} [{found['low']:.4f}, "
            f"{found['high']:.4f}]  {row['training_seconds']:.0f} s of training, "
            f"{row['answer_ms']:.2f} ms a query",
            flush=True,
        )
    if FLAGS.output:
        write_result(FLAGS.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    script.run(main)
