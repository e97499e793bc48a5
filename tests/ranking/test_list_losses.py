"""Losses of a list, by hand: a target with the logit 1 beside others of 0 and 2."""

import numpy as np
import pytest

from twotower.ranking.losses import LOSSES
from twotower.tf import tf

LOGITS = tf.constant([[1.0, 0.0, 2.0, 9.0]])
LABELS = tf.constant([[1.0, 0.0, 0.0, 0.0]])
VALID = tf.constant([[True, True, True, False]])


def softplus(value: float) -> float:
    return float(np.log1p(np.exp(value)))


@pytest.mark.parametrize(
    "name, expected",
    [
        ("pointwise", softplus(-1) + softplus(0) + softplus(2)),
        ("pairwise", (softplus(-1) + softplus(1)) / 2),
        ("listwise", float(np.log(np.exp([1, 0, 2]).sum()) - 1)),
    ],
)
def test_by_hand_without_what_is_no_candidate(name, expected):
    assert LOSSES[name](LOGITS, LABELS, VALID).numpy()[0] == pytest.approx(expected, rel=1e-5)


@pytest.mark.parametrize("name", LOSSES)
@pytest.mark.parametrize("labels", [[0.0, 0, 0, 0], [1.0, 1, 1, 0]])
def test_a_list_without_an_order_teaches_nothing(name, labels):
    logits = tf.Variable(LOGITS)
    with tf.GradientTape() as tape:
        loss = LOSSES[name](logits, tf.constant([labels]), VALID)
    assert loss.numpy().tolist() == [0]
    assert not np.any(tape.gradient(loss, logits).numpy())
