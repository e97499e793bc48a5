"""What each step of a funnel gives and loses: recall of every source and of the pool, who found what
alone, what filters took away, and how long each step took."""

import dataclasses
from collections.abc import Sequence

import numpy as np

from twotower.data.cases import EvalCases
from twotower.evaluation import metrics
from twotower.funnel.funnel import Funnel, Step
from twotower.retrieval.candidates import Candidates

KS = (100, 500, 2000)
BATCH = 1024


@dataclasses.dataclass(frozen=True)
class StepReport:
    """What one step of a funnel left of the targets.

    Attributes:
        name: Name of a source, `merge`, or kind of a stage.
        recall: k -> mean over cases of the share of the targets among its first k candidates, with
            its 95% interval. A step with fewer than k candidates has all of them.
        found: `[num_targets]` whether the step has the target at all.
        only: Share of the targets that this source found and no other; None for later steps.
        without: Mean recall of the pool, at its length, when this source is left out; None for
            later steps.
        candidates: Mean number of candidates a case.
        seconds: That the step took for all cases.
        lost: Kind of a filter -> share of the targets that it took away, for a step of filters.
    """

    name: str
    recall: dict[int, dict]
    found: np.ndarray
    only: float | None
    without: float | None
    candidates: float
    seconds: float
    lost: dict[str, float]


def report(funnel: Funnel, cases: EvalCases, ks: Sequence[int] = KS) -> list[StepReport]:
    """Asks a funnel all cases, and looks at the targets after every step.

    Args:
        funnel: The funnel; every source is waited for.
        cases: Requests with right answers.
        ks: Lengths at which recall is measured.
    """
    steps: list[list[Step]] = []
    pools: list[dict[str, Candidates]] = []
    for part in cases.batches(BATCH):
        answer = funnel.recommend(part, k=1, deadlines=False)
        if answer.missing:
            raise RuntimeError(f"sources failed: {answer.missing}")
        steps.append(answer.steps)
        found = {step.name: step.candidates for step in answer.steps[: len(funnel.sources)]}
        pools.append(
            {
                left_out: funnel.merge(
                    part,
                    {n: c for n, c in found.items() if n != left_out},
                    funnel.pool,
                )
                for left_out in found
                if len(found) > 1
            }
        )
    targets = np.concatenate([_ranks(cases, steps, index) for index in range(len(steps[0]))])
    targets = targets.reshape(len(steps[0]), -1)
    of_sources = targets[: len(funnel.sources)] < metrics.NOT_FOUND
    rows = []
    for index, first in enumerate(steps[0]):
        ranks = metrics.TargetRanks(targets[index], cases.targets.offsets)
        is_source = index < len(funnel.sources)
        found_alone = of_sources[index] & (of_sources.sum(0) == 1) if is_source else None
        without = None
        if is_source and len(of_sources) > 1:
            merged = [[Step("", pool[first.name], 0)] for pool in pools]
            left = metrics.TargetRanks(_ranks(cases, merged, 0), cases.targets.offsets)
            without = float(metrics.recall(left, funnel.pool).mean())
        rows.append(
            StepReport(
                first.name,
                {k: metrics.share_interval(metrics.recall(ranks, k)) for k in ks},
                targets[index] < metrics.NOT_FOUND,
                None if found_alone is None else float(found_alone.mean()),
                without,
                float(np.concatenate([part[index].candidates.counts for part in steps]).mean()),
                sum(part[index].seconds for part in steps),
                {},
            )
        )
    return rows


def _ranks(cases: EvalCases, steps: Sequence[Sequence[Step]], index: int) -> np.ndarray:
    """Rank of each target in what a step left, `[num_targets]`."""
    ranks = []
    for part, found in zip(cases.batches(BATCH), steps):
        candidates = found[index].candidates
        ranks.append(
            metrics.target_ranks(
                candidates.keys,
                candidates.scores,
                candidates.counts,
                part.targets.values,
                part.targets.offsets,
                candidates.keys.shape[1] + 1,
            ).ranks
        )
    return np.concatenate(ranks)
