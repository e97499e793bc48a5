"""Reports what each step of a funnel gains and loses.

It has the recall of every source, of all sources together and of the pool, the targets that only
one source found, the number of candidates that filters removed, and the time of each step.
"""

import dataclasses
import time
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from twotower.data.cases import EvalCases
from twotower.evaluation import intervals, metrics
from twotower.evaluation.evaluate import Recommend
from twotower.funnel.answer import Step
from twotower.funnel.filters import Filters
from twotower.funnel.funnel import Funnel
from twotower.funnel.merge import ReciprocalRank
from twotower.retrieval.candidates import NO_KEY, Candidates, widened

KS = (100, 500, 2000)
BATCH = 1024


@dataclasses.dataclass(frozen=True)
class StepReport:
    """The quality of the candidates after one step of a funnel.

    Attributes:
        name: Name of a source, `union` for all items that the sources found, `merge` for the pool,
            or kind of a stage. The union is in the order of the merge.
        recall: k -> mean over cases of the share of the targets among the first k candidates, with
            its 95% interval. If a step has fewer than k candidates, all count.
        found: `[num_targets]` whether the target is among the candidates.
        only: Share of the targets that only this source found; None for later steps.
        without: Mean recall of the pool, at its length, when this source is left out; None for
            later steps.
        candidates: Mean number of candidates a case.
        seconds: Time of the step for all cases.
        lost: Kind of a filter -> mean number of candidates that it removed for a case, if the step
            is filters.
    """

    name: str
    recall: dict[int, dict]
    found: np.ndarray
    only: float | None
    without: float | None
    candidates: float
    seconds: float
    lost: dict[str, float]

    def to_json(self) -> dict[str, Any]:
        """All but `found`."""
        entries = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        del entries["found"]
        return entries


@dataclasses.dataclass(frozen=True)
class _Outcome:
    """What one step made of one batch of cases.

    Attributes:
        name: Name of the step.
        ranks: `[num_targets]` rank of each target among its candidates.
        without: `[num_targets]` the same in the pool without this source; None for later steps, and
            for an only source.
        candidates: Number of its candidates, of all cases together.
        seconds: Its time.
        lost: Kind of a filter -> number of candidates that it removed.
    """

    name: str
    ranks: np.ndarray
    without: np.ndarray | None
    candidates: int
    seconds: float
    lost: dict[str, int]


class Recording:
    """A funnel as a recommender for `evaluate`, which keeps what its sources found.

    Each source is asked once for a case. What is reported of the steps and of each source alone
    comes from these answers, through the merge and the filters.

        recording = Recording(funnel)
        at_the_end = evaluate(recording, split)
        ease_alone = evaluate(recording.alone("ease"), split)
        print(table(recording.report(), "random, test"))

    Args:
        funnel: The funnel; every source is waited for.
    """

    def __init__(self, funnel: Funnel) -> None:
        self.funnel = funnel
        # An entry for each batch of cases.
        self._found: list[list[Step]] = []
        self._outcomes: list[list[_Outcome]] = []
        self._num_targets: list[np.ndarray] = []
        self._first_ten: list[np.ndarray] = []

    def __call__(self, cases: EvalCases, k: int) -> Candidates:
        """The funnel's lists of `k` items for further cases.

        Raises:
            RuntimeError: A source or a stage fails.
        """
        found = self.funnel.find(cases, k)
        answer = self.funnel.answer(cases, found, k)
        if answer.failed:
            raise RuntimeError(f"stages failed: {answer.failed}")
        self._found.append(found)
        self._num_targets.append(cases.targets.lengths)
        self._first_ten.append(widened(answer.candidates.keys[:, :10], 10, NO_KEY))
        steps = [*found, self._union(cases, found), *answer.steps[len(found) :]]
        self._outcomes.append([self._outcome(cases, found, step) for step in steps])
        return answer.candidates

    def _union(self, cases: EvalCases, found: Sequence[Step]) -> Step:
        """All items that the sources found, each once: a merge that is not cut to the pool."""
        most = sum(step.candidates.keys.shape[1] for step in found)
        begun = time.perf_counter()
        candidates = self.funnel.merged(cases, found, most)
        return Step("union", candidates, time.perf_counter() - begun, begun)

    def _outcome(self, cases: EvalCases, found: Sequence[Step], step: Step) -> _Outcome:
        others = [other for other in found if other is not step]
        without = None
        if 0 < len(others) < len(found):  # the step is a source, and not the only one
            without = _ranks(cases, self.funnel.merged(cases, others, self.funnel.pool))
        ranks, counts = _ranks(cases, step.candidates), step.candidates.counts
        return _Outcome(step.name, ranks, without, int(counts.sum()), step.seconds, step.lost)

    @property
    def found(self) -> list[Step]:
        """What each source found for all cases, as from `Funnel.find`."""
        return [
            dataclasses.replace(
                parts[0],
                candidates=Candidates.concat([part.candidates for part in parts]),
                seconds=sum(part.seconds for part in parts),
            )
            for parts in zip(*self._found)
        ]

    @property
    def first_ten(self) -> np.ndarray:
        """Keys of the funnel's first ten items of each case, `[num_cases, 10]`; -1 for none."""
        return np.concatenate(self._first_ten)

    def alone(self, name: str) -> Recommend:
        """A funnel of one of the sources and the same filters, as a recommender for `evaluate`.

        It must be asked for the same cases in the same batches as the recording was.
        """
        # So that nothing but the other sources and the merge differ.
        filters = [stage for stage in self.funnel.stages if isinstance(stage, Filters)]
        inlets = {name: self.funnel.sources[name]}
        single = Funnel(inlets, ReciprocalRank(), filters, self.funnel.pool)
        steps = (step for found in self._found for step in found if step.name == name)
        return lambda requests, k: single.answer(requests, [next(steps)], k).candidates

    def report(self, ks: Sequence[int] = KS) -> list[StepReport]:
        """Reports on the targets of all cases after every step.

        Args:
            ks: Lengths at which recall is measured.
        """
        num_cases = sum(map(len, self._num_targets))
        offsets = np.append(0, np.cumsum(np.concatenate(self._num_targets)))
        steps = [*zip(*self._outcomes)]  # for each step, its outcomes by batch
        num_sources = len(self.funnel.sources)

        def joined(ranks: Sequence[np.ndarray]) -> metrics.TargetRanks:
            return metrics.TargetRanks(np.concatenate(ranks), offsets)

        ranks = [joined([part.ranks for part in step]) for step in steps]
        found = [ranked.ranks < metrics.NOT_FOUND for ranked in ranks]
        found_once = np.sum(found[:num_sources], axis=0) == 1
        rows = []
        for index, step in enumerate(steps):
            only = without = None
            if index < num_sources:
                only = float((found[index] & found_once).mean())
            left_out = [part.without for part in step if part.without is not None]
            if left_out:
                without = float(metrics.recall(joined(left_out), self.funnel.pool).mean())
            rows.append(
                StepReport(
                    step[0].name,
                    {k: intervals.share_interval(metrics.recall(ranks[index], k)) for k in ks},
                    found[index],
                    only,
                    without,
                    sum(part.candidates for part in step) / num_cases,
                    sum(part.seconds for part in step),
                    {
                        kind: sum(part.lost[kind] for part in step) / num_cases
                        for kind in step[0].lost
                    },
                )
            )
        return rows


