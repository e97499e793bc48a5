"""One contract for all sources, on eight films, and the values of each worked by hand."""

import dataclasses
import functools
import json

import numpy as np
import pandas as pd
import pytest

from twotower.data.catalogue import Catalogue
from twotower.data.dataset import Dataset
from twotower.data.requests import Requests
from twotower.evaluation import baselines
from twotower.funnel import saving
from twotower.funnel.attributes import Attribute
from twotower.funnel.sources.collaborative import Ease, IAls, ItemKnn
from twotower.funnel.sources.context_popularity import ContextPopularity
from twotower.funnel.sources.diverse import Diverse
from twotower.funnel.sources.fresh import Fresh
from twotower.funnel.sources.popularity import Popularity, Trending
from twotower.funnel.sources.search import Search
from twotower.funnel.sources.similar import Similar
from twotower.funnel.sources.two_tower import TwoTower
from twotower.ragged import Ragged
from twotower.retrieval import build

DAY = 86_400
ROWS = [  # user, item, day
    ("u1", 0, 0), ("u1", 1, 0), ("u1", 2, 0), ("u2", 0, 0), ("u2", 1, 10), ("u3", 0, 0),
    ("u3", 5, 20), ("u3", 3, 20), ("u4", 5, 20), ("u4", 4, 20), ("u4", 7, 30),
]  # fmt: skip
DATASET = Dataset(
    "films",
    pd.DataFrame(
        {
            "user_id": [user for user, _, _ in ROWS],
            "item_id": [f"i{item}" for _, item, _ in ROWS],
            "timestamp": [day * DAY for _, _, day in ROWS],
        }
    ),
    pd.DataFrame(
        {
            "item_id": [f"i{key}" for key in range(8)],
            "title": [
                "Tin Moon", "Brass Moon", "Moon over Brass", "Ferry",
                "Café", "Night Train", "The New Train", "Comet",
            ],
            "genres": [("Drama",), (), (), (), (), (), (), ("Drama",)],
            "year": [1999, 2000, 1987, 1952, None, 1999, 2001, 2001],
            "released": [None, 0, 0, 0, 0, 20 * DAY, 40 * DAY, 25 * DAY],
        }
    ),
    pd.DataFrame({"user_id": ["u1", "u2", "u3", "u4"], "age": ["18", "18", "50", "50"]}),
)  # fmt: skip
TRAIN = np.arange(len(ROWS))


class Model:
    """Vectors in the plane; a request's is the mean of its history's, (1, 0) without one."""

    keys = np.arange(8)
    vectors = np.float32(
        [[1, 0], [0.9, 0.1], [0.8, 0.2], [0, 1], [0.1, 0.9], [0.2, 0.8], [0.5, 0.5], [0.6, 0.4]]
    )
    catalogue = DATASET.catalogue

    def encode(self, requests: Requests) -> np.ndarray:
        known = [row[row < 8] for row in requests.history]
        means = [self.vectors[row].mean(0) if len(row) else [1, 0] for row in known]
        return np.array(means, np.float32).reshape(-1, 2)

    def retriever(self, name: str = "exact"):
        return build.build(build.IndexConfig(name), self.keys, self.vectors)


MODEL = Model()
AGE = Attribute.of(DATASET, "age")


def needs(module: str, make):
    """`make()`, skipped without an extra package."""

    @functools.cache
    def made():
        pytest.importorskip(module)
        return make()

    return made


SOURCES = {
    "two_tower": lambda: TwoTower(MODEL),
    "ease": lambda: Ease.fit(DATASET, TRAIN, l2=1.0),
    "item_knn": needs("implicit", lambda: ItemKnn.fit(DATASET, TRAIN, 3, "cosine")),
    "ials": needs("implicit", lambda: IAls.fit(DATASET, TRAIN, factors=4)),
    "popularity": lambda: Popularity.fit(DATASET, TRAIN),
    "trending": lambda: Trending.fit(DATASET, TRAIN, half_life=10),
    "context": lambda: ContextPopularity.fit(DATASET, TRAIN, [AGE, Attribute("hour")], prior=1),
    "bm25": needs("bm25s", lambda: Search.bm25(DATASET.catalogue)),
    "tfidf": needs("bm25s", lambda: Search.tfidf(DATASET.catalogue)),
    "similar": lambda: Similar(MODEL, events=2, decay=0.5),
    "diverse": lambda: Diverse.fit(MODEL, clusters=3, nearest=2),
    "fresh": lambda: Fresh.rare(MODEL, DATASET, TRAIN, fewer_than=2),
}
# Those that know nothing of a request with neither history, user, text nor context.
NEED_A_WORD = {"ease", "item_knn", "ials", "context", "bm25", "tfidf", "similar"}


