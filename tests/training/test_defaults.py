"""Recipes that fit the data: features from its columns, sizes from its rows, and MovieLens' own."""

import dataclasses

import numpy as np
import pandas as pd
import pytest

from twotower.data import splits
from twotower.data.dataset import Dataset
from twotower.trainer import Trainer
from twotower.training.defaults import describe, item_features, recipe_for
from twotower.training.fitting import fit
from twotower.training.recipe import Recipe
from twotower.training.training import Training


def made(num_users=3, num_items=6, rows_each=4, **columns):
    """Users who each take the items in a row from another one on."""
    rows = [
        (f"u{u}", f"i{(u + n) % num_items}", n) for u in range(num_users) for n in range(rows_each)
    ]
    return Dataset(
        "made",
        pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"]),
        pd.DataFrame({"item_id": [f"i{n}" for n in range(num_items)], **columns}),
        pd.DataFrame({"user_id": [f"u{n}" for n in range(num_users)], "age": "25"}),
    )


COLUMNS = {
    "brand": ["Acme", "Bolt"] * 3,
    "price": [1.5, 2, np.nan, 4, 5, 6],
    "sale": [True, False, True, False, True, False],
    "url": [f"http://{n}" for n in range(6)],
    "stock": [7] * 6,
    "notes": [""] * 6,
    "genres": [("a",), (), ("b",), ("a", "b"), (), ()],
    "released": [1, 2, 3, 4, 5, 6],
    "list price": [1, 2, 3, 4, 5, 6],
    "exclude": [1, 2, 3, 4, 5, 6],
    "state_tax": [1, 2, 3, 4, 5, 6],
    "class": [1, 2, 3, 4, 5, 6],
    "self": [1, 2, 3, 4, 5, 6],
    "K": [1, 2, 3, 4, 5, 6],
    "TITLE": ["tin", "moon"] * 3,
    "title": ["Tin", "Moon", "Tin", "Sea", "Sun", "Sky"],
    "popularity": [1, 2, 3, 4, 5, 6],
    "image": list(np.float32(np.eye(6))),
}


def test_features_are_the_columns_that_tell_items_apart():
    dataset = made(**COLUMNS)
    features, left_out = item_features(dataset, splits.make_split(dataset, "loo"))
    assert features == ("item_id", "title", "genres", "brand", "price", "sale", "image")
    assert left_out == {
        "url": "almost a value for each item",
        "stock": "the same for all",
        "notes": "nothing is known",
        "released": "a time; ask for the feature age",
        **dict.fromkeys(
            ("list price", "exclude", "state_tax", "class", "self", "K"),
            "a name that no SavedModel's input can have; rename it",
        ),
        "TITLE": "the name of another column but for capitals; rename it",
        "popularity": "the name of what is computed from the interactions; rename it",
    }


def test_only_the_training_items_are_looked_at():
    """The price of an item without a training row is not known to a model either."""
    dataset = made(
        num_users=2, rows_each=3, price=[5, 5, 5, 5, 5, 7], title=[f"i{n}" for n in range(6)]
    )
    assert item_features(dataset, splits.make_split(dataset, "loo"))[1] == {
        "price": "the same for all",
        "title": "ids, no titles",
    }


def test_large_data_has_the_recipe_of_movielens():
    dataset = made(num_users=20_000, num_items=50, rows_each=6, title="x", genres=[("a",)] * 50)
    split = splits.make_split(dataset, "loo")
    assert len(split.train) == 80_000  # 2 of 6 rows are questions
    recipe = recipe_for(dataset, split)
    assert recipe.item.features == ("item_id", "genres")
    assert recipe.examples == Recipe().examples
    assert (recipe.fit, recipe.negatives, recipe.task) == (
        Recipe().fit,
        Recipe().negatives,
        Recipe().task,
    )


