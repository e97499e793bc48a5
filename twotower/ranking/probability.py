"""Probability: from a ranker's score to how likely the item is a target, learned on held-out
requests; and how far probabilities are from what happens."""

import dataclasses

import numpy as np

BINS = 15


def binned(probabilities: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """`[BINS, 3]`, a row for each bin of probabilities: how many, their sum, the sum of labels.

    The bins are of equal width. Tables of parts add up to the table of all.

    Args:
        probabilities: `[n]` in [0, 1].
        labels: `[n]` of 0 and 1.
    """
    place = np.minimum((probabilities * BINS).astype(np.int64), BINS - 1)
    weights = (np.ones(len(place)), probabilities, labels)
    return np.stack([np.bincount(place, weight, BINS) for weight in weights], 1)


def calibration_error(bins: np.ndarray) -> float:
    """Expected calibration error (Guo et al., ICML 2017, equation 3): the mean over rows of
    |share of positives - mean probability| of the row's bin.

    Args:
        bins: As `binned` gives them.

    >>> bins = binned(np.array([0.5, 0.5, 0.9, 0.9]), np.array([0, 1, 1, 1]))
    >>> round(calibration_error(bins), 3)
    0.05
    """
    count, probability, labels = bins.T
    return float(np.abs(labels - probability).sum() / max(count.sum(), 1))


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
        # NaN among the probabilities is refused below, with the bounds.
        ascend = (np.diff(scores) >= 0).all() and not (np.diff(values) < 0).any()
        if not len(scores) or scores.shape != values.shape or not ascend:
            raise ValueError("expected ascending scores, and as many ascending probabilities.")
        if not np.isfinite(scores).all():
            raise ValueError("expected finite, ascending scores.")
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
