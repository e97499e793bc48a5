"""Numbers and states that a bundle is asked with: of other types, impossible, or of nobody."""

import dataclasses

import numpy as np
import pytest
import tiny
from raw_histories import NAN, raw_history

from twotower.bundle.export import export
from twotower.bundle.inputs import as_type
from twotower.bundle.session import Session
from twotower.data.inputs import QueryInputs
from twotower.data.splits import make_split
from twotower.retrieval.backends import scann_index
from twotower.training.training import Training


@pytest.mark.parametrize(
    ("values", "dtype", "expected"),
    [
        ([1, -1], "int64", [1, -1]),
        ([1.0, -1.0], "int64", [1, -1]),
        ([True], "int64", [1]),
        (np.array([3, 4], object), "float32", [3, 4]),
        ([1.5, NAN], "float32", [1.5, NAN]),
        ([2**60], "int64", [2**60]),
        ([1, 2.5], "int64", "expected int64.*Row 1 has 2.5"),
        ([[1.0], [NAN]], "int64", "expected int64.*Row 1 has nan"),
        ([2**63 + 5], "int64", f"Row 0 has {2**63 + 5}"),
        ([5, 2**32 + 5], "int32", f"expected int32.*Row 1 has {2**32 + 5}"),
        ([[1, 1], [1, float("inf")]], "float32", "finite, or NaN.*Row 1 has inf"),
        ([1, 1e300], "float32", "finite, or NaN.*Row 1 has 1e\\+300"),
        (np.array(["1970-01-02"], "datetime64[ns]"), "int64", "expected int64.*got datetime64"),
        (["3"], "float32", "expected float32.*got <U1"),
        (np.array([None, 3], object), "int64", "expected int64"),
        ([[1], [1, 2]], "int64", "every row of the same length"),
    ],
)
def test_a_number_is_the_same_in_another_type(values, dtype, expected):
    if isinstance(expected, str):
        with pytest.raises(ValueError, match=f"x: .*{expected}"):
            as_type("x", values, dtype)
    else:
        found = as_type("x", values, dtype)
        assert found.dtype == dtype
        np.testing.assert_array_equal(found, expected)


@pytest.fixture(scope="module", params=["mean", "transformer"])
def bundle(request, tmp_path_factory):
    """A bundle that nobody trained, whose users' events have ratings; without ScaNN, for speed."""
    rated = tiny.dataset().interactions.assign(rating=3.0)
    dataset = dataclasses.replace(tiny.dataset(), interactions=rated)
    sequential = {} if request.param == "mean" else {"history_length": 6, "history_stride": 2}
    recipe = tiny.recipe(
        query={
            "features": ("history",),
            "history": request.param,
            "history_ratings": True,
            "history_gaps": request.param != "mean",
            **sequential,
        }
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(scann_index, "available", lambda: False)
        folder = tmp_path_factory.mktemp("export") / "bundle"
        return export(Training(dataset, make_split(dataset, "loo"), recipe), folder)


def test_nobody_asks_and_nobody_is_answered(bundle):
    names = [spec["name"] for spec in bundle.manifest["query_inputs"]]
    nobody = {name: np.zeros((0, 0), object) for name in names}
    assert bundle.query_tower(nobody).shape == (0, 8)
    session = Session(bundle, nobody)
    assert session.add({name: np.zeros(0, object) for name in names}).shape == (0, 8)
    assert Session.resume(bundle, session.state, session.vector).rereads.tolist() == []


def test_requests_of_impossible_numbers_are_refused(bundle):
    names = {spec["name"] for spec in bundle.manifest["query_inputs"]}
    raw = raw_history(["i00001", "i00002"], ["i00003", ""])
    raw = {name: values.numpy() for name, values in raw.items() if name in names}
    session = Session(bundle, raw)
    wrong = {"history_rating": [float("inf"), -float("inf"), 1e39]}
    if "history_time" in names:
        wrong["history_time"] = [10**12, -(10**12), -(2**63), 2**63 - 1, 0.5, NAN]
    for name, numbers in wrong.items():
        for number in numbers:
            values = raw[name].astype(object)
            values[1, 0] = number
            values = values.astype(np.asarray(number).dtype)
            for ask in (bundle.query_tower, lambda raw: Session(bundle, raw)):
                with pytest.raises(ValueError, match=f"{name}: .*Row 1 has"):
                    ask(raw | {name: values})
            event = {part: column[:, 0] for part, column in (raw | {name: values}).items()}
            with pytest.raises(ValueError, match=f"{name}: .*Row 1 has"):
                session.add(event)


def test_states_of_impossible_numbers_are_refused(bundle):
    names = {spec["name"] for spec in bundle.manifest["query_inputs"]}
    raw = raw_history(["i00001", "i00002"], ["i00003", ""], ["", ""])
    session = Session(bundle, {name: values for name, values in raw.items() if name in names})
    kept = {name: np.asarray(values) for name, values in session.state.items()}
    wide = {name: v.astype(np.float64) if v.dtype == np.float32 else v for name, v in kept.items()}
    again = Session.resume(bundle, wide, session.vector)
    event = {name: values[:, 0] for name, values in raw.items() if name in names}
    np.testing.assert_array_equal(again.add(event), session.add(event))
    wrong = {name: [NAN, float("inf")] for name, v in kept.items() if v.dtype == np.float32}
    assert {"state_num", "state_sum"} <= wrong.keys() or "state_keys_0" in wrong
    counts = {"state_num": [-1.0, 0.5, 2.5, 1e38], "state_num_rated": [-1.0, 2.0]}
    wrong |= counts if "state_num" in wrong else {}
    if "state_items" in kept:
        wrong |= {"state_ratings": [float("inf")], "state_length": [-1, 7, 2**31 - 1, 2**32, 0.5]}
        wrong |= {"state_items": [-1, 0, 302, 2**31 - 1, 2**32 + 5, 3.7], "state_reread": [-1]}
        wrong |= {"state_times": [10**12, -(10**12), -(2**63), NAN]}
    for name, numbers in wrong.items():
        for number in numbers:
            values = kept[name].astype(object)
            values[(1, *[0] * (values.ndim - 1))] = number
            values = values.astype(np.asarray(number).dtype)
            with pytest.raises(ValueError, match=rf"{name}: .*[Rr]ow 1 has"):
                Session.resume(bundle, kept | {name: values}, session.vector)
    vector = session.vector.copy()
    vector[2, 3] = NAN
    with pytest.raises(ValueError, match="vector: row 2 has"):
        Session.resume(bundle, kept, vector)


def test_inputs_with_capitals(tmp_path, monkeypatch):
    """TensorFlow has a column `Gender` as `gender` in the graph and as `Gender` in the signature.
    In a session and in a recommendation it is the input of the tower that was trained."""
    monkeypatch.setattr(scann_index, "available", lambda: False)
    data = tiny.dataset()
    users = data.users.rename(columns={"gender": "Gender"})
    dataset = dataclasses.replace(data, users=users)
    recipe = tiny.recipe(query={"features": ("history", "Gender")})
    training = Training(dataset, make_split(dataset, "random"), recipe)
    bundle = export(training, tmp_path / "bundle")
    cases = training.split.cases.take([0, 1, 2])
    raw, vectors = QueryInputs(dataset, ["history", "Gender"])(cases), training.query_vectors(cases)
    np.testing.assert_allclose(bundle.query_tower(raw), vectors, atol=1e-5)
    np.testing.assert_allclose(Session(bundle, raw).vector, vectors, atol=1e-5)
    assert len(bundle.recommend(history=["i00001"], inputs={"Gender": "f"}, k=3)) == 3
