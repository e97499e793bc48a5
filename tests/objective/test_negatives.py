"""Pools of negatives: their draws, their weights, and what a model makes of them."""

import functools
import tempfile

import numpy as np
import pytest
import tiny
from asked import asked

from twotower.data.splits import hide_items
from twotower.evaluation.evaluate import evaluate
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
from twotower.objective.task import TaskConfig, loss_parameters
from twotower.tf import tf
from twotower.training.fitting import fit
from twotower.training.model import TwoTowerModel
from twotower.training.training import Training

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
        # As a masked positive is no column, it may be any further item: here one that is none.
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


# In a model.


def training_of(
    item: dict | None = None, batch_size: int = 128, hidden: float = 0.0, **parts
) -> Training:
    recipe = tiny.recipe(
        query={"unknown_rate": 0.0, "history_dropout": 0.0},
        item={"unknown_rate": 0.0, **(item or {})},
        examples={"batch_size": batch_size},
        **parts,
    )
    split = hide_items(tiny.dataset(), tiny.split(), hidden)
    return Training(tiny.dataset(), split, recipe)


def untrained(training: Training) -> np.ndarray:
    """Keys of the items that no training row has."""
    return np.setdiff1d(training.dataset.catalogue.keys, training.examples.items)


def test_cosines_need_vectors_of_length_one():
    task = {"loss": "cosine_contrastive", "temperature": 1.0}
    with pytest.raises(ValueError, match="set l2_normalise of both towers"):
        training_of(item={"l2_normalise": False}, task=task)


@pytest.mark.parametrize(
    ("loss", "mask_known_positives"),
    [
        *((loss, True) for loss in ("softmax", "bce", "gbce", "triplet", "cosine_contrastive")),
        ("softmax", False),  # the mask is the same for every loss
    ],
)
def test_the_whole_catalogue_by_hand(loss, mask_known_positives):
    """Columns are all items with a training row, those the user likes masked or the positive alone:
    recomputed from the vectors."""
    from test_losses import enumerated

    temperature = 1.0 if loss in ("triplet", "cosine_contrastive") else 0.5
    task = {
        "loss": loss,
        "temperature": temperature,
        "mask_known_positives": mask_known_positives,
        "correction": "none",
    }
    training = training_of(hidden=0.2, negatives={"negatives": ("catalogue",)}, task=task)
    batch, model = next(iter(training.batches())), training.model
    num, targets = model.num_items, batch.targets()
    vectors = model.item_vectors(tf.range(num)).numpy()
    queries = model.query_vectors(batch).numpy()
    scores = queries @ vectors.T / temperature
    without_row = untrained(training)
    assert len(without_row) >= 50
    parameters = loss_parameters(model.config, num - len(without_row))
    expected = []
    for row, item in zip(targets.row.numpy(), targets.item.numpy()):
        weight = np.ones(num)
        weight[without_row] = 0
        known = batch.known_positives[row].numpy() if mask_known_positives else []
        weight[[item, *known]] = 0
        expected.append(enumerated(loss, scores[row, item], scores[row], weight, **parameters))
    found = model.compute_loss(batch, training=True)
    assert float(found) == pytest.approx(np.mean(expected), rel=1e-5)


@pytest.mark.parametrize(
    ("names", "mask_known_positives", "timed"),
    [
        (("batch",), False, True),
        (("uniform",), True, False),
        (("catalogue",), False, False),
        (("batch", "uniform", "memory"), True, False),
    ],
)
def test_every_pool_trains(names, mask_known_positives, timed):
    features = ("item_id", "age") if timed else ("item_id",)
    correction = "none" if "catalogue" in names else "log_q_masked"
    sizes = {"num_sampled": 40} if {"uniform", "popularity"} & {*names} else {}
    sizes |= {"memory_size": 300} if "memory" in names else {}
    recipe = tiny.recipe(
        item={"features": features},
        task={
            "mask_known_positives": mask_known_positives,
            "learned_temperature": True,
            "correction": correction,
        },
        negatives={"negatives": tuple(names), **sizes},
        examples={"batch_size": 128},
    )
    training = Training(tiny.dataset(), tiny.split(), recipe)
    model = training.model
    model.compile(optimizer=tf.keras.optimizers.Adam(0.01))
    losses = [float(model.train_step(batch)["loss"]) for batch in training.batches().take(14)]
    assert np.isfinite(losses).all() and np.mean(losses[-4:]) < np.mean(losses[:4])
    assert float(model.task.log_temperature) != pytest.approx(np.log(0.2), abs=1e-4)
    if "memory" in names:
        assert (model.negatives.memory.keys.numpy() >= 0).all()


@pytest.mark.parametrize(
    "negatives",
    [
        {"negatives": ("uniform",)},
        {"negatives": ("batch", "popularity")},
        {"negatives": ("catalogue",)},
        {"hard_negative_share": 0.1},
    ],
)
def test_a_positive_is_not_known_by_its_age(negatives):
    with pytest.raises(ValueError, match=r"time-dependent item features \(age"):
        training_of(
            item={"features": ("item_id", "age")}, negatives=negatives, task={"correction": "none"}
        )


