"""Set-up of scripts that time single requests. Import it before everything else.

One request is too small for several threads. So numpy, FAISS and TensorFlow get one thread each,
and the process one core (`--core`), like one of several serving processes. Otherwise each step
might run on another core, whose caches are cold.
"""

import os

# ruff: noqa: E402
# Read when numpy and FAISS are imported.
for pool in ("OMP_NUM_THREADS", "OPENBLAS_NUM_THREADS"):
    os.environ.setdefault(pool, "1")

from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.bundle import Bundle
from twotower.commands.judging import dataset_of
from twotower.data import splits
from twotower.data.inputs import QueryInputs
from twotower.tf import tf

# The flags are the calling script's own, so that its --help shows them.
flags.disclaim_key_flags()


def define() -> None:
    """Defines --bundle, --data_dir and --core; call it once, at the top of a script."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    script.DEFINE_path("data_dir", None, "GroupLens folder, or TFDS' data directory.")
    flags.DEFINE_integer("core", 0, "Core to run on, where the system can pin; -1 for any.")


def open_bundle() -> tuple[Bundle, splits.Split, QueryInputs]:
    """The bundle of --bundle, its validation split and the inputs of its query tower; from now on
    on one thread and core."""
    if flags.FLAGS.core >= 0 and hasattr(os, "sched_setaffinity"):
        os.sched_setaffinity(0, {flags.FLAGS.core})
    tf.config.threading.set_intra_op_parallelism_threads(1)
    tf.config.threading.set_inter_op_parallelism_threads(1)
    bundle = Bundle(flags.FLAGS.bundle)
    manifest = bundle.manifest
    dataset = dataset_of(bundle, flags.FLAGS.data_dir)
    split = splits.make_split(dataset, manifest["protocol"], "validation", manifest["split_seed"])
    return bundle, split, QueryInputs(dataset, [spec["name"] for spec in manifest["query_inputs"]])
