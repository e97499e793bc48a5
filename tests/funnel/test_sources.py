"""One contract for all sources, on eight films, and what none of them can be fitted on."""

import dataclasses
import json

import numpy as np
import pandas as pd
import pytest
from eight_films import AGE, DATASET, MODEL, SOURCES, TRAIN, ask

from twotower.data.catalogue import Catalogue
from twotower.funnel import saving
from twotower.funnel.attributes import Attribute
from twotower.funnel.sources.collaborative import Ease
from twotower.funnel.sources.context_popularity import ContextPopularity
from twotower.funnel.sources.diverse import Diverse
from twotower.funnel.sources.fresh import Fresh
from twotower.funnel.sources.popularity import Popularity, Trending
from twotower.funnel.sources.search import Search
from twotower.funnel.sources.similar import Similar

# Those that know nothing of a request with neither history, user, text nor context.
NEED_A_WORD = {"ease", "item_knn", "ials", "context", "bm25", "tfidf", "similar"}

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


def without_times(dataset):
    rows = dataset.interactions.sort_values("timestamp", kind="stable")
    return dataclasses.replace(dataset, interactions=rows, has_times=False)


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda: Popularity.fit(DATASET, TRAIN[:0]), "needs training rows; got none"),
        (lambda: Ease.fit(DATASET, TRAIN[:0]), "needs training rows; got none"),
        (lambda: Trending.fit(DATASET, TRAIN, half_life=0), "half_life must be a positive"),
        (
            lambda: Trending.fit(without_times(DATASET), TRAIN),
            "has no timestamps",
        ),
        (lambda: ContextPopularity.fit(DATASET, TRAIN, []), "attributes of different names"),
        (
            lambda: ContextPopularity.fit(DATASET, TRAIN, [Attribute("zodiac")]),
            "no training row has a value of 'zodiac'",
        ),
        (
            lambda: ContextPopularity.fit(DATASET, TRAIN, [AGE], prior=np.inf),
            "a positive, finite prior",
        ),
        (lambda: Similar(MODEL, decay=0), "decay must lie above 0"),
        (lambda: Similar(MODEL, events=0), "events"),
        (lambda: Diverse(MODEL, np.eye(2), np.zeros(5, int)), "5 items have a cluster"),
        (lambda: Diverse(MODEL, np.eye(2), np.arange(8) % 3), "from 0 to 1; got 0 to 2"),
        (lambda: Diverse(MODEL, np.eye(2), np.arange(8) % 2 - 1), "0 to 1; got -1 to 0"),
        (lambda: Fresh.released(MODEL, DATASET, TRAIN, 5, "premiere"), "no column 'premiere'"),
        (lambda: Fresh.appeared(MODEL, DATASET, TRAIN[:0], 5), "needs training rows with times"),
        (lambda: Search.bm25(DATASET.catalogue, k1=-1), "k1 must be 0 or more"),
        (lambda: Search.bm25(DATASET.catalogue, b=1.5), "b within 0 and 1; got 1.5, 1.5"),
        (lambda: Search.bm25(DATASET.catalogue, np.array([8])), "keys must lie within 0 and 7"),
        (lambda: Search.tfidf(DATASET.catalogue, np.array([-1])), "keys must lie within 0 and 7"),
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