def ask(*history: list[int], exclude: list[list[int]] | None = None, **columns) -> Requests:
    """Requests with these histories, which are excluded; `exclude` excludes further keys."""
    rows = Ragged.from_rows(history)
    more = [[]] * len(history) if exclude is None else exclude
    nothing = np.full(len(rows.values), np.nan, np.float32)
    requests = Requests.of(DATASET.catalogue, [[]] * len(history), **columns)
    return dataclasses.replace(
        requests,
        history=rows,
        history_time=Ragged(np.full(len(rows.values), -1), rows.offsets),
        history_rating=Ragged(nothing, rows.offsets),
        exclude=Ragged.from_rows([[*one, *two] for one, two in zip(history, more)]),
    )


# A repeated item, keys that the catalogue got later, everything excluded, and little known.
VARIED = ask(
    [], [0], [5, 0, 0], [42, 3], [99], [1, 4, 2], [],
    exclude=[[], [1], [77], [], [0, 1], [], list(range(8))],
    user_id=["", "u1", "u3", "", "nobody", "u4", "u1"],
    context={
        "search_text": ["moon", "a train or drama", "drama moon", "", "the", "moon " * 20, "moon"],
        "age": ["18", "", "", "", "", "18", ""],
    },
)  # fmt: skip


@pytest.fixture(scope="module", params=SOURCES)
def name(request):
    return request.param


@pytest.fixture(scope="module")
def source(name):
    return SOURCES[name]()


def assert_alike(first, second):
    for column in ("keys", "scores", "counts"):
        np.testing.assert_array_equal(getattr(first, column), getattr(second, column))


@pytest.mark.parametrize("k", [1, 3, 2**31 - 1])
def test_answers_keep_the_rules(source, k):
    found = source(VARIED, k)
    assert found.keys.shape[1] <= min(k, 8) and found.counts.sum() > 0
    for row in range(len(VARIED)):
        keys = found.keys[row, : found.counts[row]]
        scores = found.scores[row, : found.counts[row]]
        assert len(set(keys)) == len(keys) and not set(keys) & set(VARIED.exclude[row])
        # Best first, equal ones by key.
        assert np.lexsort((keys, -scores)).tolist() == list(range(len(keys)))
        assert (found.keys[row, len(keys) :] == -1).all()
        assert (found.scores[row, len(keys) :] == -np.inf).all()


def test_a_shorter_list_is_the_head_of_a_longer_one(source, name):
    if name != "diverse":  # whose quotas depend on k
        assert_alike(source(VARIED, 3), source(VARIED, 8).head(3))


def test_a_batch_is_answered_as_its_requests_one_by_one(source, name):
    whole = source(VARIED, 4)
    for row in range(len(VARIED)):
        alone = source(VARIED.take(np.array([row])), 4)
        if name != "ials":  # where items 4 and 7 are equal but for rounding
            np.testing.assert_array_equal(alone.keys, whole.keys[[row]])
        np.testing.assert_allclose(alone.scores, whole.scores[[row]], rtol=1e-5)


def test_many_requests_take_several_batches(source, monkeypatch):
    whole = source(VARIED, 4)
    monkeypatch.setattr("twotower.funnel.sources.answers.CELLS", 20)
    np.testing.assert_allclose(source(VARIED, 4).scores, whole.scores, rtol=1e-5)


def test_nothing_known_and_nothing_asked(source, name):
    found = source(ask([]), 4)
    assert (found.counts[0] == 0) == (name in NEED_A_WORD)
    assert len(source(ask(), 4)) == 0


