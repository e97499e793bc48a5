"""What a training refuses before its first step, and says why."""

import dataclasses

import numpy as np
import pytest
import tiny

from twotower.data.splits import make_split
from twotower.tf import tf
from twotower.towers.dense import DenseHead
from twotower.towers.numbers import Clock
from twotower.trainer import Trainer
from twotower.training.defaults import recipe_for
from twotower.training.model import TwoTowerModel
from twotower.training.recipe import Recipe
from twotower.training.training import Training


@pytest.mark.parametrize("policy", ["mixed_float16", "mixed_bfloat16", "float64"])
def test_other_precisions_are_refused_at_the_start(policy):
    model = Training(tiny.dataset(), tiny.split(), tiny.DEFAULT).model
    tf.keras.mixed_precision.set_global_policy(policy)
    try:
        for make in (
            lambda: Training(tiny.dataset(), tiny.split(), tiny.DEFAULT),
            lambda: TwoTowerModel(
                *(model.query_tower, model.item_tower, {}), np.ones(3) / 3, tiny.DEFAULT.task
            ),
            lambda: DenseHead((), 4),
            lambda: Clock("time"),
        ):
            with pytest.raises(ValueError, match=f"in float32.*{policy}.*set_global_policy"):
                make()
    finally:
        tf.keras.mixed_precision.set_global_policy("float32")


@pytest.mark.parametrize(
    ("share", "skip", "message"),
    [
        (0.001, 0, r"share=0.001 of batch_size=256 is 0 negatives"),
        (0.1, 300, "mining.skip=300 are skipped"),
    ],
)
def test_mining_that_finds_nothing_is_refused(share, skip, message):
    parts = {"negatives": {"hard_negative_share": share}, "mining": {"skip": skip}}
    with pytest.raises(ValueError, match=message):
        Training(tiny.dataset(), tiny.split(), tiny.recipe(**parts))


def test_impressions_that_nothing_can_be_drawn_from_are_refused():
    data, recipe = tiny.dataset(), tiny.recipe(negatives={"num_impressions": 2})
    frame = data.interactions
    watched = dataclasses.replace(data, interactions=frame[frame["event"] == "watch"])
    with pytest.raises(ValueError, match=r"num_impressions needs.*there are 0 impressions"):
        Training(watched, make_split(watched, "loo"), recipe)


def test_ratings_that_a_history_cannot_tell_apart_are_refused():
    query = {"features": ("history",), "history": "gru", "history_ratings": True}
    data, recipe = tiny.dataset(), tiny.recipe(query=query)
    stars = np.random.default_rng(0).integers(1, 6, len(data.interactions)).astype(np.float32)

    def train_on(ratings):
        rated = data.interactions.assign(rating=ratings)
        other = dataclasses.replace(data, interactions=rated)
        Training(other, make_split(other, "loo"), recipe)

    train_on(stars)
    with pytest.raises(ValueError, match="from 2 to 10"):
        train_on(2 * stars)
    with pytest.raises(ValueError, match="no train"):
        train_on(np.nan * stars)


def test_features_of_one_example_need_queries_of_their_own():
    recipe = tiny.recipe(query={"features": ("history", "device")})
    with pytest.raises(ValueError, match="targets_per_query=1"):
        Training(tiny.dataset(), tiny.split("random"), recipe)
    alone = tiny.recipe(recipe, examples={"targets_per_query": 1})
    assert Training(tiny.dataset(), tiny.split("random"), alone).examples.alone
    with pytest.raises(ValueError, match=r"loo\+time"):
        clock = tiny.recipe(query={"features": ("history", "time")})
        Training(tiny.dataset(), tiny.split("loo"), clock)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        (
            {"item_features": ("colour",)},
            r"unknown item features \['colour'\].*'maker'.*recipe_for",
        ),
        (
            {"query_features": ("history", "shoe")},
            r"unknown query features \['shoe'\]; .*'gender', 'history'",
        ),
    ],
)
def test_unknown_features_are_named_at_every_door(choices, message):
    data, split = tiny.dataset(), tiny.split()
    recipe = Recipe(**choices)
    for make in (
        lambda: recipe_for(data, split, **choices),
        lambda: Trainer(data, split, recipe),
        lambda: Training(data, split, recipe),
    ):
        with pytest.raises(ValueError, match=message):
            make()
