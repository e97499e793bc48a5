"""recall_against by hand; tune on clustered vectors."""

import dataclasses
import time

import numpy as np
import pytest
from backends import needs
from small_indexes import clusters_of

from twotower.ragged import Ragged
from twotower.retrieval import build
from twotower.retrieval.candidates import Candidates
from twotower.retrieval.tuning import built_recall, recall_against, tune

INF = float("inf")


def answer(rows, scores):
    """Candidates of these keys and scores; the key -1 is an empty place."""
    keys = np.array(rows)
    scores = np.where(keys >= 0, np.array(scores), -INF).astype(np.float32)
    return Candidates(keys, scores, (keys >= 0).sum(1))


def answers(exact, found):
    """Each row's exact keys score 9, 8, 7, ...; those that are found beside them score less."""
    width = len(exact[0])
    scores = [dict(zip(row, 9.0 - np.arange(width))) for row in exact]
    return (
        answer(exact, [[scores[n][key] for key in row] for n, row in enumerate(exact)]),
        answer(found, [[scores[n].get(key, -99) for key in row] for n, row in enumerate(found)]),
    )


@pytest.mark.parametrize(
    "exact, found, recall",
    [
        ([[1, 2, 3]], [[3, 1, 2]], 1),
        ([[1, 2, 3, 4]], [[4, 9, 2, 8]], 1 / 2),
        ([[1, 2], [3, 4]], [[1, 2], [5, 3]], 3 / 4),
        # Row 0's items in row 1's answer are not hits.
        ([[1, 2], [3, 4]], [[3, 4], [1, 2]], 0),
        # A short exact row: 1 of 1 and 1 of 2. The -1s are not hits.
        ([[1, -1], [3, 4]], [[1, -1], [4, -1]], 3 / 4),
        ([[1, -1]], [[-1, -1]], 0),
        # Answers of another width.
        ([[1, 2, 3, 4]], [[4]], 1 / 4),
        ([[1]], [[2, 3, 1]], 1),
        # Keys that differ by a multiple of 2^40, as in row 1 of the first and row 0 of the second.
        ([[7], [8]], [[8 + 2**40], [8 - 8]], 0),
        ([[7 + 2**41], [7 + 2**40]], [[7 + 2**41], [7]], 1 / 2),
        ([[2**63 - 1], [5]], [[2**63 - 1], [5]], 1),
    ],
)
def test_recall_by_hand(exact, found, recall):
    assert recall_against(*answers(exact, found)) == pytest.approx(recall)


@pytest.mark.parametrize(
    "exact, scores, found, found_scores, recall",
    [
        # Item 7 scores what items 2 and 3 do, so it is as good an answer.
        ([1, 2, 3], [5, 4, 4], [1, 3, 7], [5, 4, 4], 1),
        ([1, 2, 3], [5, 4, 4], [1, 7, 8], [5, 4, 3], 2 / 3),
        ([1, 2], [1, 1], [8, 9], [1, 1], 1),
        # The best item is missing, and no number of others makes up for it.
        ([1, 2, 3], [5, 4, 4], [7, 8, 9], [4, 4, 4], 2 / 3),
        # There is one place for them, so three equal items are no more than one.
        ([1, 2], [5, 4], [7, 8, 9], [4, 4, 4], 1 / 2),
        ([1, 2], [5, 4], [7, -1], [4, 0], 1 / 2),
        # The last bits differ between one way to multiply and another.
        ([1, 2], [5, 4], [1, 9], [5, 4 - 4e-7], 1),
        ([1, 2], [5, 4], [1, 9], [5, 3.99], 1 / 2),
        ([1, 2], [-1, -2], [1, 9], [-1, -2 - 2e-7], 1),
        ([1, 2], [-1, -2], [1, 9], [-1, -2.01], 1 / 2),
        # An item of the answer counts whatever it is scored there.
        ([1, 2], [5, 4], [2, 1], [3, 3], 1),
        ([-1, -1], [0, 0], [5, 6], [1, 1], 0),
    ],
)
def test_equal_scores_are_equal_answers(exact, scores, found, found_scores, recall):
    exact, found = answer([exact], [scores]), answer([found], [found_scores])
    assert recall_against(exact, found) == pytest.approx(recall)


