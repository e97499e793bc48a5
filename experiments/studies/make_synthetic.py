"""Writes a synthetic dataset of any size as Parquet files.

    python experiments/studies/make_synthetic.py --num_items=200000 --num_users=6000 \
        --num_interactions=1000000 --output=FOLDER
    python experiments/train.py --dataset=tables --data_dir=FOLDER --workdir=W

A large one takes minutes to draw (each watch is drawn from all items), so it is drawn once. What is
true of these users and items stands in twotower/data/planted.py.
"""

import dataclasses

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.data import tables
from twotower.data.planted import SyntheticConfig
from twotower.data.synthetic import generate

FIELDS = ("num_users", "num_items", "num_interactions", "num_clusters", "seed")

FLAGS = flags.FLAGS
for field in dataclasses.fields(SyntheticConfig):
    if field.name in FIELDS:
        flags.DEFINE_integer(field.name, field.default, f"{field.name} of SyntheticConfig.")
script.DEFINE_path("output", None, "Folder to write.", required=True)


def main():
    config = SyntheticConfig(**{name: FLAGS[name].value for name in FIELDS})
    tables.save(generate(config).dataset, FLAGS.output)
    print(f"wrote {config.name} to {FLAGS.output}")


if __name__ == "__main__":
    script.run(main)
