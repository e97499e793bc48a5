"""The published check: its table, the numbers of other ratings, figures, and labels by chance."""

import dataclasses
import sys

import numpy as np
import pandas as pd
import pytest
import tiny

sys.path.insert(0, str(tiny.ROOT / "experiments" / "studies"))
import ctr_fit
import ctr_ratings
import ctr_table

from twotower.data import load_dataset
from twotower.data.dataset import Dataset
from twotower.ranking.config import RankerConfig
from twotower.ranking.probability import binned, calibration_error


@pytest.fixture(scope="module")
def table() -> ctr_table.Table:
    """60 users and 40 films in two groups: who likes the films of one group dislikes the other."""
    rng = np.random.default_rng(0)
    user, film = (grid.ravel() for grid in np.mgrid[:60, :40])
    rating = np.where(user % 2 == film % 2, 5, 1).astype(np.float32)
    rating[rng.random(len(rating)) < 0.1] = 3
    interactions = pd.DataFrame(
        {
            "user_id": [f"u{n}" for n in user],
            "item_id": [f"f{n}" for n in film],
            "timestamp": rng.integers(1000, size=len(user)),
            "rating": rating,
        }
    )
    items = pd.DataFrame(
        {
            "item_id": [f"f{n}" for n in range(40)],
            "title": "",
            "genres": [("Drama",) if n < 20 else ("Comedy", "Drama") for n in range(40)],
            "year": [1990.0 + n % 3 for n in range(40)],
        }
    )
    users = pd.DataFrame({"user_id": [f"u{n}" for n in range(60)]})
    users = users.assign(age="25", gender="F", occupation="writer")
    return ctr_table.make_table(Dataset("films", interactions, items, users))


def test_the_table(table):
    num_rows = len(table.labels)
    assert not (table.ratings == 3).any()
    assert (table.labels == (table.ratings > 3)).all()
    sizes = [len(table.rows(part)) for part in ctr_table.PARTS]
    assert sizes == [num_rows - 2 * (num_rows // 10), num_rows // 10, num_rows // 10]
    assert table.inputs.check(table.columns) == (num_rows,)
    assert [field.name for field in table.inputs.fields] == [
        "user", "age", "gender", "occupation", "item", "year", "genres",
    ]  # fmt: skip
    # Comedy is 1, Drama is 2; a film of Drama alone is padded.
    assert {tuple(row) for row in table.columns["genres"]} == {(2, 0), (1, 2)}


def test_a_training_row_does_not_see_its_rating(table):
    train, test = table.rows("train"), table.rows("test")
    numbers = ctr_ratings.with_ratings(table).columns["numbers"]
    ratings = table.ratings.copy()
    ratings[train[7]] = 6 - ratings[train[7]]
    ratings[test] = 3
    changed = dataclasses.replace(table, ratings=ratings)
    changed = ctr_ratings.with_ratings(changed).columns["numbers"]
    np.testing.assert_array_equal(changed[train[7]], numbers[train[7]])
    assert (changed[train] != numbers[train]).any()  # the user's other rows see it
    # Without the changed training row, ratings of test change nothing.
    ratings[train[7]] = table.ratings[train[7]]
    changed = dataclasses.replace(table, ratings=ratings)
    np.testing.assert_array_equal(ctr_ratings.with_ratings(changed).columns["numbers"], numbers)


def test_similar_films_tell_the_groups_apart(table):
    known = ctr_ratings.with_ratings(table)
    column = known.columns["numbers"][:, ctr_ratings.NUMBERS.index("similar_films")]
    assert ((column > 0) == (table.labels > 0)).mean() > 0.95


def test_calibrations_mend_logits_that_are_too_large():
    rng = np.random.default_rng(0)
    logits = rng.normal(size=4000)
    labels = (rng.random(4000) < 1 / (1 + np.exp(-logits))).astype(float)
    maps = ctr_fit.calibrations(3 * logits + 1, labels)
    errors = {
        name: calibration_error(binned(map_(3 * logits + 1), labels)) for name, map_ in maps.items()
    }
    assert errors["none"] > 0.1
    assert errors["platt"] < 0.02 and errors["isotonic"] < 0.02
    assert 0 < maps["isotonic"](np.array([-99.0]))[0] < maps["isotonic"](np.array([99.0]))[0] < 1


def test_shuffled_labels_give_chance(table):
    config = RankerConfig("deepfm", dim=4, hidden=(8,), dropout=0, l2=0)
    fit = ctr_fit.Fit(learning_rate=0.03, batch_size=256, epochs=8, patience=3)
    row = ctr_fit.run(table, config, fit, seed=0, part="test")
    assert row["metrics"]["none"]["auc"] > 0.95
    assert row["num_rows"]["test"] == len(table.rows("test"))
    chance = dataclasses.replace(fit, shuffled_labels=True, epochs=1)
    row = ctr_fit.run(table, config, chance, seed=0, part="test")
    # 200 rows: a standard deviation of .04.
    assert abs(row["metrics"]["none"]["auc"] - 0.5) < 0.12


@pytest.mark.data
def test_the_rows_of_movielens_1m(ml_1m_dir):
    table = ctr_table.make_table(load_dataset("movielens/1m", str(ml_1m_dir)))
    assert len(table.labels) == 739_012
    assert table.labels.sum() == 348_971 + 226_310
