"""Examples: the training data of a ranker: a funnel's candidates for validation cases, with labels.

    older rows     -> towers, sources, merge            (the bundle from before its refit)
    newer rows     -> the cases: their rows are the labels, and no source has learned from them
    all rows       -> the same towers and sources again, for serving

A ranker must not be trained on the rows that its sources were fitted on. The filter of seen items
would remove every positive. Without the filter, the sources would score the positives as items they
have memorised.
"""

import dataclasses
from collections.abc import Sequence

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.funnel.filters import is_among
from twotower.funnel.funnel import Funnel
from twotower.ragged import Ragged
from twotower.ranking.columns import CandidateColumns
from twotower.retrieval.candidates import NO_KEY, Candidates, widened

# Names of labels. `relevance` is 1 for a target; the others are NaN for all but targets.
WATCH, LIKE, RATING = "relevance", "like", "rating"
LIKED = 4.0
BATCH = 512


@dataclasses.dataclass(frozen=True)
class Examples:
    """Features and labels of the candidates of requests; a row is a request.

    Attributes:
        columns: The features from `CandidateColumns`, `[num_requests, k, ...]` each.
        scores: `[num_requests, k]` float32, the candidates' scores before ranking; -inf behind the
            end of a row.
        labels: Head -> `[num_requests, k]` float32. `relevance` is 1 for a target and 0 for other
            candidates; `like` (whether the rating is 4 or more) and `rating` are NaN where there is
            none.
        num_targets: `[num_requests]` number of targets, found by the funnel or not.
        users: `[num_requests]` int, a number for each user.
    """

    columns: dict[str, np.ndarray]
    scores: np.ndarray
    labels: dict[str, np.ndarray]
    num_targets: np.ndarray
    users: np.ndarray

    def __len__(self) -> int:
        return len(self.scores)

    @property
    def valid(self) -> np.ndarray:
        """`[num_requests, k]` bool, False past the end of a row."""
        return self.scores > -np.inf

    def take(self, rows: np.ndarray) -> "Examples":
        """The requests `rows`: indices `[n]`, or a boolean mask `[num_requests]`."""
        return Examples(
            {name: values[rows] for name, values in self.columns.items()},
            self.scores[rows],
            {name: values[rows] for name, values in self.labels.items()},
            self.num_targets[rows],
            self.users[rows],
        )

    @property
    def able(self) -> np.ndarray:
        """Indices `[n]` of the requests that have a target among their candidates."""
        return np.flatnonzero((self.labels[WATCH] > 0).any(1))

    def folds(self, count: int, seed: int) -> np.ndarray:
        """`[num_requests]` a random fold, from 0 to `count` - 1. All requests of a user are in one
        fold."""
        names, user = np.unique(self.users, return_inverse=True)
        return np.random.default_rng(seed).permutation(len(names))[user] % count

    def shuffled(self, seed: int) -> "Examples":
        """The same candidates with the labels of each request shuffled. Nothing can be learned from
        them, so a ranker trained on them must not be better than chance."""
        draw = np.random.default_rng(seed).random(self.scores.shape)
        # Random among the candidates of a row; what is past its end stays there.
        order = np.argsort(np.where(self.valid, draw, 2.0), axis=1)
        labels = {name: np.take_along_axis(v, order, 1) for name, v in self.labels.items()}
        return dataclasses.replace(self, labels=labels)

    def ndcg(self, scores: np.ndarray, k: int = 10) -> np.ndarray:
        """`[num_requests]` NDCG@k of the order by `scores` `[num_requests, k]`. Targets that the
        funnel did not find count as missed."""
        order = np.argsort(-np.where(self.valid, scores, -np.inf), axis=1, kind="stable")[:, :k]
        hits = np.take_along_axis(self.labels[WATCH], order, 1)
        gains = 1 / np.log2(np.arange(2, k + 2))
        best = np.cumsum(gains)[np.clip(self.num_targets, 1, k) - 1]
        return (hits * gains[: hits.shape[1]]).sum(1) / best


def make_examples(
    funnel: Funnel, columns: CandidateColumns, cases: EvalCases, dataset: Dataset
) -> Examples:
    """The candidates that a funnel finds for cases, with features and labels.

    Args:
        funnel: Without a ranker; none of its sources has learned from the targets.
        columns: Fitted on the rows that the funnel was fitted on.
        cases: Requests with known targets.
        dataset: The data; its interactions have the targets' ratings.
    """
    parts = [(case, funnel(case, funnel.pool)) for case in cases.batches(BATCH)]
    return labelled(parts, columns, dataset)


