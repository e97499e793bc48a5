"""Pools of negatives: their draws and their weights."""

import numpy as np
import pytest

from twotower.objective.corrections import MASKED
from twotower.objective.hard_negatives import HardNegatives
from twotower.objective.memory import Memory, MemoryNegatives
from twotower.objective.negatives import Columns, Negatives, NegativesConfig, Targets, merged
from twotower.objective.sampling import (
    Sampler,
    drawable_probability,
    in_batch_probability,
    sampling_probability,
)
from twotower.tf import tf

P = np.float32([0.4, 0.3, 0.2, 0.1])


def negatives_of(*names, **config):
    kind = MemoryNegatives if "memory" in names else Negatives
    return kind(NegativesConfig(negatives=names, **config), P, 2)


def targets_of(item, probability=P) -> Targets:
    """Examples of these items, one a row."""
    item = tf.convert_to_tensor(item, tf.int32)
    row, none = tf.range(len(item)), tf.zeros([len(item), 0], tf.int32)
    chance = tf.gather(probability, item)
    return Targets(row, item, tf.ones(len(item)), chance, {}, none)


def weights_of(columns):
    """Weight of each of the four items, 0 where it is no column."""
    weight = np.zeros(4)
    for key, log_weight in zip(columns.keys.numpy(), columns.log_weight.numpy()):
        if key >= 0:
            weight[key] += np.exp(log_weight)
    return weight


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"negatives": ()}, "one or more of"),
        ({"negatives": ("batch", "hard")}, "one or more of"),
        ({"negatives": ("batch", "batch")}, "one or more of"),
        ({"negatives": ("batch", "catalogue")}, "holds every item already"),
        ({"negatives": ("memory",)}, "take 'batch' beside 'memory'"),
        ({"negatives": ("batch", "memory"), "hard_negative_share": 0.1}, "no mined"),
        ({"negatives": ("batch", "memory"), "num_impressions": 2}, "or impressions"),
        ({"num_sampled": 0}, "num_sampled must be 1"),
        ({"memory_size": 0}, "memory_size must be 1"),
        ({"num_hardest": -1}, "num_hardest must be 0"),
        ({"sampled_power": -0.5}, "sampled_power must be 0"),
        ({"hard_negative_share": 1.0}, r"\[0, 1\)"),
        ({"hard_negative_share": -0.1}, r"\[0, 1\)"),
    ],
)
def test_configs_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        NegativesConfig(**fields)


def test_sampling_probability():
    np.testing.assert_allclose(sampling_probability("uniform", P, 0.75), [0.25] * 4)
    powers = P.astype(float) ** 0.5
    found = sampling_probability("popularity", P, 0.5)
    np.testing.assert_allclose(found, powers / powers.sum(), rtol=1e-6)
    # An item that no example has is drawn by neither, whatever the power.
    with_a_new_one = np.array([0.8, 0.0, 0.2])
    np.testing.assert_allclose(sampling_probability("uniform", with_a_new_one, 1), [0.5, 0, 0.5])
    np.testing.assert_allclose(sampling_probability("popularity", with_a_new_one, 0), [0.5, 0, 0.5])
    np.testing.assert_allclose(
        sampling_probability("popularity", with_a_new_one, 0.5), [2 / 3, 0, 1 / 3], rtol=1e-6
    )


def test_drawable_probability():
    np.testing.assert_allclose(drawable_probability([0.8, 0.0, 0.2]), [0.8, 0, 0.2])
    # Asked for by name: half as likely as the rarest item that has an example.
    found = drawable_probability([0.8, 0.0, 0.2], untrained_items=True)
    np.testing.assert_allclose(found, [0.8, 0.1, 0.2])
    for bad in ([0.0, 0.0], [0.5, -0.1, 0.6], [0.5, np.nan, 0.5]):
        with pytest.raises(ValueError, match="finite, not negative, and positive for one"):
            drawable_probability(bad)


