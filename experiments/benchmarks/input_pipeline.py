"""Examples that the input pipeline makes, without a model behind it.

    python experiments/benchmarks/input_pipeline.py --data_dir=ml-1m --output=out.json

Each row of `loo` comes with its history of --max_history events at most and all known positives of
its user, as a training step reads them. The windows of a sequential model follow. CPU seconds count
all threads of the process, so they are comparable on a shared machine.
"""

import time

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset, splits
from twotower.training.recipe import Recipe
from twotower.training.training import Training

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "movielens/1m, movielens/100k, synthetic, tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_integer("max_history", 200, "Events that a query sees at most.", lower_bound=1)
flags.DEFINE_integer("epochs", 3, "Timed passes over the training rows.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")


def measured(training: Training, name: str) -> dict:
    """Examples a second and a CPU second, after one epoch that warms up."""
    batches, found = training.batches(), []
    for epoch in range(FLAGS.epochs + 1):
        wall, cpu, num = time.perf_counter(), time.process_time(), 0
        for batch in batches:
            num += int((batch.item.numpy() >= 0).sum())
        if epoch:
            found.append((num / (time.perf_counter() - wall), num / (time.process_time() - cpu)))
    found.sort(key=lambda pair: pair[1])
    per_second, per_cpu_second = found[len(found) // 2]
    print(f"{name:12s} {per_second:10,.0f} examples/s, {per_cpu_second:10,.0f} a CPU second")
    return {"name": name, "examples_per_second": per_second, "per_cpu_second": per_cpu_second}


def main():
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split = splits.make_split(dataset, "loo", "validation")
    window = FLAGS.max_history
    sequence = Recipe(
        query_history="transformer", query_history_length=window, sequence_length=window
    )
    recipes = {"histories": Recipe(max_history=window), "windows": sequence}
    rows = [measured(Training(dataset, split, recipe), name) for name, recipe in recipes.items()]
    if FLAGS.output:
        write_result(FLAGS.output, {"max_history": window, "rows": rows, **provenance()})


if __name__ == "__main__":
    script.run(main)
