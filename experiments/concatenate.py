"""Writes several bundles as one, with their vectors side by side and the mean of their scores.

    python experiments/concatenate.py --bundles=W0/bundle,W1/bundle,W2/bundle --output=W/bundle
    python experiments/evaluate.py --bundle=W/bundle --data_dir=ml-1m --part=test --name='3 seeds'

With three bundles of one dimension, the vectors of an index are three times as long, and each
request runs three query towers. experiments/benchmarks/latency.py measures what that costs.
"""

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.bundle.concatenation import concatenate
from twotower.bundle.export import add_index
from twotower.retrieval.backends.scann_index import available
from twotower.retrieval.build import IndexConfig, make
from twotower.storage import paths

FLAGS = flags.FLAGS
flags.DEFINE_list("bundles", None, "Folders of two or more bundles.", required=True)
script.DEFINE_path("output", None, "Folder of the new bundle.", required=True)
flags.DEFINE_list("indexes", ["hnsw"] + ["scann"] * available(), "Indexes to build into it.")


def main():
    for name in FLAGS.indexes:
        make(IndexConfig(name))  # refuses an index that cannot be built, before the work
    bundles = [Bundle(paths.local(directory)) for directory in FLAGS.bundles]
    bundle = concatenate(bundles, FLAGS.output)
    for name in FLAGS.indexes:
        add_index(bundle, name, IndexConfig(name))
    dims = " + ".join(str(part.manifest["dim"]) for part in bundles)
    print(f"wrote {bundle.directory}: {len(bundle.keys):,} items x {dims} dimensions")


if __name__ == "__main__":
    script.run(main)
