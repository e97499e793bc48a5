"""Evaluates a bundle and baselines on a split, and refuses data that a model has learned from."""

from collections.abc import Sequence

import numpy as np

from twotower.bundle.bundle import Bundle, require_same_entries
from twotower.data import load_dataset
from twotower.data.dataset import Dataset
from twotower.data.splits import Split, hide_items, make_split
from twotower.evaluation import baselines
from twotower.evaluation.evaluate import Report, evaluate, evaluate_hidden, from_scores
from twotower.retrieval.base import Retriever
from twotower.retrieval.tuning import recall_against

# Protocols with different queries for a model trained on the same rows.
SAME_ROWS = [{f"temporal-last{end}", f"temporal-successive{end}"} for end in ("", "+time")]
# Entries of the manifest in which bundles must agree to be evaluated on the same queries.
COMMON = ("dataset", "protocol", "split_seed", "hidden_items")


def to_judge(path: str, part: str) -> Bundle:
    """The bundle at `path`; on validation, if that was refit, the one from before its refit.

    Raises:
        ValueError: The bundle was refit on the validation rows, and the other one does not exist.
    """
    bundle = Bundle(path)
    if part == "test" or not bundle.manifest["refit"]:
        return bundle
    before = bundle.directory.parent / "bundle_validation"
    if before.is_dir() and bundle.directory != before:
        print(
            f"{path} has learned from the validation rows, so {before} answers in its place. "
            f"--part=test asks {path} itself."
        )
        return Bundle(before)
    raise ValueError(
        f"{path} was refit on the validation rows, so they cannot judge it. Its validation figures "
        "are in metrics.json; --part=test asks it for what it has not seen."
    )


def to_extend(path: str) -> list[tuple[Bundle, str]]:
    """The bundles that get a funnel or ranker which learns from validation, each with the part of
    the split that it is fitted for.

    A bundle that was refit on the validation rows cannot learn from them. The one from before its
    refit comes first then, with `validation`, and the refit one follows with `test`.

    Raises:
        ValueError: As `to_judge`.
    """
    final, before = Bundle(path), to_judge(path, "validation")
    is_refit = before.directory != final.directory
    return [(before, "validation"), (final, "test")][: 1 + is_refit]


def split_of(bundle: Bundle, dataset: Dataset, part: str, protocol: str | None = None) -> Split:
    """The split that a bundle was trained for, with its seed and hidden items; call `check` first.

    Args:
        bundle: The one to judge or to extend.
        dataset: The data that it was trained on.
        part: `validation` or `test`.
        protocol: One with the same training rows; None for the manifest's.
    """
    manifest = bundle.manifest
    split = make_split(dataset, protocol or manifest["protocol"], part, manifest["split_seed"])
    return hide_items(dataset, split, manifest.get("hidden_items", 0.0))


def dataset_of(bundle: Bundle, data_dir: str | None) -> Dataset:
    """The data that a bundle was trained on, read as it was read for the training: with the same
    files, columns, events and least rating.

    Args:
        bundle: The one to judge.
        data_dir: The folder that the training's paths are relative to.
    """
    reading = bundle.manifest.get("dataset_reading", {})
    return load_dataset(bundle.manifest["dataset"], data_dir, **reading)


def check_alike(bundles: Sequence[Bundle]) -> None:
    """Refuses bundles that were not trained for the same questions."""
    require_same_entries(bundles, COMMON, "Compare bundles of one split.")


