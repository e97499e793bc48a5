"""The signatures that search, by inputs that services send and tests forget."""

import numpy as np
import pytest
import tiny

from twotower.bundle.saved_models import save_retrieve, save_retrieve_scann
from twotower.retrieval.backends import scann_index
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower
from twotower.towers.features import Id
from twotower.towers.history.bag import MeanHistory
from twotower.towers.history.config import MeanConfig

NUM_ITEMS, DIM = 297, 8
IDS = np.array([f"item {number}" for number in range(NUM_ITEMS)], object)
LARGEST = 2**31 - 1
needs_scann = pytest.mark.skipif(not scann_index.available(), reason="ScaNN is for Linux only")
BOTH = ["retrieve", pytest.param("retrieve_scann", marks=needs_scann)]


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


@needs_scann
@pytest.mark.parametrize("signature", ["serving_default", "batched"])
def test_exclusions_without_a_column_are_those_of_an_empty_id(served, signature):
    """ScaNN looks into some 70 items, so both queries are completed by the exact product."""
    k, inputs = 190 if signature == "serving_default" else [190, 3], query([["item 1"], []])
    found = asked(served, "retrieve_scann", k, [[], []], signature, **inputs)
    expected = asked(served, "retrieve_scann", k, [[""], [""]], signature, **inputs)
    assert found["counts"].tolist() == np.broadcast_to(k, 2).tolist()
    assert found["ids"].tolist() == expected["ids"].tolist()


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
    """Repeats, ids that are not UTF-8, with spaces, of nobody; histories of 10,000 events."""
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
