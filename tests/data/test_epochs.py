"""Epochs of examples: each training row once, in another order each time."""

import numpy as np
import pytest
import tiny
from asked import asked, equal

from twotower.data.examples import Examples, ExamplesConfig
from twotower.data.splits import make_split
from twotower.training.training import Training


@pytest.mark.parametrize("protocol", ["loo", "random"])
@pytest.mark.parametrize("batch_size, targets", [(20, 8), (64, 3), (64, 1), (10_000, 8)])
def test_every_training_row_once_an_epoch(made, protocol, batch_size, targets):
    split = make_split(made, protocol)
    config = ExamplesConfig(batch_size=batch_size, targets_per_query=targets)
    examples = Examples(made, split, config)
    batches = asked(examples, 0)
    users = np.concatenate([batch["cases"].user_id[batch["row"]] for batch in batches])
    items = np.concatenate([batch["item"] for batch in batches])
    times = np.concatenate([batch["time"] for batch in batches])
    found = sorted(zip(users, made.catalogue.ids_of(items), times))
    train = made.interactions.iloc[split.train]
    assert found == sorted(zip(train["user_id"], train["item_id"], train["timestamp"]))
    assert len(examples) == len(split.train)
    # Groups are whole, so a batch is too large or too small by less than one group.
    sizes = [len(batch["item"]) for batch in batches]
    assert all(abs(size - batch_size) < max(targets, 2) for size in sizes[:-1])
    for batch in batches:
        assert np.unique(batch["row"]).tolist() == list(range(len(batch["cases"])))


@pytest.mark.parametrize("protocol", ["loo", "random"])
def test_epochs_differ_and_seeds_repeat(made, protocol):
    def batches(epoch, seed=0):
        config = ExamplesConfig(batch_size=100, seed=seed)
        return asked(Examples(made, make_split(made, protocol), config), epoch)

    assert equal(batches(4), batches(4))
    assert not equal(batches(0), batches(1))
    assert not equal(batches(0), batches(0, seed=1))


def test_the_pipeline_gives_one_epoch_after_another(made):
    """`asked`, which the other tests read, makes its batches without it."""
    recipe = tiny.recipe(examples={"batch_size": 500})
    training = Training(made, make_split(made, "random"), recipe)
    pipeline = training.batches(first_epoch=3)
    for epoch in (3, 4):
        items = [batch.targets().item.numpy().tolist() for batch in pipeline]
        assert items == [batch["item"].tolist() for batch in asked(training.examples, epoch)]
