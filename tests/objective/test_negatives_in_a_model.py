"""What a model makes of its pools of negatives."""

import functools
import tempfile

import numpy as np
import pytest
import tiny
from asked import asked
from enumerated_losses import enumerated

from twotower.data.splits import hide_items
from twotower.evaluation.evaluate import evaluate
from twotower.objective.negatives import NegativesConfig
from twotower.objective.task import TaskConfig, loss_parameters
from twotower.tf import tf
from twotower.training.fitting import fit
from twotower.training.model import TwoTowerModel
from twotower.training.training import Training


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


@pytest.mark.parametrize("loss", ["triplet", "cosine_contrastive"])
@pytest.mark.parametrize("tower", ["query", "item"])
def test_cosines_need_vectors_of_length_one(loss, tower):
    parts = {"task": {"loss": loss, "temperature": 1.0}, tower: {"l2_normalise": False}}
    with pytest.raises(ValueError, match=f"{loss} needs cosines.*l2_normalise of both towers"):
        Training(tiny.dataset(), tiny.split(), tiny.recipe(**parts))


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
    "impressions": {"num_impressions": 3},
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
    shown, examples = training.row_negatives.impressions, training.examples
    batch = asked(examples)[0]
    block = training.row_negatives(batch["user"], batch["item"], np.random.default_rng(0))
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


def test_impressions_of_items_that_nothing_trains():
    """A vector that no example pulls up must not be pushed down by impressions alone."""
    chosen = {"num_impressions": 3}
    training = training_of(hidden=0.2, negatives=chosen)
    hidden = untrained(training)
    assert np.isin(training.examples.passed_over().values, hidden).any()
    assert len(training.row_negatives.impressions.values)
    assert not np.isin(training.row_negatives.impressions.values, hidden).any()
    chosen["untrained_items"] = True
    training = training_of(item={"unknown_rate": 0.1}, hidden=0.2, negatives=chosen)
    assert np.isin(training.row_negatives.impressions.values, hidden).any()


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
