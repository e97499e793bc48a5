"""The signatures of exported SavedModels, by inputs that services send and tests forget."""

import dataclasses

import numpy as np
import pytest
import tiny

from twotower.bundle.export import export
from twotower.bundle.inputs import as_type
from twotower.bundle.saved_models import save_retrieve, save_retrieve_scann, save_tower
from twotower.bundle.session import Session
from twotower.data.splits import make_split
from twotower.ragged import Ragged
from twotower.retrieval.backends import scann_index
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Id, Tags, Tokens
from twotower.towers.history.bag import MeanHistory
from twotower.towers.history.config import CONFIGS, MeanConfig
from twotower.towers.numbers import Clock, Number, Vector
from twotower.towers.query import HISTORIES
from twotower.training.trainer import Training

NUM_ITEMS, DIM, NAN = 297, 8, float("nan")
IDS = np.array([f"item {number}" for number in range(NUM_ITEMS)], object)
LARGEST = 2**31 - 1
needs_scann = pytest.mark.skipif(not scann_index.available(), reason="ScaNN is for Linux only")
BOTH = ["retrieve", pytest.param("retrieve_scann", marks=needs_scann)]


def history(name="mean", **fields):
    """An encoder of histories that reads ratings and, where it can, times."""
    fields = {"dim": DIM, "ratings": True, "dropout": 0.0, **fields}
    if name != "mean":
        fields |= {"gaps": True, "request_time": True, "length": 6, "stride": 2}
    return HISTORIES[name]("history", IDS, CONFIGS[name](**fields))


def query(histories, users=None, **inputs):
    """Raw inputs, a row a query."""
    users = ["user 1"] * len(histories) if users is None else users
    longest = max((len(row) for row in histories), default=0)
    rows = [[*row, *[""] * (longest - len(row))] for row in histories]
    history = tf.reshape(tf.constant(rows, tf.string), [len(rows), longest])
    return {"user_id": tf.constant(users, tf.string), "history": history, **inputs}


def excluding(rows):
    return {"exclude": query(rows)["history"]}


def save(tower, ids, folder, config):
    """Both searches over random vectors of the items `ids`."""
    vectors = np.random.default_rng(0).normal(size=(len(ids), DIM)).astype(np.float32)
    save_retrieve(tower, ids, vectors, folder / "retrieve")
    if scann_index.available():

        def layer(rows, values):
            made = scann_index.make_tfrs_layer(config, rows, values)
            return made, config.num_reordering_candidates

        save_retrieve_scann(tower, ids, vectors, layer, folder / "retrieve_scann")


@pytest.fixture(scope="module")
def served(tmp_path_factory):
    """Folder name -> SavedModel. ScaNN looks into some 70 items of its 297."""
    folder = tmp_path_factory.mktemp("served")
    tf.keras.utils.set_random_seed(0)
    features = [
        Id("user_id", ["user 1", "user 2"], dim=4),
        MeanHistory("history", IDS, MeanConfig(DIM)),
    ]
    tower = Tower(features, DenseHead((), DIM), name="query_tower")
    tower.embed(query([["item 1"]]))
    save(tower, IDS, folder, scann_index.ScannConfig(17, 4, 200))
    models = {path.name: tf.saved_model.load(str(path)) for path in folder.iterdir()}
    return models | {"folder": folder}


def asked(served, name, k, exclude, signature="serving_default", **inputs):
    inputs |= {"k": tf.constant(k, tf.int32), **excluding(exclude)}
    answer = served[name].signatures[signature](**inputs)
    return {part: values.numpy() for part, values in answer.items()}


