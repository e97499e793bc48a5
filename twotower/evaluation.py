"""Evaluation of anything that recommends, over the whole catalogue. No sampled metrics."""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from twotower import metrics
from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.splits import Split
from twotower.retrieval.candidates import Candidates

Recommend = Callable[[EvalCases, int], Candidates]

# Segment bounds: events in a user's history; an item's share of the catalogue by popularity.
HISTORY_BOUNDS = (10, 50, 200)


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        metrics: Key -> mean, low, high.
        segments: Segment -> `cases` or `targets` and the metrics there.
        hits: `[num_cases, k]` bool, for paired comparisons through `twotower.metrics`.
        num_targets: `[num_cases]`.
        clusters: `[num_cases]`, the user of each case.
    """

    metrics: dict[str, dict[str, float]]
    segments: dict[str, dict]
    hits: np.ndarray
    num_targets: np.ndarray
    clusters: np.ndarray


def evaluate(
    recommend: Recommend,
    split: Split,
    dataset: Dataset | None = None,
    ks: Sequence[int] = (10, 20, 50, 100, 500),
    batch_size: int = 1024,
) -> Report:
    """Asks all cases of a split.

    A target is ranked last among the items of equal score, and a target that ties with what was
    cut off at the end of the answer does not count. So a model whose scores are all equal gets 0.

    Args:
        recommend: `(cases, k) -> Candidates`, without the cases' excluded items.
        split: The questions, the candidates and, for popularity, the training rows.
        dataset: For the metrics and segments that need the popularity of items.
        ks: Cut-offs; `mrr` always uses 500.
        batch_size: Cases a call.

    Raises:
        ValueError: The recommender answered an excluded item or something outside the candidates.
    """
    cases, depth = split.cases, max(*ks, 500)
    found_hits, found_keys = [], []
    for part in cases.batches(batch_size):
        # One more than needed shows whether a tie goes on past the end.
        answer = recommend(part, depth + 1)
        _check(answer, part, split.candidates)
        found_hits.append(_hits(answer, part)[:, :depth])
        found_keys.append(np.pad(answer.keys, ((0, 0), (0, 100)), constant_values=-1)[:, :100])
    width = max(hits.shape[1] for hits in found_hits)
    hits = np.concatenate([np.pad(h, ((0, 0), (0, width - h.shape[1]))) for h in found_hits])
    keys = np.concatenate(found_keys)  # [num_cases, 100]
    num_targets = cases.targets.lengths
    _, clusters = np.unique(cases.user_id.astype(str), return_inverse=True)
    values = metrics.summarise(hits, num_targets, ks, clusters)
    segments = _user_segments(hits, cases, clusters)
    for k in (10, 100):
        share = metrics.coverage(keys, k, len(split.candidates))
        values[f"coverage@{k}"] = {"mean": share, "low": share, "high": share}
    if dataset is not None:
        counts = np.bincount(dataset.item_keys[split.train], minlength=len(dataset.items))
        popularity = metrics.mean_popularity(keys, 10, counts)
        values["mean_popularity@10"] = dict.fromkeys(("mean", "low", "high"), popularity)
    return Report(values, segments, hits, num_targets, clusters)


def _check(answer: Candidates, cases: EvalCases, candidates: np.ndarray) -> None:
    valid = answer.valid
    if not np.isin(answer.keys[valid], candidates).all():
        raise ValueError("the recommender answered an item outside the protocol's candidates.")
    base = np.int64(1) << 40
    row = np.arange(len(cases))[:, None] * base
    excluded = cases.exclude.values + cases.exclude.row_index * base
    if np.isin((answer.keys + row)[valid], excluded).any():
        raise ValueError("the recommender answered an item that the case excludes.")


def _hits(answer: Candidates, cases: EvalCases) -> np.ndarray:
    """Whether the item ranked at each place is a target, `[num_cases, k]`, ties resolved against
    the targets."""
    base = np.int64(1) << 40
    row = np.arange(len(cases))[:, None] * base
    wanted = cases.targets.values + cases.targets.row_index * base
    hit = np.isin(answer.keys + row, wanted) & answer.valid
    scores = np.where(answer.valid, answer.scores, np.nan)
    tied = np.zeros_like(hit)
    tied[:, 1:] = scores[:, 1:] == scores[:, :-1]
    if not tied.any():
        return hit
    # Inside each group of equal scores the hits move to the end; in the group that the answer's
    # end cuts off, they may lie anywhere behind it, so they are no hits.
    group = np.cumsum(~tied, axis=1)
    full = answer.counts == hit.shape[1]
    hit &= ~(full[:, None] & (group == group[:, -1:]) & _grouped(tied))
    order = np.lexsort((hit, group), axis=1)
    return np.take_along_axis(hit, order, 1)


def _grouped(tied: np.ndarray) -> np.ndarray:
    """Places in a group of two or more equal scores."""
    either = tied.copy()
    either[:, :-1] |= tied[:, 1:]
    return either


def _user_segments(hits, cases: EvalCases, clusters) -> dict[str, dict]:
    """Metrics by length of the history."""
    segments = {}
    lengths, num_targets = cases.history.lengths, cases.targets.lengths
    for low, high in zip((0, *HISTORY_BOUNDS), (*HISTORY_BOUNDS, None)):
        rows = (lengths >= low) & (lengths < (high or np.inf))
        if rows.any():
            name = f"history {low}-{high - 1}" if high else f"history {low}+"
            segments[name] = {
                "cases": int(rows.sum()),
                **metrics.summarise(hits[rows], num_targets[rows], (10, 100), clusters[rows]),
            }
    return segments


def item_segments(
    recommend: Recommend, split: Split, dataset: Dataset, k: int = 100, batch_size: int = 1024
) -> dict[str, dict]:
    """Recall of targets by the popularity of the item: `cold` (no training row), `tail` (the less
    popular 80% of trained items), `middle` (the next 15%), `head` (the top 5%).

    Returns:
        Segment -> `targets` and `recall_micro@k`.
    """
    counts = np.bincount(dataset.item_keys[split.train], minlength=len(dataset.items))
    trained = np.sort(counts[counts > 0])
    bounds = [trained[int(0.8 * len(trained))], trained[int(0.95 * len(trained))]]
    segment = np.where(counts == 0, 0, 1 + np.searchsorted(bounds, counts, side="right"))
    found, wanted = np.zeros(4), np.zeros(4)
    per_case: list[list[np.ndarray]] = [[], []]
    base = np.int64(1) << 40
    for part in split.cases.batches(batch_size):
        answer = recommend(part, k)
        row = np.arange(len(part))[:, None] * base
        targets = part.targets.values + part.targets.row_index * base
        hit = np.isin(targets, (answer.keys + row)[answer.valid])
        case, kind = part.targets.row_index, segment[part.targets.values]
        table = np.zeros((2, len(part), 4))
        np.add.at(table[0], (case, kind), hit)
        np.add.at(table[1], (case, kind), 1)
        per_case[0].append(table[0])
        per_case[1].append(table[1])
    found, wanted = (np.concatenate(parts) for parts in per_case)
    return {
        name: {
            "targets": int(wanted[:, kind].sum()),
            f"recall_micro@{k}": metrics.ratio_interval(found[:, kind], wanted[:, kind]),
        }
        for kind, name in enumerate(("cold", "tail", "middle", "head"))
        if wanted[:, kind].any()
    }


def from_scores(score: Callable[[EvalCases], np.ndarray], candidates: np.ndarray) -> Recommend:
    """A recommender from dense scores: `score(cases)` gives `[num_cases, num_items]` by key."""

    def recommend(cases: EvalCases, k: int) -> Candidates:
        scores = np.array(score(cases), np.float32)
        scores[cases.exclude.row_index, cases.exclude.values] = -np.inf
        scores = scores[:, candidates]
        keys = np.broadcast_to(candidates, scores.shape)
        return Candidates.rank(keys, scores, k)

    return recommend