@pytest.mark.parametrize("untrained_items", [False, True])
@pytest.mark.parametrize("name", ["uniform", "popularity", "catalogue"])
def test_no_pool_draws_what_nothing_trains_on(name, untrained_items):
    """Items 0, 2 and the last one have no example; they are columns only where asked for."""
    tf.keras.utils.set_random_seed(0)
    p = np.float32([0, 0.5, 0, 0.3, 0.2, 0])
    draws = {} if name == "catalogue" else {"num_sampled": 2000}
    config = NegativesConfig((name,), untrained_items=untrained_items, **draws)
    columns = Negatives(config, p, 2).draw(targets_of([1, 3], p), "log_q_masked")[name]
    expected = [0, 1, 2, 3, 4, 5] if untrained_items else [1, 3, 4]
    assert sorted(columns.keys.numpy()) == expected
    assert np.isfinite(columns.log_weight.numpy()).all()
    # Each stands for one item, in the mean over draws: all together for as many as there are.
    assert np.exp(columns.log_weight).sum() == pytest.approx(len(expected), rel=0.1)


def test_shares_of_examples():
    np.testing.assert_allclose(in_batch_probability(np.array([0, 0, 2]), 3), [2 / 3, 0, 1 / 3])
    weighed = in_batch_probability(np.array([0, 0, 2]), 3, np.array([1.0, 0.5, 0.5]))
    np.testing.assert_allclose(weighed, [0.75, 0, 0.25])
    for keys, weights, message in (
        ([], None, "no training examples"),
        ([0, 1], [1.0, -1.0], "not negative"),
        ([0, 1], [1.0, np.inf], "finite"),
        ([0, 1], [0.0, 0.0], "all weights are zero"),
    ):
        with pytest.raises(ValueError, match=message):
            in_batch_probability(np.array(keys, int), 2, weights and np.array(weights))


def test_columns_learn_for_the_memory():
    """Two of six draws are of this step: their gradient as columns is three times its own, and
    while the memory is empty, its own."""
    vectors = tf.ones([2, 2])

    def gradient(pools):
        with tf.GradientTape() as tape:
            tape.watch(vectors)
            columns = pools.weighed(vectors, tf.constant(3))
            np.testing.assert_allclose(columns, vectors)
            total = tf.reduce_sum(columns)
        return float(tape.gradient(total, vectors)[0, 0])

    pools = negatives_of("batch", "memory", memory_size=4)
    assert gradient(pools) == 1
    pools.memory.put(tf.range(4), tf.zeros([4, 2]), tf.ones(4))
    assert gradient(pools) == pytest.approx(3)


def test_draws_follow_their_probability():
    tf.keras.utils.set_random_seed(0)
    keys = Sampler(P, 40_000)().numpy()
    # Four standard deviations of a share of 40,000 draws are at most .01.
    np.testing.assert_allclose(np.bincount(keys, minlength=4) / 40_000, P, atol=0.01)
    # Rare items at the end of a large catalogue are drawn, too.
    q = np.full(1_000_000, 1e-6)
    assert np.mean(Sampler(q, 20_000)().numpy() > 990_000) == pytest.approx(0.01, abs=0.003)


def test_weights_by_hand():
    targets = targets_of([0, 0, 3])
    # Three examples, so two others: item 0 twice, over 2 * .4; item 3 once, over 2 * .1.
    for correction, expected in (
        ("log_q_masked", [2 / 0.8, 0, 0, 1 / 0.2]),
        ("log_q", [2 / 0.4, 0, 0, 1 / 0.1]),
        ("none", [2, 0, 0, 1]),
    ):
        batch = negatives_of("batch").draw(targets, correction)["batch"]
        np.testing.assert_allclose(weights_of(batch), expected, rtol=1e-6)
    catalogue = negatives_of("catalogue").draw(targets, "log_q_masked")["catalogue"]
    np.testing.assert_allclose(weights_of(catalogue), np.ones(4))


