"""The ranker: what it reads, any leading dimensions, saving, several heads, places in a list."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest

from twotower.ranking.config import INTERACTIONS, TASKS, RankerConfig
from twotower.ranking.inputs import Field, RankerInputs
from twotower.ranking.multi_task import masked_loss
from twotower.ranking.ranker import make_ranker
from twotower.tf import tf

INPUTS = RankerInputs((Field("item", 5), Field("genres", 4, width=3)), ("age", "score"))
HEADS = ("watch", "like")
SMALL = RankerConfig(dim=4, hidden=(8,))


def columns(*lead: int, seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {
        "item": rng.integers(6, size=lead, dtype=np.int32),
        "genres": rng.integers(5, size=(*lead, 3), dtype=np.int32),
        "numbers": rng.normal(size=(*lead, 2)).astype(np.float32),
    }


def randomised(ranker):
    """The ranker with weights that are all far from their start, so that each matters."""
    rng = np.random.default_rng(1)
    ranker.set_weights([rng.normal(size=weight.shape) for weight in ranker.get_weights()])
    return ranker


@pytest.fixture(scope="module")
def ranker():
    fitted = INPUTS.fitted(np.array([[1.0, 10.0], [3.0, 10.0], [np.nan, np.nan]]))
    return randomised(make_ranker(fitted, SMALL, HEADS))


def test_lists_are_rows_under_one_another(ranker):
    lists = columns(2, 3)
    rows = {name: values.reshape(6, *values.shape[2:]) for name, values in lists.items()}
    assert ranker.inputs_read.check(lists) == (2, 3)
    for head in HEADS:
        found = ranker(lists)[head]
        assert found.shape == (2, 3)
        np.testing.assert_allclose(tf.reshape(found, [-1]), ranker(rows)[head], rtol=1e-5)
    assert ranker(columns(0))["watch"].shape == (0,)
    assert (
        ranker({name: tf.constant(values) for name, values in columns().items()})["like"].shape
        == ()
    )


@pytest.mark.parametrize("interaction", INTERACTIONS)
def test_numbers_alone_and_fields_alone(interaction):
    config = RankerConfig(interaction, dim=4, hidden=(8,))
    rows = columns(2)
    for inputs in (RankerInputs((), ("age", "score")), RankerInputs((Field("item", 5),))):
        found = randomised(make_ranker(inputs, config))(rows)["relevance"].numpy()
        assert np.isfinite(found).all() and found[0] != found[1]


def test_a_set_is_the_mean_of_its_codes(ranker):
    one, two, none = ([1, 0, 0], [1, 2, 0], [0, 0, 0])
    rows = {**columns(3), "genres": np.array([one, two, none], np.int32)}
    table = ranker.tables["genres"].embeddings.numpy()
    expected = [table[1], (table[1] + table[2]) / 2, np.zeros(4)]
    np.testing.assert_allclose(ranker.vectors(rows)[:, 1], expected, rtol=1e-6)


def test_numbers_are_standardised_and_nan_is_not_known(ranker):
    # age: mean 2, deviation 1. score: always 10, so its deviation counts as 1.
    numbers = np.array([[3.0, 10.5], [np.nan, 10.0], [1e9, 9.0]], np.float32)
    expected = [[1, 0.5, 0, 0], [0, 0, 1, 0], [5, -1, 0, 0]]
    np.testing.assert_allclose(ranker.standardised(numbers), expected)
    assert np.isfinite(ranker({**columns(3), "numbers": numbers})["watch"]).all()


def test_unknown_codes_start_at_zero():
    fresh = make_ranker(INPUTS, SMALL)
    table = fresh.tables["item"].embeddings.numpy()
    assert not table[0].any() and table[1:].all()
    # Each table has its own random numbers.
    assert not np.isin(table[1:], fresh.tables["genres"].embeddings.numpy()).any()


@pytest.mark.parametrize(
    ("interaction", "tasks"),
    [("dcn", "ple"), ("deepfm", "mmoe"), ("dlrm", "shared_bottom"), ("mlp", "shared_bottom")],
)
def test_saved_and_loaded(interaction, tasks, tmp_path):
    config = RankerConfig(interaction, dim=4, hidden=(8,), tasks=tasks, expert_hidden=(3,))
    if tasks == "ple":
        config = dataclasses.replace(config, levels=2, experts=1, positions=3)
    model = randomised(make_ranker(INPUTS.fitted(np.eye(2)), config, HEADS))
    model.save(tmp_path / "ranker.keras")
    loaded = tf.keras.models.load_model(tmp_path / "ranker.keras")
    assert (loaded.inputs_read, loaded.config) == (model.inputs_read, model.config)
    rows = columns(7)
    for head in HEADS:
        np.testing.assert_array_equal(loaded(rows)[head], model(rows)[head])


def test_one_expert_is_a_shared_bottom():
    shared = RankerConfig("mlp", dim=4, hidden=(8,), expert_hidden=(3,))
    one = dataclasses.replace(shared, tasks="mmoe", experts=1)
    shared, one = (randomised(make_ranker(INPUTS, config, HEADS)) for config in (shared, one))
    (expert,) = one.bottom.experts
    for part, other in ((one.interaction, shared.interaction), (expert, shared.bottom.shared)):
        part.set_weights(other.get_weights())
    for name in ("tables", "outputs_of"):
        for key, layer in getattr(one, name).items():
            layer.set_weights(getattr(shared, name)[key].get_weights())
    rows = columns(5)
    for head in HEADS:
        np.testing.assert_allclose(one(rows)[head], shared(rows)[head], rtol=1e-5)


def test_heads_of_ple_share_the_shared_experts_alone():
    config = RankerConfig(
        "mlp", dim=4, hidden=(8,), tasks="ple", expert_hidden=(3,), experts=1, l2=0
    )
    model = randomised(make_ranker(INPUTS, config, HEADS))
    with tf.GradientTape() as tape:
        watch = tf.reduce_sum(model(columns(20))["watch"])
    watch_expert, like_expert, shared = model.bottom.levels[0].experts
    read = tape.gradient(
        watch, [expert.trainable_variables[0] for expert in (watch_expert, like_expert, shared)]
    )
    assert read[0] is not None and read[1] is None and read[2] is not None


def test_rows_without_a_label_train_nothing():
    labels, outputs = tf.constant([1.0, np.nan, 0.0]), tf.constant([0.0, 5.0, 0.0])
    # -log(1/2) for a logit of 0, whatever the label.
    expected = [np.log(2), 0, np.log(2)]
    np.testing.assert_allclose(masked_loss("logit")(labels, outputs), expected, rtol=1e-6)
    with tf.GradientTape() as tape:
        tape.watch(outputs)
        loss = tf.reduce_sum(masked_loss("logit")(labels, outputs))
    assert tape.gradient(loss, outputs).numpy().tolist() == [-0.5, 0, 0.5]
    with pytest.raises(ValueError, match="unknown kind of head 'rating'"):
        masked_loss("rating")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"item": None}, "needs the input 'item'"),
        (
            {"item": np.array([6, 0])},
            "codes of item must lie between 0 .unknown. and 5; got 0 to 6",
        ),
        ({"item": np.array([-1, 0])}, "got -1 to 0"),
        ({"item": np.array([1.0, 2.0])}, "integer codes; got float64"),
        ({"item": np.array([1, 2, 3])}, "same leading dimensions"),
        ({"genres": np.zeros((2, 4), int)}, r"genres of shape \[..., 3\]; got \(2, 4\)"),
        ({"numbers": np.full((2, 2), np.inf)}, r"\['age', 'score'\] hold infinite numbers"),
    ],
)
def test_bad_columns(change, message):
    changed = {name: array for name, array in {**columns(2), **change}.items() if array is not None}
    with pytest.raises(ValueError, match=message):
        INPUTS.check(changed)


def test_a_network_refuses_what_it_cannot_read(ranker):
    rows = columns(2)
    with pytest.raises(ValueError, match=r"needs the inputs \['item'\]; got \['genres', 'numbers'"):
        ranker({name: values for name, values in rows.items() if name != "item"})
    with pytest.raises(tf.errors.InvalidArgumentError, match="6 is not in"):
        ranker({**rows, "item": np.array([6, 0], np.int32)})
    for heads in ((), ("a", "a"), ("",)):
        with pytest.raises(ValueError, match="needs one head or more"):
            make_ranker(INPUTS, SMALL, heads)


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (lambda: RankerInputs(()), "needs a field or a number"),
        (lambda: RankerInputs((Field("a", 1),), ("a",)), r"\['a'\] occur twice"),
        (lambda: RankerInputs((Field("numbers", 1),)), r"no field can be called \['numbers'\]"),
        (lambda: Field("a", 0), "size must be 1 or more"),
        (lambda: RankerInputs((), ("a",), means=(np.nan,)), "means must be finite"),
        (lambda: RankerInputs((), ("a",), deviations=(0.0,)), "above 0"),
        (lambda: RankerInputs((), ("a",), means=(1.0, 2.0)), "expected 1 means; got 2"),
        (lambda: RankerInputs.from_json({"fields": [{"name": "a"}]}), "does not describe"),
    ],
)
def test_bad_inputs(made, message):
    with pytest.raises(ValueError, match=message):
        made()


def test_inputs_and_config_load_no_tensorflow():
    code = "import sys, twotower.ranking.inputs, twotower.ranking.config\n"
    code += "assert 'tensorflow' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)


def test_tasks_and_interactions_have_their_networks():
    from twotower.ranking.interactions import KINDS
    from twotower.ranking.multi_task import BOTTOMS

    assert tuple(KINDS) == INTERACTIONS
    assert tuple(BOTTOMS) == TASKS