def random_examples(
    funnel: Funnel,
    columns: CandidateColumns,
    cases: EvalCases,
    dataset: Dataset,
    candidates: np.ndarray,
    negatives: int = 100,
    seed: int = 0,
) -> Examples:
    """The targets beside random items: how rankers are often trained. Here it is for comparison.

    Most random items are found by no source and are easy to tell from a target. A funnel's list has
    few such items, so what is learned hardly helps to order it.

    Args:
        funnel: As `make_examples` takes it.
        columns: As there.
        cases: As there.
        dataset: As there.
        candidates: `[num_candidates]` keys that may be drawn.
        negatives: Number of random items beside the targets of each case.
        seed: Seed of the draws.
    """
    rng, parts = np.random.default_rng(seed), []
    for case in cases.batches(BATCH):
        found = funnel(case, funnel.pool)
        drawn = rng.choice(candidates, (len(case), negatives))
        rows = Ragged.from_rows([np.unique(row) for row in drawn])
        allowed = ~is_among(_padded(rows), case.exclude)
        parts.append((case, _looked_up(found, case, np.where(allowed, _padded(rows), NO_KEY))))
    return labelled(parts, columns, dataset)


def labelled(
    parts: Sequence[tuple[EvalCases, Candidates]], columns: CandidateColumns, dataset: Dataset
) -> Examples:
    """Examples of cases and their candidates, a pair for each batch."""
    width = max((found.keys.shape[1] for _, found in parts), default=0)
    made = []
    for cases, found in parts:
        found = _widened(found, width)
        hits = is_among(found.keys, cases.targets) & found.valid
        ratings = np.where(hits, _ratings(dataset, cases, found.keys, hits), np.nan)
        liked = np.where(np.isfinite(ratings), ratings >= LIKED, np.nan)
        labels = {WATCH: hits, LIKE: liked, RATING: ratings}
        made.append((columns(cases, found), found.scores, labels, cases.targets.lengths))
    inputs, scores, labels_of, targets = zip(*made)
    return Examples(
        {name: np.concatenate([part[name] for part in inputs]) for name in inputs[0]},
        np.concatenate(scores),
        {
            name: np.concatenate([part[name] for part in labels_of]).astype(np.float32)
            for name in labels_of[0]
        },
        np.concatenate(targets),
        np.unique(
            np.concatenate([cases.user_id.astype(str) for cases, _ in parts]), return_inverse=True
        )[1],
    )


def _ratings(dataset: Dataset, cases: EvalCases, keys: np.ndarray, hits: np.ndarray) -> np.ndarray:
    """What the users of the cases gave the items, `[num_cases, k]`; NaN where that is not known."""
    found = np.full(keys.shape, np.nan)
    if "rating" not in dataset.interactions:
        return found
    row, column = np.nonzero(hits)
    users = dataset.users["user_id"].to_numpy()
    number = {user: index for index, user in enumerate(users.tolist())}
    asked = np.array([number.get(user, -1) for user in cases.user_id.tolist()], np.int64)
    width = len(dataset.items)
    wanted = asked[row] * width + keys[row, column]
    pairs = dataset.user_rows * width + dataset.item_keys
    order = np.argsort(pairs, kind="stable")
    # The last of several interactions of a pair.
    place = np.searchsorted(pairs[order], wanted, side="right") - 1
    place = order[np.maximum(place, 0)]
    is_pair = (pairs[place] == wanted) & (asked[row] >= 0)
    ratings = dataset.interactions["rating"].to_numpy(np.float64)[place]
    found[row, column] = np.where(is_pair, ratings, np.nan)
    return found


def _padded(rows: Ragged) -> np.ndarray:
    """`[num_rows, longest]`, `NO_KEY` past the end of a row."""
    lengths = rows.lengths
    found = np.full((len(rows), int(lengths.max(initial=0))), NO_KEY)
    found[np.arange(found.shape[1]) < lengths[:, None]] = rows.values
    return found


def _looked_up(found: Candidates, cases: EvalCases, keys: np.ndarray) -> Candidates:
    """The targets and `keys` `[num_cases, n]` as candidates, with the columns of those among them
    that the funnel found, and the least score of the row for the others."""
    rows = [
        np.union1d(targets, row[row != NO_KEY])
        for targets, row in zip(np.split(cases.targets.values, cases.targets.offsets[1:-1]), keys)
    ]
    wanted = _padded(Ragged.from_rows(rows))
    order = np.argsort(found.keys, axis=1)
    ascending = np.take_along_axis(found.keys, order, 1)
    place = np.stack([np.searchsorted(a, w) for a, w in zip(ascending, wanted)])
    place = np.take_along_axis(order, np.minimum(place, order.shape[1] - 1), 1)
    is_found = (np.take_along_axis(found.keys, place, 1) == wanted) & (wanted != NO_KEY)
    least = np.where(found.valid, found.scores, np.inf).min(1, keepdims=True)
    least = np.where(np.isfinite(least), least, 0)
    scores = np.where(is_found, np.take_along_axis(found.scores, place, 1), least)
    columns = {}
    for name, values in found.columns.items():
        nothing = np.nan if values.dtype.kind == "f" else 0
        columns[name] = np.where(is_found, np.take_along_axis(values, place, 1), nothing)
        columns[name] = columns[name].astype(values.dtype)
    return Candidates.rank(wanted, scores, wanted.shape[1], columns)


def _widened(found: Candidates, width: int) -> Candidates:
    return Candidates(
        widened(found.keys, width, NO_KEY),
        widened(found.scores, width, np.float32(-np.inf)),
        found.counts,
        {name: widened(v, width, v.dtype.type()) for name, v in found.columns.items()},
    )
