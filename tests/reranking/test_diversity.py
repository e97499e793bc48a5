"""MMR on three items by hand, and the greedy choice of a DPP by determinants."""

import numpy as np
import pytest
from small_lists import MODEL, TAGS, ask, listed, shown

from twotower.data.requests import Requests
from twotower.reranking.diversity import Dpp, Mmr
from twotower.reranking.similarity import TagSimilarity, VectorSimilarity

JACCARD = TagSimilarity(TAGS)


def test_mmr_by_hand():
    # 0 and 1 have the genre x, 2 has y. Relevance is 1, 1 / log2(3) = .631 and 1 / log2(4) = .5.
    # Behind 0, with weight .2: .8 * .631 - .2 = .305 for 1, and .8 * .5 = .4 for 2.
    # With weight .1: .9 * .631 - .1 = .468 for 1, and .9 * .5 = .45 for 2.
    lists = listed([0, 1, 2])
    assert shown(Mmr.of_tags(TAGS, 0.2)(ask([]), lists)) == [[0, 2, 1]]
    assert shown(Mmr.of_tags(TAGS, 0.1)(ask([]), lists)) == [[0, 1, 2]]


@pytest.mark.parametrize("kind", [Mmr, Dpp])
def test_each_request_may_have_its_own_weight(kind):
    lists = listed([0, 1, 2], [0, 1, 2], [0, 1, 2])
    asked = Requests.of(MODEL.catalogue, [[], [], []], diversity=[0.8, np.nan, 0.0])
    found = shown(kind.of_tags(TAGS, 0.1)(asked, lists))
    for row, weight in enumerate((0.8, 0.1, 0.0)):
        assert found[row] == shown(kind.of_tags(TAGS, weight)(ask([]), listed([0, 1, 2])))[0]
    assert found[0] != found[2]
    for wrong in (-0.1, 1.1):
        with pytest.raises(ValueError, match="diversity must lie within 0 and 1"):
            Requests.of(MODEL.catalogue, [[]], diversity=[wrong])


def test_mmr_looks_back_as_far_as_its_window():
    # For variety alone. All behind 0 and 2: 1 is like 0, 6 like neither. With a window of one item,
    # 1 is compared with 2 alone, and stands before 6.
    lists = listed([0, 2, 1, 6])
    assert shown(Mmr.of_tags(TAGS, 1)(ask([]), lists)) == [[0, 2, 6, 1]]
    assert shown(Mmr.of_tags(TAGS, 1, window=1)(ask([]), lists)) == [[0, 2, 1, 6]]


def test_similarities_by_hand():
    # Of (x, y) and (y, z) one tag of three is common. Items without tags are like each other and
    # like none else, and so are those that came after the table.
    to_last = JACCARD.among(np.array([[0, 4, 3, 99, 5]]))
    np.testing.assert_allclose(to_last(np.array([4])), [[0, 1 / 3, 0, 0, 1]])
    np.testing.assert_allclose(to_last(np.array([2])), [[0, 0, 1, 1, 0]])
    # Angles of 0, 0, 90 and 180 degrees to item 0; a vector of zeros; an unknown item.
    to_first = VectorSimilarity(MODEL).among(np.array([[0, 1, 2, 6, 3, 99]]))
    np.testing.assert_allclose(to_first(np.array([0])), [[1, 1, 0.5, 0, 0.5, 0.5]], atol=1e-6)
    assert to_first(np.array([4]))[0, 4] == 1


def greedy_by_determinants(similar: np.ndarray, weight: float, window: int) -> list[int]:
    """What `Dpp` is to choose among items of a list, with a determinant for each candidate."""
    kernel = 0.5 * similar + 0.5 * np.eye(len(similar))
    relevance = 1 / np.log2(2 + np.arange(len(similar)))
    chosen: list[int] = []
    while len(chosen) < len(similar):
        last = chosen[-window:] if window else chosen

        def gain(item, last=last):
            ratio = np.linalg.det(kernel[np.ix_([*last, item], [*last, item])])
            ratio /= np.linalg.det(kernel[np.ix_(last, last)])
            return (1 - weight) * relevance[item] + weight * np.log(ratio)

        chosen.append(max((item for item in range(len(similar)) if item not in chosen), key=gain))
    return chosen


@pytest.mark.parametrize("window", [0, 1, 2, 3])
@pytest.mark.parametrize("by", ["tags", "vectors"])
def test_dpp_chooses_by_determinants(by, window):
    rng = np.random.default_rng(window)
    if by == "tags":
        tags = (rng.random((60, 5)) < 0.4).astype(np.uint8)
        stage, similarity = Dpp.of_tags(tags, 0.6, window=window), TagSimilarity(tags)
    else:
        vectors = rng.normal(size=(60, 3)).astype(np.float32)
        model = type(MODEL)(keys=np.arange(60), vectors=vectors)
        stage, similarity = Dpp.of_vectors(model, 0.6, window=window), VectorSimilarity(model)
    keys = np.stack([rng.permutation(60)[:9] for _ in range(5)])
    among = similarity.among(keys)
    similar = np.stack([among(np.full(5, column)) for column in range(9)], axis=1)
    found = stage(ask([], [], [], [], []), listed(*keys))
    for row in range(5):
        expected = greedy_by_determinants(similar[row].astype(float), 0.6, window)
        assert found.keys[row].tolist() == keys[row][expected].tolist()


def test_only_so_many_positions_are_filled():
    # The second is chosen anew, and the rest keeps its order.
    lists = listed([0, 1, 4, 2, 6])
    assert shown(Dpp.of_tags(TAGS, 0.9, length=2)(ask([]), lists)) == [[0, 2, 1, 4, 6]]
    assert shown(Dpp.of_tags(TAGS, 0.9, length=1)(ask([]), lists)) == [[0, 1, 4, 2, 6]]


def test_nothing_is_chosen_from_behind_the_end_of_a_list():
    # For variety alone: 0, then 2 with no tag of 0, then 4 with half of them.
    lists = listed([0, 1, 4, 2], [0, 1, 4, 2, 6, 5])
    assert shown(Mmr.of_tags(TAGS, 1, length=3)(ask([], []), lists))[0] == [0, 2, 4, 1]


def test_equal_scores_leave_it_to_the_similarity():
    lists = listed([0, 1, 2, 5], scores=[[3.0] * 4])
    # At weight .01 even the smallest difference of scores would keep the order.
    for stage in (Mmr, Dpp):
        assert shown(stage.of_tags(TAGS, 0.01)(ask([]), lists)) == [[0, 2, 5, 1]]


@pytest.mark.parametrize(
    "settings, message",
    [
        ({"weight": float("nan")}, "weight must lie within 0 and 1; got nan"),
        ({"weight": 1.1}, "weight"),
        ({"weight": -0.1}, "weight"),
        ({"length": 0}, "length must be an integer of 1 or more"),
        ({"window": -1}, "window"),
        ({"tags": None}, "tags or by a model's vectors"),
        ({"tags": TAGS * 2}, "0 or 1"),
        ({"tags": TAGS[0]}, "num_items, num_tags"),
    ],
)
@pytest.mark.parametrize("stage", [Mmr, Dpp])
def test_settings_that_mean_nothing(stage, settings, message):
    with pytest.raises(ValueError, match=message):
        stage(**{"weight": 0.5, "tags": TAGS, **settings})
