"""Answer: the lists that a funnel recommends, with the candidates after each of its steps."""

import dataclasses
from collections.abc import Mapping
from typing import Any

import numpy as np

from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates, widened


@dataclasses.dataclass(frozen=True)
class Step:
    """The candidates after one step of a funnel.

    Attributes:
        name: Name of a source, `merge`, or kind of a stage.
        candidates: What it returned.
        seconds: Time of the step. Sources run in parallel, so their times overlap.
        begun: When it began, by `time.perf_counter`.
        lost: Kind of a filter -> number of candidates that it removed, if the step is filters.
    """

    name: str
    candidates: Candidates
    seconds: float
    begun: float
    lost: dict[str, int] = dataclasses.field(default_factory=dict)


class NoSourceError(RuntimeError):
    """No source of a funnel answered.

    Attributes:
        missing: Name of each source -> why it was left out.

    >>> NoSourceError({"ease": "ValueError: no history"}).missing
    {'ease': 'ValueError: no history'}
    """

    def __init__(self, missing: Mapping[str, str]) -> None:
        reasons = "; ".join(f"{name}: {why}" for name, why in missing.items())
        super().__init__(f"no source of this funnel answered. {reasons}.")
        self.missing = dict(missing)


@dataclasses.dataclass(frozen=True)
class Answer:
    """The lists that a funnel recommends, and what went wrong on the way.

    Attributes:
        candidates: The lists, with the columns of `Merge`: which sources found an item, at which
            rank, with which score.
        missing: Name of a source that was left out -> reason: its deadline, or its error.
        failed: Kind of a stage that failed, such as a re-ranker -> its error. The stage was
            skipped for all requests, or for those of the fallback alone.
        relaxed: Kind of a filter -> number of requests of which it would have removed all
            candidates, and so removed none.
        fallback: Number of requests whose list was empty, so the fallback source answered.
        steps: The candidates after each source, the merge and each stage, in order, without the
            steps of the fallback.
    """

    candidates: Candidates
    missing: dict[str, str]
    failed: dict[str, str]
    relaxed: dict[str, int]
    fallback: int
    steps: list[Step]


def sums(first: Mapping[str, int], second: Mapping[str, int]) -> dict[str, int]:
    """Counts by name, those of the same name added."""
    return {n: first.get(n, 0) + second.get(n, 0) for n in {**first, **second}}


def with_rows(candidates: Candidates, rows: np.ndarray, others: Candidates) -> Candidates:
    """Candidates with those of some rows replaced.

    Where a stage failed for these rows alone, they lack its columns, and get NaN or 0 in them.
    """
    width = max(candidates.keys.shape[1], others.keys.shape[1])

    def put(values: np.ndarray, new: np.ndarray, fill: Any) -> np.ndarray:
        values = widened(values, width, fill).copy()
        values[rows] = widened(new, width, fill)
        return values

    counts = candidates.counts.copy()
    counts[rows] = others.counts
    columns = {}
    for name, values in candidates.columns.items():
        nothing = np.nan if values.dtype.kind == "f" else 0
        new = others.columns.get(name, np.full(others.keys.shape, nothing, values.dtype))
        columns[name] = put(values, new, values.dtype.type())
    return Candidates(
        put(candidates.keys, others.keys, NO_KEY),
        put(candidates.scores, others.scores, NO_SCORE),
        counts,
        columns,
    )
