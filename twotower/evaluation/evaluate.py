"""Evaluation: metrics of anything that recommends, on the cases of a split.

Evaluation uses a model only through `recommend(cases, k) -> Candidates`. That may be a query tower
with an index, a baseline, or a whole funnel. All candidates compete in every case. There are no
metrics over sampled negatives, which rank models differently (Krichene and Rendle, KDD 2020).
"""

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.data.splits import Split, only_hidden
from twotower.evaluation import intervals, metrics
from twotower.evaluation.metrics import KS, MRR_AT, TargetRanks
from twotower.retrieval.candidates import Candidates

Recommend = Callable[[Requests, int], Candidates]


# Lower bounds of the segments: items in a case's history, training rows of a target's item.
HISTORY_LENGTHS = (0, 1, 10, 20, 50, 100, 200, 500, 1000)
POPULARITIES = (0, 1, 10, 100, 1000, 10_000, 100_000)

# Figures of a segment of users; a segment of items has `recall_micro` at each k.
SEGMENT_METRICS = ("recall@10", "recall@100", "recall_micro@100", "ndcg@10", f"mrr@{MRR_AT}")


@dataclasses.dataclass(frozen=True)
class Report:
    """What an evaluation found.

    Attributes:
        metrics: Name -> `{"mean": ..., "low": ..., "high": ...}`, the 95% interval; JSON-ready.
            `low` and `high` are None where a single user was asked.
        values: Name -> `[num_cases]`, what the means are over; for paired comparisons.
        ranks: Rank of each target.
        cases: The cases that were evaluated.
        clusters: `[num_cases]` int, the user of each case: cases of one user count as one.
        ks: Lengths of answers that were looked at.
        item_counts: `[num_items]` number of training rows of each key; None if the split has none.
        hidden: `[num_hidden]` keys that the split hides from training; None if it hides none.

        report = evaluate(recommend, split)
        report.metrics["recall@100"]["mean"]
        report.compare(evaluate(other, split), "recall@100")
    """

    metrics: dict
    values: dict[str, np.ndarray]
    ranks: TargetRanks
    cases: EvalCases
    clusters: np.ndarray
    ks: tuple[int, ...]
    item_counts: np.ndarray | None = None
    hidden: np.ndarray | None = None

    @property
    def segments(self) -> dict:
        """Figures of users by length of their history, and of targets by popularity; JSON-ready.

        Returns:
            `history_length`: segment such as `20-49` -> number of cases and `SEGMENT_METRICS`.
            `item_popularity`: segment of training rows such as `1-9` -> number of targets and
            `recall_micro@k`; `0` are the targets that no training row has. `hidden_items`, if the
            split hides items: the same of the targets that it hides.
        """
        segments: dict = {"history_length": {}}
        for name, rows in _segments(self.cases.history.lengths, HISTORY_LENGTHS):
            segments["history_length"][name] = {
                "num_cases": len(rows),
                **{
                    metric: self._interval(metric, rows)
                    for metric in SEGMENT_METRICS
                    if metric in self.values
                },
            }
        targets = self.cases.targets.values
        if self.item_counts is not None:
            segments["item_popularity"] = {
                name: self._of_targets(rows)
                for name, rows in _segments(self.item_counts[targets], POPULARITIES)
            }
        if self.hidden is not None:
            rows = np.flatnonzero(np.isin(targets, self.hidden))
            segments["hidden_items"] = self._of_targets(rows) if len(rows) else {"num_targets": 0}
        return segments

    def _of_targets(self, targets: np.ndarray) -> dict:
        """Size and `recall_micro@k` of a segment of targets."""
        users = self.clusters[self.ranks.case[targets]]
        found = {
            f"recall_micro@{k}": intervals.share_interval(
                self.ranks.ranks[targets] <= k, clusters=users
            )
            for k in self.ks
        }
        return {"num_targets": len(targets), **found}

    def compare(self, other: "Report", name: str) -> dict:
        """Mean of this report's metric minus the other's, with the interval of paired cases.

        Raises:
            ValueError: The other report is of other questions, or lacks the metric.
        """
        same = np.array_equal(self.cases.user_id, other.cases.user_id) and np.array_equal(
            self.cases.targets.values, other.cases.targets.values
        )
        if not same:
            raise ValueError("a paired comparison needs two reports of the same cases.")
        missing = [report for report in (self, other) if name not in report.values]
        if missing:
            raise ValueError(f"no values of {name!r} by case; there are {list(self.values)}.")
        return intervals.paired_difference(
            self.values[name],
            other.values[name],
            self._weights(name, slice(None)),
            self.clusters,
            1.0 if _is_share(name) else np.inf,
        )

    def _interval(self, name: str, rows) -> dict:
        """Mean and interval of a metric over some cases."""
        interval = intervals.share_interval if _is_share(name) else intervals.interval
        return interval(self.values[name][rows], self._weights(name, rows), self.clusters[rows])

    def _weights(self, name: str, rows) -> np.ndarray | None:
        return self.ranks.lengths[rows] if name.startswith("recall_micro") else None


