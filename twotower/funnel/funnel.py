"""Funnel: sources in parallel, a merge of their candidates, and stages in sequence."""

import concurrent.futures
import copy
import dataclasses
import threading
import time
from collections.abc import Collection, Mapping, Sequence

import numpy as np
from absl import logging

from twotower.data.requests import Requests
from twotower.funnel.answer import Answer, NoSourceError, Step, sums, with_rows
from twotower.funnel.filters import Filters
from twotower.funnel.merge import Merge
from twotower.funnel.stage import Source, Stage
from twotower.funnel.threads import Threads
from twotower.limits import whole_number
from twotower.ragged import integers
from twotower.retrieval.candidates import Candidates

# Calls of one source that may run at once; a source that hangs holds no more threads than these.
THREADS = 8
# Number of candidates that a source is asked for to get all that it has.
EVERYTHING = 2**31 - 1
# Requests that the fallback answers at once.
ROWS = 64
# No catalogue gives out keys from this one on, and they are too large for `Pool`.
NO_CATALOGUE = 2**41


@dataclasses.dataclass(frozen=True)
class Inlet:
    """A source of a funnel, and how the funnel calls it.

    Attributes:
        source: The source.
        k: How many candidates it is asked for; None for as many as the request asks the funnel for.
        deadline: Seconds after which the funnel goes on without it; None waits until it returns.
        keep: Number of its first candidates that are in the merged list whatever their merged
            score. Stages such as slots for fresh items need them there.

    Raises:
        ValueError: `k`, `deadline` or `keep` out of bounds.
    """

    source: Source
    k: int | None = 500
    deadline: float | None = None
    keep: int = 0

    def __post_init__(self) -> None:
        if self.k is not None:
            object.__setattr__(self, "k", whole_number(self.k, "k", 1))
        object.__setattr__(self, "keep", whole_number(self.keep, "keep"))
        if self.deadline is not None and not 0 < self.deadline <= threading.TIMEOUT_MAX:
            raise ValueError(
                "deadline must be a positive, finite number of seconds, or None; got "
                f"{self.deadline}."
            )


