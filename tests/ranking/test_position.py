"""A planted effect of the place in a list: trained with the place, served without it, the ranker
finds the true order; without it, it learns the order of the old lists."""

import numpy as np
import pytest
from scipy.stats import spearmanr

from twotower.ranking.config import RankerConfig
from twotower.ranking.inputs import Field, RankerInputs
from twotower.ranking.position import PositionBias
from twotower.ranking.ranker import make_ranker
from twotower.tf import tf

NUM_ITEMS, NUM_PLACES, NUM_LISTS = 20, 6, 4000


def test_each_place_has_a_logit_and_an_unknown_one_has_none():
    layer = PositionBias(2, ("watch", "like"))
    layer(tf.constant([1]))
    layer.logits.assign([[2.0, 3.0], [-1.0, -2.0]])
    found = layer(tf.constant([1, 2, 0, 3]))
    assert found["watch"].numpy().tolist() == [2, -1, 0, 0]
    assert found["like"].numpy().tolist() == [3, -2, 0, 0]


def logs(seed: int) -> tuple[np.ndarray, dict[str, np.ndarray], np.ndarray]:
    """True quality of items; items and places of lists; clicks.

    The old lists show items by a noisy score that knows nothing of the quality, and each place
    down takes half a logit off.
    """
    rng = np.random.default_rng(seed)
    quality, old = rng.normal(size=(2, NUM_ITEMS))
    noisy = old + rng.normal(size=(NUM_LISTS, NUM_ITEMS))
    items = np.argsort(-noisy, axis=1)[:, :NUM_PLACES].ravel()
    places = np.tile(np.arange(1, NUM_PLACES + 1), NUM_LISTS)
    logit = quality[items] - 0.5 * (places - 1)
    clicks = (rng.random(len(items)) < 1 / (1 + np.exp(-logit))).astype(np.float32)
    columns = {"item": (items + 1).astype(np.int32), "position": places.astype(np.int32)}
    return quality, columns, clicks


def served(columns: dict[str, np.ndarray], clicks: np.ndarray, positions: int) -> np.ndarray:
    """Logits of all items, without places, after a training on the logs."""
    tf.keras.utils.set_random_seed(0)
    inputs = RankerInputs((Field("item", NUM_ITEMS),))
    config = RankerConfig("mlp", dim=8, hidden=(8,), dropout=0, l2=0, positions=positions)
    ranker, optimizer = make_ranker(inputs, config), tf.keras.optimizers.Adam(0.05)
    columns = {name: tf.constant(values) for name, values in columns.items()}

    @tf.function
    def step():
        with tf.GradientTape() as tape:
            found = ranker(columns, training=True)["relevance"]
            losses = tf.nn.sigmoid_cross_entropy_with_logits(tf.constant(clicks), found)
            loss = tf.reduce_mean(losses)
        variables = ranker.trainable_variables
        gradients = tape.gradient(loss, variables)
        pairs = zip(gradients, variables)
        optimizer.apply_gradients([pair for pair in pairs if pair[0] is not None])

    for _ in range(80):
        step()
    return ranker({"item": np.arange(1, NUM_ITEMS + 1)})["relevance"].numpy()


@pytest.mark.parametrize("seed", [0, 1])
def test_the_true_order_is_found_with_the_place(seed):
    quality, columns, clicks = logs(seed)
    # Items that the old lists hardly ever showed cannot be judged.
    shown = np.bincount(columns["item"] - 1, minlength=NUM_ITEMS) >= 400
    with_place, without = (
        spearmanr(served(columns, clicks, positions)[shown], quality[shown]).statistic
        for positions in (NUM_PLACES, 0)
    )
    assert with_place > 0.96
    assert without < with_place - 0.05
