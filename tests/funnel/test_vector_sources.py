"""Sources that search the vectors of a model, worked by hand in the plane."""

import numpy as np
from eight_films import DATASET, MODEL, SOURCES, TRAIN, Model, ask, top

from twotower.funnel.sources.diverse import Diverse
from twotower.funnel.sources.fresh import Fresh
from twotower.funnel.sources.similar import Similar
from twotower.retrieval import build


def test_similar_events_that_cancel_have_no_direction():
    class Opposed(Model):
        vectors = np.float32([[1, 0], [-1, 0], *[[0, 1]] * 6])

        def retriever(self, name: str = "exact"):
            return build.build(build.IndexConfig(name, "cosine"), self.keys, self.vectors)

    source = Similar(Opposed(), decay=1)
    assert source(ask([0, 1], [0]), 8).counts.tolist() == [0, 7]
    assert source(ask([0, 1]), 8).counts.tolist() == [0]


def test_similar_weighs_the_newest_most():
    # The last two events are 0 and 3, weights 1/3 and 2/3, so the mean is (1/3, 2/3).
    requests = ask([7, 0, 3])
    found = SOURCES["similar"]()(requests, 8)
    assert top(SOURCES["similar"](), requests) == [[4, 5, 6, 2, 1]]
    np.testing.assert_allclose(
        found.scores[0, :5], np.array([1.9, 1.8, 1.5, 1.2, 1.1]) / 3, rtol=1e-5
    )
    # An item without a vector is not an event.
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
