"""Times training against a plain TFRS loop with the same towers, batch size and machine.

    python experiments/benchmarks/training.py --data_dir=ml-1m --output=out.json

The variants take turns, `--repeats` times, so that drift of the machine affects all of them:

    tutorial       the loop of the TFRS tutorials: string columns in tf.data, looked up in the
                   graph, every example a row and a column of tfrs.tasks.Retrieval, Keras fit
    same towers    the same towers on looked-up integers, each distinct query and item scored once
    recipe         train.py's defaults, which also read the whole history

The first two have a user id on one side, item id and title on the other, 512 -> 256 -> 128. A
step's share of the machine's matrix product rate counts the floating point operations of dense
layers, bags and scores, forward and backward; `parts` says where the time of a step goes.
"""

import dataclasses
import time

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset, splits
from twotower.objective.task import TaskConfig
from twotower.tf import tf, tfrs
from twotower.training.batch import Batch
from twotower.training.fitting import make_optimizer
from twotower.training.recipe import Recipe
from twotower.training.training import Training

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "movielens/1m, movielens/100k, synthetic, tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_integer("steps", 25, "Timed steps a variant and repeat.", lower_bound=2)
flags.DEFINE_integer("repeats", 3, "How often each variant is timed.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")

WARM_UP = 3


def recipes() -> dict[str, Recipe]:
    """Variant -> recipe."""
    default = Recipe()
    same = dataclasses.replace(
        default,
        query=dataclasses.replace(default.query, features=("user_id",)),
        item=dataclasses.replace(default.item, features=("item_id", "title")),
        task=TaskConfig(correction="none", mask_known_positives=False),
    )
    return {"tutorial": same, "same towers": same, "recipe": default}


class TutorialModel(tfrs.Model):
    """What the TFRS tutorials write, with the same towers."""

    def __init__(self, training: Training, temperature: float) -> None:
        super().__init__()
        self.queries, self.items = training.model.query_tower, training.model.item_tower
        self.task = tfrs.tasks.Retrieval(temperature=temperature)

    def compute_loss(self, features, training=False):
        queries = self.queries(self.queries.encode(features), training=training)
        items = self.items(self.items.encode(features), training=training)
        return self.task(queries, items, compute_metrics=False)


def tutorial_batches(training: Training) -> tf.data.Dataset:
    """Shuffled, batched columns of strings, as the tutorials do it."""
    frame = training.dataset.interactions.iloc[training.split.train]
    titles = training.dataset.items.set_index("item_id")["title"]
    columns = {
        "user_id": frame["user_id"].to_numpy(str),
        "item_id": frame["item_id"].to_numpy(str),
        "title": titles.loc[frame["item_id"]].to_numpy(str),
    }
    data = tf.data.Dataset.from_tensor_slices(columns)
    return data.shuffle(100_000, seed=0).batch(training.recipe.examples.batch_size).cache()


def seconds_a_step(model, batches: tf.data.Dataset) -> float:
    """Seconds a step of Keras fit, after the warm-up."""
    clock = []

    class Clock(tf.keras.callbacks.Callback):
        def on_train_batch_begin(self, batch, logs=None):
            clock.append(time.perf_counter())

    model.fit(batches.take(WARM_UP + FLAGS.steps + 1), verbose=0, callbacks=[Clock()])
    return (clock[-1] - clock[WARM_UP]) / (len(clock) - 1 - WARM_UP)


def matrix_rate() -> float:
    """Floating point operations a second in a float32 product of two 2048 x 2048 matrices."""
    a = tf.random.normal([2048, 2048])
    product = tf.function(lambda x: tf.linalg.matmul(x, x))
    product(a)
    times = []
    for _ in range(10):
        started = time.perf_counter()
        product(a).numpy()
        times.append(time.perf_counter() - started)
    return 2 * 2048**3 / float(np.median(times))