def report(funnel: Funnel, cases: EvalCases, ks: Sequence[int] = KS) -> list[StepReport]:
    """Runs a funnel on all cases, and reports on the targets after every step.

    Args:
        funnel: The funnel; every source is waited for.
        cases: Requests with known targets.
        ks: Lengths at which recall is measured.
    """
    recording = Recording(funnel)
    for part in cases.batches(BATCH):
        recording(part, funnel.pool)
    return recording.report(ks)


def _ranks(cases: EvalCases, candidates: Candidates) -> np.ndarray:
    """Rank of each target among the candidates, `[num_targets]`."""
    return metrics.target_ranks(
        candidates.keys,
        candidates.scores,
        candidates.counts,
        cases.targets.values,
        cases.targets.offsets,
        candidates.keys.shape[1] + 1,
    ).ranks


def table(rows: Sequence[StepReport], title: str) -> str:
    """The report as text: a table with a line for each step."""
    ks = [*rows[0].recall]
    head = f"{'':16s}" + "".join(f"{f'recall@{k}':>12s}" for k in ks)
    lines = [title, head + f"{'alone':>9s}{'without':>9s}{'candidates':>12s}{'seconds':>9s}"]
    for row in rows:
        cells = "".join(f"{row.recall[k]['mean']:12.4f}" for k in ks)
        alone = f"{'':9s}" if row.only is None else f"{row.only:9.4f}"
        without = f"{'':9s}" if row.without is None else f"{row.without:9.4f}"
        line = f"{row.name:16s}{cells}{alone}{without}{row.candidates:12.1f}{row.seconds:9.1f}"
        lines.append(line)
        lines += [f"  {kind} took {lost:.1f} candidates a case" for kind, lost in row.lost.items()]
    return "\n".join(lines)


def gains(first: Sequence[Mapping], second: Sequence[Mapping]) -> str:
    """The first funnel's recall minus the second's after each stage: shows which stage loses a
    gain.

    Args:
        first: `StepReport.to_json()` of the steps of one funnel.
        second: The same of another funnel with steps of the same names, on the same cases.
    """
    others = {row["name"]: row["recall"] for row in second}
    lines = ["the first minus the second, after each stage"]
    for row in first:
        if row["name"] in others:
            cells = "".join(
                f"{value['mean'] - others[row['name']][k]['mean']:+12.4f}"
                for k, value in row["recall"].items()
            )
            lines.append(f"{row['name']:16s}{cells}")
    return "\n".join(lines)
