"""Values that are missing are the same in training and in a SavedModel."""

import dataclasses

import numpy as np
import pytest
import tiny

from twotower.bundle.saved_models import save_tower
from twotower.data.splits import make_split
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Id, Tags, Tokens
from twotower.towers.numbers import Clock, Number, Vector
from twotower.training.training import Training

DIM, NAN = 8, float("nan")
FEATURES = {  # kind: feature, a value, the missing one
    "Id": (lambda: Id("x", ["a", "b"], dim=4), "a", ""),
    "Tags": (lambda: Tags("x", ["a", "b"], dim=4), ["a", "b"], ["", ""]),
    "Tokens": (lambda: Tokens("x", ["a", "b"], dim=4), "a b", ""),
    "Number": (lambda: Number("x", [1.0, 2.0, 4.0]), 3.0, NAN),
    "Clock": (lambda: Clock("x", dim=4), 1_600_000_000, -1),
    "Vector": (lambda: Vector("x", 2), [1.0, 2.0], [NAN, 1.0]),
}


@pytest.mark.parametrize("kind", FEATURES)
def test_a_missing_value_is_the_same_in_training_and_served(kind, tmp_path):
    make, known, missing = FEATURES[kind]
    tower = Tower([make()], DenseHead((), DIM), name="tower")
    (spec,) = tower.inputs
    raw = {"x": tf.constant([known, missing], spec.dtype)}
    # Training encodes whole tables before, and calls the tower with what that gives.
    trained = tower(tower.encode(raw), training=True)
    assert np.abs(trained[0] - trained[1]).max() > 1e-3
    save_tower(tower, tmp_path / "tower", "a")
    model = tf.saved_model.load(str(tmp_path / "tower"))
    served = model.signatures["serving_default"](**raw)["embedding"]
    np.testing.assert_allclose(served, trained, atol=1e-6)
    alone = model.signatures["serving_default"](x=raw["x"][1:])["embedding"]
    np.testing.assert_allclose(alone, trained[1:], atol=1e-6)
    # What the manifest names as missing is the same, too.
    declared = tf.fill(raw["x"][1:].shape, tf.constant(spec.missing, spec.dtype))
    named = model.signatures["serving_default"](x=declared)["embedding"]
    np.testing.assert_allclose(named, trained[1:], atol=1e-6)
    nobody = model.signatures["serving_default"](x=raw["x"][:0])["embedding"]
    assert nobody.shape == (0, DIM)


@pytest.fixture(scope="module")
def towers_of_missing_values(tmp_path_factory):
    """A training in whose tables an item and a user are without any column, and both towers as
    SavedModels."""
    data, gap = tiny.dataset(), 3
    items, users = data.items.copy(), data.users.copy()
    items["year"] = items["year"].astype(float)
    size = len(items["audio"].iloc[0])
    missing = {"title": "", "genres": (), "maker": "", "year": NAN, "quality": NAN}
    for name, value in (missing | {"audio": np.full(size, NAN, np.float32)}).items():
        items.at[gap, name] = value
    users.loc[gap, ["gender", "country"]] = ""
    # The country of an interaction would differ from that of a user without one.
    events = data.interactions.drop(columns="country")
    dataset = dataclasses.replace(data, interactions=events, items=items, users=users)
    recipe = tiny.recipe(
        query={"features": ("user_id", "gender", "country", "history", "time", "search_text")},
        item={"features": (*missing, "audio")},
        examples={"targets_per_query": 1},
    )
    training = Training(dataset, make_split(dataset, "loo+time"), recipe)
    signatures, kept = {}, []
    for side in ("query_tower", "item_tower"):
        folder = tmp_path_factory.mktemp("towers") / side
        save_tower(getattr(training.model, side), folder, "a")
        kept.append(tf.saved_model.load(str(folder)))
        signatures[side] = kept[-1].signatures["serving_default"]
    return training, signatures, gap, kept


@pytest.mark.parametrize("side", ["query_tower", "item_tower"])
def test_what_tables_do_not_say_is_what_a_request_does_not_say(towers_of_missing_values, side):
    """The vectors of training, from tables encoded before, and those of the declared missing
    values through the signature."""
    training, signatures, gap, _ = towers_of_missing_values
    specs = {spec.name: spec for spec in getattr(training.model, side).inputs}
    shapes = {name: [1, *(size or 2 for size in spec.shape)] for name, spec in specs.items()}
    nothing = {
        name: tf.fill(shapes[name], tf.constant(spec.missing, spec.dtype))
        for name, spec in specs.items()
    }
    served = signatures[side](**nothing)["embedding"]
    if side == "item_tower":
        trained = training.item_vectors(np.array([gap, 0]))
    else:
        cases = training.examples.whole_histories().take([gap, 0])
        no_events = Ragged.empty(2)
        cases = dataclasses.replace(
            cases,
            user_id=np.array(["nobody", cases.user_id[1]], object),
            history=no_events,
            history_time=no_events,
            history_rating=no_events,
        )
        trained = training.query_vectors(cases)
    np.testing.assert_allclose(served, trained[:1], atol=1e-5)
    assert np.abs(trained[0] - trained[1]).max() > 1e-3
