"""Cases to evaluate, and recommenders that always answer the same."""

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.splits import Split
from twotower.ragged import Ragged
from twotower.retrieval.candidates import Candidates

NUM_ITEMS = 2000


def cases_of(targets, exclude=None, history=None, users=None) -> EvalCases:
    """From rows of keys; every case is a user of its own unless `users` says otherwise."""
    n = len(targets)
    history = Ragged.from_rows(history or [[]] * n)
    return EvalCases(
        user_id=np.array(users or [f"u{row}" for row in range(n)], object),
        history=history,
        history_time=history,
        history_rating=Ragged(np.full(len(history.values), np.nan, np.float32), history.offsets),
        exclude=Ragged.from_rows(exclude or [[]] * n),
        targets=Ragged.from_rows(targets),
        time=np.full(n, -1),
    )


def split_of(cases: EvalCases, num_items=NUM_ITEMS, item_counts=None) -> Split:
    return Split(
        protocol="loo",
        part="test",
        seed=0,
        train=np.arange(3),
        candidates=np.arange(num_items),
        history="before",
        seen_excluded=True,
        cases=cases,
        item_counts=item_counts,
    )


def random_split(num_cases=400, seed=0) -> Split:
    """1 to 5 targets and up to 30 excluded items a case, disjoint."""
    rng = np.random.default_rng(seed)
    rows = [rng.permutation(NUM_ITEMS)[:35] for _ in range(num_cases)]
    targets = [row[: rng.integers(1, 6)] for row in rows]
    excluded = [row[5 : 5 + rng.integers(0, 31)] for row in rows]
    return split_of(cases_of(targets, excluded, excluded))


def means(report, *names):
    return [report.metrics[name]["mean"] for name in names]


def by_hand():
    """Five items with 6, 0, 2, 30, 400 training rows; three cases of two users."""
    cases = cases_of(
        targets=[[1, 3], [0], [4]],
        exclude=[[0], [1], []],
        history=[[0], [1] * 12, []],
        users=["ann", "ann", "bob"],
    )
    return split_of(cases, num_items=5, item_counts=np.array([6, 0, 2, 30, 400]))


def answer_by_hand(cases, k):
    """ann: 3 2 1 4 and 4 3 2 0; bob: 4 3 2 1 0. All items that are not excluded."""
    keys = {0: [3, 2, 1, 4, -1], 1: [4, 3, 2, 0, -1], 2: [4, 3, 2, 1, 0]}
    rows = np.array(
        [keys[{(1, 3): 0, (0,): 1, (4,): 2}[tuple(row.tolist())]] for row in cases.targets]
    )
    counts = (rows >= 0).sum(1)
    scores = np.where(rows >= 0, -np.arange(5.0), -np.inf).astype(np.float32)
    return Candidates(rows[:, :k], scores[:, :k], np.minimum(counts, k))


def fixed(keys, scores=None, counts=None):
    """A recommender that always answers this row."""
    scores = -np.arange(len(keys)) if scores is None else scores

    def recommend(cases, k):
        n = len(cases)
        return Candidates(
            np.tile(keys, (n, 1)),
            np.tile(np.float32(scores), (n, 1)),
            np.full(n, len(keys) if counts is None else counts),
        )

    return recommend
