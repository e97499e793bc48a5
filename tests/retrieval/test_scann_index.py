"""ScaNN as a Retriever and as the TFRS layer: parameters by size, recall, refusals."""

import dataclasses
import subprocess
import sys

import numpy as np
import pytest
from clusters import clusters

import twotower  # noqa: F401  (first: sets the Keras switch before ScaNN loads TensorFlow)

pytest.importorskip("scann")

from twotower.retrieval.backends import scann_index
from twotower.retrieval.backends.scann_index import ScannConfig, ScannIndex, make_tfrs_layer
from twotower.retrieval.tuning import recall_against, tune


@pytest.mark.parametrize("num_items", [3706, 20_000])
def test_parameters_by_size_find_the_nearest(num_items):
    vectors, queries = clusters(num_items, 200)
    index = ScannIndex().build(np.arange(num_items), vectors)
    assert index.config.num_leaves_to_search < index.config.num_leaves
    exact = index.search_built(queries, 100, exact=True)
    assert recall_against(exact, index.search_built(queries, 100)) >= 0.99


def test_the_layer_finds_what_the_index_finds():
    import tensorflow as tf

    vectors, queries = clusters(3706, 200)
    keys = np.arange(3706, dtype=np.int32)
    index = ScannIndex().build(keys, vectors)
    exact = index.search_built(queries, 100, exact=True)
    tuned = tune(index, queries, 100, 0.99)
    assert tuned["recall"] >= 0.99
    layer = make_tfrs_layer(index.config, tf.constant(keys), tf.constant(vectors), k=100)
    scores, found = layer(tf.constant(queries))
    hits = [len(set(a) & set(b)) / 100 for a, b in zip(found.numpy(), exact.keys)]
    # The same parameters, trained once more.
    assert np.mean(hits) >= 0.98
    true = np.einsum("qd,qkd->qk", queries, vectors[found.numpy()])
    np.testing.assert_allclose(scores, true, atol=1e-5)


@pytest.mark.parametrize("num_items", [1, 3, 20, 99, 100, 3706, 10**6])
def test_parameters_exist_for_every_size(num_items):
    config = ScannConfig.for_size(num_items)
    assert 1 <= config.num_leaves_to_search < config.num_leaves
    assert 1 <= config.num_reordering_candidates <= max(1, num_items)


COUNTS = [field.name for field in dataclasses.fields(ScannConfig) if field.type is int]


@pytest.mark.parametrize("field", COUNTS)
def test_counts_that_are_refused(field):
    least = 0 if field == "threads" else 1
    with pytest.raises(ValueError, match=f"{field} must be {least} or more; got {least - 1}"):
        ScannConfig(**{field: least - 1})
    assert len(COUNTS) == 6


def test_soar_needs_inner_products():
    with pytest.raises(ValueError, match="soar needs inner products"):
        ScannIndex("euclidean", ScannConfig(soar=True))
    vectors = np.random.default_rng(0).standard_normal((600, 24)).astype(np.float32)
    reached = {}
    for soar in (False, True):
        index = ScannIndex("dot", ScannConfig(11, 1, 600, soar=soar)).build(np.arange(600), vectors)
        answer = index.search_built(vectors[:200], 600)
        # An item stands in two partitions, and in an answer once.
        assert all(len(set(row)) == len(row) for row in answer.keys.tolist() if -1 not in row)
        reached[soar] = (answer.keys >= 0).sum() / 200
        assert ("ORTHOGONALITY" in index._searcher.config()) == soar
    # With every vector in two of the eleven partitions, one of them reaches about twice the items:
    # 112 to 133 instead of 61 to 79 in 25 builds, which ScaNN's training makes all different.
    assert reached[True] > 1.2 * reached[False]


def test_all_leaves_are_refused():
    with pytest.raises(ValueError, match=r"under num_leaves \(60\); got 60.*take the exact index"):
        ScannConfig(num_leaves=60, num_leaves_to_search=60)


