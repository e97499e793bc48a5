"""Probability: from a ranker's score to how likely the item is a target, learned on held-out
requests."""

import dataclasses

import numpy as np


@dataclasses.dataclass(frozen=True)
class Probability:
    """A rising, piecewise linear curve from score to probability, by isotonic regression.

    Attributes:
        scores: `[num_points]` ascending.
        probabilities: `[num_points]` of these scores; between two points on the line, and beyond
            the ends as at the ends.

    >>> Probability((0.0, 2.0), (0.25, 0.75))(np.array([-1.0, 1.0])).tolist()
    [0.25, 0.5]
    """

    scores: tuple[float, ...]
    probabilities: tuple[float, ...]

    def __post_init__(self) -> None:
        scores, values = np.array(self.scores), np.array(self.probabilities)
        if not len(scores) or scores.shape != values.shape or (np.diff(scores) < 0).any():
            raise ValueError("expected ascending scores, and a probability for each.")
        if not ((values >= 0) & (values <= 1)).all():
            raise ValueError(f"probabilities lie in [0, 1]; got {values.min()} to {values.max()}.")

    @classmethod
    def fit(cls, scores: np.ndarray, labels: np.ndarray) -> "Probability":
        """The curve that fits labels of 0 and 1 best in squared error (Zadrozny and Elkan, KDD
        2002).

        Args:
            scores: `[n]` finite.
            labels: `[n]`, not learned from by the ranker.
        """
        from sklearn.isotonic import IsotonicRegression

        curve = IsotonicRegression(y_min=0, y_max=1).fit(scores, labels)
        return cls(tuple(curve.X_thresholds_.tolist()), tuple(curve.y_thresholds_.tolist()))

    def __call__(self, scores: np.ndarray) -> np.ndarray:
        """Probabilities of scores of any shape, float32."""
        return np.interp(scores, self.scores, self.probabilities).astype(np.float32)