class Funnel:
    """Recommends items: sources in parallel, a merge, and stages in sequence.

        sources = {"two_tower": Inlet(TwoTower(bundle)), "popular": Inlet(popular)}
        funnel = Funnel(sources, ReciprocalRank(), [Filters([Seen()])], fallback="popular")
        answer = funnel.recommend(requests, k=20)
        answer.candidates.keys, answer.missing

    Args:
        sources: Name -> source, with how many candidates it is asked for and how long it may take.
        merge: Merges their candidates into one list.
        stages: Filters, rankers and re-rankers, in their order.
        pool: Length of the merged list.
        fallback: Name of the source that answers a request whose list is empty after all stages. It
            is asked for all its items, and they pass through the stages, too. "" for none.
        onboarding: Keys of the items to ask a new user about, in order, such as from
            `cold_start.most_telling`. It is stored for services; no answer depends on it.

    Raises:
        ValueError: No source, a name that is not an identifier, a fallback that is not a source, or
            a merge that has weights or quotas of other sources.
    """

    def __init__(
        self,
        sources: Mapping[str, Inlet],
        merge: Merge,
        stages: Sequence[Stage] = (),
        pool: int = 500,
        fallback: str = "",
        onboarding: np.ndarray | Sequence[int] = (),
    ) -> None:
        if not sources or not all(name.isidentifier() for name in sources):
            raise ValueError(
                f"sources are named by identifiers, one at least; got {list(sources)}."
            )
        if fallback and fallback not in sources:
            raise ValueError(f"fallback {fallback!r} is none of the sources {list(sources)}.")
        if unknown := [name for name in merge.named if name not in sources]:
            raise ValueError(
                f"the merge has weights or quotas for {unknown}, which are none of the sources "
                f"{list(sources)}."
            )
        self.sources, self.merge, self.stages = dict(sources), merge, list(stages)
        self.pool, self.fallback = whole_number(pool, "pool", 1), fallback
        self.onboarding = integers(onboarding, "onboarding")
        self._threads = {name: Threads(f"the funnel's source {name}", THREADS) for name in sources}

    def __call__(self, requests: Requests, k: int) -> Candidates:
        """The best `k` items of each request; every source is waited for, as in an evaluation.

        Raises:
            RuntimeError: No source answered, or a stage failed.
        """
        answer = self.recommend(requests, k, deadlines=False)
        if answer.failed:
            raise RuntimeError("; ".join(f"{name}: {why}" for name, why in answer.failed.items()))
        return answer.candidates

    def find(self, requests: Requests, k: int | None = None) -> list[Step]:
        """The candidates of each source, without deadlines: for evaluations.

        Args:
            requests: What is asked.
            k: Number of candidates of a source whose `Inlet.k` is None; by default the length of
                the pool.

        Raises:
            RuntimeError: A source that fails.
        """
        found, missing = self._ask(self._asked(k or self.pool), requests, deadlines=False)
        if missing:
            raise RuntimeError("; ".join(f"{name}: {why}" for name, why in missing.items()))
        return found

    def with_parts(self, sources: Mapping[str, Inlet], stages: Sequence[Stage]) -> "Funnel":
        """A copy with other sources and stages. It shares this funnel's threads, so closing one
        closes both.

        Args:
            sources: For each source of this funnel its part.
            stages: Filters, rankers and re-rankers, in their order.

        Raises:
            ValueError: Other names of sources.
        """
        if [*sources] != [*self.sources]:
            raise ValueError(f"expected parts for {[*self.sources]}; got them for {[*sources]}.")
        changed = copy.copy(self)  # with the same threads
        changed.sources, changed.stages = dict(sources), list(stages)
        return changed

    def recommend(
        self, requests: Requests, k: int, deadlines: bool = True, sources: Collection[str] = ()
    ) -> Answer:
        """Recommends `k` items for each request.

        A source that is late, raises, or returns invalid `Candidates` is left out of this answer,
        which names it. The same holds for a stage that raises, if it is not required.

        Args:
            requests: One request or thousands.
            k: Length of the lists.
            deadlines: Whether the sources' deadlines hold.
            sources: Names of the sources to ask, () for all. The merge and the stages see the
                others as if they had found nothing. If the list is empty, the fallback is asked in
                any case.

        Raises:
            ValueError: `k` below 1, or a name that is not one of the sources.
            NoSourceError: No source answered; the message says why.
            RuntimeError: A required stage such as the filters failed, or the funnel is closed.
        """
        whole_number(k, "k", 1)
        if unknown := [name for name in sources if name not in self.sources]:
            raise ValueError(f"sources are some of {[*self.sources]}; got {unknown}.")
        asked = {n: size for n, size in self._asked(k).items() if not sources or n in sources}
        found, missing = self._ask(asked, requests, deadlines)
        if not found and (not self.fallback or self.fallback in asked):
            raise NoSourceError(missing)
        answer = self.answer(requests, found, k, deadlines)
        if not found and self.fallback in answer.missing:
            raise NoSourceError(missing | answer.missing)
        return dataclasses.replace(answer, missing=missing | answer.missing)

    def answer(
        self, requests: Requests, found: Sequence[Step], k: int, deadlines: bool = False
    ) -> Answer:
        """The answer to requests whose candidates are known: the merge, the stages, the fallback.

        Only requests whose list is empty after all stages ask a source, the fallback.

        Args:
            requests: What was asked.
            found: What `find` returned for them, or a part of it.
            k: Length of the lists.
            deadlines: Whether the deadline of the fallback holds.

        Raises:
            ValueError: Candidates of another number of requests.
            RuntimeError: A required stage such as the filters failed, or the funnel is closed.
        """
        if wrong := {
            s.name: len(s.candidates) for s in found if len(s.candidates) != len(requests)
        }:
            raise ValueError(f"expected candidates of {len(requests)} requests; got {wrong}.")
        missing: dict[str, str] = {}
        failed: dict[str, str] = {}
        # Not wider than what was found: columns of nothing would cost as much as others.
        width = sum(step.candidates.keys.shape[1] for step in found)
        merged, relaxed = self._finish(requests, found, min(self.pool, max(k, width)), failed)
        candidates = merged[-1].candidates.head(k)
        left = np.flatnonzero(candidates.counts == 0) if self.fallback else np.empty(0, np.int64)
        # A few at a time: each gets a list of all items.
        for start in range(0, len(left), ROWS):
            rows = left[start : start + ROWS]
            rest = requests.take(rows)
            again, why = self._ask({self.fallback: EVERYTHING}, rest, deadlines)
            missing |= why
            if not again:
                break
            pool = max(1, again[0].candidates.keys.shape[1])
            steps, let_pass = self._finish(rest, again, pool, failed)
            relaxed = sums(relaxed, let_pass)
            candidates = with_rows(candidates, rows, steps[-1].candidates.head(k))
        return Answer(candidates, missing, failed, relaxed, len(left), [*found, *merged])

    def merged(self, requests: Requests, found: Sequence[Step], pool: int) -> Candidates:
        """One list of what sources found, with the places that some of them keep.

        Args:
            requests: What was asked.
            found: What `find` returned for them, or a part of it.
            pool: Length of the list.
        """
        # Every source has its columns, so that what follows need not ask who answered.
        parts = dict.fromkeys(self.sources, Candidates.empty(len(requests)))
        parts |= {step.name: step.candidates for step in found}
        keep = {name: inlet.keep for name, inlet in self.sources.items()}
        return self.merge(requests, parts, pool, keep)

    def _asked(self, k: int) -> dict[str, int]:
        """How many candidates each source is asked for, for lists of `k`."""
        return {name: inlet.k or k for name, inlet in self.sources.items()}

    def _ask(
        self, asked: Mapping[str, int], requests: Requests, deadlines: bool
    ) -> tuple[list[Step], dict[str, str]]:
        """What each source found, asked for that many candidates; and why others are missing."""

        def answer(name: str, k: int) -> Step:
            begun = time.perf_counter()
            found = _checked(self.sources[name].source(requests, k), len(requests)).head(k)
            return Step(name, found, time.perf_counter() - begun, begun)

        # One of those that are waited for in any case answers in this thread: going to another and
        # back takes as long as a small source.
        patient = [n for n in asked if not deadlines or self.sources[n].deadline is None]
        own = patient[-1] if patient else ""
        begun = time.perf_counter()
        futures = {
            name: self._threads[name].submit(answer, name, k)
            for name, k in asked.items()
            if name != own
        }
        if own:
            futures[own] = self._threads[own].here(answer, own, asked[own])
        steps, missing = [], {}
        for name in asked:
            future = futures[name]
            left = deadline = self.sources[name].deadline if deadlines else None
            if deadline is not None:
                left = max(0.0, deadline - (time.perf_counter() - begun))
            # `result(left)` would not tell a late source from one that raises a TimeoutError.
            if concurrent.futures.wait([future], left).not_done:
                future.cancel()  # one that has not begun never will
                missing[name] = f"not within its deadline of {1000 * (deadline or 0):g} ms"
                continue
            try:
                steps.append(future.result())
            except Exception as error:  # whatever a source raises, the others answer
                missing[name] = f"{type(error).__name__}: {error}"
        for name, why in missing.items():
            logging.log_every_n_seconds(logging.WARNING, "source %s left out: %s", 10, name, why)
        return steps, missing

    def _finish(
        self, requests: Requests, found: Sequence[Step], pool: int, failed: dict[str, str]
    ) -> tuple[list[Step], dict[str, int]]:
        """The merge and the stages, and which filters let requests pass; adds to `failed`."""
        begun = time.perf_counter()
        candidates = self.merged(requests, found, pool)
        relaxed: dict[str, int] = {}
        steps = [Step("merge", candidates, time.perf_counter() - begun, begun)]
        for stage in self.stages:
            begun = time.perf_counter()
            lost: dict[str, int] = {}
            try:
                if isinstance(stage, Filters):
                    filtered = stage.apply(requests, candidates)
                    candidates, lost = filtered.candidates, filtered.lost
                    relaxed = sums(relaxed, filtered.relaxed)
                else:
                    kept = stage(requests, candidates)
                    if len(kept.keys) != len(requests):
                        raise ValueError(f"{len(kept.keys)} lists for {len(requests)} requests.")
                    candidates = kept
            except Exception as error:  # whatever a stage raises, the list before it is an answer
                why = f"{type(error).__name__}: {error}"
                if stage.required:
                    raise RuntimeError(f"the stage {stage.kind} failed. {why}") from error
                failed[stage.kind] = why
                logging.log_every_n_seconds(
                    logging.WARNING, "stage %s left out: %s", 10, stage.kind, why
                )
            steps.append(Step(stage.kind, candidates, time.perf_counter() - begun, begun, lost))
        return steps, relaxed

    def close(self) -> None:
        """Ends the threads, without waiting for sources that hang."""
        for threads in self._threads.values():
            threads.close()


def _checked(found: Candidates, num_requests: int) -> Candidates:
    """An answer that keeps the rules of `Candidates`, without further columns."""
    if len(found) != num_requests:
        raise ValueError(f"it answered {len(found)} of {num_requests} requests.")
    keys, counts = integers(found.keys, "keys"), integers(found.counts, "counts")
    if counts.min(initial=0) < 0 or counts.max(initial=0) > keys.shape[1]:
        raise ValueError(f"its counts must be within 0 and {keys.shape[1]}, the columns it has.")
    with np.errstate(over="ignore"):  # beyond float32 is infinite, and refused
        scores = found.scores.astype(np.float32, copy=False)
    valid = np.arange(keys.shape[1]) < counts[:, None]
    if not np.isfinite(scores[valid]).all():
        raise ValueError("its scores must be finite, without NaN.")
    if (valid[:, 1:] & (scores[:, 1:] > scores[:, :-1])).any():
        raise ValueError("its scores must descend along an answer.")
    if keys[valid].min(initial=0) < 0 or keys[valid].max(initial=0) >= NO_CATALOGUE:
        raise ValueError("it has a negative key inside an answer, or one that is too large.")
    return Candidates(keys, scores, counts)