@pytest.mark.parametrize("metric", ["dot", "cosine", "euclidean"])
def test_tune_among_equal_vectors(metric):
    """Twenty items with two hundred copies each; the index finds those that a scan does not."""
    needs("hnsw")
    distinct = np.float32(np.random.default_rng(5).normal(size=(20, 8)))
    copies = np.random.default_rng(6).permutation(4000).reshape(20, 200)  # positions
    vectors = np.empty((4000, 8), np.float32)
    vectors[copies] = distinct[:, None]
    copies.sort(axis=1)
    other = np.empty(4000, np.int64)
    other[copies] = np.roll(copies, 100, 1)
    config = build.IndexConfig(
        "hnsw", metric, {"ef_construction": 40, "ef_search": 100, "threads": 1}
    )
    index = build.build(config, np.arange(4000), vectors)
    real = index._search
    index._search = lambda queries, k: (other[real(queries, k)[0]], real(queries, k)[1])
    # So near to an item that its distance is what float32 leaves of the difference of two squares.
    queries = distinct + np.float32(0.001)
    best, found = (index.search_built(queries, 100, exact=exact) for exact in (True, False))
    # An item is as good as another one with the same vector.
    equal = [np.isin(vectors[a, 0], vectors[b, 0]).mean() for a, b in zip(found.keys, best.keys)]
    by_key = [np.isin(a, b).mean() for a, b in zip(found.keys, best.keys)]
    assert np.mean(equal) > 0.8 and np.mean(by_key) < 0.6
    assert built_recall(index, queries, 100) == pytest.approx(np.mean(equal))
    assert tune(index, queries, 100, 0.3)["recall"] == pytest.approx(np.mean(equal))


def test_removed_vectors_that_stay_in_a_graph_take_no_places():
    """Of 1,000, 300 are removed and absorbed. A search steps over what HNSW cannot forget."""
    needs("hnsw")
    vectors = np.random.default_rng(0).normal(size=(1050, 8)).astype(np.float32)
    index = build.build(build.IndexConfig("hnsw"), np.arange(1000), vectors[:1000])
    index.remove(np.arange(300))
    index.absorb()
    queries = vectors[1000:]
    exact = build.build(build.IndexConfig("exact"), *index.live()).search(queries, 50)
    assert recall_against(exact, index.search(queries, 50)) > 0.99
    assert index.search_built(queries, 50).counts.tolist() == [50] * 50
    assert built_recall(index, queries, 50) > 0.99
    assert tune(index, queries, 50, 0.9)["recall"] > 0.9
    assert recall_against(exact, index.search(queries, 50)) > 0.9


def test_what_an_index_says_of_its_finds_does_not_judge_it():
    # The worst items with the best one's score.
    index = build.build(build.IndexConfig("exact"), np.arange(40), np.eye(40, dtype=np.float32))
    queries = np.eye(40, dtype=np.float32)[:4]
    index._search = lambda queries, k: (np.tile(np.arange(30, 30 + k), (4, 1)), np.ones((4, k)))
    assert built_recall(index, queries, 1) == 0
    # Beyond the first item all are equal: 9 of 10 are right.
    assert built_recall(index, queries, 10) == 0.9


K = 50


@pytest.fixture(scope="module")
def clustered():
    return clusters_of(5000, num_clusters=50, noise=0.5, num_queries=64, seed=11)


@pytest.fixture(scope="module", params=["hnsw", "ivf", "ivf_pq", "scann"])
def index(request, clustered):
    needs(request.param)
    parameters = {
        "hnsw": {"ef_construction": 60},
        "ivf": {"num_lists": 100},
        "ivf_pq": {"num_lists": 100, "code_bytes": 8},
    }.get(request.param, {})
    return build.build(build.IndexConfig(request.param, "dot", parameters), *clustered[:2])


def name_of_effort(index):
    return [*index.efforts(K)][-1]


def effort(index):
    return getattr(index.config, name_of_effort(index))


def true_recall(index, clustered, alive=slice(None)):
    """From plain numpy: the share of each query's best K that the index finds."""
    keys, vectors, queries = clustered
    keys, vectors = keys[alive], vectors[alive]
    best = keys[np.argsort(-(queries @ vectors.T), 1)[:, :K]]
    found = index.search(queries, K).keys
    return np.mean([len(set(a) & set(b)) / K for a, b in zip(best.tolist(), found.tolist())])