def test_each_parameter_arrives():
    vectors, _ = clusters(600, 0, 24)
    config = ScannConfig(11, 7, 50, 3, 5)
    text = ScannIndex("dot", config).build(np.arange(600), vectors)._searcher.config()
    for line in (
        "num_children: 11",
        "max_spill_centers: 7",
        "max_clustering_iterations: 5",
        "num_dims_per_block: 3",
        "approx_num_neighbors: 50",
    ):
        assert line in text, text


def test_each_parameter_arrives_in_the_layer(monkeypatch):
    import tensorflow_recommenders as tfrs

    class Layer:
        def __init__(self, **arguments):
            self.arguments = arguments

        def index(self, vectors, identifiers):
            self.indexed = vectors, identifiers
            return self

    monkeypatch.setattr(tfrs.layers.factorized_top_k, "ScaNN", Layer)
    layer = make_tfrs_layer(ScannConfig(11, 7, 50, 3, 5), "ids", "vectors", k=20)
    assert layer.indexed == ("vectors", "ids")
    expected = {
        "k": 20,
        "num_leaves": 11,
        "num_leaves_to_search": 7,
        "num_reordering_candidates": 50,
        "dimensions_per_block": 3,
        "training_iterations": 5,
        "distance_measure": "dot_product",
    }
    assert expected.items() <= layer.arguments.items()
    # Silently short otherwise.
    with pytest.raises(ValueError, match=r"k = 60 needs .* = 50 the layer"):
        make_tfrs_layer(ScannConfig(11, 7, 50, 3, 5), "ids", "vectors", k=60)


def test_more_answers_than_reordering_candidates():
    # ScaNN itself would answer 20; the index raises the number to k.
    vectors, queries = clusters(600, 5)
    index = ScannIndex("dot", ScannConfig(10, 8, 20)).build(np.arange(600), vectors)
    assert index.search_built(queries, 60).counts.tolist() == [60] * 5


def test_tuning_does_not_count_what_an_exact_scan_completed():
    # 40 leaves of about 25 items: one leaf holds far fewer than k = 400, so each row comes back
    # short and is completed by a scan, at recall 1. The backend's own recall says otherwise.
    vectors, queries = clusters(1000, 50, 16)
    config = ScannConfig(num_leaves=40, num_leaves_to_search=1)
    index = ScannIndex("dot", config).build(np.arange(1000), vectors)
    exact = index.search_built(queries, 400, exact=True)
    assert recall_against(exact, index.search_built(queries, 400)) < 0.5
    assert recall_against(exact, index.search(queries, 400)) == 1
    tuned = tune(index, queries, 400, 0.9)
    assert tuned["num_leaves_to_search"] > 1 and tuned["recall"] >= 0.9
    assert recall_against(exact, index.search_built(queries, 400)) == tuned["recall"]


def test_parameters_by_size_follow_the_size():
    vectors, _ = clusters(400, 0, 8)
    index = ScannIndex().build(np.arange(400), vectors)
    assert index.config == ScannConfig.for_size(400)
    assert index.build(np.arange(150), vectors[:150]).config == ScannConfig.for_size(150)


def test_too_few_items_for_partitions():
    vectors, queries = clusters(30, 2)
    index = ScannIndex().build(np.arange(30) * 2, vectors)
    wanted = 2 * np.argsort(-(queries @ vectors.T), axis=1)[:, :4]
    assert index.search(queries, 4).keys.tolist() == wanted.tolist()


def test_without_scann(monkeypatch):
    monkeypatch.setattr(scann_index, "available", lambda: False)
    with pytest.raises(ImportError, match=r"pip install \"scann\[tf\]==1.4.2\" \(Linux only\)"):
        ScannIndex()


def test_importing_the_module_loads_neither_scann_nor_tensorflow():
    code = (
        "import sys, twotower.retrieval.backends.scann_index\n"
        "assert not {'scann', 'tensorflow'} & sys.modules.keys()"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