@pytest.mark.parametrize(
    "names",
    [("batch",), ("uniform",), ("popularity",), ("batch", "uniform"), ("batch", "memory"),
     ("batch", "uniform", "popularity", "memory")],
)  # fmt: skip
def test_every_pool_stands_for_the_whole_catalogue(names):
    """Over many batches the mean weight of each item is 1: the sum over columns is, in the mean,
    the sum over the catalogue, whatever the pools and their sizes are."""
    tf.keras.utils.set_random_seed(1)
    sizes = {"num_sampled": 7} if {"uniform", "popularity"} & {*names} else {}
    sizes |= {"memory_size": 6} if "memory" in names else {}
    pools, total = negatives_of(*names, **sizes), np.zeros(4)
    rng, rounds = np.random.default_rng(0), 1500

    @tf.function
    def columns(item, others):
        # The first example's positive is not drawn: its B - 1 others are.
        found = pools.draw(targets_of(item), "log_q_masked")
        if "memory" in names:
            pools.memory.put(others, tf.zeros([tf.size(others), 2]), tf.gather(P, others))
        return {name: (pool.keys, pool.log_weight) for name, pool in found.items()}

    for turn in range(rounds + 10):
        others = rng.choice(4, 5, p=P / P.sum()).astype(np.int32)
        # As a masked positive is not a column, it may be any further item: here one that is none.
        found = columns(tf.constant(np.r_[others, others[:1]]), tf.constant(others))
        if turn >= 10:  # the memory is full
            for name, (keys, log_weight) in found.items():
                weight = weights_of(Columns(keys, log_weight))
                if name == "batch":  # without the sixth example
                    share = 1 if len(names) == 1 else np.exp(log_weight[0]) * P[keys[0]] * 5
                    share /= 1 if len(names) == 1 else np.bincount([*others, others[0]])[keys[0]]
                    weight[others[0]] -= float(share) / (5 * P[others[0]])
                total += weight
    np.testing.assert_allclose(total / rounds, np.ones(4), rtol=0.1)


def test_merged_weights_add_up():
    one = Columns(tf.constant([3, 1]), tf.math.log([2.0, 3.0]))
    other = Columns(tf.constant([1, 0]), tf.constant([np.log(0.5), MASKED], tf.float32))
    found = merged([one, other])
    assert found.keys.numpy().tolist() == [3, 1, 0]
    np.testing.assert_allclose(found.log_weight[:2], np.log([2, 3.5]), rtol=1e-6)
    assert found.log_weight[2] == MASKED


def test_memory_overwrites_the_oldest():
    memory = Memory(5, 1)
    for keys in ([1, 2, 3], [4, 5, 6], [7]):
        memory.put(tf.constant(keys), tf.constant(keys, tf.float32)[:, None], tf.ones(len(keys)))
    assert memory.keys.numpy().tolist() == [6, 7, 3, 4, 5]
    assert memory.vectors.numpy()[:, 0].tolist() == [6, 7, 3, 4, 5]
    memory.put(tf.range(8), tf.zeros([8, 1]), tf.ones(8))  # more than it holds
    assert sorted(memory.keys.numpy()) == [3, 4, 5, 6, 7]


@pytest.mark.parametrize("names", [("batch",), ("uniform",), ("catalogue",)])
def test_a_hard_negative_is_a_column_with_its_items_vector(names):
    config = NegativesConfig(names, num_impressions=1)
    p = np.float32([0.4, 0.3, 0.2, 0.1, 0.0])  # item 4 is in no pool
    vectors, hard = tf.eye(5), tf.constant([[4, 4, 1], [-1, -1, 0]])
    targets = targets_of([2, 0], p)._replace(hard_negatives=hard)
    negatives = HardNegatives(config, p, 5)
    columns, positives = negatives(targets, lambda keys: tf.gather(vectors, keys), "none")
    keys = columns.keys.numpy()
    assert {4, 1, 0} <= set(keys) and len(set(keys)) == len(keys)
    np.testing.assert_array_equal(columns.vectors, vectors.numpy()[keys])
    np.testing.assert_array_equal(positives, vectors.numpy()[[2, 0]])
    weight = dict(zip(keys, np.exp(columns.log_weight).T))
    assert weight[4].tolist() == [2, 0]
    # Item 1 weighs one more for the first row, whatever the shared columns give it.
    assert weight[1][0] - weight[1][1] == pytest.approx(1, rel=1e-3)
