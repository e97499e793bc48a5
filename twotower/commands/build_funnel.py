"""Builds a funnel around a bundle's two towers and stores it in the bundle.

    twotower build_funnel --bundle=W/bundle --data_dir=ml-1m
    twotower build_funnel --bundle=W/bundle --data_dir=ml-1m --name=small \\
        --sources=two_tower:300,popularity:100 --merge=reciprocal_rank
    twotower build_funnel --bundle=W/bundle --data_dir=ml-1m --rerank=dpp:0.2 --promoted=260@1

Each source is fitted on the rows that the bundle was trained on. --merge=weighted_sum fits its
weights on the validation cases. For a bundle that was refit on them, this is done with
W/bundle_validation, which gets the same funnel, fitted on fewer rows.
"""

import dataclasses
import time
from typing import TYPE_CHECKING

from absl import flags

from twotower.commands import script

if TYPE_CHECKING:  # it imports pandas, which would slow --help down
    from twotower.funnel.making import FunnelConfig

FLAGS = flags.FLAGS
FIRST = ("bundle", "data_dir", "sources", "merge", "name")
SOURCES = "two_tower:500,ease:500,ials:500,item_knn:300,popularity:200"


def define_flags() -> None:
    """Defines the flags."""
    script.DEFINE_path("bundle", None, "Folder of the bundle.", required=True)
    script.DEFINE_path("data_dir", None, "GroupLens folder, TFDS' data directory, or your tables.")
    flags.DEFINE_string("name", "default", "Name of the funnel in the bundle.")
    flags.DEFINE_list(
        "sources",
        SOURCES.split(","),
        "Sources, and how many candidates each is asked for. The default leaves ease out where it "
        "would take more than 4 GiB, which is from some 19,000 items on.",
    )
    flags.DEFINE_enum(
        "merge",
        "weighted_sum",
        ["weighted_sum", "reciprocal_rank", "quotas"],
        "How the sources' candidates become one list.",
    )
    flags.DEFINE_integer("pool", 500, "Length of that list.", lower_bound=1)
    flags.DEFINE_string("fallback", "popularity", "Source that answers where nothing is left.")
    flags.DEFINE_float("deadline", 0.0, "Seconds that a source may take; 0 for no limit.")
    flags.DEFINE_string("index", "exact", "The two towers' index: exact, or one of the bundle.")
    flags.DEFINE_float("ials_alpha", 8.0, "Weight of an observed pair in `ials`; others weigh 1.")
    flags.DEFINE_float("ials_regularization", 90.0, "L2 penalty of `ials`.")
    flags.DEFINE_list(
        "context",
        [],
        "Attributes by which the source `context` groups requests, such as age,hour; by default "
        "those of age, gender, zip_code, device and country that the data has.",
    )
    flags.DEFINE_float("half_life", 30.0, "Days after which a row counts half in `trending`.")
    flags.DEFINE_integer("fresh_below", 10, "Items with fewer training rows are `fresh`.")
    flags.DEFINE_list(
        "keep",
        [],
        "Number of a source's first candidates that are in that list in any case: fresh:50.",
    )
    flags.DEFINE_list("slots", [], "Positions at which fresh items are shown; none by default.")
    flags.DEFINE_integer("shown_until", 100, "How often each fresh item is shown there.")
    flags.DEFINE_list(
        "bounds", ["0"], "Least number of events of each bucket of users with its weights."
    )
    flags.DEFINE_list(
        "minimum_age", [], "Least age of a user who is shown items of a genre: Horror:18,War:16."
    )
    flags.DEFINE_list(
        "hold_out", [], "Share of the items that an experiment hides from all users: new:0.05."
    )
    flags.DEFINE_integer(
        "onboarding",
        50,
        "Items that new users are asked about, those whose picks tell most; 0 for none.",
        lower_bound=0,
    )
    flags.DEFINE_list(
        "rerank",
        [],
        "How lists are re-ranked, each with its weight from 0 to 1: mmr, dpp (by genres), "
        "mmr_vectors, dpp_vectors (by the towers' vectors), calibration; such as dpp:0.3.",
    )
    flags.DEFINE_integer("max_in_a_row", 0, "Most items of a genre in a row; 0 for any number.")
    flags.DEFINE_integer("max_in_all", 0, "Most items of a genre among the first --length.")
    flags.DEFINE_integer("length", 40, "Positions that are re-ranked.")
    flags.DEFINE_list("promoted", [], "Promoted items and their positions, as ID@SLOT,ID@SLOT.")