@pytest.mark.parametrize("target", [0.5, 0.95])
def test_tune_reaches_the_target(index, clustered, target):
    chosen = tune(index, clustered[2], K, target)
    assert chosen["recall"] >= target
    assert chosen["target"] == target and chosen["k"] == K
    name = name_of_effort(index)
    assert chosen[name] == effort(index)
    # It measures the backend alone. A search finds that much, and more where so few leaves hold
    # fewer than K items, because short rows are completed by an exact scan.
    found = true_recall(index, clustered)
    assert found >= chosen["recall"] - 0.005
    if target == 0.95:
        assert found == pytest.approx(chosen["recall"], abs=0.005)
    if name != "ef_search":
        assert 1 <= effort(index) < getattr(index.config, "num_leaves", 100)


def test_a_higher_target_is_no_cheaper_and_the_rest_stays(index, clustered):
    before = index.config
    tune(index, clustered[2], K, 0.3)
    cheap = effort(index)
    tune(index, clustered[2], K, 0.99)
    assert effort(index) >= cheap
    tuned = {name: getattr(before, name) for name in index.efforts(K)}
    assert dataclasses.replace(index.config, **tuned) == before


def test_a_target_out_of_reach_says_so(index, clustered):
    # No recall is 1.5: what is kept is as good as the dearest setting, to what is worth paying.
    with pytest.warns(UserWarning, match="at most on 64 queries, so not surely the target 1.5"):
        chosen = tune(index, clustered[2], K, 1.5)
    assert chosen["recall"] <= 1 < chosen["target"]
    dearest = {name: values[-1] for name, values in index.efforts(K).items()}
    index.config = dataclasses.replace(index.config, **dearest)
    if hasattr(index.config, "num_leaves"):
        # Never all of sqrt(5000) = 70 leaves: that would be an exact scan by another name.
        assert (index.config.num_leaves, effort(index)) == (70, 66)
    assert chosen["recall"] >= true_recall(index, clustered) - 0.002


def test_a_mean_that_might_be_luck_does_not_count(clustered):
    # Planted recalls of four queries at ef 50, 62, 75, ...: .9 and .9 +- .1 in turn have means of
    # .9, but 1.645 x .1 / sqrt(4) = .082 is too much doubt for a target of .85; without spread .9
    # is sure.
    needs("hnsw")
    keys, vectors, queries = clustered
    index = build.build(build.IndexConfig("hnsw", "dot", {"ef_construction": 20}), keys, vectors)
    exact = index.search_built(queries[:4], K, exact=True)
    worst = keys[np.argmin(queries[:4] @ vectors.T, 1)][:, None]
    found = {50: [0.8, 1, 0.8, 1], 62: [0.8, 1, 1, 0.8], 75: [0.9] * 4}

    def planted(asked, depth, exact_too=False, **kwargs):
        if exact_too or kwargs.get("exact"):
            return exact.head(depth)
        shares = np.array(found[index.config.ef_search])[: len(asked)]
        wrong = np.arange(K) >= (shares * K).round().astype(int)[:, None]
        some = exact.take(np.arange(len(asked)))
        return Candidates(np.where(wrong, worst[: len(asked)], some.keys), some.scores, some.counts)

    index.search_built = planted
    chosen = tune(index, queries[:4], K, 0.85)
    assert chosen["ef_search"] == 75 and chosen["recall"] == pytest.approx(0.9)


def test_the_quickest_pair_is_taken(clustered, monkeypatch):
    # Of (refine, num_probes) a, b and c reach the target and a's probes do not suffice at refine 2;
    # times are planted: b is the quickest.
    needs("ivf_pq")
    config = build.IndexConfig("ivf_pq", "dot", {"num_lists": 20, "code_bytes": 4})
    index = build.build(config, *clustered[:2])
    asked, clock = [], [0.0]
    real = index._search
    # A clock of its own, which no other work on the machine moves.
    monkeypatch.setattr(time, "perf_counter", lambda: clock[0])

    def slow(queries, k):
        if len(queries) == 1:
            asked.append(index.config.refine)
            clock[0] += {2: 0.002, 4: 0.0005, 8: 0.001, 16: 0.002, 32: 0.002}[index.config.refine]
        return real(queries, k)

    index._search = slow
    chosen = tune(index, clustered[2], K, 0.5)
    assert chosen["refine"] == 4 and set(asked) == {2, 4, 8, 16, 32}


