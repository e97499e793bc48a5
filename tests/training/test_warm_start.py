"""A training starts with the weights of an older one, which follow ids and names."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
import tiny

from twotower.bundle.manifest import BundleError
from twotower.bundle.weights import save_weights, warm_start
from twotower.data.dataset import Dataset
from twotower.data.splits import make_split
from twotower.tf import tf
from twotower.training.fitting import fit
from twotower.training.training import Training


class SavedWeights:
    """What `warm_start` reads of a bundle: the folder `training/`, and which rows are behind it."""

    def __init__(self, training: Training, directory) -> None:
        self.lineage = training.lineage()
        self.directory = directory
        directory.mkdir(exist_ok=True)
        save_weights(training, directory / "training")

    def read(self, part: str, load):
        return load(self.directory / part)


def grown_and_reversed() -> Dataset:
    """The tiny service with its items in reverse order, ids that sort first, and ten new items."""
    made = tiny.dataset()
    new = made.items.iloc[:10].assign(item_id=[f"a{n}" for n in range(10)])
    return Dataset("later", made.interactions, pd.concat([new, made.items.iloc[::-1]]), made.users)


def test_warm_start_follows_ids(learned, tmp_path):
    old, _ = learned
    saved = SavedWeights(old, tmp_path)
    data = grown_and_reversed()
    # The ten new items are watched once each by the first ten users, at the very start: training
    # rows of `random` by their place, as the last rows of the table are.
    rows = data.interactions.iloc[:10].assign(item_id=[f"a{n}" for n in range(10)], event="watch")
    data = dataclasses.replace(
        data, interactions=pd.concat([rows, data.interactions], ignore_index=True)
    )
    split = make_split(data, "random")
    new = Training(data, split, tiny.recipe(fit={"topk_every": 0}))
    fresh = {f.name: f.table.embeddings.numpy() for f in new.model.item_tower.features[:1]}
    # Of other rows `random` asks for what the old training has learned; no figure is taken here.
    counts = warm_start(new, saved, allow_seen=True)
    assert counts["fresh"] == 0 and counts["matched"] > 0 and counts["copied"] > 0

    before, after = old.model.item_tower.features[0], new.model.item_tower.features[0]
    assert before.name == after.name == "item_id"
    assert before.vocabulary != after.vocabulary
    old_table, new_table = before.table.embeddings.numpy(), after.table.embeddings.numpy()
    place = {item: row for row, item in enumerate(before.vocabulary, 1)}
    np.testing.assert_array_equal(new_table[0], old_table[0])  # the row of unknown ids
    known = 0
    for row, item in enumerate(after.vocabulary, 1):
        if item in place:
            np.testing.assert_array_equal(new_table[row], old_table[place[item]])
            known += 1
        else:
            np.testing.assert_array_equal(new_table[row], fresh["item_id"][row])
    assert 250 < known < len(after.vocabulary)

    # The history's table has rows for padding and unknown ids before those of the items.
    before, after = (
        next(f for f in t.model.query_tower.features if f.name == "history") for t in (old, new)
    )
    item = "i00001" if "i00001" in before.vocabulary else before.vocabulary[0]
    np.testing.assert_array_equal(
        after.table.embeddings.numpy()[2 + after.vocabulary.index(item)],
        before.table.embeddings.numpy()[2 + before.vocabulary.index(item)],
    )


@pytest.mark.parametrize("shared", ["nothing", "item_embedding"])
@pytest.mark.parametrize("history", ["recency", "transformer"])
def test_warm_start_of_a_sequential_tower(history, shared, tmp_path):
    recipe = tiny.recipe(
        query={
            "features": ("history",),
            "history": history,
            "history_content": True,
            "shared": shared,
        },
        item={"features": ("item_id", "title"), "l2_normalise": False},
    )
    old = Training(tiny.dataset(), tiny.split("loo"), recipe)
    # One word of titles is another now, which comes first by the alphabet: as many, moved by one.
    data = grown_and_reversed()
    last = next(f for f in old.model.item_tower.features if f.name == "title").vocabulary[-1]
    titles = data.items.title.str.replace(rf"(?i)\b{last}\b", "aaaa", regex=True)
    data = dataclasses.replace(data, items=data.items.assign(title=titles))
    new = Training(data, make_split(data, "loo"), recipe)
    assert warm_start(new, SavedWeights(old, tmp_path))["fresh"] == 0
    # Words of titles go by themselves, and not by the ids of the history around them.
    for towers in ("query_tower", "item_tower"):
        before, after = (
            next(f for f in features if f.name == "title")
            for features in (
                getattr(one.model, towers).features[0].content.features
                if towers == "query_tower"
                else one.model.item_tower.features
                for one in (old, new)
            )
        )
        assert before.vocabulary != after.vocabulary
        places = {word: row for row, word in enumerate(before.vocabulary)}
        tables = [one.table.embeddings.numpy() for one in (before, after)]
        special = [len(t) - len(f.vocabulary) for t, f in zip(tables, (before, after))]
        for row, word in enumerate(after.vocabulary):
            if word in places:
                np.testing.assert_array_equal(
                    tables[1][special[1] + row], tables[0][special[0] + places[word]]
                )


def test_warm_start_of_a_tower_that_is_told_more(tmp_path):
    """A table more among the weights moves no other one into a wrong place."""
    query = {"features": ("history",), "history": "transformer"}
    old = Training(tiny.dataset(), tiny.split("loo"), tiny.recipe(query=query))
    for weight in old.model.query_tower.weights:  # all differ, those of one shape, too
        weight.assign(tf.random.stateless_normal(weight.shape, [1, len(weight.name)]))
    told = tiny.recipe(query=query | {"history_gaps": True})
    new = Training(tiny.dataset(), tiny.split("loo"), told)
    assert warm_start(new, SavedWeights(old, tmp_path))["fresh"] == 1  # the gaps' own
    before, after = (one.model.query_tower.features[0] for one in (old, new))
    for block, same in zip(before.blocks, after.blocks, strict=True):
        for weight, copied in zip(block.weights, same.weights, strict=True):
            np.testing.assert_array_equal(copied, weight)
    np.testing.assert_array_equal(after.norm.gamma, before.norm.gamma)


@pytest.mark.slow
def test_warm_start_is_ahead_after_one_epoch(learned, tmp_path):
    old, _ = learned
    saved = SavedWeights(old, tmp_path / "saved")
    figures = {}
    for name in ("cold", "warm"):
        training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"learning_rate": 1e-3}))
        if name == "warm":
            warm_start(training, saved)
        result = fit(training, tmp_path / name, stop_after=1)
        figures[name] = result.log[0]["recall_micro@20"]
    assert figures["warm"] > 1.3 * figures["cold"]


def test_warm_start_from_another_model_is_refused(learned, tmp_path):
    saved = SavedWeights(learned[0], tmp_path)
    with np.load(tmp_path / "training" / "weights.npz") as old:
        renamed = {f"other/{name}": values for name, values in old.items()}
    np.savez(tmp_path / "training" / "weights.npz", **renamed)
    with pytest.raises(BundleError, match=r"weights\.npz shares no weight"):
        warm_start(learned[0], saved)