def operations(training: Training, batch: Batch) -> dict[str, float]:
    """Floating point operations of a step by part, forward and backward (3 x forward)."""
    model = training.model
    num_queries, num_items = len(batch.item), len(np.unique(batch.targets().item))

    def dense(tower, rows):
        kernels = [w for w in tower.head.trainable_weights if len(w.shape) == 2]
        return 6 * rows * sum(float(np.prod(kernel.shape)) for kernel in kernels)

    bags = [f for f in model.query_tower.features if f.name == "history"]
    return {
        "query tower": dense(model.query_tower, num_queries)
        # The count matrix has no gradient: forward, and backward to the table.
        + sum(4.0 * num_queries * bag.table.input_dim * bag.dim for bag in bags),
        "item tower": dense(model.item_tower, num_items),
        "scores and loss": 6.0 * num_queries * num_items * model.query_tower.dim,
    }


def parts(training: Training, batch: Batch) -> dict[str, float]:
    """Seconds of a step by part, each alone, forward and backward; median of 7."""
    model, items = training.model, tf.unique(batch.targets().item).y

    def gradient(weights, forward):
        @tf.function
        def run():
            with tf.GradientTape() as tape:
                loss = tf.reduce_sum(forward())
            return tape.gradient(loss, weights)

        return run

    query_step = gradient(
        model.query_tower.trainable_weights,
        lambda: model.query_vectors(batch, training=True),
    )
    item_step = gradient(
        model.item_tower.trainable_weights, lambda: model.item_vectors(items, training=True)
    )

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=True)
        return tape.gradient(loss, model.trainable_variables)

    @tf.function
    def step_and_update():
        with tf.GradientTape() as tape:
            loss = model.compute_loss(batch, training=True)
        gradients = tape.gradient(loss, model.trainable_variables)
        model.optimizer.apply_gradients(zip(gradients, model.trainable_variables))

    def median(run):
        run()
        times = []
        for _ in range(7):
            started = time.perf_counter()
            run()
            times.append(time.perf_counter() - started)
        return float(np.median(times))

    whole = median(step)
    found = {"query tower": median(query_step), "item tower": median(item_step)}
    found["scores and loss"] = max(0.0, whole - sum(found.values()))
    found["optimiser"] = max(0.0, median(step_and_update) - whole)
    return found


def main():
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split = splits.make_split(dataset, "random", "validation")
    rate = matrix_rate()
    seconds, rows = {}, []
    prepared = {}
    for name, recipe in recipes().items():
        training = Training(dataset, split, recipe)
        if name == "tutorial":
            model, batches = TutorialModel(training, recipe.task.temperature), None
            batches = tutorial_batches(training)
            for _ in batches:  # fills the cache, as the tutorials' first epoch does
                pass
            model.compile(optimizer=tf.keras.optimizers.Adagrad(0.1))
        else:
            model, batches = training.model, training.batches()
            model.compile(optimizer=make_optimizer(recipe.fit, 1000))
        prepared[name] = training, model, batches
    for _ in range(FLAGS.repeats):
        for name, (_, model, batches) in prepared.items():
            seconds.setdefault(name, []).append(seconds_a_step(model, batches))
    batch_size = Recipe().examples.batch_size
    speed = {name: batch_size / np.array(times) for name, times in seconds.items()}
    for name, (training, _, _) in prepared.items():
        row = {
            "name": name,
            "examples_per_second": float(np.median(speed[name])),
            "repeats": speed[name].round().tolist(),
            "times_tutorial": float(np.median(speed[name] / speed["tutorial"])),
        }
        if name != "tutorial":
            batch = next(iter(training.batches()))
            work = operations(training, batch)
            a_step = batch_size / row["examples_per_second"]
            row |= {
                "gflop_a_step": sum(work.values()) / 1e9,
                "share_of_matrix_rate": sum(work.values()) / a_step / rate,
                "parts_seconds": parts(training, batch),
                "step_seconds": a_step,
            }
        rows.append(row)
        print(
            f"{name:12s} {row['examples_per_second']:10,.0f} examples/s, "
            f"{row['times_tutorial']:.2f} x tutorial, share of the matrix rate "
            f"{row.get('share_of_matrix_rate', float('nan')):.2f}"
        )
    result = {
        "rows": rows,
        "batch_size": batch_size,
        "matrix_gflop_per_second": rate / 1e9,
        **provenance(),
    }
    if FLAGS.output:
        write_result(FLAGS.output, result)


if __name__ == "__main__":
    script.run(main)