def evaluate(
    recommend: Callable[[EvalCases, int], Candidates],
    split: Split | EvalCases,
    dataset: Dataset | None = None,
    ks: Sequence[int] = KS,
    batch_size: int = 2048,
) -> Report:
    """Asks every question of a split and reports all metrics.

    One item more than the largest k is asked for, to know whether a tie goes on past the end:
    targets rank last among their ties (`metrics.target_ranks`), so a constant model gets 0.

    Args:
        recommend: `recommend(cases, k)`; must leave out `cases.exclude`.
        split: A split, or only its cases; then there is no coverage and nothing by popularity.
        dataset: The dataset that the split was made of. A split without `item_counts` needs it
            for the metrics by popularity.
        ks: Lengths of answers to report.
        batch_size: Questions asked at once.

    Raises:
        ValueError: No questions; a split of another dataset; or an answer that breaks the rules of
            `Candidates`, has an item twice, an excluded one, or one that is not a candidate.
    """
    if isinstance(split, EvalCases):
        cases, candidates, item_counts, hidden = split, None, None, None
    else:
        cases, candidates, hidden = split.cases, split.candidates, split.hidden
        item_counts = split.item_counts if dataset is None else split.counts_in(dataset)
    ks = tuple(sorted(set(ks)))
    if len(cases) == 0 or not ks or ks[0] < 1:
        raise ValueError(f"nothing to evaluate: {len(cases)} cases at k {ks}.")
    if (np.diff(np.sort(_pairs(cases.targets))) == 0).any():
        raise ValueError("a case names the same target twice; each target must stand once.")
    deepest = max(ks[-1], MRR_AT)
    # At once, since a copy of the answers of 100,000 users would take hundreds of MB.
    parts, keys, start = [], np.full((len(cases), ks[-1]), -1, np.int32), 0
    for part in cases.batches(batch_size):
        found = recommend(part, deepest + 1)
        _check(found, part, deepest + 1, candidates)
        targets = part.targets
        parts.append(
            metrics.target_ranks(
                found.keys, found.scores, found.counts, targets.values, targets.offsets, deepest + 1
            ).ranks
        )
        width = min(ks[-1], found.keys.shape[1])
        top = keys[start : start + len(part), :width]
        top[:] = np.where(found.valid, found.keys, -1)[:, :width]
        start += len(part)
    ranks = TargetRanks(np.concatenate(parts), cases.targets.offsets)
    _, clusters = np.unique(cases.user_id.astype(str), return_inverse=True)
    values = _values(ranks, keys, ks, item_counts)
    report = Report({}, values, ranks, cases, clusters, ks, item_counts, hidden)
    for name in values:
        report.metrics[name] = report._interval(name, slice(None))
    if candidates is not None:
        for k in ks:
            report.metrics[f"coverage@{k}"] = metrics.coverage(keys, candidates, k, clusters)
    return report


def evaluate_hidden(
    recommend_among: Callable[[np.ndarray], Recommend], split: Split, report: Report, k: int = 20
) -> dict:
    """How well a model finds the items that a split hides from training; JSON-ready.

    Args:
        recommend_among: `recommend_among(keys)` returns a `recommend(cases, k)` whose only
            candidates are `keys` `[num_keys]`.
        split: One that hides items (`splits.hide_items`).
        report: Of the same model on that split, with all candidates.
        k: Length of the answer when the hidden items are the only candidates.

    Returns:
        `recall@k among hidden`: mean over the cases with hidden targets, when hidden items are the
        only candidates. `chance@k among hidden`: the same of a random order. `recall_micro@n of
        hidden`, n the report's length nearest to 100: share of the hidden targets among the first n
        of all candidates. `num_items` that are hidden; `num_cases` with hidden targets.

    Raises:
        ValueError: A split that hides no items, or whose questions ask for none of them.
    """
    asked = only_hidden(split)
    among = evaluate(recommend_among(asked.candidates), asked, ks=(k,)).metrics[f"recall@{k}"]
    n = min(report.ks, key=lambda k: abs(k - 100))
    return {
        "num_items": len(asked.candidates),
        "num_cases": len(asked.cases),
        f"recall@{k} among hidden": among,
        f"chance@{k} among hidden": min(1.0, k / len(asked.candidates)),
        f"recall_micro@{n} of hidden": report.segments["hidden_items"][f"recall_micro@{n}"],
    }


