"""Compares the orders of a funnel, its sources and rankers on the same cases."""

import dataclasses
import time
from collections.abc import Mapping

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.requests import Requests
from twotower.evaluation.evaluate import Recommend
from twotower.funnel.filters import Filters, is_among
from twotower.funnel.funnel import Funnel
from twotower.ranking.candidate_ranker import CandidateRanker
from twotower.ranking.examples import WATCH
from twotower.ranking.probability import BINS, binned, calibration_error
from twotower.retrieval.candidates import NO_KEY, Candidates, widened

# The order that rankers are given.
GIVEN = "given"
BATCH = 512


@dataclasses.dataclass
class Order:
    """The lists of one method for some cases.

    Attributes:
        keys: `[num_cases, k]` int32, best first, -1 past the end.
        calibration: `[BINS, 3]`, the candidates' probabilities and whether they are targets as
            `binned` gives them. None for an order without probabilities.
    """

    keys: np.ndarray
    calibration: np.ndarray | None = None

    @property
    def calibration_error(self) -> float:
        """That of the probabilities."""
        assert self.calibration is not None
        return calibration_error(self.calibration)

    def recommend(self) -> Recommend:
        """A recommender for `evaluate`, which must ask for the cases in their order. The scores of
        a list fall by 1."""
        place = 0

        def recommend(requests: Requests, k: int) -> Candidates:
            nonlocal place
            keys = self.keys[place : place + len(requests), :k].astype(np.int64)
            place += len(requests)
            scores = np.where(keys != NO_KEY, -np.arange(keys.shape[1], dtype=np.float32), -np.inf)
            counts = (keys != NO_KEY).sum(1)
            return Candidates(keys, scores.astype(np.float32), counts)

        return recommend


def orders(
    funnel: Funnel, rankers: Mapping[str, CandidateRanker], cases: EvalCases
) -> dict[str, Order]:
    """The lists of the funnel's merge (`given`), of each source, and of each ranker.

    Args:
        funnel: A funnel without a ranker. Its filters also apply to the sources' lists.
        rankers: Name -> ranker; each orders the candidates that the merge and the filters left.
        cases: The questions.
    """
    found: dict[str, list[np.ndarray]] = {name: [] for name in (GIVEN, *funnel.sources, *rankers)}
    calibration = {name: np.zeros((BINS, 3)) for name in rankers}
    filters = [stage for stage in funnel.stages if isinstance(stage, Filters)]
    for part in cases.batches(BATCH):
        answer = funnel.recommend(part, funnel.pool, deadlines=False)
        for step in answer.steps[: len(funnel.sources)]:
            left = step.candidates
            for stage in filters:
                left = stage(part, left)
            found[step.name].append(_fixed(left, funnel.pool))
        found[GIVEN].append(_fixed(answer.candidates, funnel.pool))
        for name, ranker in rankers.items():
            ranked = ranker.rank(part, answer.candidates)
            found[name].append(_fixed(ranked, funnel.pool))
            if ranker.probability is not None:
                is_target = is_among(ranked.keys, part.targets)[ranked.valid]
                probability = ranked.columns[f"ranker_{WATCH}"][ranked.valid]
                calibration[name] += binned(probability, is_target)
    return {
        name: Order(
            np.concatenate(keys),
            calibration[name] if name in rankers and calibration[name].any() else None,
        )
        for name, keys in found.items()
    }


def seconds(
    funnel: Funnel, ranker: CandidateRanker, cases: EvalCases, count: int = 300
) -> np.ndarray:
    """`[count]` seconds of the ranker for single requests, without the time of the funnel."""
    asked = [cases.take(np.array([row])) for row in range(min(count, len(cases)))]
    given = [funnel(case, funnel.pool) for case in asked]
    for case, found in zip(asked[:20], given[:20]):  # warm
        ranker.rank(case, found)
    taken = []
    for case, found in zip(asked, given):
        begun = time.perf_counter()
        ranker.rank(case, found)
        taken.append(time.perf_counter() - begun)
    return np.array(taken)


def _fixed(found: Candidates, width: int) -> np.ndarray:
    keys = np.where(found.valid, found.keys, NO_KEY).astype(np.int32)
    return widened(keys, width, np.int32(NO_KEY))[:, :width]