def test_settings_and_arrays_are_all_that_it_is(source):
    arrays, settings = source.arrays(), json.loads(json.dumps(source.settings()))
    assert all(isinstance(a, np.ndarray) and a.dtype.kind in "iufbU" for a in arrays.values())
    assert_alike(source(VARIED, 5), type(source).restore(settings, arrays, MODEL)(VARIED, 5))
    module, kind = saving.KINDS[source.kind]
    assert f"{type(source).__module__}.{type(source).__name__}" == f"twotower.{module}.{kind}"


def test_k_is_a_number_of_items(source):
    with pytest.raises(ValueError, match="k"):
        source(VARIED, 0)


def top(source, requests: Requests, k: int = 8) -> list[list[int]]:
    found = source(requests, k)
    return [row[:count].tolist() for row, count in zip(found.keys, found.counts)]


def test_popularity_counts_rows():
    # Item 0 has three rows, 1 and 5 two, 6 none.
    assert top(SOURCES["popularity"](), ask([])) == [[0, 1, 5, 2, 3, 4, 7]]


def test_trending_halves_with_every_half_life():
    # Rows of days 0, 10, 20, 30 count 1/8, 1/4, 1/2, 1: item 0 three times 1/8, item 1 1/8 + 1/4.
    found = SOURCES["trending"]()(ask([]), 8)
    assert found.keys[0, : found.counts[0]].tolist() == [5, 7, 3, 4, 0, 1, 2]
    assert found.scores[0, :7].tolist() == [1, 1, 0.5, 0.5, 0.375, 0.375, 0.125]


def test_context_popularity_is_shrunk():
    # 5 of 11 rows are of age 18, two of them of item 0: (2 + 3/11) / (5 + 1) = 25/66; of item 1
    # (2 + 2/11) / 6 = 24/66, of item 2 (1 + 1/11) / 6 = 12/66, of item 5 (2/11) / 6 = 2/66.
    source = ContextPopularity.fit(DATASET, TRAIN, [AGE], prior=1)
    requests = ask([], [], [], user_id=["u1", "", ""], context={"age": ["", "50", "77"]})
    found = source(requests, 8)
    assert top(source, requests) == [[0, 1, 2, 5, 3, 4, 7], [5, 0, 3, 4, 7, 1, 2], []]
    np.testing.assert_allclose(np.exp(found.scores[0, :4]), np.array([25, 24, 12, 2]) / 66, 1e-5)


def test_similar_events_that_cancel_have_no_direction():
    class Opposed(Model):
        vectors = np.float32([[1, 0], [-1, 0], *[[0, 1]] * 6])

        def retriever(self, name: str = "exact"):
            return build.build(build.IndexConfig(name, "cosine"), self.keys, self.vectors)

    source = Similar(Opposed(), decay=1)
    assert source(ask([0, 1], [0]), 8).counts.tolist() == [0, 7]
    assert source(ask([0, 1]), 8).counts.tolist() == [0]


def test_attributes_multiply():
    # At hour 0 stand all rows, so it changes nothing; an age alone gives the same as with it.
    both, age = SOURCES["context"](), ContextPopularity.fit(DATASET, TRAIN, [AGE], prior=1)
    requests = ask([], user_id=["u3"], time=[0])
    np.testing.assert_allclose(both(requests, 8).scores, age(requests, 8).scores, rtol=1e-5)


def test_ease_scores_as_the_baseline():
    baseline = baselines.Ease(1.0).fit(DATASET, TRAIN)
    requests = ask([0], [5, 3])
    found = SOURCES["ease"]()(requests, 8)
    scores = np.take_along_axis(baseline.scores(requests), np.maximum(found.keys, 0), axis=1)
    np.testing.assert_allclose(found.scores[found.valid], scores[found.valid], rtol=1e-5)


def test_long_histories_are_multiplied_densely(monkeypatch):
    source, requests = SOURCES["ease"](), ask([0], [5, 3], [0, 1, 2], [])
    found = source(requests, 8)
    for share in (0, 2 / 6, 1):
        monkeypatch.setattr("twotower.funnel.sources.collaborative.LONG", share)
        again = source(requests, 8)
        assert again.keys.tolist() == found.keys.tolist()
        np.testing.assert_allclose(again.scores, found.scores, rtol=1e-5)


