"""Losses over a list of candidates: pointwise, pairwise and listwise.

Each takes logits and labels `[num_requests, k]`, 1 for a target and 0 for another candidate, and
`valid` `[num_requests, k]`, and returns one loss for each request, `[num_requests]`. It is 0 for a
request without a target, or with nothing but targets.
"""

from collections.abc import Callable

from twotower.tf import tf

# Score of an entry that is not a candidate; the gradient of -inf would be NaN.
NOTHING = -1e9


def pointwise(logits: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """Binary cross-entropy of each candidate, summed over the list and divided by the number of
    targets.

    >>> logits, labels = tf.zeros([1, 2]), tf.constant([[1.0, 0.0]])
    >>> print(f"{float(pointwise(logits, labels, tf.fill([1, 2], True))[0]):.3f}")
    1.386
    """
    losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, logits)
    losses = tf.where(valid, losses, tf.zeros_like(losses))
    return tf.reduce_sum(losses, 1) * _per_target(labels, valid)


def pairwise(logits: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """-log sigmoid(target - other), mean over all pairs (RankNet, Burges et al., ICML 2005; BPR,
    Rendle et al., UAI 2009).

    >>> logits, labels = tf.zeros([1, 2]), tf.constant([[1.0, 0.0]])
    >>> print(f"{float(pairwise(logits, labels, tf.fill([1, 2], True))[0]):.3f}")
    0.693
    """
    others = tf.where(valid, 1 - labels, tf.zeros_like(labels))
    pairs = labels[:, :, None] * others[:, None, :]  # [num_requests, k, k]
    losses = tf.nn.softplus(logits[:, None, :] - logits[:, :, None]) * pairs
    return tf.math.divide_no_nan(tf.reduce_sum(losses, [1, 2]), tf.reduce_sum(pairs, [1, 2]))


def listwise(logits: tf.Tensor, labels: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """-log softmax of the targets, mean over them (ListNet's top-one loss, Cao et al., ICML 2007).

    >>> logits, labels = tf.zeros([1, 2]), tf.constant([[1.0, 0.0]])
    >>> print(f"{float(listwise(logits, labels, tf.fill([1, 2], True))[0]):.3f}")
    0.693
    """
    logits = tf.where(valid, logits, tf.fill(tf.shape(logits), NOTHING))
    losses = -tf.reduce_sum(labels * tf.nn.log_softmax(logits), 1)
    return losses * _per_target(labels, valid)


LOSSES: dict[str, Callable[[tf.Tensor, tf.Tensor, tf.Tensor], tf.Tensor]] = {
    "pointwise": pointwise,
    "pairwise": pairwise,
    "listwise": listwise,
}


def _per_target(labels: tf.Tensor, valid: tf.Tensor) -> tf.Tensor:
    """1 / number of targets; 0 for requests from which no order can be learned."""
    targets = tf.reduce_sum(labels, 1)
    size = tf.reduce_sum(tf.cast(valid, tf.float32), 1)
    can_learn = (targets > 0) & (targets < size)
    return tf.where(can_learn, 1 / tf.maximum(targets, 1), tf.zeros_like(targets))
