"""Candidates by hand: rank, mask, take, concat, head."""

import doctest

import numpy as np
import pytest

from twotower.retrieval import candidates as candidates_module
from twotower.retrieval.candidates import NO_KEY, NO_SCORE, Candidates, best_columns

INF = float("inf")


@pytest.fixture
def found():
    # Row 0 has three items, row 1 one, row 2 none.
    return Candidates(
        np.array([[4, 2, 9], [7, NO_KEY, NO_KEY], [NO_KEY] * 3]),
        np.float32([[3, 2, 1], [5, -INF, -INF], [-INF] * 3]),
        np.array([3, 1, 0]),
        {"source": np.array([[1, 2, 1], [2, 0, 0], [0, 0, 0]])},
    )


def test_docstring_examples():
    assert doctest.testmod(candidates_module).failed == 0


def test_valid_is_what_counts_say(found):
    assert found.valid.tolist() == [[True, True, True], [True, False, False], [False] * 3]
    assert len(found) == 3


def test_rank_sorts_by_score_then_key():
    # Scores 5, 7, 5, 6: key 8 (7), key 1 (6), then 2 before 3, which tie at 5.
    ranked = Candidates.rank(np.array([[3, 8, 2, 1]]), np.float32([[5, 7, 5, 6]]), k=4)
    assert ranked.keys.tolist() == [[8, 1, 2, 3]]
    assert ranked.scores.tolist() == [[7, 6, 5, 5]]
    assert ranked.counts.tolist() == [4]
    assert ranked.keys.dtype == np.int64 and ranked.scores.dtype == np.float32


@pytest.mark.parametrize(
    "scores", [[9, -INF, 4, float("nan")], [9, -INF, 4, -INF]], ids=["nan", "minus infinity"]
)
def test_rank_drops_no_key_and_no_score(scores):
    # Key -1 is dropped for all its 9, keys 5 and 7 for their scores: only 6 is left.
    ranked = Candidates.rank(np.array([[-1, 5, 6, 7]]), np.float32([scores]), k=3)
    assert ranked.keys.tolist() == [[6, -1, -1]]
    assert ranked.scores.tolist() == [[4, -INF, -INF]]
    assert ranked.counts.tolist() == [1]


def test_rank_carries_columns_through_the_cut():
    # 20 places and k = 3 (more than 4 k: the partition goes first). The score of place i is
    # (7 i) mod 20, so 19, 18, 17 stand at i = 17 (119), 14 (98), 11 (77); the keys are 100 + i.
    place = np.arange(20)
    ranked = Candidates.rank(
        100 + place[None], np.float32(place * 7 % 20)[None], 3, {"place": place[None]}
    )
    assert ranked.keys.tolist() == [[117, 114, 111]]
    assert ranked.scores.tolist() == [[19, 18, 17]]
    assert ranked.columns["place"].tolist() == [[17, 14, 11]]


def test_rank_takes_the_least_keys_of_a_tie_at_the_cut():
    # 50 places, scores 9 at i = 10 and 1 everywhere else, keys 500 - i: behind key 490 stand the
    # least of the 49 others, 451 and 452. A partition alone takes any. Row 1 has no tie.
    place = np.arange(50)
    scores = np.float32([np.where(place == 10, 9, 1), place])
    ranked = Candidates.rank(np.tile(500 - place, (2, 1)), scores, 3)
    assert ranked.keys.tolist() == [[490, 451, 452], [451, 452, 453]]


def test_rank_fills_up_to_k():
    ranked = Candidates.rank(np.array([[5]]), np.float32([[1]]), 3, {"source": np.array([["a"]])})
    assert ranked.keys.tolist() == [[5, -1, -1]] and ranked.counts.tolist() == [1]
    assert ranked.columns["source"].tolist() == [["a", "", ""]]
    with pytest.raises(ValueError, match="k must be 1 or more; got 0"):
        Candidates.rank(np.array([[5]]), np.float32([[1]]), 0)


def test_rank_against_sorting_everything():
    # Scores of 0..3, so that most cuts go through a tie.
    rng = np.random.default_rng(1)
    scores = rng.integers(0, 4, (40, 60)).astype(np.float32)
    keys = rng.permuted(np.tile(np.arange(60), (40, 1)), axis=1)
    for k in (1, 7, 29, 31, 60):
        order = np.lexsort((keys, -scores), axis=1)[:, :k]
        wanted = np.take_along_axis(keys, order, 1)
        assert Candidates.rank(keys, scores, k).keys.tolist() == wanted.tolist()


def test_rank_does_not_write_to_what_it_is_given():
    keys, scores = np.array([[2, -1, 1]]), np.float32([[1, 5, 3]])
    Candidates.rank(keys, scores, 2)
    assert keys.tolist() == [[2, -1, 1]] and scores.tolist() == [[1, 5, 3]]


@pytest.mark.parametrize("shape", [(2, 0), (0, 4)], ids=["no place", "no query"])
def test_rank_of_nothing(shape):
    ranked = Candidates.rank(np.empty(shape, np.int64), np.empty(shape, np.float32), 4)
    assert ranked.counts.tolist() == [0] * shape[0]
    assert ranked.keys.shape == (shape[0], 4)


def test_mask_closes_gaps_and_keeps_order(found):
    # Without key 2 the 9 moves up; with row 1 dropped it is empty; row 2's True holds nothing.
    keep = np.array([[True, False, True], [False, True, True], [True, True, True]])
    masked = found.mask(keep)
    assert masked.keys.tolist() == [[4, 9, -1], [-1, -1, -1], [-1, -1, -1]]
    assert masked.scores.tolist() == [[3, 1, -INF], [-INF] * 3, [-INF] * 3]
    assert masked.counts.tolist() == [2, 0, 0]
    assert masked.columns["source"][0, :2].tolist() == [1, 1]


