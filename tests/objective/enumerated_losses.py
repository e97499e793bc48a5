"""The losses of `losses.py` in plain numpy, one example at a time."""

import numpy as np


def enumerated(name, positive, negatives, weight, margin=0.2, ratio=1.0, beta=1.0, mining="all"):
    """One example's loss, in plain numpy; weight 0 where a column is not a negative."""
    share = weight / weight.sum() if weight.any() else weight
    if name == "softmax":
        return -np.log(np.exp(positive) / (np.exp(positive) + (weight * np.exp(negatives)).sum()))
    if name in ("bce", "gbce"):
        right, wrong = 1 / (1 + np.exp(-positive)), 1 / (1 + np.exp(-negatives))
        return -beta * np.log(right) - ratio * (share * np.log(1 - wrong)).sum()
    if name == "cosine_contrastive":
        return 1 - positive + ratio * (share * np.maximum(0, negatives - margin)).sum()
    if mining == "all":
        return (share * np.maximum(0, margin - positive + negatives)).sum()
    there = negatives[weight > 0]
    if not len(there):
        return 0.0
    if mining == "semi_hard":
        below = there[there < positive]
        return max(0, margin - positive + (below.max() if len(below) else there.min()))
    return max(0, margin - positive + there.max())