def check(bundle: Bundle, dataset: Dataset, protocol: str | None, seed: int | None) -> None:
    """Refuses a split or data other than the manifest's.

    Args:
        bundle: The one to judge.
        dataset: What it is to be judged on.
        protocol: The split that is asked for; None for the manifest's.
        seed: Its seed; None for the manifest's.

    Raises:
        ValueError: A protocol or seed with other training rows than the manifest's, or another
            fingerprint.
    """
    manifest = bundle.manifest
    for asked, entry in ((protocol, "protocol"), (seed, "split_seed")):
        given = manifest[entry]
        if asked not in (None, given) and {asked, given} not in SAME_ROWS:
            raise ValueError(
                f"the bundle was trained for {entry} {given!r}, not {asked!r}: its "
                "training rows may be that split's test rows. Train on the other split."
            )
    fingerprint = dataset.fingerprint()
    if fingerprint != manifest["dataset_fingerprint"]:
        raise ValueError(
            f"this {dataset.name} is not the data that the bundle was trained on: fingerprint "
            f"{fingerprint[:12]}, the manifest says {manifest['dataset_fingerprint'][:12]}. "
            "Rows, their order and all columns must be the same."
        )


def check_unseen(bundle: Bundle, dataset: Dataset, split: Split) -> None:
    """Refuses to judge a model by what it, or one that it started from, has learned.

    Raises:
        ValueError: It has seen rows of the questions or of hidden items; or it does not say, and is
            warm-started or made to find hidden items, which earlier versions drew for each part.
    """
    lineage, manifest = bundle.lineage, bundle.manifest
    if lineage.rows is None and not (manifest.get("ancestors") or manifest.get("hidden_items")):
        return  # of an earlier version; `check` has compared data and split
    advice = "Train anew, from scratch or from a bundle of older rows (--warm_start)."
    lineage.require_unseen(dataset, split, advice)


def print_what_has_learned(parts: Sequence[str], part: str) -> None:
    """Prints which parts of a funnel have learned from the validation cases, if these are asked."""
    if parts and part == "validation":
        have, them = ("have", "them") if len(parts) > 1 else ("has", "it")
        print(
            f"{' and '.join(parts)} {have} learned from these cases, so figures that depend on "
            f"{them} are too good. --part=test asks cases that no part has learned from."
        )


def judge(
    bundle: Bundle, retriever: Retriever, dataset: Dataset, split: Split
) -> tuple[dict, Report]:
    """A bundle's row for a result file, through one of its indexes, and its report."""
    embed = bundle.encoder(dataset)

    def recommend_among(keys=None):
        return lambda cases, k: retriever.search(embed(cases), k, exclude=cases.exclude, allow=keys)

    report = evaluate(recommend_among(), split, dataset)
    row = {
        "model_version": bundle.model_version,
        "seed": bundle.manifest["recipe"]["fit"]["seed"],
        "recipe": bundle.manifest["recipe"],
        "metrics": report.metrics,
        "segments": report.segments,
    }
    if not retriever.is_exact:
        # Without exclusions: with many of them a Retriever scans exactly.
        vectors = embed(split.cases)
        exact = bundle.retriever("exact").search(vectors, 100)
        row["ann_recall@100"] = recall_against(exact, retriever.search(vectors, 100))
    if split.hidden is not None:
        row["hidden"] = evaluate_hidden(recommend_among, split, report)
    return row, report


def judge_trained_alone(
    bundle: Bundle, retriever: Retriever, dataset: Dataset, split: Split
) -> dict:
    """Metrics of a bundle that may answer only items with a training row."""
    embed, counts = bundle.encoder(dataset), split.item_counts
    trained = split.candidates if counts is None else np.flatnonzero(counts)
    trained = np.intersect1d(split.candidates, trained)

    def recommend(cases, k):
        return retriever.search(embed(cases), k, exclude=cases.exclude, allow=trained)

    return evaluate(recommend, split, dataset).metrics


def judge_baseline(
    name: str, dataset: Dataset, split: Split, max_gib: float
) -> tuple[dict, Report]:
    """Row and report of a baseline that is fitted on the split's training rows."""
    fitted = baselines.make(name).fit(dataset, split.train, split.candidates, max_gib)
    report = evaluate(fitted.recommend, split, dataset)
    row = {"metrics": report.metrics}
    if split.hidden is not None:
        row["hidden"] = evaluate_hidden(
            lambda keys: from_scores(fitted.scores, keys), split, report
        )
    return row, report
