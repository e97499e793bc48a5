"""What is checked before a bundle serves: its indexes, its items, its figures and its answers."""

import dataclasses
import itertools

import numpy as np

from twotower.live import pair
from twotower.serving.asks import Ask
from twotower.serving.pipeline import Pipeline
from twotower.serving.served_bundle import ServedBundle


@dataclasses.dataclass(frozen=True)
class Checks:
    """Least values that a bundle must reach.

    Attributes:
        recall: Least share of the exact top k that each index finds on the bundle's own queries.
        k: That k.
        probes: Number of queries.
        same_items: Least share of the live bundle's items that the new one has.
        quality: Least ratio of a validation figure to that of the live bundle. Bundles of
            different protocols are not compared.

    >>> Checks().recall
    0.95
    """

    recall: float = 0.95
    k: int = 100
    probes: int = 100
    same_items: float = 0.5
    quality: float = 0.9


def failed(new: Pipeline, live: Pipeline | None, checks: Checks) -> list[str]:
    """The reasons why a pipeline must not serve; none for a good one.

    Args:
        new: Loaded and warm.
        live: The one that it replaces; None for the first.
        checks: The bounds.
    """
    return [
        *failed_indexes(new.bundle, 0 if live is None else live.bundle.num_items, checks),
        *([] if live is None else [*_foreign(new, live, checks), *_worse(new, live, checks)]),
        *_smoke(new),
    ]


def failed_indexes(new: ServedBundle, num_live: int, checks: Checks) -> list[str]:
    """The reasons why the indexes of a bundle must not serve; none for good ones.

    Args:
        new: The bundle.
        num_live: Number of items of the live one; 0 for none.
        checks: The bounds.
    """
    queries = np.asarray(new.sample_queries)[: checks.probes]
    if not len(queries):
        return []
    wanted = pair.Checks(
        {"vectors": queries}, min(checks.k, new.num_items), checks.recall, min_items=0.5
    )
    reasons = []
    for name in ["exact", *new.indexes]:
        version = new.model_version
        some = pair.Pair(lambda inputs: inputs["vectors"], new.retriever(name), version, version)
        found = pair.failed_checks(some, wanted, num_live)
        reasons += [f"index {name}: {reason}" for reason in found]
    return reasons


def _foreign(new: Pipeline, live: Pipeline, checks: Checks) -> list[str]:
    ids = live.bundle.catalogue.ids_of(live.bundle.keys)
    share = float((new.catalogue.keys_of(ids) >= 0).mean())
    if share >= checks.same_items:
        return []
    return [f"items: it has {share:.3f} of the live items; expected {checks.same_items} or more"]


def _worse(new: Pipeline, live: Pipeline, checks: Checks) -> list[str]:
    """Validation figures that fell; of bundles of another protocol nothing can be said."""
    figures = [pipeline.bundle.manifest.get("validation") or {} for pipeline in (new, live)]
    if figures[0].get("protocol") != figures[1].get("protocol"):
        return []
    reasons = []
    now, before = (found.get("metrics", {}) for found in figures)
    for name in ("recall@10", "recall@100", "ndcg@10"):
        if name in now and name in before:
            found, bound = now[name]["mean"], checks.quality * before[name]["mean"]
            if not found >= bound:
                reasons.append(f"{name}: {found:.4f}; expected {bound:.4f} or more")
    return reasons


def _smoke(new: Pipeline) -> list[str]:
    """Requests with a history and without one, to every funnel."""
    ids = new.bundle.catalogue.ids_of(new.bundle.keys[:: max(1, len(new.bundle.keys) // 4)][:4])
    histories = [[], ids[:1].tolist(), ids.tolist()]
    reasons = []
    for funnel, history in itertools.product(new.funnels, histories):
        (answer,) = new.recommend([Ask(history=history, k=10, funnel=funnel)], is_trial=True)
        what = f"funnel {funnel}, {len(history)} items of history"
        if isinstance(answer, Exception):
            reasons.append(f"{what}: {answer}")
            continue
        scores = [item["score"] for item in answer["items"]]
        found = [item["item_id"] for item in answer["items"]]
        if history and not found:
            reasons.append(f"{what}: it answers nothing")
        elif not np.isfinite(scores).all() or scores != sorted(scores, reverse=True):
            reasons.append(f"{what}: its scores are no finite, descending numbers")
        elif {*found} & {*history} or len({*found}) < len(found):
            reasons.append(f"{what}: it answers items of the history, or one twice")
        if answer["missing"]:
            reasons.append(f"{what}: its parts {sorted(answer['missing'])} fail")
    return reasons
