"""What a step of training costs with each kind of negatives, beside plain in-batch ones.

    python experiments/benchmarks/negatives.py --data_dir=ml-1m --output=out.json

The default recipe with other columns, at each of --batch_sizes: mined hard negatives (a tenth of a
row's), uniform draws beside the batch's, a memory of past batches, the whole catalogue, and other
losses. Variants take turns, --repeats times, so that drift of the machine affects all of them. A
ratio compares a step with the plain step of the same repeat. Mining is measured separately: seconds
for all users, once.
"""

import dataclasses
import time

import numpy as np
from absl import app, flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset, splits
from twotower.tf import tf
from twotower.training.recipe import Recipe
from twotower.training.training import Training

# Name -> what differs from the default recipe, by part.
VARIANTS = {
    "batch": {},
    "hard, 10%": {"negatives": {"hard_negative_share": 0.1}, "mining": {"depth": 600}},
    "batch and 1024 uniform": {"negatives": {"negatives": ("batch", "uniform")}},
    "batch and memory of 8192": {"negatives": {"negatives": ("batch", "memory")}},
    "catalogue": {"negatives": {"negatives": ("catalogue",)}, "task": {"correction": "none"}},
    "hardest 100 of the batch": {"negatives": {"num_hardest": 100}},
    "bce": {"task": {"loss": "bce"}},
    "triplet": {"task": {"loss": "triplet", "temperature": 1.0}},
}

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "movielens/1m, movielens/100k, synthetic, tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_list("batch_sizes", ["256", "4096"], "Examples a batch.")
flags.DEFINE_list("variants", [*VARIANTS], "Kinds of negatives; `batch` must be one.")
flags.DEFINE_integer("steps", 20, "Timed steps a variant and repeat.", lower_bound=2)
flags.DEFINE_integer("repeats", 5, "How often each variant is timed.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")

WARM_UP = 3


def prepared(dataset, split, name: str, batch_size: int) -> tuple:
    """A step function over batches that are there already, and the seconds of a mining."""
    recipe, parts = Recipe(), VARIANTS[name]
    recipe = dataclasses.replace(
        recipe,
        **{part: dataclasses.replace(getattr(recipe, part), **new) for part, new in parts.items()},
    )
    sized = dataclasses.replace(recipe.examples, batch_size=batch_size)
    training = Training(dataset, split, dataclasses.replace(recipe, examples=sized))
    model, mining = training.model, None
    model.compile(optimizer=tf.keras.optimizers.Adam(1e-3))
    if training.miner is not None:
        begun = time.perf_counter()
        training.mine()
        mining = time.perf_counter() - begun
    batches = list(training.batches().take(8))
    step = tf.function(model.train_step, reduce_retracing=True)

    def run(number: int) -> float:
        begun = time.perf_counter()
        for turn in range(number):
            step(batches[turn % len(batches)])
        return (time.perf_counter() - begun) / number

    run(WARM_UP + len(batches))
    return run, mining, int(batches[0].hard_negatives.shape[1])


def main():
    if unknown := set(FLAGS.variants) - VARIANTS.keys():
        raise app.UsageError(f"--variants: {sorted(unknown)} are none of {[*VARIANTS]}.")
    if "batch" not in FLAGS.variants:
        raise app.UsageError("--variants needs `batch`, which the others are measured by.")
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split, rows = splits.make_split(dataset, "random", "validation"), []
    for batch_size in map(int, FLAGS.batch_sizes):
        made = {name: prepared(dataset, split, name, batch_size) for name in FLAGS.variants}
        seconds = {name: [] for name in made}
        for _ in range(FLAGS.repeats):
            for name, (run, *_) in made.items():
                seconds[name].append(run(FLAGS.steps))
        for name, (_, mining, width) in made.items():
            row = {
                "name": name,
                "batch_size": batch_size,
                "step_ms": 1e3 * float(np.median(seconds[name])),
                "ratio": float(np.median(np.divide(seconds[name], seconds["batch"]))),
                "own_negatives": width,
                "mining_s": mining,
            }
            rows.append(row)
            apart = f", mining {mining:.1f} s" if mining else ""
            print(
                f"batch {batch_size:5d}  {name:26s} {row['step_ms']:7.1f} ms a step, "
                f"{row['ratio']:.2f} x{apart}",
                flush=True,
            )
    if FLAGS.output:
        write_result(FLAGS.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    script.run(main)
