"""What holds for every stage that re-ranks, whatever the lists are."""

import subprocess
import sys

import numpy as np
import pytest
from small_lists import CATALOGUE, MODEL, TAGS, ask, listed, shown

from twotower.funnel import saving
from twotower.funnel.cold_start import ExplorationSlots
from twotower.funnel.filters import Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.popularity import Popularity
from twotower.reranking import greedy
from twotower.reranking.calibration import Calibration
from twotower.reranking.diversity import Dpp, Mmr
from twotower.reranking.promoted import Promoted, PromotedSlots
from twotower.reranking.rules import AtMost
from twotower.retrieval.candidates import NO_SCORE, Candidates

STAGES = [
    Mmr.of_tags(TAGS, 0.5, length=5),
    Mmr.of_vectors(MODEL, 0.5, length=5, window=2),
    Dpp.of_tags(TAGS, 0.5, length=5),
    Dpp.of_vectors(MODEL, 0.5, length=5, window=2),
    Calibration(TAGS, 0.5, length=5),
    AtMost.of(CATALOGUE, "genres", in_a_row=1, in_all=2, length=5),
    PromotedSlots(np.array([6, 2]), [1, 4]),
]
GREEDY = [stage for stage in STAGES if hasattr(stage, "length")]
names = pytest.mark.parametrize("stage", STAGES, ids=lambda stage: stage.kind)


def random_lists(count: int) -> Candidates:
    """Lists of 0 to 10 items, two of which the model does not have; some scores are equal."""
    rng = np.random.default_rng(0)
    rows = [rng.permutation(10)[: rng.integers(11)].tolist() for _ in range(count)]
    return listed(*rows, scores=[np.sort(rng.integers(4, size=len(row)))[::-1] for row in rows])


HISTORIES = [[0, 1, 2], [], [3], [5, 6]] * 8
LISTS, REQUESTS = random_lists(32), ask(*HISTORIES)


@names
def test_no_item_comes_goes_or_stands_twice(stage):
    found = stage(REQUESTS, LISTS)
    assert [*map(sorted, shown(found))] == [*map(sorted, shown(LISTS))]
    np.testing.assert_array_equal(found.counts, LISTS.counts)
    # Scores stay at their positions, the columns go with their items.
    np.testing.assert_allclose(found.scores, LISTS.scores, atol=1e-4)
    assert (found.scores[~found.valid] == NO_SCORE).all()
    changed = [row for row in range(32) if (found.keys[row] != LISTS.keys[row]).any()]
    assert changed
    for row in changed:
        assert (np.diff(found.scores[row, : found.counts[row]]) < 0).all()
    np.testing.assert_array_equal(found.columns["item"], found.keys * 10)
    for row in range(32):
        before = dict(zip(LISTS.keys[row], LISTS.scores[row]))
        expected = [before[key] for key in found.keys[row]]
        np.testing.assert_array_equal(found.columns["relevance"][row], expected)


@pytest.mark.parametrize("stage", GREEDY, ids=lambda stage: stage.kind)
def test_what_was_not_chosen_keeps_its_order(stage):
    for row, before in zip(shown(stage(REQUESTS, LISTS)), shown(LISTS)):
        assert row[5:] == [key for key in before if key in row[5:]]


@pytest.mark.parametrize("stage", GREEDY, ids=lambda stage: stage.kind)
def test_the_end_of_a_long_list_is_out_of_reach(stage, monkeypatch):
    monkeypatch.setattr(greedy, "REACH", 3)
    found, first = stage(REQUESTS, LISTS), stage(REQUESTS, LISTS.head(3))
    np.testing.assert_array_equal(found.keys[:, :3], first.keys)
    np.testing.assert_array_equal(found.keys[:, 3:], LISTS.keys[:, 3:])


@names
def test_requests_at_once_are_answered_as_one_by_one(stage, monkeypatch):
    found = stage(REQUESTS, LISTS)
    monkeypatch.setattr(greedy, "CELLS", 1)
    apart = stage(REQUESTS, LISTS)
    assert shown(apart) == shown(found)
    for row, expected in enumerate(shown(found)):
        # By itself, a list has no columns behind its end.
        alone = LISTS.take([row]).head(len(expected))
        assert shown(stage(REQUESTS.take([row]), alone)) == [expected]


@names
def test_empty_lists_one_candidate_and_no_request(stage):
    assert shown(stage(ask([0], [0]), listed([], [6]))) == [[], [6]]
    assert shown(stage(ask([0]), listed([]))) == [[]]
    assert len(stage(ask(), Candidates.empty(0, 4))) == 0


@pytest.mark.parametrize("stage", STAGES[:5], ids=lambda stage: stage.kind)
@pytest.mark.parametrize("bad", [np.nan, np.inf, -np.inf])
def test_scores_that_are_no_numbers(stage, bad):
    with pytest.raises(ValueError, match="finite, without NaN"):
        stage(ask([0]), listed([0, 1], scores=[[bad, bad]]))


@names
def test_the_order_alone_of_scores_counts(stage):
    wide = LISTS.scores.copy()
    wide[LISTS.valid] = np.exp(9 * LISTS.scores[LISTS.valid]) / 1000
    other = Candidates(LISTS.keys, wide, LISTS.counts)
    assert shown(stage(REQUESTS, other)) == shown(stage(REQUESTS, LISTS))


def test_relevance_is_the_score_before_the_first_stage():
    lists = listed([0, 1, 2, 6], scores=[[4.0, 3.0, 2.0, 1.0]])
    # Mmr makes it 0, 2, 6, 1, and the slots 6, 0, 2, 1.
    found = STAGES[-1](ask([]), Mmr.of_tags(TAGS, 0.9)(ask([]), lists))
    assert found.keys.tolist() == [[6, 0, 2, 1]]
    before = dict(zip([0, 1, 2, 6], [4.0, 3.0, 2.0, 1.0]))
    assert found.columns["relevance"].tolist() == [[before[key] for key in found.keys[0]]]


def test_a_funnel_with_all_of_them_comes_back_as_it_was(tmp_path):
    popular = Popularity(np.arange(8), np.arange(8, 0, -1, dtype=np.float32))
    sources = {
        "popular": Inlet(popular),
        "promoted": Inlet(Promoted(np.array([6, 2])), 2, None, 2),
    }
    slots = ExplorationSlots(np.zeros(8, np.int64), [3], 5, "promoted")
    stages = [Filters([Seen()]), *STAGES, slots, Filters([Seen()])]
    funnel = Funnel(sources, ReciprocalRank(), stages)
    saving.save(funnel, tmp_path / "f", "m1")
    back = saving.load(tmp_path / "f", MODEL, "m1")
    assert [stage.kind for stage in back.stages] == [stage.kind for stage in stages]
    first, second = funnel(REQUESTS, 8), back(REQUESTS, 8)
    np.testing.assert_array_equal(first.keys, second.keys)
    np.testing.assert_array_equal(first.scores, second.scores)
    for stage, again in zip(STAGES, back.stages[1:]):
        assert stage.settings() == again.settings()
    assert {path.suffix for path in tmp_path.rglob("*")} == {"", ".npy", ".json"}


def test_nothing_loads_tensorflow_and_a_funnel_loads_no_re_ranking_that_it_does_not_have():
    funnel = "import sys, twotower.funnel.making, twotower.funnel.saving"
    reranking = "import twotower.reranking.making"
    lacks = "assert not [name for name in sys.modules if '{}' in name]"
    steps = [funnel, lacks.format("reranking"), reranking, lacks.format("tensorflow")]
    subprocess.run([sys.executable, "-c", "; ".join(steps)], check=True, timeout=300)
