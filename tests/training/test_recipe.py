"""Recipes: what makes no sense or has no effect is named, and what is saved comes back."""

import json

import numpy as np
import pytest
import tiny

from twotower.objective.negatives import NegativesConfig
from twotower.towers.history.config import CONFIGS, GRUConfig, HSTUConfig, MeanConfig
from twotower.towers.item import ItemConfig
from twotower.towers.query import QueryConfig
from twotower.training.recipe import FitConfig, Recipe


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"metric": "recall@100_micro"}, "metric must be one of"),
        ({"weight_decay": 0.1}, "'adam' would ignore it"),
        ({"optimizer": "adamw"}, "adamw with weight_decay=0 is adam.*weight_decay above 0"),
        ({"patience": -1}, "patience must be 0"),
        ({"seed": -1}, "seed must be 0 or more; got -1"),
        ({"seed": 2**32}, r"seed must be below 2\*\*32; got 4294967296"),
        ({"learning_rate": np.inf}, "learning_rate must be positive and finite"),
        ({"cosine": False}, "warmup_steps=200 has no effect.*cosine.*warmup_steps=0"),
        ({"keep_best": False}, "patience=5 has no effect.*keep_best.*patience=0"),
    ],
)
def test_fits_that_make_no_sense(fields, message):
    with pytest.raises(ValueError, match=message):
        FitConfig(**fields)


@pytest.mark.parametrize(
    ("choices", "message"),
    [
        ({"dropout": 1.0}, r"dropout must lie in \[0, 1\); got 1.0"),  # nothing would be learned
        ({"dropout": np.nan}, "dropout must lie in"),
        ({"query_unknown_rate": 1.0}, "unknown_rate must lie in"),
        ({"item_unknown_rate": -0.1}, "unknown_rate must lie in"),
        ({"dim": 0}, "dim must be 1 or more; got 0"),
        ({"dim": 8.0}, "dim must be an integer; got 8.0"),
        ({"hidden": [16, 0]}, r"hidden layers must have a width of 1 or more; got \(16, 0\)"),
        ({"item_id_dim": 0}, "id_dim must be 1 or more"),
        ({"query_category_dim": -1}, "category_dim must be 1 or more"),
        ({"cosine": "False"}, "cosine must be True or False; got 'False'"),  # it would be true
        ({"l2_normalise": 0}, "l2_normalise must be True or False; got 0"),
        ({"temperature": "0.1"}, "temperature must be a number; got '0.1'"),
        ({"learning_rate": True}, "learning_rate must be a number; got True"),
        ({"hidden": "512,256"}, "hidden must be an integer; got '512,256'"),
        ({"hidden": [16.0]}, r"hidden must be an integer; got 16\.0"),
        ({"query_history_dim": 8.0}, "dim must be an integer; got 8.0"),
        ({"query_history_dim": 0}, "dim must be 1 or more; got 0"),
        ({"query_history": "gru", "query_history_length": 2.5}, "length must be an integer"),
        ({"query_history_power": np.nan}, "power must be 0 or more; got nan"),
        ({"query_history_power": -1.0}, "power must be 0 or more; got -1"),
        ({"query_history_power": np.inf}, "power must be finite"),  # no event would count
        ({"query_history": "recency", "query_history_half_life": np.inf}, "must be positive and f"),
        ({"query_shared": "towers"}, r"shared must be one of .*'tower'\); got 'towers'"),
    ],
)
def test_towers_that_make_no_sense(choices, message):
    """Named before the data is read."""
    with pytest.raises(ValueError, match=message):
        Recipe(**choices)


def test_numbers_of_numpy_are_saved_as_pythons():
    """A training must not end with a manifest that cannot be written, and a list is a tuple."""
    chosen = Recipe(
        epochs=np.int64(3),
        seed=np.int32(4),
        temperature=np.float64(0.5),
        learned_temperature=np.bool_(True),
        hidden=np.array([16, 8]),
        item=ItemConfig(features=["item_id"]),
        query_history_dim=np.int64(8),
    )
    plain = Recipe(
        epochs=3,
        seed=4,
        temperature=0.5,
        learned_temperature=True,
        hidden=(16, 8),
        item=ItemConfig(features=("item_id",)),
        query_history_dim=8,
    )
    assert chosen == plain
    assert json.dumps(chosen.to_json()) == json.dumps(plain.to_json())


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"negatives": {"negatives": ("catalogue",)}},
            "log_q_masked.*take correction='none'",
        ),
        ({"mining": {"skip": 3}}, "skip=3 has no effect.*hard_negative_share"),
        ({"examples": {"hidden_share": 0.5}}, "hidden_share=0.5 has no effect.*sequence_length"),
        ({"item": {"hidden": (), "dropout": 0.5}}, "dropout=0.5 has no effect.*hidden layers"),
        ({"query": {"hidden": (), "batch_norm": True}}, "batch_norm=True has no effect"),
        (
            {
                "query": {"features": ("history",), "shared": "tower", "hidden": (4,)},
                "item": {"features": ("item_id",)},
            },
            r"hidden=\(4,\).*item tower's \(16,\)",
        ),
    ],
)
def test_parts_of_a_recipe_of_which_one_has_no_effect(parts, message):
    with pytest.raises(ValueError, match=message):
        tiny.recipe(**parts)


