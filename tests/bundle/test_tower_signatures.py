"""The signatures of a tower over each encoder of histories: vectors, sessions, refusals."""

import numpy as np
import pytest
from raw_histories import NAN, raw_history

from twotower.bundle.saved_models import save_tower
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.history.bag import MeanHistory
from twotower.towers.history.config import CONFIGS
from twotower.towers.query import HISTORIES

DIM = 8
IDS = np.array([f"item {number}" for number in range(297)], object)


def history(name="mean", **fields):
    """An encoder of histories that reads ratings and, where it can, times."""
    fields = {"dim": DIM, "ratings": True, "dropout": 0.0, **fields}
    if name != "mean":
        fields |= {"gaps": True, "request_time": True, "length": 6, "stride": 2}
    return HISTORIES[name]("history", IDS, CONFIGS[name](**fields))


def inputs_of(tower, raw):
    """Those of `raw` that a tower reads."""
    return {spec.name: raw[spec.name] for spec in tower.inputs}


# The checks are the same for all encoders; exports of each take long.
FEW = [
    n if n in ("mean", "transformer") else pytest.param(n, marks=pytest.mark.slow)
    for n in HISTORIES
]


@pytest.fixture(scope="module", params=FEW)
def encoder(request, tmp_path_factory):
    """A tower over an encoder of histories, and what it is as a SavedModel."""
    tower = Tower([history(request.param)], DenseHead((), DIM), name="query_tower")
    tower.embed(inputs_of(tower, raw_history(["item 1", "item 2"])))
    folder = tmp_path_factory.mktemp(request.param) / "query_tower"
    save_tower(tower, folder, model_version="a")
    model = tf.saved_model.load(str(folder))
    tower.served = model  # keeps the variables alive
    return tower, model.signatures


def test_a_missing_first_column_is_padding(encoder):
    """TensorFlow Serving pads a request with its first element, so that is best a missing one."""
    tower, signatures = encoder
    padded = inputs_of(tower, raw_history(["", "item 3", "item 5", "", ""]))
    plain = inputs_of(tower, raw_history(["item 3", "item 5"]))
    vectors = [signatures["serving_default"](**raw)["embedding"] for raw in (padded, plain)]
    np.testing.assert_allclose(*vectors, atol=1e-5)


def test_an_empty_batch_has_no_vectors(encoder):
    tower, signatures = encoder
    for rows in (tf.zeros([0, 3], tf.string), tf.zeros([0, 0], tf.string)):
        nobody = {
            spec.name: tf.zeros([0, *rows.shape[1 : 1 + len(spec.shape)]], spec.dtype)
            for spec in tower.inputs
        }
        assert signatures["serving_default"](**nobody)["embedding"].shape == (0, DIM)
        state = signatures["begin"](**nobody)
        assert state.pop("embedding").shape == (0, DIM)
        event = {spec.name: tf.zeros([0], spec.dtype) for spec in tower.inputs}
        assert signatures["step"](**state, **event)["embedding"].shape == (0, DIM)


def test_an_empty_history_is_the_same_in_training_and_served(encoder):
    tower, signatures = encoder
    rows = [["", ""], ["item 1", "item 2"]]
    raw = inputs_of(tower, raw_history(*rows))
    trained = tower(tower.encode(raw), training=True)
    for ask in ("serving_default", "begin"):
        served = signatures[ask](**raw)["embedding"]
        np.testing.assert_allclose(served, trained, atol=1e-5)
    nothing = inputs_of(tower, raw_history([]))
    assert nothing["history"].shape == (1, 0)
    for ask in ("serving_default", "begin"):
        served = signatures[ask](**nothing)["embedding"]
        np.testing.assert_allclose(served, trained[:1], atol=1e-5)


def test_a_state_that_was_begun_is_right(encoder):
    tower, signatures = encoder
    raw = inputs_of(tower, raw_history(["", "item 1", "x"], ["", "", ""], ["item 3"] * 3))
    state = signatures["begin"](**raw)
    del state["embedding"]
    right = signatures["check"](**state)
    assert right.keys() == state.keys()
    for name, rows in right.items():
        assert rows.numpy().tolist() == [True] * 3, name
    other = tf.constant([5, 6, 5], tf.int64)  # of another training
    wrong = signatures["check"](**state | {"state_version": other})["state_version"]
    assert wrong.numpy().tolist() == [True, False, True]


def test_inputs_of_unlike_rows_are_refused(encoder):
    tower, signatures = encoder
    raw = inputs_of(tower, raw_history(["item 1", "item 2"], ["item 3", ""]))
    state = signatures["begin"](**raw)
    del state["embedding"]
    event = {
        name: values[:, 0] if values.shape.rank == 2 else values for name, values in raw.items()
    }
    for name, values in raw.items():
        if len(raw) == 1:
            continue
        for ask in ("serving_default", "begin"):
            for wrong in (values[:1], tf.concat([values, values], 0)):
                with pytest.raises(tf.errors.InvalidArgumentError, match="a row a query"):
                    signatures[ask](**raw | {name: wrong})
            if values.shape.rank == 2:
                for wrong in (values[:, :1], tf.concat([values, values], 1)):
                    with pytest.raises(tf.errors.InvalidArgumentError, match="column an event"):
                        signatures[ask](**raw | {name: wrong})
    for name, values in (state | event).items():
        with pytest.raises(tf.errors.InvalidArgumentError, match="a row a query"):
            signatures["step"](**state | event | {name: values[:1]})


def test_numbers_that_are_not_finite_give_no_vectors(encoder):
    """Of a history of infinite ratings, levels are read; sums of them give no vector."""
    tower, signatures = encoder
    raw = inputs_of(tower, raw_history(["item 1", "item 2"], ["item 3", ""]))
    state = signatures["begin"](**raw)
    event = {
        name: values[:, 0] if values.shape.rank == 2 else values for name, values in raw.items()
    }
    del state["embedding"]
    endless = tf.fill([2, 2], float("inf"))
    if isinstance(tower.features[0], MeanHistory):
        for ask in ("serving_default", "begin"):
            with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
                signatures[ask](**raw | {"history_rating": endless})
    else:
        assert np.isfinite(
            signatures["begin"](**raw | {"history_rating": endless})["embedding"]
        ).all()
    for name, values in state.items():
        if values.dtype != tf.float32 or name == "state_ratings":
            continue
        with pytest.raises(tf.errors.InvalidArgumentError, match="not finite"):
            signatures["step"](**state | event | {name: tf.fill(values.shape, NAN)})
