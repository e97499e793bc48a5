"""iALS of items that are new: two camps with content, and the ridge regression."""

import dataclasses

import numpy as np
import pandas as pd
import pytest
from two_camps import NUM_ITEMS, SMALL, cases_of, content_camps

from twotower.evaluation import baselines
from twotower.evaluation.baselines.content_ials import content_indicators


def test_content_ials_finds_new_items_by_their_content():
    dataset = content_camps()
    rows = np.arange(len(dataset.interactions))
    for without in ([], ["genres"], ["year", "title"]):
        cut = dataclasses.replace(dataset, items=dataset.items.drop(columns=without))
        model = baselines.make("content_ials", l2=1.0, **SMALL["ials"])
        scores = model.fit(cut, rows, np.arange(NUM_ITEMS)).scores(cases_of([1, 2], [6, 8]))
        assert (scores[0, 10] > scores[0, 11]) and (scores[1, 11] > scores[1, 10])
    # Items that have rows keep the vectors that iALS gives them.
    plain = baselines.make("ials", **SMALL["ials"]).fit(dataset, rows, np.arange(NUM_ITEMS))
    expected = plain.scores(cases_of([1, 2], [6, 8]))
    np.testing.assert_allclose(scores[:, :10], expected[:, :10], atol=1e-4)
    bare = dataclasses.replace(dataset, items=dataset.items[["item_id"]])
    with pytest.raises(ValueError, match="needs genres, year or title"):
        baselines.make("content_ials").fit(bare, rows)


def test_content_ials_solves_its_ridge_regression():
    # Ridge regression with an unpenalised intercept, by least squares with rows of sqrt(l2) I.
    dataset = content_camps()
    rows = np.arange(len(dataset.interactions))
    model = baselines.make("content_ials", l2=2.0, **SMALL["ials"]).fit(dataset, rows)
    content = content_indicators(dataset.items).toarray()
    # Comedy, Western, the decades 199 and 195, the, laugh, gun: what two known items have.
    kept = content[:, content[:10].sum(0) >= 2]
    assert kept.shape == (12, 7) and content.shape == (12, 7 + 12)
    penalised = np.hstack([np.zeros((7, 1)), np.sqrt(2.0) * np.eye(7)])
    system = np.vstack([np.hstack([np.ones((10, 1)), kept[:10]]), penalised])
    targets = np.vstack([model.item_vectors[:10], np.zeros((7, 2))])
    solution = np.linalg.lstsq(system, targets)[0]
    expected = np.hstack([np.ones((2, 1)), kept[10:]]) @ solution
    np.testing.assert_allclose(model._vectors[10:], expected, atol=1e-5)


def test_content_of_items():
    items = pd.DataFrame(
        {
            "title": ["Moon, The", "(moon)", "", "आधुनिक"],
            "year": [1999.0, float("nan"), -1, 1990],
            "genres": [("A",), (), ("A", "B"), ()],
        }
    )
    found = content_indicators(items).toarray()
    # By name: genres A, B; title moon, the, आधुनिक; the decade 199.
    assert found.tolist() == [
        [1, 0, 1, 1, 0, 1],
        [0, 0, 1, 0, 0, 0],
        [1, 1, 0, 0, 0, 0],
        [0, 0, 0, 0, 1, 1],
    ]