@pytest.mark.parametrize(
    ("fields", "message"),
    [
        ({"num_sampled": 64}, "num_sampled=64 has no effect.*uniform or popularity"),
        ({"negatives": ("uniform",), "sampled_power": 0.5}, "sampled_power=0.5 has no effect"),
        ({"memory_size": 9}, "memory_size=9 has no effect.*memory"),
        ({"untrained_items": True}, "untrained_items=True has no effect.*num_impressions"),
        (
            {"negatives": ("batch", "memory"), "untrained_items": True},
            "untrained_items=True has no effect.*uniform, popularity or catalogue",
        ),
    ],
)
def test_negatives_of_which_nothing_is_drawn(fields, message):
    with pytest.raises(ValueError, match=message):
        NegativesConfig(**fields)


@pytest.mark.parametrize(
    "fields",
    [
        {"negatives": ("uniform",)},
        {"negatives": ("batch", "popularity")},
        {"negatives": ("catalogue",)},
        {"num_impressions": 2},
        {"hard_negative_share": 0.1},
    ],
)
def test_what_untrained_items_can_be_drawn_by(fields):
    assert NegativesConfig(**fields, untrained_items=True).untrained_items


def test_sizes_of_what_a_tower_does_not_read_are_told():
    recipe = Recipe(
        query=QueryConfig(user_dim=8, category_dim=3, unknown_rate=0.1),
        item=ItemConfig(("item_id", "year"), min_token_count=3),
    )
    said = recipe.unread()
    assert [sentence.split(" has no effect")[0] for sentence in said] == [
        "query.user_dim=8",
        "query.unknown_rate=0.1",
        "query.category_dim=3",
        "item.min_token_count=3",
    ]
    assert "user_id" in said[0] and not Recipe().unread()
    alone = Recipe(query=QueryConfig(("user_id",), history=GRUConfig(layers=1)))
    (text,) = alone.unread()
    assert text.startswith("query.history=GRUConfig(dim=None") and "feature history" in text


def test_a_recipe_of_unknown_parts_is_refused():
    with pytest.raises(TypeError, match=r"no parts \['tsk'\]"):
        Recipe.from_json({"tsk": {"temperature": 0.3}})
    with pytest.raises(TypeError, match=r"no history encoder reads 'depth'; there are .*'layers'"):
        Recipe.from_json({"query": {"history": {"encoder": "gru", "depth": 3}}})


@pytest.mark.parametrize("encoder", [*CONFIGS])
def test_a_recipe_comes_back_from_its_json(encoder):
    recipe = Recipe(query_history=encoder, query_history_dim=32, item_id_dim=8)
    written = json.loads(json.dumps(recipe.to_json()))
    assert written["query"]["history"]["encoder"] == encoder and recipe.query.history.dim == 32
    assert Recipe.from_json(written) == recipe


@pytest.mark.parametrize("shared", ["item_embedding", "tower"])
def test_a_history_has_the_length_of_shared_vectors(shared):
    """A length that is asked for is never replaced by another, even if it equals the default."""
    towers = {"query_shared": shared, "item_features": "item_id", "item_id_dim": 128}
    message = "a history of dim 256 cannot share the item tower's vectors, whose length is 128"
    with pytest.raises(ValueError, match=message):
        Recipe(**towers, query_history_dim=256)
    query = QueryConfig(history=MeanConfig(dim=256), shared=shared)
    with pytest.raises(ValueError, match=message):
        Recipe(query=query, item_features="item_id", item_id_dim=128)
    written = Recipe(**towers).to_json()
    assert Recipe.from_json(written) == Recipe(**towers)
    written["query"]["history"]["dim"] = 256
    with pytest.raises(ValueError, match=message):
        Recipe.from_json(written)
    assert Recipe(**towers, query_history_dim=128).query.history.dim == 128
    assert Recipe(**towers | {"item_id_dim": 256}, query_history_dim=256).item.id_dim == 256


def test_a_recipe_of_version_0_1_0_has_the_fields_of_all_encoders_in_its_query():
    before = {"history": "hstu", "history_dim": 64, "history_positions": "", "history_layers": 1}
    before |= {"history_power": 0.5, "history_half_life": 20.0, "history_gaps": True, "dim": 32}
    expected = HSTUConfig(dim=64, layers=1, gaps=True)
    assert Recipe.from_json({"query": before}).query == QueryConfig(dim=32, history=expected)


def test_choices_of_a_history():
    # What the mean reads, too, stays as it is.
    base = Recipe(query_history="gru", query_history_dim=64, query_history_layers=1)
    mean = Recipe(query=base.query, query_history="mean")
    assert mean.query.history == MeanConfig(dim=64)
    # HSTU has another default, and a flag file may undo what it includes.
    hstu = Recipe(query_history="hstu", query_history_time_bias=False)
    assert hstu.query.history == HSTUConfig() and HSTUConfig().positions == "relative"
    absolute = Recipe(query_history="hstu", query_history_positions="absolute")
    assert absolute.query.history.positions == "absolute"
    for choices, message in (
        ({"query_history": "max"}, r"one of \['mean', 'recency', .*; got 'max'"),
        ({"query_history_gaps": True}, "'mean' does not read gaps=True; recency, .*hstu can"),
        (
            {"query_history": "hstu", "query_history_time_bias": True},
            "'hstu' does not read time_bias=True; transformer, masked_transformer can",
        ),
    ):
        with pytest.raises(ValueError, match=message):
            Recipe(**choices)
