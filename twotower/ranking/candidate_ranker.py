"""CandidateRanker: scores the candidates of requests with a trained network or trees."""

import dataclasses
from collections.abc import Callable, Mapping

import numpy as np

from twotower.data.requests import Requests
from twotower.ranking.columns import CandidateColumns
from twotower.ranking.examples import RATING, WATCH
from twotower.ranking.objectives import check_weights, sigmoid, weighted_sum
from twotower.ranking.probability import Probability
from twotower.retrieval.candidates import NO_SCORE, Candidates

# Heads whose outputs are numbers and no logits.
NUMBERS = (RATING,)
# Name of a model's function of columns -> head -> `[num_requests, k]`.
Outputs = Callable[[dict[str, np.ndarray]], dict[str, np.ndarray]]
BATCH = 128


@dataclasses.dataclass
class CandidateRanker:
    """A trained ranker: a network or trees, and the features they read.

    Attributes:
        columns: The features that it computes and reads.
        outputs: The model: features -> {head: outputs `[num_requests, k]`}.
        heads: Names of the model's outputs; `relevance` is one of them.
        residual: Whether `relevance` is added to the score that a candidate had before.
        probability: Calibration: from the output `relevance` (with `residual`, the sum) to the
            probability that the item is watched. None for none.
        weights: Head -> its weight in the score, unless a request has weights of its own.
    """

    columns: CandidateColumns
    outputs: Outputs
    heads: tuple[str, ...] = (WATCH,)
    residual: bool = True
    probability: Probability | None = None
    weights: Mapping[str, float] = dataclasses.field(default_factory=lambda: {WATCH: 1.0})

    def __post_init__(self) -> None:
        self.heads = tuple(self.heads)
        check_weights(self.weights, self.heads)

    def __call__(self, requests: Requests, candidates: Candidates) -> dict[str, np.ndarray]:
        """Head -> `[num_requests, k]` float32: logits, or numbers for `rating`.

        Raises:
            ValueError: Columns that are missing, or outputs that are not finite.
        """
        parts = []
        for start in range(0, len(requests), BATCH):
            rows = np.arange(start, min(start + BATCH, len(requests)))
            found = candidates.take(rows)
            values = self.outputs(self.columns(requests.take(rows), found))
            if wrong := [h for h, v in values.items() if not np.isfinite(v[found.valid]).all()]:
                raise ValueError(f"the ranker gives no finite numbers for {wrong}. Train it again.")
            if self.residual:
                values[WATCH] = values[WATCH] + np.where(found.valid, found.scores, 0)
            parts.append(values)
        if not parts:
            return {head: np.zeros(candidates.keys.shape, np.float32) for head in self.heads}
        return {head: np.concatenate([part[head] for part in parts]) for head in self.heads}

    def rank(self, requests: Requests, candidates: Candidates) -> Candidates:
        """The candidates in the order of the ranker.

        Adds a column `ranker_<head>` for each head: the probability of `relevance` (if it was
        calibrated) and of `like`, and the predicted rating. The column `ranker_given` is the score
        that the candidate had before.
        """
        values = self(requests, candidates)
        columns = {
            **candidates.columns,
            "ranker_given": np.where(candidates.valid, candidates.scores, np.nan),
        }
        for head, outputs in values.items():
            columns[f"ranker_{head}"] = self._shown(head, outputs).astype(np.float32)
        scores = np.where(candidates.valid, self._scores(requests, values), NO_SCORE)
        return Candidates.rank(candidates.keys, scores, candidates.keys.shape[1], columns)

    def _shown(self, head: str, outputs: np.ndarray) -> np.ndarray:
        if head == WATCH and self.probability is not None:
            return self.probability(outputs)
        return outputs if head in NUMBERS else sigmoid(outputs)

    def _scores(self, requests: Requests, values: dict[str, np.ndarray]) -> np.ndarray:
        """The weighted sum of the heads' probabilities and numbers, with each request's weights."""
        total = np.zeros(next(iter(values.values())).shape, np.float32)
        for weights, rows in _groups(requests, self.weights):
            check_weights(weights, self.heads)
            asked = {head: weight for head, weight in weights.items() if weight}
            if [*asked] == [WATCH]:
                # The logit itself, since probabilities near 0 or 1 would tie.
                total[rows] = np.sign(asked[WATCH]) * values[WATCH][rows]
            else:
                shown = {head: self._shown(head, values[head][rows]) for head in asked}
                total[rows] = weighted_sum(shown, asked)
        return total


def _groups(
    requests: Requests, default: Mapping[str, float]
) -> list[tuple[dict[str, float], np.ndarray]]:
    """Weights, and the requests that have them."""
    if not requests.objectives:
        return [(dict(default), np.arange(len(requests)))]
    names = list(requests.objectives)
    table = np.stack([np.asarray(requests.objectives[name], float) for name in names], 1)
    if table.ndim != 2:
        raise ValueError(f"objectives are a number a request; got {[*table.shape]}.")
    # A request that says nothing has NaN for all.
    silent = np.isnan(table).all(1)
    found = [(dict(default), np.flatnonzero(silent))] if silent.any() else []
    for row in np.unique(table[~silent], axis=0):
        rows = np.flatnonzero((table == row).all(1) & ~silent)
        found.append((dict(zip(names, row.tolist())), rows))
    return found
