"""Draws a map of a bundle's items, where similar ones are neighbours, and stores it in the bundle.

    twotower build_map --bundle=W/bundle

The page of experiments/serve.py shows it. Prints the trustworthiness at 15 neighbours, from 0 to 1:
how far neighbours on the map are neighbours among the vectors. Of a catalogue with more than
--items the most popular are mapped, if a funnel of the bundle knows them, else a random sample.
"""

import time
from typing import TYPE_CHECKING

from absl import flags

from twotower.commands import script

if TYPE_CHECKING:
    import numpy as np

    from twotower.bundle.bundle import Bundle

FLAGS = flags.FLAGS
FIRST = ("bundle", "items")


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    flags.DEFINE_integer("items", 10_000, "Most items to map; ten thousand take minutes.", 10)
    flags.DEFINE_integer("seed", 0, "Of the map, and of a sample of the items.", 0)


def main() -> None:
    """Makes the map, and says how far it can be trusted."""
    # Here, so that --help and wrong flags need no scikit-learn and no pandas.
    import numpy as np

    from twotower.bundle.bundle import Bundle
    from twotower.bundle.item_map import MEASURED, NEIGHBOURS, make_map

    bundle = Bundle(FLAGS.bundle)
    keys, which = chosen(bundle, FLAGS.items, FLAGS.seed)
    vectors = np.asarray(bundle.vectors)[np.searchsorted(bundle.keys, keys)]
    begun = time.perf_counter()
    item_map = make_map(keys, vectors, bundle.manifest["metric"], FLAGS.seed)
    bundle.add_map(item_map)
    print(f"{bundle.directory / 'map'}: {len(keys):,} of {len(bundle.keys):,} items, {which}")
    sampled = f", {MEASURED:,} of the items" if len(keys) > MEASURED else ""
    trust = item_map.trustworthiness
    print(f"trustworthiness at {NEIGHBOURS} neighbours{sampled}: {trust:.4f}")
    print(f"{time.perf_counter() - begun:.0f} s")


def chosen(bundle: "Bundle", most: int, seed: int) -> tuple["np.ndarray", str]:
    """Keys of the items to map, `[num_mapped]` ascending, and a text that says which these are."""
    import numpy as np

    from twotower.funnel.sources.popularity import Popularity

    if len(bundle.keys) <= most:
        return np.asarray(bundle.keys), "all there are"
    for name in bundle.funnels:
        for inlet in bundle.funnel(name).sources.values():
            if isinstance(inlet.source, Popularity):
                popular = inlet.source.keys
                popular = popular[np.isin(popular, bundle.keys)]
                return np.sort(popular[:most]), f"the most popular of the funnel {name}"
    sample = np.random.default_rng(seed).choice(bundle.keys, most, replace=False)
    return np.sort(sample), "a random sample"