def test_equal_first_steps_are_no_plateau():
    """Codes of which refinement fetches twice as many make the first efSearch one setting, and
    what they find must not pass for the most there is."""
    # Forty items around each of 100 centres, nearer to one another than an 8-bit step, so that
    # codes alone cannot rank them.
    rng = np.random.default_rng(0)
    centres = rng.normal(size=(100, 24))
    vectors = np.repeat(centres, 40, 0) + 0.01 * rng.normal(size=(4000, 24))
    queries = centres[:60] + 0.05 * rng.normal(size=(60, 24))
    parameters = {"storage": "sq8", "neighbours": 6, "ef_construction": 30, "threads": 1}
    config = build.IndexConfig("hnsw", "euclidean", parameters)
    index = build.build(config, np.arange(4000), vectors[rng.permutation(4000)])
    tuned = tune(index, queries, 20, 0.9)
    assert tuned["recall"] >= 0.9 and tuned["refine"] == 2 and tuned["ef_search"] > 2 * 20


@pytest.mark.parametrize("backend", ["ivf", "scann"])
def test_a_deeper_search_takes_more_effort(clustered, backend):
    # Tuned for 20 answers, few partitions are looked into, and with the best 200 of every query
    # excluded most of the next 20 lie elsewhere: 220 candidates take eleven times the effort.
    needs(backend)
    keys, vectors, queries = clustered
    parameters = {"num_lists": 100} if backend == "ivf" else {}
    index = build.build(build.IndexConfig(backend, "dot", parameters), keys, vectors)
    ranked = keys[np.argsort(-(queries @ vectors.T), 1)[:, :220]]
    banned, wanted = Ragged.from_rows(ranked[:, :200]), ranked[:, 200:]

    def recall():
        found = index.search(queries, 20, exclude=banned).keys
        return np.mean([len(set(a) & set(b)) / 20 for a, b in zip(wanted.tolist(), found.tolist())])

    tune(index, queries, 20, 0.95)
    assert recall() >= 0.93
    assert index.config_at(20) == index.config_at(7) == index.config
    for name, values in index.efforts(30).items():
        effort = getattr(index.config, name)
        assert getattr(index.config_at(30), name) == min(-(-3 * effort // 2), values[-1])
    index.tuned = {}  # the same effort at every depth
    assert recall() < 0.9


def test_leaves_of_a_tiny_index():
    # 150 items in for_size's 12 leaves: 11 = int(.95 * 12) are the most that are looked into.
    pytest.importorskip("scann")
    vectors = np.float32(np.random.default_rng(2).normal(size=(150, 4)))
    index = build.build(build.IndexConfig("scann"), np.arange(150), vectors)
    with pytest.warns(UserWarning, match="not surely the target 1.5"):
        tune(index, vectors[:20], 100, 1.5)
    assert (index.config.num_leaves, index.config.num_leaves_to_search) == (12, 11)


def test_tune_with_removed_and_added_items(clustered):
    # The first 10 items go, the next one is replaced by itself: 4990 stay.
    pytest.importorskip("faiss")
    keys, vectors, queries = clustered
    config = build.IndexConfig("hnsw", "dot", {"ef_construction": 60})
    index = build.build(config, keys, vectors)
    index.remove(keys[:10])
    index.add(keys[10:11], vectors[10:11])
    chosen = tune(index, queries, K, 0.95)
    assert chosen["recall"] >= 0.95
    # Tombstones are fetched over, which searches a little wider than what was measured.
    assert true_recall(index, clustered, slice(10, None)) >= chosen["recall"] - 0.005


def test_exact_has_nothing_to_tune(clustered):
    index = build.build(build.IndexConfig("exact"), *clustered[:2])
    with pytest.raises(ValueError, match="BruteForceIndex has no parameter of search effort"):
        tune(index, clustered[2], K)


def test_no_queries(index, clustered):
    with pytest.raises(ValueError, match="tuning needs queries"):
        tune(index, clustered[2][:0], K)


def test_not_built(clustered):
    pytest.importorskip("faiss")
    with pytest.raises(ValueError, match="the index is empty"):
        tune(build.make(build.IndexConfig("hnsw")), clustered[2], K)