@needs_scann
@pytest.mark.parametrize("k", [1, 50, 120, 190, 200, NUM_ITEMS, 1000, LARGEST])
@pytest.mark.parametrize("num_excluded", [2, 60, 257, NUM_ITEMS])
def test_scann_answers_as_many_as_retrieve(served, k, num_excluded):
    # Excluded of a query, of whom some are unknown: 1 item, none, many.
    exclude = [["item 3", "", "item 3"], ["nothing", "item"], IDS[:num_excluded].tolist()]
    inputs = query([["item 1"], [], ["item 2", "item 5"]])
    exact = asked(served, "retrieve", k, exclude, **inputs)
    found = asked(served, "retrieve_scann", k, exclude, **inputs)
    left = np.array([NUM_ITEMS - 1, NUM_ITEMS, NUM_ITEMS - num_excluded])
    assert exact["counts"].tolist() == found["counts"].tolist() == np.minimum(k, left).tolist()
    assert found["ids"].shape == found["scores"].shape == (3, min(k, NUM_ITEMS))
    for row, (ids, count) in enumerate(zip(found["ids"], found["counts"])):
        answered = set(ids[:count].astype(str))
        assert len(answered) == count and not answered & set(exclude[row])
        assert set(ids[count:]) <= {b""} and (found["scores"][row, count:] == -np.inf).all()
        assert (np.diff(found["scores"][row, :count]) <= 0).all()
    # Where ScaNN, which looks into some 70 items, finds too few, a row is exact.
    for row in range(3) if k >= 190 else [2] if num_excluded > 200 else []:
        assert found["ids"][row].tolist() == exact["ids"][row].tolist()
        np.testing.assert_allclose(found["scores"][row], exact["scores"][row], atol=1e-5)


MEMORY = """
import resource, sys
import scann, tensorflow as tf
model = tf.saved_model.load(sys.argv[1])
excluded = tf.tile(tf.constant([[f"item {number}" for number in range(900)]]), [2048, 1])
history = tf.fill([2048, 1], "item 1")
before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
answer = model.signatures["serving_default"](exclude=excluded, history=history, k=tf.constant(10))
assert answer["counts"].numpy().min() == 10
print((resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before) // 2**10)
"""


@needs_scann
@pytest.mark.slow
def test_a_large_batch_of_long_histories_stays_small(tmp_path):
    """2,048 queries, 910 items found and 900 excluded of each: all compared with all are 1.6 GB."""
    ids = np.array([f"item {number}" for number in range(2000)], object)
    tower = Tower(
        [MeanHistory("history", ids, MeanConfig(DIM))], DenseHead((), DIM), name="query_tower"
    )
    tower.embed({"history": tf.constant([["item 1"]])})
    save(tower, ids, tmp_path, scann_index.ScannConfig(40, 30, 1000))
    assert int(tiny.python("-c", MEMORY, tmp_path / "retrieve_scann").stdout) < 500


@pytest.mark.parametrize("name", BOTH)
def test_excluded_rows_are_not_those_of_other_queries(served, name):
    inputs, three = query([["item 1"], ["item 2"], ["item 3"]]), [["item 4"]] * 3
    assert asked(served, name, 5, three, **inputs)["counts"].tolist() == [5, 5, 5]
    for rows in (1, 2, 4, 0):
        with pytest.raises(tf.errors.InvalidArgumentError, match="a row a query"):
            asked(served, name, 5, [["item 4"]] * rows, **inputs)
    with pytest.raises(tf.errors.InvalidArgumentError, match="a row a query"):
        asked(served, name, 5, three, **inputs | {"user_id": tf.constant(["user 1"])})
    with pytest.raises(tf.errors.InvalidArgumentError, match="a row a query"):
        asked(served, name, [5], three, "batched", **inputs)
    alone = {part: values[:1] for part, values in inputs.items()}
    with pytest.raises(tf.errors.InvalidArgumentError, match="a row a query"):
        asked(served, name, 5, three[:2], **alone)


@pytest.mark.parametrize("name", BOTH)
@pytest.mark.parametrize("signature", ["serving_default", "batched"])
def test_no_queries_no_answers(served, name, signature):
    k = 5 if signature == "serving_default" else []
    answer = asked(served, name, k, [], signature, **query([]))
    assert answer["counts"].shape == (0,) and answer["ids"].shape[0] == 0
    assert answer["ids"].shape == answer["scores"].shape


@pytest.mark.parametrize("name", BOTH)
def test_what_k_may_be(served, name):
    for signature, wrong in (("serving_default", 0), ("serving_default", -1), ("batched", [0])):
        with pytest.raises(tf.errors.InvalidArgumentError, match="k must be at least 1"):
            asked(served, name, wrong, [[]], signature, **query([["item 1"]]))
    inputs = query([["item 1"]]) | excluding([[]])
    with pytest.raises(tf.errors.InvalidArgumentError, match="expected to be a int32 tensor"):
        served[name].signatures["serving_default"](k=tf.constant(5, tf.int64), **inputs)


