"""Search by words: what it finds, and the weights of words by hand."""

import numpy as np
import pandas as pd
import pytest
from eight_films import DATASET, SOURCES, ask, top

from twotower.data.catalogue import Catalogue
from twotower.funnel.sources.search import Search, words_of


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


@pytest.mark.parametrize(
    ("title", "text", "expected"),
    [
        ("हिन्दी", "हिन्दी", ["हिनदी"]),  # one word; the mark that joins न and द is left out
        ("தமிழ் மொழி", "தமிழ்", ["தமிழ"]),
        ("Schindler’s List", "schindler's", ["schindlers"]),
        ("Amélie", "AMELIE", ["amelie"]),
        ("千と千尋", "千尋", ["千", "尋"]),
    ],
)
def test_a_search_splits_words_as_the_towers_do(title, text, expected):
    pytest.importorskip("bm25s")
    assert words_of(text) == expected
    other = "ह दी த ழ s and 1 more"  # has the parts that words were split into
    titles = Catalogue(pd.DataFrame({"item_id": ["x", "y"], "title": [other, title]}))
    assert top(Search.bm25(titles), ask([], context={"search_text": [text]})) == [[1]]


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
