"""Multi-task layers between the feature interaction and the heads: shared bottom, MMoE, PLE.

Each is a layer `[n, size]` -> head -> `[n, width]`. Three ways for tasks to share layers:

    shared bottom   the same layers for all heads; conflicting tasks disturb one another
    MMoE            a few experts; each head mixes them by a gate that reads the candidate
    PLE             experts that all heads mix, and experts of one head, which others do not change
"""

from collections.abc import Sequence
from typing import Any

from twotower.ranking.config import RankerConfig
from twotower.ranking.interactions import Dense
from twotower.tf import tf


def mixed(gate: tf.Tensor, experts: Sequence[tf.Tensor]) -> tf.Tensor:
    """The mean of the experts' outputs, weighted by the softmax of the gate.

    Args:
        gate: Logits `[n, num_experts]`.
        experts: Outputs of the experts, `[n, width]` each.

    Returns:
        `[n, width]`.
    """
    weights = tf.nn.softmax(gate)[:, None]  # [n, 1, num_experts]
    return tf.squeeze(weights @ tf.stack(experts, 1), 1)


class Bottom(tf.keras.layers.Layer):
    """Base class: the heads, and the dense layers of an expert."""

    def __init__(self, config: RankerConfig, heads: Sequence[str]) -> None:
        super().__init__(name=config.tasks)
        self.config, self.heads = config, tuple(heads)

    def expert(self) -> Dense:
        """The dense layers of an expert, not yet built."""
        return Dense(self.config.expert_hidden, self.config.dropout, self.config.batch_norm)


class SharedBottom(Bottom):
    """The same dense layers for all heads (Caruana, 1997)."""

    def __init__(self, config: RankerConfig, heads: Sequence[str]) -> None:
        super().__init__(config, heads)
        self.shared = self.expert()

    def call(self, features: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        return dict.fromkeys(self.heads, self.shared(features, training=training))


class MMoE(Bottom):
    """Multi-gate mixture of experts (Ma et al., KDD 2018, section 4.2)."""

    def __init__(self, config: RankerConfig, heads: Sequence[str]) -> None:
        super().__init__(config, heads)
        self.experts = [self.expert() for _ in range(config.experts)]
        self.gates = {head: tf.keras.layers.Dense(config.experts) for head in self.heads}

    def call(self, features: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        found = [expert(features, training=training) for expert in self.experts]
        return {head: mixed(self.gates[head](features), found) for head in self.heads}


class Extraction(Bottom):
    """One level of PLE (customised gate control).

    Args:
        config: Sizes.
        heads: Names of the heads.
        is_last: Whether the heads follow. Then the shared group has no output.

    Call args:
        state: Group (a head, or `SHARED`) -> the input of its experts, `[n, size]`.

    Call returns:
        Group -> `[n, width]`.
    """

    def __init__(self, config: RankerConfig, heads: Sequence[str], is_last: bool) -> None:
        super().__init__(config, heads)
        self.groups = (*self.heads, SHARED)
        # Flat lists, because Keras saves no lists in dicts.
        self.experts = [self.expert() for _ in self.groups for _ in range(config.experts)]
        own_and_shared = {head: tf.keras.layers.Dense(2 * config.experts) for head in self.heads}
        every = {} if is_last else {SHARED: tf.keras.layers.Dense(len(self.experts))}
        self.gates = {**own_and_shared, **every}

    def call(self, state: dict[str, tf.Tensor], training: bool = False) -> dict[str, tf.Tensor]:
        count, found = self.config.experts, {}
        for row, group in enumerate(self.groups):
            experts = self.experts[row * count : (row + 1) * count]
            found[group] = [expert(state[group], training=training) for expert in experts]
        read = {head: [*found[head], *found[SHARED]] for head in self.heads}
        read[SHARED] = [expert for group in self.groups for expert in found[group]]
        return {group: mixed(gate(state[group]), read[group]) for group, gate in self.gates.items()}


class PLE(Bottom):
    """Progressive layered extraction (Tang et al., RecSys 2020, section 4).

    On each level a head mixes its own experts and the shared ones. The input of the shared experts
    on the next level is a mixture of all experts.
    """

    def __init__(self, config: RankerConfig, heads: Sequence[str]) -> None:
        super().__init__(config, heads)
        last = config.levels - 1
        self.levels = [Extraction(config, heads, level == last) for level in range(config.levels)]

    def call(self, features: tf.Tensor, training: bool = False) -> dict[str, tf.Tensor]:
        state = dict.fromkeys((*self.heads, SHARED), features)
        for level in self.levels:
            state = level(state, training=training)
        return state


# Name of the group of experts that all heads mix; no head can have it.
SHARED = "(shared)"
BOTTOMS: dict[str, type[Bottom]] = {"shared_bottom": SharedBottom, "mmoe": MMoE, "ple": PLE}


def masked_loss(kind: str) -> Any:
    """A Keras loss of one head that leaves out rows whose label is NaN.

    Args:
        kind: `logit`: the output is a logit, and the loss cross-entropy. `number`: the output is a
            value, and the loss its squared error.

    Returns:
        `(labels [...], outputs [...]) -> [...]`, 0 where the label is NaN.

    Raises:
        ValueError: An unknown kind.

    >>> loss = masked_loss("number")
    >>> loss(tf.constant([4.0, float("nan")]), tf.constant([1.0, 1.0])).numpy().tolist()
    [9.0, 0.0]
    """
    if kind not in ("logit", "number"):
        raise ValueError(f"unknown kind of head {kind!r}; one of logit, number.")

    def loss(labels: tf.Tensor, outputs: tf.Tensor) -> tf.Tensor:
        known = tf.math.is_finite(labels)
        labels = tf.where(known, labels, tf.zeros_like(labels))
        if kind == "logit":
            losses = tf.nn.sigmoid_cross_entropy_with_logits(labels, outputs)
        else:
            losses = tf.math.squared_difference(labels, outputs)
        return tf.where(known, losses, tf.zeros_like(losses))

    return loss