@pytest.mark.parametrize("name", BOTH)
def test_ids_of_all_kinds(served, name):
    """Repeats, ids that are no UTF-8, with spaces, of nobody; histories of 10,000 events."""
    plain = asked(served, name, 5, [["item 1"]], **query([["item 1"]]))
    repeats = asked(served, name, 5, [["item 1"] * 9 + [""]], **query([["item 1", "", "x"]]))
    assert repeats["ids"].tolist() == plain["ids"].tolist()
    strange = ["\xff", b"\xff\xfe", "item", "item 1 ", " ", "\0", "a" * 10_000]
    unknown = asked(served, name, 5, [strange], **query([strange], ["\xff"]))
    nothing = asked(served, name, 5, [[]], **query([[]], ["nobody"]))
    assert unknown["ids"].tolist() == nothing["ids"].tolist()
    np.testing.assert_allclose(unknown["scores"], nothing["scores"])
    long = np.resize(IDS[:-3], 10_000).tolist()
    assert set(asked(served, name, 5, [long], **query([long]))["ids"][0]) == {
        *(f"item {number}".encode() for number in range(NUM_ITEMS - 3, NUM_ITEMS)),
        b"",
    }


def joined(requests):
    """One input of several requests, as TensorFlow Serving joins it with
    `pad_variable_length_inputs`: along the first dimension, narrow ones padded with their first
    element."""
    requests = [np.array(values) for values in requests]
    width = max(values.shape[-1] for values in requests)
    if requests[0].ndim == 2:
        requests = [
            np.pad(v, [(0, 0), (0, width - v.shape[1])], constant_values=v[0, 0]) for v in requests
        ]
    return np.concatenate(requests)


@pytest.mark.parametrize("name", BOTH)
def test_a_batcher_that_joins_requests_and_splits_the_answer(served, name):
    """As TensorFlow Serving does it, in a session of the graph. Rows begin with "", so that what
    they are padded with is not an item."""
    requests = [  # users, histories, k, excluded; one of two queries
        (["user 1"], [["", "item 1"]], [3], [["", "item 1"]]),
        (["user 2", "nobody"], [["", "item 2", "item 3"], [""] * 3], [7, 1], [["", ""], ["", "x"]]),
        (["user 2"], [["", "item 9"]], [LARGEST], [["", "item 9", "item 9", "x"]]),
    ]
    alone = [
        asked(served, name, k, [excluded], **query([events], [user]))
        for request in requests
        for user, events, k, excluded in zip(*request)
    ]
    columns = dict(zip(("user_id", "history", "k", "exclude"), zip(*requests)))
    with tf.Graph().as_default(), tf.compat.v1.Session() as session:
        folder = str(served["folder"] / name)
        loaded = tf.compat.v1.saved_model.load(session, ["serve"], folder)
        signature = loaded.signature_def["batched"]
        assert columns.keys() == signature.inputs.keys()
        feed = {signature.inputs[part].name: joined(values) for part, values in columns.items()}
        outputs = {part: spec.name for part, spec in signature.outputs.items()}
        answer = session.run(outputs, feed)
    assert answer["counts"].tolist() == [3, 7, 1, NUM_ITEMS - 1]
    for row, expected in enumerate(alone):
        count = expected["counts"][0]
        assert answer["counts"][row] == count
        if name == "retrieve":
            assert answer["ids"][row, :count].tolist() == expected["ids"][0, :count].tolist()
        assert set(answer["ids"][row, count:]) <= {b""}
        assert (answer["scores"][row, count:] == -np.inf).all()


def raw_history(*rows, request=10_000):
    """Of histories of one length; known event j comes at 100 * j seconds and has j stars."""
    known = np.array(rows, object).reshape(len(rows), -1) != ""
    number = np.cumsum(known, 1)
    return {
        "history": tf.reshape(tf.constant(rows, tf.string), known.shape),
        "history_time": tf.constant(np.where(known, 100 * number, -1), tf.int64),
        "history_rating": tf.constant(np.where(known, number, NAN), tf.float32),
        "time": tf.fill([len(rows)], tf.constant(request, tf.int64)),
    }


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
    """Of a history of infinite ratings, levels are read; sums of them are no vector."""
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
    dataset = dataclasses.replace(data, items=items, users=users)
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
    wrong |= {"state_num": [-1.0], "state_num_rated": [-1.0]} if "state_num" in wrong else {}
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
