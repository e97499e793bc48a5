"""Held-out rows leave no trace.

That they leave none in the examples is seen for every protocol; in the model, which is made of the
examples, for one protocol of each kind of history, and for the others in slow tests.
"""

import dataclasses

import numpy as np
import pytest
import tiny
from asked import asked, equal

from twotower.data.dataset import Dataset
from twotower.data.examples import Examples, ExamplesConfig
from twotower.data.inputs import DAY, ItemInputs
from twotower.data.protocols import PARTS, PROTOCOLS
from twotower.data.splits import Split, make_split
from twotower.objective.sampling import in_batch_probability
from twotower.tf import tf
from twotower.training.training import Training


# What held-out rows must not touch. Only the training rows are left of the interactions: no
# validation or test row, no impression, skip, like or share.
def reduced(dataset: Dataset, split: Split) -> tuple[Dataset, Split]:
    rows = dataset.interactions.iloc[split.train].reset_index(drop=True)
    return (
        dataclasses.replace(dataset, interactions=rows),
        dataclasses.replace(split, train=np.arange(len(rows))),
    )


TIMED_PROTOCOLS = [
    name + suffix
    for name in PROTOCOLS
    for suffix in ("", "+time")
    if not (suffix and name.startswith("random"))
]
LEAK_CONFIG = ExamplesConfig(batch_size=200, targets_per_query=3, max_history=20, weight="value")


@pytest.mark.parametrize("part", PARTS)
@pytest.mark.parametrize("protocol", TIMED_PROTOCOLS)
def test_held_out_rows_leave_no_trace_in_the_examples(made, protocol, part):
    split = make_split(made, protocol, part)
    less, less_split = reduced(made, split)
    assert len(less.interactions) < 0.6 * len(made.interactions)
    one, two = (Examples(*data, LEAK_CONFIG) for data in ((made, split), (less, less_split)))
    assert equal(asked(one, 0), asked(two, 0))
    np.testing.assert_array_equal(*[np.asarray(e.weights) for e in (one, two)])
    probabilities = [
        in_batch_probability(examples.items, len(made.items), examples.weights)
        for examples in (one, two)
    ]
    np.testing.assert_array_equal(*probabilities)
    without_releases = made.items.drop(columns="released")
    rng = np.random.default_rng(0)
    keys = rng.integers(0, len(made.items), 3000)
    times = rng.choice(made.timestamps, 3000) + rng.integers(-5, 5 * int(DAY), 3000)
    for items in (made.items, without_releases):
        inputs = [
            ItemInputs(dataclasses.replace(data, items=items), rows, ["age", "popularity"])
            for data, rows in ((made, split.train), (less, less_split.train))
        ]
        for name in ("age", "popularity"):
            np.testing.assert_array_equal(*[each.as_of(keys, times)[name] for each in inputs])
            np.testing.assert_array_equal(*[each(keys)[name] for each in inputs])


def test_one_more_training_row_does_leave_a_trace(made):
    # The same comparison must see a single row that slipped in, or it proves nothing.
    split = make_split(made, "loo")
    held_out = np.setdiff1d(np.flatnonzero(made.positive), split.train)[0]
    leaky = dataclasses.replace(split, train=np.sort(np.append(split.train, held_out)))
    clean, dirty = (Examples(made, one, LEAK_CONFIG) for one in (split, leaky))
    assert not equal(asked(clean, 0), asked(dirty, 0))
    popularity = [
        ItemInputs(made, one.train, ["popularity"])(np.arange(len(made.items)))["popularity"]
        for one in (split, leaky)
    ]
    assert not np.array_equal(*popularity)


@pytest.mark.parametrize(
    "protocol",
    [
        pytest.param(name, marks=[] if name in ("random", "loo") else [pytest.mark.slow])
        for name in PROTOCOLS
    ],
)
def test_held_out_rows_leave_no_trace_in_the_model(made, protocol):
    context = () if protocol.startswith("random") else ("search_text", "device", "time")
    name = protocol + ("+time" if context else "")
    recipe = tiny.recipe(
        query={"features": ("user_id", "gender", "history", *context), "history_ratings": False},
        item={"features": ("item_id", "title", "genres", "maker", "year", "age", "popularity")},
        examples={"weight": "value"},
    )
    split = make_split(made, name)
    one, two = Training(made, split, recipe), Training(*reduced(made, split), recipe)
    towers = [(one.model.query_tower, two.model.query_tower)]
    towers.append((one.model.item_tower, two.model.item_tower))
    for tower, other in towers:
        for feature, twin in zip(tower.features, other.features, strict=True):
            assert feature.get_config() == twin.get_config()
    # A user or item of the held-out rows alone has no row of its own.
    trained = made.interactions.iloc[split.train]
    query, item = (pair[0].features[0].vocabulary for pair in towers)
    assert set(query) == set(trained["user_id"]) and set(item) == set(trained["item_id"])
    history = next(f for f in one.model.query_tower.features if f.name == "history")
    assert set(history.vocabulary) == set(trained["item_id"])
    np.testing.assert_array_equal(one._probability, two._probability)
    keys = made.catalogue.keys
    np.testing.assert_array_equal(one.item_vectors(keys), two.item_vectors(keys))
    batches = [list(training.batches().take(2)) for training in (one, two)]
    assert len(batches[0]) == 2
    for batch, twin in zip(*batches, strict=True):
        assert batch.item_inputs.keys() == {"age", "popularity"}
        both = (tf.nest.flatten(one, expand_composites=True) for one in (batch, twin))
        for values, others in zip(*both, strict=True):
            np.testing.assert_array_equal(values, others)
