"""Calibrated lists: genres in the proportions of the user's history. Numpy only."""

import numpy as np

from twotower.data.requests import Requests
from twotower.reranking.greedy import Gains, Greedy, check_weight, checked_tags, relevance
from twotower.retrieval.candidates import Candidates


class Calibration(Greedy):
    """Re-ranks a list so that its genres have about their shares in the history (Steck, RecSys
    2018).

        gain(i) = (1 - weight) * relevance(i) - weight * KL(p, q of chosen + i)
        KL(p, q) = sum over genres g of p[g] * log(p[g] / ((1 - alpha) * q[g] + alpha * p[g]))

    p are the shares in `requests.history`, and q those in the list. An item with n genres counts 1
    / n for each; items without a genre do not count. If the history has no genre, the list stays as
    it is. `weight` is lambda of the paper, and `alpha` its smoothing.

    The paper adds up the relevance of the whole list. The chosen items add the same for all
    candidates, so it is left out here.

        Calibration(genre_table(catalogue), weight=0.3)(requests, candidates)

    Args:
        tags: `[num_items, num_tags]` 1 where an item has a genre, else 0.
        weight: From 0, which keeps the order, to 1, which considers only the genres.
        length: Number of positions to re-rank; the other items follow in their old order.
        alpha: Between 0 and 1, both excluded. It keeps KL finite if a genre is not in the list yet.

    Raises:
        ValueError: A setting out of bounds, or no tags.
    """

    kind = "calibration"
    SETTINGS = ("weight", "length", "alpha")
    ARRAYS = ("tags int [num_items, num_tags]",)

    def __init__(
        self, tags: np.ndarray, weight: float, length: int = 40, alpha: float = 0.01
    ) -> None:
        super().__init__(length)
        if not 0 < alpha < 1:
            raise ValueError(f"alpha must lie between 0 and 1; got {alpha}.")
        self.tags, self.weight, self.alpha = checked_tags(tags), check_weight(weight), alpha
        # The last row is that of items which the table does not have.
        shares = np.pad(self.tags, ((0, 1), (0, 0))).astype(np.float32)
        shares /= np.maximum(shares.sum(1, keepdims=True), 1)
        # Items of the same genres gain the same, and a catalogue has few combinations of genres.
        self._kinds, self._kind_of = np.unique(shares, axis=0, return_inverse=True)

    @property
    def num_features(self) -> int:
        return self.tags.shape[1]

    def target(self, requests: Requests) -> np.ndarray:
        """p, `[num_requests, num_tags]` float32; all 0 if the history has no genre."""
        history = requests.history
        shares = self._of(history.values)
        total = np.zeros((len(history), shares.shape[1]), np.float32)
        np.add.at(total, history.row_index, shares)
        return total / np.maximum(total.sum(1, keepdims=True), 1e-9)

    def divergence(self, requests: Requests, keys: np.ndarray) -> np.ndarray:
        """KL(p, q) of whole lists, `[num_requests]`; 0 if the history has no genre.

        Args:
            requests: With their histories.
            keys: `[num_requests, k]` the lists, -1 past their ends.
        """
        total = self._of(keys).sum(1, keepdims=True)  # [num_requests, 1, num_tags]
        return _divergence(self.target(requests), total, self.alpha)[:, 0]

    def gains(self, requests: Requests, candidates: Candidates) -> Gains:
        found, kind = np.unique(self._kind(candidates.keys), return_inverse=True)
        kind = kind.reshape(candidates.keys.shape)
        relevant = (1 - self.weight) * relevance(candidates)
        target = self.target(requests)
        return _Calibrated(relevant, target, self._kinds[found], kind, self.weight, self.alpha)

    def _kind(self, keys: np.ndarray) -> np.ndarray:
        """The combination of genres of each item, a row of `_kinds`."""
        return self._kind_of[np.where((keys < 0) | (keys >= len(self._kind_of)), -1, keys)]

    def _of(self, keys: np.ndarray) -> np.ndarray:
        """The shares of each item, `[..., num_tags]`."""
        return self._kinds[self._kind(keys)]


class _Calibrated(Gains):
    """The gains of the candidates by their combination of genres.

    Args:
        relevant: `[num_requests, k]` relevance by its weight.
        target: p, `[num_requests, num_tags]`.
        kinds: `[num_kinds, num_tags]` shares of the combinations that occur.
        kind: `[num_requests, k]` the candidates' rows of `kinds`.
        weight: Of the divergence.
        alpha: Its smoothing.
    """

    def __init__(
        self,
        relevant: np.ndarray,
        target: np.ndarray,
        kinds: np.ndarray,
        kind: np.ndarray,
        weight: float,
        alpha: float,
    ) -> None:
        self._relevant, self._target, self._kinds, self._kind = relevant, target, kinds, kind
        self._weight, self._alpha, self._rows = weight, alpha, np.arange(len(kind))
        self._total = np.zeros_like(target)  # of the chosen items

    def values(self) -> np.ndarray:
        total = self._total[:, None] + self._kinds  # [num_requests, num_kinds, num_tags]
        divergence = self._weight * _divergence(self._target, total, self._alpha)
        return self._relevant - divergence[self._rows[:, None], self._kind]

    def add(self, column: np.ndarray) -> None:
        self._total += self._kinds[self._kind[self._rows, column]]


def _divergence(target: np.ndarray, total: np.ndarray, alpha: float) -> np.ndarray:
    """KL(p, q) of p `[num_requests, num_tags]`, and q in proportion to `total`
    `[num_requests, k, num_tags]`: `[num_requests, k]`."""
    scale = (1 - alpha) / np.maximum(total.sum(2, keepdims=True), 1e-9)
    mixed = total * scale
    mixed += alpha * np.maximum(target, 1e-9)[:, None]
    np.log(mixed, out=mixed)
    negative_entropy = (target * np.log(np.maximum(target, 1e-9))).sum(1, keepdims=True)
    return negative_entropy - np.matmul(mixed, target[:, :, None])[:, :, 0]