def test_take_by_index_and_by_mask(found):
    taken = found.take(np.array([1, 0, 1]))
    assert taken.keys.tolist() == [[7, -1, -1], [4, 2, 9], [7, -1, -1]]
    assert taken.counts.tolist() == [1, 3, 1]
    assert taken.columns["source"].tolist() == [[2, 0, 0], [1, 2, 1], [2, 0, 0]]
    assert found.take(np.array([False, True, False])).keys.tolist() == [[7, -1, -1]]


@pytest.mark.parametrize(
    "k, keys, counts",
    [
        (1, [[4], [7], [-1]], [1, 1, 0]),
        (2, [[4, 2], [7, -1], [-1, -1]], [2, 1, 0]),
        (5, [[4, 2, 9], [7, -1, -1], [-1, -1, -1]], [3, 1, 0]),
    ],
)
def test_head(found, k, keys, counts):
    head = found.head(k)
    assert head.keys.tolist() == keys
    assert head.counts.tolist() == counts
    assert head.scores.shape == head.columns["source"].shape == head.keys.shape


def test_concat_stacks_rows(found):
    both = Candidates.concat([found.take(np.array([1])), found.take(np.array([0, 2]))])
    assert both.keys.tolist() == [[7, -1, -1], [4, 2, 9], [-1, -1, -1]]
    assert both.scores.tolist() == [[5, -INF, -INF], [3, 2, 1], [-INF] * 3]
    assert both.counts.tolist() == [1, 3, 0]
    assert both.columns["source"].tolist() == [[2, 0, 0], [1, 2, 1], [0, 0, 0]]
    narrow = Candidates.concat([found.take(np.array([1])).head(1), found.take(np.array([0, 2]))])
    assert narrow.keys.tolist() == both.keys.tolist()
    assert narrow.scores.tolist() == both.scores.tolist()
    assert narrow.columns["source"].tolist() == both.columns["source"].tolist()


def test_shapes_that_do_not_belong_together(found):
    with pytest.raises(ValueError, match="scores must have the shape of keys"):
        Candidates(found.keys, found.scores[:, :2], found.counts)
    with pytest.raises(ValueError, match="rank must have the shape of keys"):
        Candidates(found.keys, found.scores, found.counts, {"rank": np.zeros((3, 2))})
    with pytest.raises(ValueError, match="counts must be"):
        Candidates(found.keys, found.scores, found.counts[:2])


def test_marks_of_an_empty_place():
    assert NO_KEY == -1 and NO_SCORE == -INF and NO_SCORE.dtype == np.float32


@pytest.mark.parametrize("own_keys", [False, True], ids=["shared keys", "keys of each row"])
@pytest.mark.parametrize("values", [3, 200, 10**6], ids=["many ties", "some ties", "few ties"])
def test_long_rows_are_ranked_like_short_ones(values, own_keys):
    # 4 blocks of 128 an answer make a row long: 4 x 128 x 5 = 2560. Every width of a last block,
    # rows that are closed in part, and the plain sort as truth.
    rng = np.random.default_rng(values)
    for width in (2560, 2561, 2687, 2688, 4000):
        scores = rng.integers(0, values, (3, width)).astype(np.float32)
        scores[1, rng.random(width) < 0.7] = -np.inf
        scores[2, :-1] = -np.inf  # a single open place, the last one: the bound says nothing
        keys = rng.permutation(width)
        if own_keys:
            keys = np.stack([rng.permutation(width) for _ in range(3)])
        wanted = np.lexsort((np.broadcast_to(keys, scores.shape), -scores), axis=1)[:, :5]
        for rows in (slice(0, 2), slice(0, 3), slice(1, 2)):
            own = keys[rows] if own_keys else keys
            found = best_columns(own, scores[rows], 5)
            # In which order closed places stand behind the open ones is nobody's business.
            is_allowed = np.take_along_axis(scores[rows], wanted[rows], 1) > -np.inf
            np.testing.assert_array_equal(found[is_allowed], wanted[rows][is_allowed])
            closed = np.take_along_axis(scores[rows], found, 1)[~is_allowed]
            assert (closed == -np.inf).all()


def test_long_rows_with_nan():
    scores = np.arange(3000, dtype=np.float32)[None].copy()
    scores[0, [5, 2999]] = np.nan
    # NaN counts as less than anything: 2998, 2997, ...
    assert best_columns(np.arange(3000), scores, 3).tolist() == [[2998, 2997, 2996]]


@pytest.mark.parametrize("k", [1, 3, 7, 40])
def test_dense_scores_are_ranked_as_any_others(k):
    # Many equal scores, both zeros, both signs, rows with few or no items.
    scores = np.random.default_rng(0).integers(-3, 3, (60, 30)).astype(np.float32)
    scores[scores == 1] = np.float32(-0.0)
    scores[20:40][np.random.default_rng(1).random((20, 30)) < 0.9] = -np.inf
    scores[59] = -np.inf
    keys = np.broadcast_to(np.arange(30), scores.shape)
    expected, found = Candidates.rank(keys, scores, k), Candidates.of_scores(scores.copy(), k)
    for name in ("keys", "scores", "counts"):
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))
    assert Candidates.of_scores(scores.astype(float), k).scores.dtype == np.float32