@pytest.mark.parametrize("names", [("batch",), ("uniform",), ("catalogue",)])
def test_a_hard_negative_is_a_column_with_its_items_vector(names):
    config = NegativesConfig(names, num_impressions=1)
    p = np.float32([0.4, 0.3, 0.2, 0.1, 0.0])  # an impression may be of an item without a row
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


def test_mined_negatives_have_a_training_row():
    training = training_of(hidden=0.2, negatives={"hard_negative_share": 0.2})
    training.mine()
    listed = np.unique(training.miner.lists)
    assert len(listed) > 100 and not np.isin(untrained(training), listed).any()


def test_untrained_items_need_a_vector_that_learns():
    with pytest.raises(ValueError, match="Set unknown_rate"):
        training_of(negatives={"negatives": ("uniform",), "untrained_items": True})


# What each sampler is given; the learned model must find new items as well as with the batch alone.
SAMPLERS = {
    "uniform": {"negatives": ("uniform",), "num_sampled": 256},
    "popularity": {"negatives": ("popularity",), "num_sampled": 256},
    "mixed": {"negatives": ("batch", "uniform"), "num_sampled": 256},
    "memory": {"negatives": ("batch", "memory"), "memory_size": 256},
    "mined": {"hard_negative_share": 0.1},
    "catalogue": {"negatives": ("catalogue",)},
    "untrained": {"negatives": ("catalogue",), "untrained_items": True},
}


@functools.cache
def recall_of_new_items(name: str, num_seeds: int) -> float:
    """Of the choices of items without a training row, the share among the first 100 of 300."""
    sizes, found = {"hidden": (64,), "dim": 32}, []
    for seed in range(num_seeds):
        recipe = tiny.recipe(
            query={"features": ("history",), "history_dim": 64, **sizes},
            item={
                "features": ("item_id", "title", "genres", "maker", "year"),
                "id_dim": 32,
                "token_dim": 32,
                **sizes,
            },
            negatives=SAMPLERS.get(name, {}),
            task={"correction": "none"} if name in ("catalogue", "untrained") else {},
            mining={"warmup": 10, "every": 50} if name == "mined" else {},
            fit={"epochs": 8, "seed": seed},
        )
        training = Training(tiny.dataset(), hide_items(tiny.dataset(), tiny.split(), 0.2), recipe)
        with tempfile.TemporaryDirectory() as folder:
            fit(training, folder, select=False)
        segments = evaluate(training.recommender(), training.split).segments
        found.append(segments["hidden_items"]["recall_micro@100"]["mean"])
    return float(np.mean(found))


@pytest.mark.parametrize("name", [pytest.param(n, marks=pytest.mark.slow) for n in SAMPLERS])
def test_a_sampler_leaves_new_items_to_be_found(name):
    of_batch = recall_of_new_items("batch", 2)
    assert of_batch > 0.5  # a third by chance
    if name == "untrained":  # asked for by name: that is what it costs
        assert recall_of_new_items(name, 2) < 0.3 * of_batch
    else:
        assert recall_of_new_items(name, 2) >= 0.9 * of_batch


def test_impressions_without_a_click():
    training = training_of(negatives={"num_impressions": 3})
    shown, examples = training.passed_over, training.examples
    batch = asked(examples)[0]
    block = training.hard_negatives(batch["user"], batch["item"], np.random.default_rng(0))
    assert block.shape == (len(batch["user"]), 3) and (block >= 0).mean() > 0.3
    frame = training.dataset.interactions
    events = frame["event"].to_numpy(object)
    for user, row in zip(batch["user"], block):
        liked = set(examples.items[examples.users == user])
        rows = training.dataset.user_rows == user
        passed = set(training.dataset.item_keys[rows & np.isin(events, ["impression", "skip"])])
        keys = [key for key in row if key >= 0]
        assert set(keys) <= passed and not set(keys) & liked and len(set(keys)) == len(keys)
    assert len(shown) == len(training.dataset.users)
    loss = float(training.model.compute_loss(next(iter(training.batches())), training=True))
    assert np.isfinite(loss)


def test_streaming_frequencies_reach_the_loss():
    training = training_of(task={"frequency": "streaming"})
    *_, last = training.batches()
    share = np.bincount(training.examples.items) / len(training.examples)
    found, true = (last.targets().probability.numpy(), share[last.targets().item.numpy()])
    assert np.median(np.abs(found / true - 1)) < 0.25
    assert np.isfinite(float(training.model.compute_loss(last, training=True)))


def test_what_does_not_go_together():
    towers = training_of().model
    args = towers.query_tower, towers.item_tower, dict(towers._items), np.full(300, 1 / 300)
    with pytest.raises(ValueError, match=r"log_q also changes the positive.*uniform"):
        TwoTowerModel(
            *args,
            TaskConfig(correction="log_q", mask_known_positives=False),
            NegativesConfig(negatives=("batch", "uniform")),
        )
    with pytest.raises(ValueError, match="positive for one item or more"):
        TwoTowerModel(*args[:3], np.zeros(300), TaskConfig())
