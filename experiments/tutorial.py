"""Two-tower retrieval in one file of plain TensorFlow Recommenders, FAISS and ScaNN.

    python experiments/tutorial.py --data_dir=ml-1m
    python experiments/tutorial.py --data_dir=ml-1m --change=adam --change=log_q

Without a change it is the model of widely copied tutorials, which print a top-100 accuracy of .4265
and find .03; the 100 most popular find .18. `adam` is Adam with a mean loss in place of a sum.
`log_q` corrects for popular films, negatives in every batch. `temperature` divides the scores.
"""

import json
import logging
import os
import pathlib
import re
import tempfile

os.environ["TF_USE_LEGACY_KERAS"] = "1"  # TFRS needs Keras 2; TensorFlow reads this when imported
os.environ.setdefault("TF_CPP_MIN_LOG_LEVEL", "3")
import faiss
import numpy as np
import tensorflow as tf
import tensorflow_recommenders as tfrs
from absl import app, flags

FLAGS, layers = flags.FLAGS, tf.keras.layers
flags.DEFINE_string("data_dir", None, "Folder of GroupLens' ml-1m or ml-100k.", required=True)
flags.DEFINE_multi_enum("change", [], ["adam", "log_q", "temperature"], "Repeat it for several.")
flags.DEFINE_string("workdir", None, "For models and metrics; a temporary folder by default.")
flags.DEFINE_integer("epochs", 10, "Passes over the training ratings.", lower_bound=1)
flags.DEFINE_integer("seed", 0, "Of the initial weights and the order of the ratings.")


def read(folder: pathlib.Path, name: str, old_name: str) -> list[list[str]]:
    """The first two columns of a file: ids of user and film, or id and title of a film."""
    path = folder / (name if (folder / name).exists() else old_name)
    return [re.split(r"::|\t|\|", x)[:2] for x in path.read_text("latin-1").strip().split("\n")]


def tower(ids: np.ndarray, dim: int) -> tf.keras.Model:
    """Ids `[batch]` -> vectors of length 1, `[batch, 128]`. Ids it does not know share one."""
    inputs = layers.Input((), dtype=tf.string)  # [batch]
    lookup = layers.StringLookup(vocabulary=ids)
    x = layers.Embedding(lookup.vocabulary_size(), dim)(lookup(inputs))  # [batch, dim]
    for size in (512, 256):
        x = layers.Dense(size, "relu")(x)  # [batch, size]
    return tf.keras.Model(inputs, layers.UnitNormalization()(layers.Dense(128)(x)))


class TwoTowers(tfrs.Model):
    def __init__(self, users: np.ndarray, films: np.ndarray, candidates: np.ndarray) -> None:
        super().__init__()
        self.query_tower, self.item_tower = tower(users, 64), tower(films, 128)
        ids = tf.data.Dataset.from_tensor_slices(candidates).batch(1024)
        self.candidates = ids.map(lambda film: (film, self.item_tower(film)))  # ids and vectors
        topk = tfrs.metrics.FactorizedTopK(self.candidates)
        mean = tf.keras.losses.CategoricalCrossentropy(from_logits=True)
        loss = mean if "adam" in FLAGS.change else None  # None is the sum over the batch
        temperature = 0.1 if "temperature" in FLAGS.change else None
        self.task = tfrs.tasks.Retrieval(loss, topk, temperature=temperature)

    def compute_loss(self, batch, training=False):
        user, film, share = batch  # [batch] each
        queries, items = self.query_tower(user), self.item_tower(film)  # [batch, 128] each
        # The task scores every user with every film, [batch, batch]. The diagonal is right and all
        # else is wrong. log-Q subtracts the log of a film's share of the ratings from its scores.
        share = share if "log_q" in FLAGS.change else None
        return self.task(queries, items, None, share, film, compute_metrics=not training)


def main(_):
    logging.disable(logging.WARNING)
    tf.keras.utils.set_random_seed(FLAGS.seed)
    folder = pathlib.Path(FLAGS.data_dir)
    ratings = np.array(read(folder, "ratings.dat", "u.data"))  # [1_000_209, 2]: user, film
    titles = dict(read(folder, "movies.dat", "u.item"))
    rows = ratings[np.random.default_rng(42).permutation(len(ratings))[:100_000]]
    train, test = np.split(rows, [round(0.8 * len(rows))])  # [80_000, 2], [20_000, 2]
    films, counts = np.unique(train[:, 1], return_counts=True)
    shares = dict(zip(films, counts / len(train)))

    def dataset(rows) -> tf.data.Dataset:
        share = np.array([shares.get(film, 0) for film in rows[:, 1]], np.float32)
        return tf.data.Dataset.from_tensor_slices((*rows.T, share))  # user, film, the film's share

    model = TwoTowers(np.unique(train[:, 0]), films, candidates=np.unique(ratings[:, 1]))
    model.compile("adam" if "adam" in FLAGS.change else tf.keras.optimizers.Adagrad(0.1))
    batches = dataset(train).shuffle(len(train)).batch(4096)
    for epoch in range(FLAGS.epochs):
        loss = model.fit(batches, verbose=0).history["loss"][0]
        print(f"epoch {epoch + 1}: loss of the last batch {loss:.4g}", flush=True)
    metrics = model.evaluate(dataset(test).batch(4096), return_dict=True, verbose=0)
    accuracy = metrics["factorized_top_k/top_100_categorical_accuracy"]
    popular = np.isin(test[:, 1], films[np.argsort(-counts, kind="stable")[:100]]).mean()
    print(f"top-100 accuracy {accuracy:.4f}; of the 100 most popular films {popular:.4f}")

    workdir = pathlib.Path(FLAGS.workdir or tempfile.mkdtemp())
    ids, vectors = map(np.concatenate, zip(*model.candidates.as_numpy_iterator()))
    hnsw = faiss.IndexHNSWFlat(128, 32, faiss.METRIC_INNER_PRODUCT)
    hnsw.add(vectors)  # [3_706, 128]
    scann = tfrs.layers.factorized_top_k.ScaNN(model.query_tower, num_leaves=int(len(ids) ** 0.5))
    scann.index_from_dataset(model.candidates)
    scann(user := test[:1, 0])  # [1]: the call that its SavedModel answers
    parts = {"query_tower": model.query_tower, "item_tower": model.item_tower, "scann": scann}
    options = tf.saved_model.SaveOptions(namespace_whitelist=["Scann"])  # ScaNN's operations
    for name, part in parts.items():
        tf.saved_model.save(part, str(workdir / name), options=options)
    (workdir / "metrics.json").write_text(json.dumps(metrics))

    # What a service does, from the SavedModels alone: a user id in, ten films out.
    query_tower, scann = (tf.saved_model.load(str(workdir / x)) for x in ("query_tower", "scann"))
    _, rows = hnsw.search(query_tower(user).numpy(), 10)  # [1, 10]
    _, found = scann(user)  # [1, 10]
    print(f"user {user[0]}: HNSW and ScaNN, from {workdir}")
    for pair in zip(ids[rows[0]], found.numpy()[0]):
        print("  ".join(f"{titles[film.decode()]:48.48s}" for film in pair))


if __name__ == "__main__":
    app.run(main)