def test_ials_solves_many_systems_as_numpy_does(monkeypatch):
    rng = np.random.default_rng(0)
    vectors = rng.normal(size=(40, 6)).astype(np.float32)
    source = IAls(np.arange(40), vectors, alpha=8, regularization=5)
    rows = [rng.choice(40, size=size, replace=False) for size in rng.integers(0, 30, size=50)]
    gram = vectors.T.astype(float) @ vectors + 5 * np.eye(6)
    left = [gram + 7 * vectors[row].T.astype(float) @ vectors[row] for row in rows]
    expected = [np.linalg.solve(a, 8 * vectors[row].sum(0)) for a, row in zip(left, rows)]
    for cells in (1, 2**20):
        monkeypatch.setattr("twotower.funnel.sources.collaborative.FOLDED", cells)
        users = source.user_vectors(Ragged.from_rows(rows))
        np.testing.assert_allclose(users, expected, atol=1e-5)
    with pytest.raises(np.linalg.LinAlgError, match="regularization above 0"):
        IAls(np.arange(1), np.zeros((1, 2), np.float32), 1, 0).user_vectors(Ragged.from_rows([[0]]))


def test_ials_solves_for_the_user():
    # V'V + l2 = 1 + 4 + 1 = 6. History {key 5, vector 2}: 6 + (3 - 1) * 4 = 14 on the left and
    # 3 * 2 = 6 on the right, so the user is 3/7.
    source = IAls(np.array([3, 5]), np.float32([[1], [2]]), alpha=3, regularization=1)
    requests = dataclasses.replace(ask([5], [5, 5], []), exclude=Ragged.empty(3))
    found = source(requests, 5)
    np.testing.assert_allclose(found.scores[:2], [[6 / 7, 3 / 7]] * 2, rtol=1e-6)
    assert found.keys.tolist() == [[5, 3], [5, 3], [-1, -1]]


def test_ials_folds_in_as_implicit_does():
    pytest.importorskip("implicit")
    model = baselines.IAls(factors=4).fit(DATASET, TRAIN)
    requests = ask([0, 5], [1, 2, 4, 7], [3])
    found = IAls.fit(DATASET, TRAIN, factors=4)(requests, 8)
    scores = np.take_along_axis(model.scores(requests), np.maximum(found.keys, 0), axis=1)
    np.testing.assert_allclose(found.scores[found.valid], scores[found.valid], atol=1e-5)


def test_item_knn_answers_nothing_dissimilar():
    # Item 4 was only rated with 5 and 7.
    assert set(top(SOURCES["item_knn"](), ask([4]))[0]) == {5, 7}


def search(make, texts: list[str], **columns) -> list[list[int]]:
    pytest.importorskip("bm25s")
    requests = ask(*[[]] * len(texts), context={"search_text": texts}, **columns)
    return [sorted(row) for row in top(make(), requests)]


@pytest.mark.parametrize("kind", ["bm25", "tfidf"])
def test_search_finds_words(kind):
    found = search(
        SOURCES[kind],
        ["MOON!", "cafe", "1999 drama", "the", "🙂", "луна", "", "x" * 10_000, "ferry " * 2000],
    )
    assert found == [[0, 1, 2], [4], [0, 5, 7], [], [], [], [], [], [3]]


TITLES = Catalogue(pd.DataFrame({"item_id": ["x", "y"], "title": ["moon", "moon sun"]}))


@pytest.mark.parametrize(
    "make, expected",
    [
        # idf ln(1 + (2 - 2 + .5) / (2 + .5)); lengths 1 and 2, mean 1.5.
        (
            Search.bm25,
            np.log(1.2) / [1 + 1.5 * (0.25 + 0.75 / 1.5), 1 + 1.5 * (0.25 + 0.75 * 2 / 1.5)],
        ),
        # idf of moon is ln(3 / 3) + 1, of sun ln(3 / 2) + 1.
        (Search.tfidf, [1, 1 / np.sqrt(1 + (np.log(1.5) + 1) ** 2)]),
    ],
    ids=["bm25", "tfidf"],
)
def test_weights_of_words(make, expected):
    pytest.importorskip("bm25s")
    found = make(TITLES)(ask([], context={"search_text": ["Moon, moon"]}), 2)
    assert found.keys.tolist() == [[0, 1]]
    np.testing.assert_allclose(found.scores[0], expected, rtol=1e-5)