@pytest.mark.data
def test_movielens_has_the_recipe_of_its_results(ml_100k_dir):
    from twotower.data import movielens

    dataset = movielens.load("movielens/100k", ml_100k_dir)
    for protocol in ("random", "loo", "random-100k+seen"):
        assert recipe_for(dataset, splits.make_split(dataset, protocol)) == Recipe()


@pytest.mark.parametrize(
    ("num_users", "num_items", "batch_size", "negatives"),
    [
        (3, 6, 6, ("catalogue",)),  # 6 rows: all of them
        (500, 6, 32, ("catalogue",)),  # 1,000 rows / 16 = 62.5
        (11_000, 11_000, 1024, ("batch", "uniform")),  # 22,000 / 16 = 1,375
    ],
)
def test_few_rows_have_small_batches(num_users, num_items, batch_size, negatives):
    dataset = made(num_users, num_items)
    recipe = recipe_for(dataset, splits.make_split(dataset, "loo"))
    assert recipe.examples.batch_size == batch_size
    assert recipe.negatives.negatives == negatives
    assert recipe.fit.epochs == 30


def test_a_long_history_is_named_with_what_it_takes():
    """20,000 rows of one user: loo trains on 19,998 of them, and a batch has 1,024 queries of that
    length. At 100 bytes an event that is 2.05 GB."""
    dataset = made(num_users=1, num_items=20_000, rows_each=20_000)
    split = splits.make_split(dataset, "loo")
    line = "the longest history has 19,998 events, to which batches are padded: they take about 2.0"
    assert line in describe(dataset, split, recipe_for(dataset, split))
    for short in ({"max_history": 1000}, {"batch_size": 64}):
        assert "longest" not in describe(dataset, split, recipe_for(dataset, split, **short))


def test_weights_of_the_interactions_are_used():
    dataset = made()
    weighed = dataset.interactions.assign(weight=[1.0, 5000.0] * 6)
    dataset = Dataset("weighed", weighed, dataset.items, dataset.users)
    split = splits.make_split(dataset, "loo")
    recipe = recipe_for(dataset, split)
    assert recipe.examples.weight == "weight"
    line = "examples weigh 1 to 5,000, by weight (--weight= for all alike)"
    assert line in describe(dataset, split, recipe)
    assert "weigh" not in describe(dataset, split, recipe_for(dataset, split, weight=""))
    unknown = dataset.interactions.assign(weight=np.nan)
    dataset = Dataset("unknown", unknown, dataset.items, dataset.users)
    assert recipe_for(dataset, splits.make_split(dataset, "loo")).examples.weight == ""


def test_three_users_train(tmp_path):
    dataset = made(**COLUMNS)
    split = splits.make_split(dataset, "loo")
    recipe = recipe_for(dataset, split)
    text = describe(dataset, split, recipe)
    assert "query tower reads history; not user_id, age (--query_features)" in text
    assert "not url (almost a value for each item), stock (the same for all)" in text
    assert "at most 30 epochs of 6 rows in batches of 6, negatives: catalogue" in text
    short = dataclasses.replace(recipe, fit=dataclasses.replace(recipe.fit, epochs=2))
    training = Training(dataset, split, short)
    assert fit(training, tmp_path).epoch >= 1
    assert np.isfinite(training.item_vectors(split.candidates)).all()


def test_a_split_that_cannot_be_refit_is_refused_before_the_training(tmp_path):
    """Each last item was taken before, so it is no test query. The first training would be lost."""
    rows = [(f"u{u}", item, n) for u in range(3) for n, item in enumerate("abca")]
    dataset = made()
    items = pd.DataFrame({"item_id": [*"abc"]})
    plays = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    dataset = dataclasses.replace(dataset, interactions=plays, items=items)
    trainer = Trainer(dataset, splits.make_split(dataset, "loo"))
    with pytest.raises(ValueError, match=r"loo, test: 6 training rows and 0 queries. The 12 pos"):
        trainer.fit(tmp_path)
    assert not (tmp_path / "selection").exists()
