"""Builds an index over the vectors of a bundle and stores it in the bundle.

    twotower build_index --bundle=W/bundle --backend=hnsw
    twotower build_index --bundle=W/bundle --backend=ivf_pq --name=small \\
        --parameters=num_lists=64,code_bytes=32

Tunes the search effort on the bundle's sample queries, unless --parameters set it. Prints recall@k
against exact search, and sizes. The fields of each backend are in its file in
twotower/retrieval/backends/.
"""

import json
import time

from absl import flags

from twotower.commands import script

FLAGS = flags.FLAGS
FIRST = ("bundle", "backend", "name", "parameters", "k")


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    flags.DEFINE_string("backend", "hnsw", "flat, hnsw, ivf, ivf_pq, tiered, scann or milvus.")
    flags.DEFINE_list("parameters", [], "Fields of the backend's config, name=value.")
    flags.DEFINE_string("name", None, "Name in the bundle; the backend's by default.")
    flags.DEFINE_integer("k", 100, "Answers that recall is measured at.", lower_bound=1)


def parameters() -> dict:
    """The values of the flag, name -> value, read as JSON if they are JSON and as text otherwise.

    Raises:
        ValueError: An entry without `=`.
    """
    found = {}
    for entry in FLAGS.parameters:
        name, equals, value = entry.partition("=")
        if not equals:
            raise ValueError(f"--parameters takes name=value; got {entry!r}.")
        try:
            found[name] = json.loads(value)
        except json.JSONDecodeError:
            found[name] = value  # a word
    return found


def main() -> None:
    """Builds the index and prints how good and how large it is."""
    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    import numpy as np

    from twotower.bundle.bundle import Bundle
    from twotower.bundle.export import add_index
    from twotower.retrieval.build import IndexConfig
    from twotower.retrieval.tuning import recall_against

    bundle = Bundle(FLAGS.bundle)
    name = FLAGS.name or FLAGS.backend
    started = time.perf_counter()
    index = add_index(
        bundle, name, IndexConfig(FLAGS.backend, bundle.manifest["metric"], parameters())
    )
    seconds = time.perf_counter() - started
    queries = np.asarray(bundle.sample_queries)
    exact = bundle.retriever("exact").search(queries, FLAGS.k)
    found = index.search(queries, FLAGS.k)
    recall = recall_against(exact, found)
    print(f"{bundle.directory}/index/{name}: {len(index):,} items x {index.dim}, {FLAGS.backend}")
    print(f"built and saved in {seconds:.1f} s, {index.memory_bytes / 1e6:.1f} MB in memory")
    print(f"recall@{FLAGS.k} against exact search, sample queries: {recall:.4f}")
