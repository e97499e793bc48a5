"""A user's vector, event by event, through an exported bundle of a sequential tower."""

import dataclasses
import json

import numpy as np
import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export, model_version
from twotower.bundle.manifest import BundleError, state_version
from twotower.bundle.session import Session
from twotower.data.inputs import QueryInputs
from twotower.evaluation.evaluate import evaluate
from twotower.tf import tf
from twotower.towers.signatures import direct
from twotower.training.training import Training

SEQUENTIAL = tiny.recipe(
    query={
        "features": ("history",),
        "history": "transformer",
        "history_length": 12,
        "history_stride": 4,
        "history_time_bias": True,
        "history_gaps": True,
        "history_content": True,
    },
    task={"correction": "none", "mask_known_positives": False},
    negatives={"negatives": ("catalogue",)},
    examples={"sequence_length": 12, "batch_size": 500},
)


@pytest.fixture(scope="module", autouse=True)
def without_scann():
    """Sessions need no search through ScaNN, and bundles are written quicker without."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("twotower.retrieval.backends.scann_index.available", lambda: False)
        yield


@pytest.fixture(scope="module")
def training():
    """With weights at random in place of learned ones, so that no table or bias is zero."""
    training = Training(tiny.dataset(), tiny.split("loo"), SEQUENTIAL)
    rng = np.random.default_rng(0)
    for weight in training.model.trainable_weights:
        weight.assign_add(rng.normal(0, 0.1, weight.shape))
    return training


@pytest.fixture(scope="module")
def bundle(training, tmp_path_factory):
    folder = tmp_path_factory.mktemp("export") / "bundle"
    return export(training, folder, {"refit": False})


def inputs(bundle, cases):
    names = [spec["name"] for spec in bundle.manifest["query_inputs"]]
    return QueryInputs(tiny.dataset(), names)(cases)


def test_content_is_looked_up_in_what_is_exported_and_computed_in_training(training):
    (history,) = training.model.query_tower.features
    names = {weight.name for weight in history.content.weights}
    items = tf.constant([[2, 5], [9, 2]])
    computed = history.content(items)
    with history.content.fix() as fixed:
        fixed.assign(2 * fixed)
        np.testing.assert_allclose(history.content(items), 2 * computed, rtol=1e-5)
        np.testing.assert_allclose(history.content(items, training=True), computed, rtol=1e-5)
    np.testing.assert_array_equal(history.content(items), computed)
    assert {weight.name for weight in history.content.weights} == names


def test_a_session_follows_the_tower(bundle):
    cases = tiny.split("loo").cases.take(np.arange(3))
    whole = inputs(bundle, cases)
    assert set(whole) == {"history", "history_time"}
    first = {name: values[:, :5] for name, values in whole.items()}
    session = Session(bundle, first)
    assert session.rereads.tolist() == [0, 0, 0]
    for number in range(5, whole["history"].shape[1]):
        session.add({name: values[:, number] for name, values in whole.items()})
        upto = {name: values[:, : number + 1] for name, values in whole.items()}
        np.testing.assert_allclose(session.vector, bundle.query_tower(upto), atol=1e-4)
    assert (session.rereads > 0).any()  # some have more than twelve events


def test_a_session_goes_on_from_what_was_kept(bundle):
    whole = inputs(bundle, tiny.split("loo").cases.take(np.arange(3)))
    one = Session(bundle, {name: values[:, :3] for name, values in whole.items()})
    kept = {name: np.asarray(value) for name, value in one.state.items()}
    other = Session.resume(bundle, kept, one.vector)
    assert (other.vector == one.vector).all() and (other.rereads == one.rereads).all()
    event = {name: values[:, 3] for name, values in whole.items()}
    np.testing.assert_array_equal(other.add(event), one.add(event))
    # A state of another training of the same recipe: the same parts, of other weights.
    other = kept | {"state_version": np.full(3, state_version("0" * 64))}
    assert other["state_version"].dtype == kept["state_version"].dtype
    assert (other["state_version"] != kept["state_version"]).all()
    for version in (None, [], np.full((3, 1), 5)):
        with pytest.raises(ValueError, match=r"no state of model|state_version: expected"):
            Session.resume(bundle, kept | {"state_version": version}, one.vector)
    with pytest.raises(BundleError, match="no state of model"):
        Session.resume(bundle, None, one.vector)
    with pytest.raises(BundleError, match="no state of model"):
        Session.resume(bundle, other, one.vector)
    kept.pop("state_items")
    with pytest.raises(BundleError, match=r"whose parts are .*state_items"):
        Session.resume(bundle, kept, one.vector)


def test_another_rule_for_full_windows_is_another_model(training, monkeypatch):
    vectors = training.item_vectors(training.split.candidates)
    (history,) = training.model.query_tower.features
    before = model_version(training, vectors)
    assert model_version(training, vectors) == before
    other = dataclasses.replace(history.config, stride=5)
    monkeypatch.setattr(history, "config", other)  # with the same weights
    assert model_version(training, vectors) != before


def test_a_signature_called_directly_answers_the_same(bundle):
    whole = inputs(bundle, tiny.split("loo").cases.take(np.arange(3)))
    signatures = bundle.query_tower.model.signatures
    begun = signatures["begin"](**bundle.query_tensors(whole))
    first = {name: values[:, 0] for name, values in whole.items()}
    event = bundle.query_tensors(first, is_event=True)
    given = {name: value for name, value in begun.items() if name != "embedding"} | event
    expected, found = signatures["step"](**given), direct(signatures["step"])(given)
    assert found.keys() == expected.keys()
    for name in expected:
        np.testing.assert_allclose(found[name], expected[name], atol=1e-6)
    with pytest.raises(tf.errors.InvalidArgumentError, match="be a int64 tensor but is a float"):
        direct(signatures["step"])(given | {"history_time": tf.zeros([3])})


def test_the_exported_tower_gives_the_same_metrics(training, bundle):
    split = tiny.split("loo")
    retriever = bundle.retriever("exact")

    def recommend(cases, k):
        vectors = bundle.query_tower(inputs(bundle, cases))
        return retriever.search(vectors, k, exclude=cases.exclude)

    through = evaluate(recommend, split, tiny.dataset()).metrics
    inside = training.validate()
    for name in ("hit_rate@10", "ndcg@10"):
        assert through[name]["mean"] == pytest.approx(inside[name]["mean"], abs=1e-6)


def test_what_a_session_is_not_given_is_named(bundle):
    cases = tiny.split("loo").cases.take(np.arange(2))
    whole = inputs(bundle, cases)
    with pytest.raises(ValueError, match=r"missing \['history_time'\]"):
        Session(bundle, {"history": whole["history"]})
    flat = {name: values[:, 0] for name, values in whole.items()}
    for ask in (bundle.query_tower, lambda inputs: Session(bundle, inputs)):
        with pytest.raises(ValueError, match=r"history: expected the shape \(None, None\).*\(2,\)"):
            ask(flat)
    session = Session(bundle, whole)
    with pytest.raises(ValueError, match=r"unknown \['hist'\]"):
        session.add({**{name: values[:, 0] for name, values in whole.items()}, "hist": []})
    event = {name: values[:, 0] for name, values in whole.items()}
    for wrong in (
        {name: values[:1] for name, values in event.items()},
        {name: values[:, None] for name, values in event.items()},
    ):
        with pytest.raises(ValueError, match=r"expected the shape \(2,\).*got"):
            session.add(wrong)
    with pytest.raises(ValueError, match=r"history_time: \(3,\) and history: \(2,\) differ"):
        session.add(event | {"history_time": np.zeros(3, np.int64)})
    with pytest.raises(ValueError, match="history_time: times are seconds; are these milli"):
        session.add(event | {"history_time": np.full(2, 10**12)})
    with pytest.raises(ValueError, match=r"vector: expected \[num_users, 8\]; got \(2, 3\)"):
        Session.resume(bundle, session.state, session.vector[:, :3])
    with pytest.raises(ValueError, match="a row for each of this session's users"):
        Session.resume(bundle, session.state, session.vector[:1])


def test_one_event_is_not_added_to_every_user(tmp_path):
    recipe = tiny.recipe(query={"features": ("history",)})
    bundle = export(Training(tiny.dataset(), tiny.split("loo"), recipe), tmp_path / "bundle", {})
    session = Session(bundle, {"history": np.array([["i00001"], ["i00002"]], object)})
    with pytest.raises(ValueError, match=r"history: expected the shape \(2,\)"):
        session.add({"history": np.array(["i00003"], object)})
    assert session.rereads.tolist() == [0, 0]


def test_a_tower_without_a_history_has_no_sessions(tmp_path):
    recipe = tiny.recipe(query={"features": ("user_id",)})
    bundle = export(Training(tiny.dataset(), tiny.split("loo"), recipe), tmp_path / "bundle", {})
    with pytest.raises(BundleError, match="reads no history"):
        Session(bundle, {"user_id": np.array(["u00001"], object)})


def test_the_benchmark_measures_what_it_says(bundle, tmp_path):
    data = tiny.ROOT / "experiments/benchmarks/session.py"
    output = tmp_path / "out.json"
    flags = ["--events=6", "--steps=8", "--users=3", "--core=-1", f"--output={output}"]
    printed = tiny.script(data, f"--bundle={bundle.directory}", *flags).stdout
    result = json.loads(output.read_text())
    calls = {row["name"]: row["calls"] for row in result["rows"]}
    # Six to fourteen events of a window of twelve: one of eight steps reads it anew.
    expected = {"step": 21, "reread": 3, "encode": 24, "step or reread": 24, "first": 1}
    assert calls == expected
    assert result["difference"] < 1e-4 and "largest difference" in printed
    assert (
        Bundle(bundle.directory).manifest["recipe"]["query"]["history"]["encoder"] == "transformer"
    )
