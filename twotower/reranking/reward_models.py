"""Reward models for off-policy estimates, cross-fitted: no row is predicted from its own reward.

The rows are split into folds, and the rewards of each fold are predicted by a model fitted on the
others. A model that was fitted on a row predicts its reward too well, which would bias the doubly
robust estimate and its interval (Chernozhukov et al., The Econometrics Journal 2018).
"""

from collections.abc import Iterator

import numpy as np

from twotower.limits import whole_number
from twotower.ragged import integers


def cross_fitted_ridge(
    features: np.ndarray,
    rewards: np.ndarray,
    of_actions: np.ndarray,
    regularization: float = 1.0,
    folds: int = 5,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Predicted reward of every action in every row, by ridge regression with an intercept.

        error   = reward - mean(reward) - weights . (x - mean(x))
        weights = argmin sum(error^2) + regularization * |weights|^2

    Args:
        features: `[n, dim]`, the features of what was shown.
        rewards: `[n]`.
        of_actions: `[n, num_actions, dim]`, the features of everything that could be shown.
        regularization: Strength of the L2 penalty. It is the same for all features, so scale them
            alike.
        folds: 2 or more.
        clusters: `[n]`, rows that must be in one fold, such as those of one user.
        seed: Seed of the split.

    Returns:
        `[n, num_actions]`.

    Raises:
        ValueError: Arrays of other shapes, NaN, no regularization, or too few rows for the folds.
    """
    features, rewards = np.asarray(features, np.float64), np.asarray(rewards, np.float64)
    of_actions = np.asarray(of_actions, np.float64)
    num, dim = len(rewards), features.shape[-1]
    if features.shape != (num, dim) or of_actions.shape != (num, *of_actions.shape[1:2], dim):
        raise ValueError(
            "expected features [n, dim], rewards [n] and of_actions [n, num_actions, dim]; got "
            f"{features.shape}, {rewards.shape} and {of_actions.shape}."
        )
    for name, values in (("features", features), ("rewards", rewards), ("of_actions", of_actions)):
        if not np.isfinite(values).all():
            raise ValueError(f"{name} must be finite, without NaN.")
    if not 0 < regularization < np.inf:
        raise ValueError(f"regularization must be above 0; got {regularization}.")
    predicted = np.empty(of_actions.shape[:2])
    for fitted, rest in _folds(num, folds, clusters, seed):
        x, y = features[fitted], rewards[fitted]
        mean_x, mean_y = x.mean(0), y.mean()
        gram = (x - mean_x).T @ (x - mean_x) + regularization * np.eye(dim)
        weights = np.linalg.solve(gram, (x - mean_x).T @ (y - mean_y))
        predicted[rest] = mean_y + (of_actions[rest] - mean_x) @ weights
    return predicted


def cross_fitted_means(
    actions: np.ndarray,
    rewards: np.ndarray,
    num_actions: int,
    strength: float = 1.0,
    folds: int = 5,
    clusters: np.ndarray | None = None,
    seed: int = 0,
) -> np.ndarray:
    """Predicted reward of every action in every row: the mean reward of the action, for all users.

        (sum of rewards + strength * mean of all rewards) / (times shown + strength)

    Args:
        actions: `[n]`, what was shown, from 0.
        rewards: `[n]`.
        num_actions: Number of actions.
        strength: Weight of the mean of all rewards, in times shown; above 0.
        folds: As in `cross_fitted_ridge`.
        clusters: As there.
        seed: As there.

    Returns:
        `[n, num_actions]`.

    Raises:
        ValueError: As there; or an unknown action.
    """
    actions, rewards = integers(actions, "actions"), np.asarray(rewards, np.float64)
    if actions.ndim != 1 or actions.shape != rewards.shape or not np.isfinite(rewards).all():
        raise ValueError(
            f"expected actions and rewards [n] without NaN; got {actions.shape}, {rewards.shape}."
        )
    _check_actions(actions, num_actions)
    if not 0 < strength < np.inf:
        raise ValueError(f"strength must be above 0; got {strength}.")
    predicted = np.empty((len(actions), num_actions))
    for fitted, rest in _folds(len(actions), folds, clusters, seed):
        shown = np.bincount(actions[fitted], minlength=num_actions)
        total = np.bincount(actions[fitted], rewards[fitted], num_actions)
        mean = rewards[fitted].mean()
        predicted[rest] = (total + strength * mean) / (shown + strength)
    return predicted


def expectations(
    predictions: np.ndarray, actions: np.ndarray, policy: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """The inputs of `off_policy.doubly_robust` from a model: `predicted` and `expected`, both
    `[n]`.

    Args:
        predictions: `[n, num_actions]`, as the models here return.
        actions: `[n]`, what was shown.
        policy: `[n, num_actions]`, the target's probability of each action.

    Raises:
        ValueError: Arrays of other shapes, NaN, an unknown action, or a policy whose rows are no
            probabilities with the sum 1.

    >>> predicted, expected = expectations(np.array([[1.0, 3.0]]), [0], np.array([[0.25, 0.75]]))
    >>> predicted.tolist(), expected.tolist()
    ([1.0], [2.5])
    """
    if predictions.shape != policy.shape or len(actions) != len(policy):
        raise ValueError(
            f"expected predictions and policy [n, num_actions] and actions [n]; got "
            f"{predictions.shape}, {policy.shape} and {len(actions)} actions."
        )
    if not np.isfinite(predictions).all():
        raise ValueError("predictions must be finite, without NaN.")
    _check_actions(actions, policy.shape[1])
    if not ((policy >= 0).all() and np.allclose(policy.sum(1), 1)):
        raise ValueError(
            "the target's probabilities must be 0 or more, and those of a row must sum to 1."
        )
    return predictions[np.arange(len(actions)), actions], (policy * predictions).sum(1)


def _check_actions(actions: np.ndarray, num_actions: int) -> None:
    if np.min(actions, initial=0) < 0 or np.max(actions, initial=0) >= num_actions:
        raise ValueError(f"actions must lie within 0 and {num_actions - 1}.")


def _folds(
    num: int, folds: int, clusters: np.ndarray | None, seed: int
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Masks `[num]` of the rows to fit on, and of those to predict."""
    folds = whole_number(folds, "folds", 2)
    cluster = np.arange(num) if clusters is None else np.unique(clusters, return_inverse=True)[1]
    if len(cluster) != num:
        raise ValueError(f"clusters must be [{num}]; got {len(cluster)}.")
    size = int(cluster.max(initial=-1)) + 1
    if size < folds:
        raise ValueError(
            f"{folds} folds need as many rows or clusters; the log has {size}. Take fewer folds, "
            "or IPS, which needs no model."
        )
    fold = np.random.default_rng(seed).permutation(size)[cluster] % folds
    for number in range(folds):
        yield fold != number, fold == number
