"""The error of the streaming estimate of p_c against true counts.

    python experiments/benchmarks/frequency.py --data_dir=ml-1m --output=out.json

The training rows pass in batches, as in training, --epochs times. The figures are the median and
the 90th percentile of the relative error, over items seen --least times or more. Time is counted in
examples, as training does, or in batches, as Yi et al. (RecSys 2019) write the algorithm. In
batches of B, it estimates the share b of batches that have the item. Then p is `b / B` or, exactly,
`1 - (1 - b) ** (1 / B)`.
"""

import dataclasses

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.provenance import provenance, write_result
from twotower.data import load_dataset, splits
from twotower.data.examples import Examples, ExamplesConfig
from twotower.objective.frequency import StreamingFrequency

FLAGS = flags.FLAGS
flags.DEFINE_string("dataset", "movielens/1m", "movielens/1m, movielens/100k, synthetic, tables.")
script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
flags.DEFINE_integer("epochs", 2, "Passes over the training rows.", lower_bound=1)
flags.DEFINE_integer("least", 50, "Examples of an item that is judged.", lower_bound=1)
flags.DEFINE_integer("batch_size", ExamplesConfig().batch_size, "Examples a batch.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")

# Buckets for each item of the catalogue, hash functions.
SIZES = ((4.0, 2), (4.0, 1), (1.0, 2), (1.0, 4), (0.5, 4))


def estimates(examples: Examples, num_items: int):
    """After each epoch: (epoch, how time is counted, buckets an item, hashes, `[num_items]` p)."""
    everything = np.arange(num_items)
    streams = {size: StreamingFrequency(round(size[0] * num_items), size[1]) for size in SIZES}
    by_batch, batch = StreamingFrequency(round(SIZES[0][0] * num_items), SIZES[0][1]), 0
    for epoch in range(FLAGS.epochs):
        plan = examples.epoch(epoch)
        items = examples.items[plan.targets.values]
        for found in np.split(items, plan.targets.offsets[plan.batches[1:-1]]):
            for stream in streams.values():
                stream.update(found)
            batch += 1
            present = np.unique(found)
            by_batch.update(present, np.full(len(present), batch))
        for size, stream in streams.items():
            yield epoch + 1, "examples", *size, stream.probability(everything)
        there = np.minimum(by_batch.probability(everything), 1 - 1e-7)
        yield epoch + 1, "batches", *SIZES[0], there / FLAGS.batch_size
        undone = 1 - (1 - there) ** (1 / FLAGS.batch_size)
        yield epoch + 1, "batches, undone", *SIZES[0], undone


def main():
    dataset = load_dataset(FLAGS.dataset, FLAGS.data_dir)
    split = splits.make_split(dataset, "random", "validation")
    config = dataclasses.replace(ExamplesConfig(), batch_size=FLAGS.batch_size)
    examples, rows = Examples(dataset, split, config), []
    count = np.bincount(examples.items, minlength=len(dataset.items))
    judged = np.flatnonzero(count >= FLAGS.least)
    share = count[judged] / len(examples)
    for epoch, time, buckets, hashes, p in estimates(examples, len(dataset.items)):
        error = np.abs(p[judged] - share) / share
        row = {
            "epochs": epoch,
            "time": time,
            "buckets_per_item": buckets,
            "hashes": hashes,
            "items": len(judged),
            "median_error": float(np.median(error)),
            "p90_error": float(np.quantile(error, 0.9)),
        }
        rows.append(row)
        print("  ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    if FLAGS.output:
        write_result(FLAGS.output, {"rows": rows, **provenance()})


if __name__ == "__main__":
    script.run(main)