def test_fitting_a_search_logs_nothing(caplog):
    pytest.importorskip("bm25s")
    with caplog.at_level("DEBUG"):
        Search.bm25(TITLES)
    assert not caplog.records


def test_search_among_some_items():
    pytest.importorskip("bm25s")
    source = Search.bm25(DATASET.catalogue, keys=np.array([2, 6]))
    requests = ask([], [], context={"search_text": ["moon", "train"]})
    assert top(source, requests) == [[2], [6]]


def test_similar_weighs_the_newest_most():
    # The last two events are 0 and 3, weights 1/3 and 2/3, so the mean is (1/3, 2/3).
    requests = ask([7, 0, 3])
    found = SOURCES["similar"]()(requests, 8)
    assert top(SOURCES["similar"](), requests) == [[4, 5, 6, 2, 1]]
    np.testing.assert_allclose(
        found.scores[0, :5], np.array([1.9, 1.8, 1.5, 1.2, 1.1]) / 3, rtol=1e-5
    )
    # An item without a vector is no event.
    assert top(SOURCES["similar"](), ask([3, 55])) == top(SOURCES["similar"](), ask([3]))


def test_diverse_takes_turns():
    # (1, 0) is nearest to clusters 0 and 2. Of 0 there are left 1 and 2, of cluster 2 first 7.
    centroids = np.float32([[0.9, 0.1], [0.1, 0.9], [0.55, 0.45]])
    source = Diverse(MODEL, centroids, np.array([0, 0, 0, 1, 1, 1, 2, 2]), nearest=2)
    assert top(source, ask([0]), k=4) == [[1, 7, 2, 6]]
    assert top(source, ask([0]), k=2) == [[1, 7]]
    # Cluster 1 is no longer full: the answer is short.
    assert top(source, ask([3], exclude=[[4, 7]]), k=6) == [[5, 6]]


def test_fresh_items_by_rows_first_row_and_release():
    rare = Fresh.rare(MODEL, DATASET, TRAIN, fewer_than=2)
    assert top(rare, ask([], exclude=[[7]])) == [[2, 6, 4, 3]]
    assert Fresh.appeared(MODEL, DATASET, TRAIN, days=10).keys.tolist() == [3, 4, 5, 6, 7]
    assert Fresh.released(MODEL, DATASET, TRAIN, days=5).keys.tolist() == [6, 7]
    assert top(Fresh(MODEL, np.array([], np.int64)), ask([])) == [[]]


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Popularity.fit(DATASET, TRAIN[:0]), "needs training rows; got none"),
        (lambda: Ease.fit(DATASET, TRAIN[:0]), "needs training rows; got none"),
        (lambda: Trending.fit(DATASET, TRAIN, half_life=0), "half_life must be a positive"),
        (
            lambda: Trending.fit(dataclasses.replace(DATASET, has_times=False), TRAIN),
            "has no timestamps",
        ),
        (lambda: ContextPopularity.fit(DATASET, TRAIN, []), "attributes of different names"),
        (
            lambda: ContextPopularity.fit(DATASET, TRAIN, [Attribute("zodiac")]),
            "no training row has a value of 'zodiac'",
        ),
        (lambda: Similar(MODEL, decay=0), "decay must lie above 0"),
        (lambda: Similar(MODEL, events=0), "events"),
        (lambda: Diverse(MODEL, np.eye(2), np.zeros(5, int)), "5 items have a cluster"),
        (lambda: Fresh.released(MODEL, DATASET, TRAIN, 5, "premiere"), "no column 'premiere'"),
        (lambda: Fresh.appeared(MODEL, DATASET, TRAIN[:0], 5), "needs training rows with times"),
        (
            lambda: Search.bm25(DATASET.catalogue, fields=["plot"]),
            "search needs one of the columns",
        ),
        (
            lambda: Search.bm25(Catalogue(pd.DataFrame({"item_id": ["x"], "title": ["The"]}))),
            "no item has a word",
        ),
    ],
)
def test_what_cannot_be_fitted(make, message):
    with pytest.raises(ValueError, match=message):
        make()
