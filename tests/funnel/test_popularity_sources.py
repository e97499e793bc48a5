"""Popularity, trends, and popularity in a context, worked by hand."""

import numpy as np
from eight_films import AGE, DATASET, SOURCES, TRAIN, ask, top

from twotower.funnel.sources.context_popularity import ContextPopularity


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


def test_attributes_multiply():
    # At hour 0 stand all rows, so it changes nothing; an age alone gives the same as with it.
    both, age = SOURCES["context"](), ContextPopularity.fit(DATASET, TRAIN, [AGE], prior=1)
    requests = ask([], user_id=["u3"], time=[0])
    np.testing.assert_allclose(both(requests, 8).scores, age(requests, 8).scores, rtol=1e-5)