def whole_numbers(flag: str) -> tuple[int, ...]:
    """The values of a flag that is a list of whole numbers.

    Raises:
        ValueError: A value that is not an integer.
    """
    given = FLAGS[flag].value or []
    try:
        return tuple(map(int, given))
    except ValueError:
        raise ValueError(
            f"--{flag} takes whole numbers, such as --{flag}=0,10; got {','.join(given)!r}."
        ) from None


def without_large_ease(config: "FunnelConfig", num_items: int) -> "FunnelConfig":
    """The settings, without the source ease if fitting it would be refused for its memory.

    A line of output says that it was left out.

    Args:
        config: The settings.
        num_items: Number of items with a training row.
    """
    from twotower.evaluation.baselines.baseline import MAX_GIB
    from twotower.evaluation.baselines.ease import Ease

    if "ease" not in config.sources or (gib := Ease.gib(num_items)) <= MAX_GIB:
        return config
    print(f"without the source ease, which would take {gib:,.1f} GiB for {num_items:,} items")
    sources = {name: k for name, k in config.sources.items() if name != "ease"}
    return dataclasses.replace(config, sources=sources)


def main() -> None:
    """Builds the funnel, and prints the weights of the merge."""
    # Here, so that --help and wrong flags need no TensorFlow and no pandas.
    import numpy as np

    from twotower.commands import judging
    from twotower.funnel import making
    from twotower.reranking import making as reranking
    from twotower.storage import paths

    paths.require_plain_name(FLAGS.name, "a funnel")
    config = making.FunnelConfig(
        making.parse_sources(FLAGS.sources),
        merge=FLAGS.merge,
        pool=FLAGS.pool,
        fallback=FLAGS.fallback,
        deadline=FLAGS.deadline,
        index=FLAGS.index,
        ials_alpha=FLAGS.ials_alpha,
        ials_regularization=FLAGS.ials_regularization,
        context=tuple(FLAGS.context),
        half_life=FLAGS.half_life,
        fresh_below=FLAGS.fresh_below,
        slots=whole_numbers("slots"),
        keep=making.parse_keep(FLAGS.keep),
        shown_until=FLAGS.shown_until,
        bounds=whole_numbers("bounds"),
        minimum_age=making.parse_minimum_age(FLAGS.minimum_age),
        hold_out=making.parse_hold_out(FLAGS.hold_out),
        onboarding=FLAGS.onboarding,
    )
    reranking_config = reranking.RerankingConfig(
        reranking.parse_rerank(FLAGS.rerank),
        FLAGS.max_in_a_row,
        FLAGS.max_in_all,
        FLAGS.length,
        reranking.parse_promoted(FLAGS.promoted),
    )
    bundles = judging.to_extend(FLAGS.bundle)
    final, _ = bundles[-1]
    dataset = judging.dataset_of(final, FLAGS.data_dir)
    judging.check(final, dataset, None, None)
    if FLAGS["sources"].using_default_value:
        rows = judging.split_of(final, dataset, bundles[-1][1]).train
        config = without_large_ease(config, len(np.unique(dataset.item_keys[rows])))
    merge, begun = None, time.perf_counter()
    for bundle, part in bundles:
        split = judging.split_of(bundle, dataset, part)
        if merge is None and config.merge == "weighted_sum":
            judging.check_unseen(bundle, dataset, split)
        bundle.encode = bundle.encoder(dataset)
        funnel = making.make_funnel(config, bundle, dataset, split, merge)
        if merge is None and config.merge == "weighted_sum":
            funnel.merge = merge = making.fitted(funnel, split.cases, config.bounds)
        funnel = reranking.with_reranking(funnel, reranking_config, bundle)
        bundle.add_funnel(funnel, FLAGS.name)
        print(f"{bundle.directory / 'funnels' / FLAGS.name}: {', '.join(funnel.sources)}")
    if merge is not None:
        for bound, weights in zip(merge.bounds, merge.weights):
            shares = ", ".join(f"{name} {weight:.2f}" for name, weight in zip(merge.names, weights))
            print(f"weights for histories of {bound} events or more: {shares}")
    print(f"{time.perf_counter() - begun:.0f} s")
