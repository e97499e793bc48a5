"""HNSW: equal vectors share a node, and links that reach vectors of any length."""

import dataclasses

import numpy as np
import pytest
from clusters import clusters
from scipy.sparse.linalg import svds

pytest.importorskip("faiss")

import faiss

from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.backends.hnsw import HnswConfig, HnswIndex, link_power, with_evened_lengths
from twotower.retrieval.base import METRICS

# Equal vectors: items of which a tower knows nothing but their genre are copies of each other.


def share_of_the_best(found, exact):
    """Of the exact answers' scores: equal vectors are equally right, whichever is answered."""
    return (found.scores >= exact.scores[:, -1:] - 1e-5).mean()


def repeated(num_distinct, copies, dim=16):
    """`copies` of each vector, shuffled, and queries near some of them."""
    vectors, queries = clusters(num_distinct, 100, dim)
    order = np.random.default_rng(1).permutation(num_distinct * copies)
    return np.repeat(vectors, copies, axis=0)[order], queries


@pytest.mark.parametrize("metric", METRICS)
@pytest.mark.parametrize(("copies", "storage"), [(20, "float"), (65, "sq8"), (130, "float")])
def test_copies_are_found(metric, copies, storage):
    vectors, queries = repeated(2600 // copies, copies)
    config = HnswConfig(ef_construction=40, ef_search=40, storage=storage, refine=4)
    index = HnswIndex(metric, config).build(np.arange(len(vectors)) * 3, vectors)
    exact, found = index.search_built(queries, 10, exact=True), index.search(queries, 10)
    assert share_of_the_best(found, exact) >= 0.99
    assert all(len(set(row)) == 10 for row in found.keys.tolist())
    assert index._index.ntotal == 2600 // copies


@pytest.mark.parametrize(("metric", "storage"), zip(METRICS, ("float", "fp16", "sq8")))
def test_copies_that_differ_by_rounding_are_found(metric, storage):
    """Noise of the last bits; under cosine also other lengths, which the division rounds away."""
    vectors, queries = repeated(40, 65)
    rng = np.random.default_rng(2)
    vectors = vectors * (1 + 1e-6 * rng.normal(size=vectors.shape))
    if metric == "cosine":
        vectors *= rng.uniform(0.1, 10, size=(len(vectors), 1))
    vectors = vectors.astype(np.float32)
    config = HnswConfig(ef_construction=40, ef_search=40, storage=storage, refine=4)
    index = HnswIndex(metric, config).build(np.arange(len(vectors)), vectors)
    exact, found = index.search_built(queries, 10, exact=True), index.search(queries, 10)
    assert share_of_the_best(found, exact) >= 0.99
    assert all(len(set(row)) == 10 for row in found.keys.tolist())


@pytest.mark.parametrize("metric", ["cosine", "dot"])
def test_near_copies_of_one_length_are_found(metric):
    """Copies that differ by 1e-4 have nodes of their own. Their inner products are equal as
    float32, their distances are not."""
    rng = np.random.default_rng(0)
    centres = np.repeat(rng.normal(size=(20, 64)), 200, axis=0)
    near = centres + 1e-4 * rng.normal(size=centres.shape)
    vectors = rng.permutation(np.concatenate([near, rng.normal(size=(500, 64))]))
    vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    vectors = vectors.astype(np.float32)
    queries = rng.normal(size=(200, 64)).astype(np.float32)
    index = HnswIndex(metric, HnswConfig(ef_search=64)).build(np.arange(4000), vectors[:4000])
    index.add(np.arange(4000, 4500), vectors[4000:])
    index.absorb()
    exact, found = index.search_built(queries, 10, exact=True), index.search(queries, 10)
    assert share_of_the_best(found, exact) >= 0.75


def test_equal_scores_are_in_the_order_of_keys_beside_exclusions():
    """Also where keys descend as positions ascend."""
    vectors = np.tile(np.float32([[1, 0], [0, 1]]), (150, 1))
    index = HnswIndex().build(np.arange(300)[::-1].copy(), vectors)
    excluded = Ragged.from_rows([[299, 1, 299]])
    # Keys from 299 down to 1 in twos score 1; the graph gives the first copies.
    found = index.search(np.float32([[1, 0]]), 4, exclude=excluded)
    assert found.keys.tolist() == [[291, 293, 295, 297]]
    assert found.scores.tolist() == [[1, 1, 1, 1]]


def test_a_quarter_of_all_vectors_equal():
    vectors, queries = clusters(3000, 100, 16)
    vectors[::4] = vectors[0]
    near = np.float32(vectors[0] + 0.1 * np.random.default_rng(0).normal(size=(20, 16)))
    queries = np.concatenate([queries, near])
    index = HnswIndex("dot", HnswConfig(ef_construction=60)).build(np.arange(3000), vectors)
    for k in (10, 100, 1000):
        exact, found = index.search_built(queries, k, exact=True), index.search(queries, k)
        assert share_of_the_best(found, exact) >= 0.99
        np.testing.assert_allclose(
            found.scores, np.einsum("qd,qkd->qk", queries, vectors[found.keys]), atol=1e-5
        )
    # All there is, in one answer: 3,000 positions of 2,251 nodes.
    assert np.array_equal(np.sort(index.search_built(queries[:1], 3000).keys[0]), np.arange(3000))


def test_copies_under_updates_filters_and_a_save(tmp_path):
    # Axis a is there as the keys a, a + 4, a + 8: the query finds 0, 4, 8 first, then 1, 5, 9.
    axes = np.tile(np.eye(4, dtype=np.float32), (3, 1))
    query = np.float32([[4, 3, 2, 1]])
    index = HnswIndex("dot").build(np.arange(12), axes)
    index.remove(np.array([4]))
    index.add(np.array([20, 21, 22]), np.float32([axes[0], axes[1], 2 * axes[3]]))
    found = index.search(query, 6)
    assert found.keys.tolist() == [[0, 8, 20, 1, 5, 9]]
    index.absorb()
    # Two copies joined their nodes, and (0, 0, 0, 2) is one more; 4 + 1 nodes, 12 + 3 positions.
    # The removed 4 is still among the first eight that the graph finds, and takes no place.
    assert index._index.ntotal == 5 and len(index.state()["keys"]) == 15
    assert index.search_built(query, 8).keys.tolist() == [[0, 8, 20, 1, 5, 9, 21, 2]]
    assert index.search(query, 6).keys.tolist() == [[0, 8, 20, 1, 5, 9]]
    build.save(index, tmp_path / "i")
    for one in (index, build.load(tmp_path / "i"), build.load(tmp_path / "i", mmap=True)):
        assert one.search(query, 3, exclude=Ragged.from_rows([[0, 1]])).keys.tolist() == [
            [8, 20, 5]
        ]
        assert one.search(query, 3, allow=np.array([9, 20, 7])).keys.tolist() == [[20, 9, 7]]
        assert one.search(query, 14).counts.tolist() == [14]
        # All copies of an axis removed: the axis is not answered, and others are found past it.
        one.remove(np.array([0, 8, 20]))
        assert one.search(query, 3).keys.tolist() == [[1, 5, 9]]
        one.add(np.array([0]), axes[:1])
        assert one.absorb().search(query, 2).keys.tolist() == [[0, 1]]
        assert one._index.ntotal == 5


def test_the_file_is_a_plain_faiss_index(tmp_path):
    vectors, queries = repeated(200, 3)
    index = HnswIndex("dot").build(np.arange(600) + 5, vectors)
    build.save(index, tmp_path / "i")
    nodes = faiss.read_index(str(tmp_path / "i" / "hnsw.faiss")).search(queries, 1)[1][:, 0]
    keys, node = (np.load(tmp_path / "i" / f"{name}.npy") for name in ("keys", "hnsw_nodes"))
    first = np.unique(node, return_index=True)[1]
    scores = np.einsum("qd,qd->q", queries, vectors[keys[first[nodes]] - 5])
    np.testing.assert_allclose(scores, (queries @ vectors.T).max(1), rtol=1e-5)


@pytest.mark.parametrize("is_ordered", [False, True])
def test_folders_of_before_load(tmp_path, is_ordered):
    """A node for each vector, equal or not; with hnsw_order.npy nodes stood in another order."""
    vectors, queries = repeated(150, 2)
    new = HnswIndex("dot").build(np.arange(300) + 5, vectors)
    order = np.random.default_rng(0).permutation(300) if is_ordered else np.arange(300)
    graph = faiss.IndexHNSWFlat(16, 8, faiss.METRIC_INNER_PRODUCT)
    graph.add(vectors[order])
    new._store.save(tmp_path)
    faiss.write_index(graph, str(tmp_path / "hnsw.faiss"))
    if is_ordered:
        np.save(tmp_path / "hnsw_order.npy", np.append(order, -1))
    index = HnswIndex("dot").load(tmp_path)
    exact = index.search_built(queries, 10, exact=True)
    assert share_of_the_best(index.search(queries, 10), exact) >= 0.99
    index.add(np.array([1, 2]), np.float32([vectors[7], 3 * queries[0]]))
    index.absorb()
    # One vector joined the node of its copy, the other has a new one.
    assert index._index.ntotal == 301
    assert index.search(queries[:1], 1).keys.tolist() == [[2]]
    assert {1, 12} <= set(index.search(vectors[7:8], 300).keys[0].tolist())


def test_files_that_do_not_fit_are_named(tmp_path):
    vectors, queries = repeated(100, 2)
    index = HnswIndex("dot").build(np.arange(200), vectors)
    index._store.save(tmp_path)
    index._save(tmp_path)
    loaded = HnswIndex("dot").load(tmp_path)
    assert loaded.search(queries, 9).keys.tolist() == index.search(queries, 9).keys.tolist()
    path = tmp_path / "hnsw_nodes.npy"
    numbers = np.load(path)
    for wrong in (numbers[:-2], numbers + 1, numbers.astype(np.float64), numbers[None], numbers[0]):
        np.save(path, wrong)
        with pytest.raises(ValueError, match=path.name):
            HnswIndex("dot").load(tmp_path)


# Links over inner products: what a graph has to reach depends on how far lengths differ.


def factorised(num_users=800, num_items=1000, dim=64):
    """Vectors of a matrix factorisation of who watched what: popular items are far longer, and
    the longest win most inner products."""
    rng = np.random.default_rng(0)
    popularity = 1 / np.arange(1, num_items + 1) ** 0.8
    taste = rng.normal(size=(num_users, 12)) @ rng.normal(size=(12, num_items)) / 3
    watched = rng.random((num_users, num_items)) < np.minimum(20 * popularity * np.exp(taste), 0.8)
    u, s, v = svds(np.float32(watched), dim, random_state=0)
    return np.float32(v.T * np.sqrt(s)), np.float32(u[:200] * np.sqrt(s))


def lognormal(spread, dim=16, num=1500):
    """Lengths spread by a normal distribution's logarithm, directions around a common one."""
    rng = np.random.default_rng(7)
    directions = rng.normal(size=(num, dim)) + 1.5 * rng.normal(size=dim)
    directions /= np.linalg.norm(directions, axis=1, keepdims=True)
    queries = directions[rng.integers(num, size=200)] + 0.2 * rng.normal(size=(200, dim))
    return np.float32(directions * np.exp(spread * rng.normal(size=(num, 1)))), np.float32(queries)


# k and efSearch.
LEVELS = [(10, 10), (10, 40), (100, 100), (100, 400)]
GRAPH = {"neighbours": 16, "ef_construction": 100}


def recalls(search, vectors, queries):
    """At each level, of a search that gives positions for queries, k and efSearch."""
    best = np.argsort(-(queries @ vectors.T), axis=1)
    found = []
    for k, effort in LEVELS:
        hits = [len(set(a) & set(b)) for a, b in zip(best[:, :k], search(queries, k, effort))]
        found.append(np.mean(hits) / k)
    return np.array(found)


def recalls_of_ours(vectors, queries):
    index = HnswIndex("dot", HnswConfig(**GRAPH)).build(np.arange(len(vectors)), vectors)

    def search(queries, k, effort):
        index.config = dataclasses.replace(index.config, ef_search=effort)
        return index.search_built(queries, k).keys

    return recalls(search, vectors, queries)


def recalls_of_plain_faiss(vectors, queries):
    graph = faiss.IndexHNSWFlat(vectors.shape[1], 16, faiss.METRIC_INNER_PRODUCT)
    graph.hnsw.efConstruction = 100
    graph.add(vectors)

    def search(queries, k, effort):
        return graph.search(queries, k, params=faiss.SearchParametersHNSW(efSearch=effort))[1]

    return recalls(search, vectors, queries)


@pytest.mark.parametrize("name", ["factorised", "nearly of length 1"])
def test_as_good_as_plain_faiss_where_that_is_good(name):
    vectors, queries = factorised() if name == "factorised" else lognormal(0.01)
    plain = recalls_of_plain_faiss(vectors, queries)
    assert plain[1] > 0.98 and (recalls_of_ours(vectors, queries) >= plain - 0.02).all()


@pytest.mark.parametrize("spread", [0.1, 0.5, 1.0])
def test_what_plain_faiss_cannot_reach_is_found(spread):
    vectors, queries = lognormal(spread)
    # Of the 100 best .92, .74 and .69, at any effort.
    assert recalls_of_plain_faiss(vectors, queries)[3] < 0.93
    ours = recalls_of_ours(vectors, queries)
    # Links by direction alone find .64 and .54 of the 10 best at 40 where lengths differ most.
    assert ours[1] > 0.85 and ours[3] > 0.99


def test_power_of_lengths_that_links_follow():
    config = HnswConfig(**GRAPH)
    powers = [link_power(lognormal(spread)[0], config) for spread in (0.01, 0.25, 1.0)]
    assert powers == sorted(powers, reverse=True) and powers[0] == 1 and 0 < powers[-1] < 0.1
    # (3, 4) e-9 has the length 5e-9, half of the longest: its root is .707 of that one's.
    vectors = np.float32([[3e-9, 4e-9], [1e-8, 0], [0, 0]])
    evened = with_evened_lengths(vectors, 0.5, longest=20)
    np.testing.assert_allclose(evened, [[8.485, 11.314], [20, 0], [0, 0]], atol=1e-3)
    np.testing.assert_allclose(with_evened_lengths(vectors, 0.0)[0], [0.6, 0.8], rtol=1e-6)
    np.testing.assert_allclose(with_evened_lengths(vectors, 1.0)[0], [0.3, 0.4], rtol=1e-6)


@pytest.mark.parametrize("metric", ["dot", "euclidean"])
def test_vectors_beyond_fp16_are_refused(metric):
    """As infinities they would lead searches away from all others."""
    config = HnswConfig(storage="fp16")
    vectors = np.float32([[4e4, 4e4], [5e4, 5e4]])  # of lengths 56,569 and 70,711
    index = HnswIndex(metric, config).build(np.array([7]), vectors[:1])
    for change in (index.add, index.build):
        with pytest.raises(ValueError, match=r"keys \[9\] are longer than 65504, where fp16 ends"):
            change(np.array([8, 9]), vectors)
    assert index.keys.tolist() == [7]
    index.add(np.array([8]), vectors[:1])
    assert index.absorb().search(vectors[:1], 2).keys.tolist() == [[7, 8]]
    far = HnswIndex("cosine", config).build(np.array([8, 9]), vectors)  # lengths do not count
    assert far.search(vectors[:1], 2).counts.tolist() == [2]