def telling_metric(name: str, split: Split) -> str:
    """The metric `name`, or the nearest one that can distinguish models among so few candidates.

    Of 80 candidates any model finds all among the first 100. So k may be at most half the
    candidates that the median question has left, where a random order finds half of the targets. If
    even the least of `KS` is larger, the metric is `mrr`, which depends on the order alone.
    """
    base, _, k = name.partition("@")
    if base not in ("recall", "recall_micro", "hit_rate", "precision"):
        return name
    excluded = split.cases.exclude
    among = np.isin(excluded.values, split.candidates)
    taken = np.bincount(excluded.row_index[among], minlength=len(split.cases))
    most = (len(split.candidates) - np.median(taken)) / 2
    if int(k) <= most:
        return name
    smaller = [other for other in KS if other <= most]
    return f"{base}@{max(smaller)}" if smaller else f"mrr@{MRR_AT}"


def from_scores(
    score: Callable[[Requests], np.ndarray],
    candidates: np.ndarray | None = None,
    batch_size: int = 1024,
) -> Recommend:
    """`recommend(requests, k)` from a function that scores the whole catalogue.

    Args:
        score: Requests -> `[num_requests, num_items]` scores, a column for each key; larger is
            better.
        candidates: Keys that may be answered; all by default.
        batch_size: Requests scored at once, which bounds the memory.
    """

    def recommend(requests: Requests, k: int) -> Candidates:
        parts = [
            Candidates.of_scores(
                np.array(score(part), np.float32), k, exclude=part.exclude, allow=candidates
            )
            for part in requests.batches(batch_size)
        ]
        return Candidates.concat(parts) if parts else Candidates.empty(0, k)

    return recommend


def _values(ranks: TargetRanks, keys: np.ndarray, ks, item_counts) -> dict:
    """Every metric that has a value for each case, name -> `[num_cases]`."""
    values = {}
    for k in ks:
        values[f"recall@{k}"] = metrics.recall(ranks, k)
        values[f"recall_micro@{k}"] = values[f"recall@{k}"]  # weighted by the number of targets
        values[f"hit_rate@{k}"] = metrics.hit_rate(ranks, k)
        values[f"precision@{k}"] = metrics.precision(ranks, k)
        values[f"ndcg@{k}"] = metrics.ndcg(ranks, k)
        if item_counts is not None:
            values[f"mean_popularity@{k}"] = metrics.mean_popularity(keys, item_counts, k)
    values[f"mrr@{MRR_AT}"] = metrics.reciprocal_rank(ranks, MRR_AT)
    return values


def _is_share(name: str) -> bool:
    """Whether a metric lies within 0 and 1; popularity is a number of rows."""
    return not name.startswith("mean_popularity")


def _pairs(ragged) -> np.ndarray:
    """One number for each (row, key) of ragged keys."""
    return ragged.values + ragged.row_index * np.int64(ragged.values.max(initial=0) + 1)


def _check(found: Candidates, cases: EvalCases, k: int, candidates: np.ndarray | None) -> None:
    """Raises ValueError for an answer that a metric would silently misread."""
    if len(found) != len(cases) or found.keys.shape[1] > k:
        raise ValueError(
            f"expected at most {k} items for each of {len(cases)} cases; got {found.keys.shape}."
        )
    scores, valid = found.scores, found.valid
    if np.isnan(scores[valid]).any() or (valid[:, 1:] & (scores[:, 1:] > scores[:, :-1])).any():
        raise ValueError("scores must descend along an answer, without NaN.")
    keys = found.keys[valid]
    if keys.min(initial=0) < 0:
        raise ValueError(f"key {keys.min()} inside an answer; counts must end before it.")
    if candidates is not None and not np.isin(keys, candidates).all():
        raise ValueError(
            f"key {keys[~np.isin(keys, candidates)][0]} was answered and is no candidate of this "
            "protocol. Build the index from split.candidates."
        )
    ascending = np.sort(np.where(valid, found.keys, -1), axis=1)
    if ((ascending[:, 1:] == ascending[:, :-1]) & (ascending[:, 1:] >= 0)).any():
        raise ValueError("an answer has the same item twice, which would count it twice.")
    base = np.int64(max(keys.max(initial=0), cases.exclude.values.max(initial=0)) + 1)
    pairs = keys + np.nonzero(valid)[0] * base
    excluded = np.isin(pairs, cases.exclude.values + cases.exclude.row_index * base)
    if excluded.any():
        raise ValueError(
            f"{int(excluded.sum())} answered items are excluded by their case, key "
            f"{keys[excluded][0]} for one. Pass cases.exclude on to the retriever."
        )


def _segments(sizes: np.ndarray, bounds: Sequence[int]):
    """(name, indices) of each segment that is not empty; `bounds` are lower bounds from 0 on."""
    segment = np.searchsorted(bounds, sizes, side="right") - 1
    for index, low in enumerate(bounds):
        rows = np.flatnonzero(segment == index)
        if index + 1 == len(bounds):
            name = f"{low}+"
        else:
            high = bounds[index + 1] - 1
            name = str(low) if high == low else f"{low}-{high}"
        if len(rows):
            yield name, rows
