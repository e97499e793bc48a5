"""Limits and promoted items, and a whole stack of stages with what is blocked."""

import numpy as np
import pytest
from small_lists import CATALOGUE, MODEL, TAGS, ask, listed, shown

from twotower.funnel.filters import Blocked, Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Quotas, ReciprocalRank, WeightedSum
from twotower.funnel.sources.popularity import Popularity
from twotower.reranking.diversity import Mmr
from twotower.reranking.making import (
    RerankingConfig,
    parse_promoted,
    parse_rerank,
    with_reranking,
)
from twotower.reranking.promoted import Promoted, PromotedSlots
from twotower.reranking.rules import AtMost


def limited(column: str, *rows: list[int], **limits: int) -> list[list[int]]:
    return shown(AtMost.of(CATALOGUE, column, **limits)(ask(*[[]] * len(rows)), listed(*rows)))


def test_in_a_row_and_in_all():
    # Makers: 0, 1, 5 and 6 of m; 2, 4 and 7 of n; 3 of nobody.
    assert limited("maker", [0, 1, 5, 2, 6], in_a_row=2) == [[0, 1, 2, 5, 6]]
    assert limited("maker", [0, 1, 2, 4, 3], in_all=1) == [[0, 2, 3, 1, 4]]
    # Nobody is not a maker, so items of nobody may follow each other, and end what was in a row.
    assert limited("maker", [0, 3, 1, 5, 2], in_a_row=1) == [[0, 3, 1, 2, 5]]
    # Each request has counts for itself.
    rows = [0, 1, 2], [2, 4, 0]
    assert limited("maker", *rows, in_a_row=1) == [[0, 2, 1], [2, 0, 4]]


def test_an_item_must_be_within_the_limits_of_each_of_its_genres():
    # 4 is x and y, 5 is y and z.
    assert limited("genres", [0, 4, 5, 2, 6], in_a_row=1) == [[0, 5, 4, 6, 2]]
    assert limited("genres", [4, 0, 2, 6, 3], in_all=1) == [[4, 6, 3, 0, 2]]


def test_limits_end_with_the_positions_and_where_nothing_else_is_left():
    assert limited("maker", [0, 1, 5, 2], in_all=1, length=1) == [[0, 1, 5, 2]]
    assert limited("maker", [0, 1, 5, 6], in_a_row=1) == [[0, 1, 5, 6]]


def test_limits_that_mean_nothing():
    with pytest.raises(ValueError, match="there is no limit"):
        AtMost.of(CATALOGUE, "maker")
    with pytest.raises(ValueError, match="no 'director'"):
        AtMost.of(CATALOGUE, "director", in_all=1)
    with pytest.raises(ValueError, match="in_all"):
        AtMost.of(CATALOGUE, "maker", in_all=-1)
    for groups in ([1, 2], [[-2], [0]], [[0.5], [1.0]]):
        with pytest.raises(ValueError, match=r"groups must be .*\[num_items, most\]"):
            AtMost(np.array(groups), in_all=1)


def test_promoted_items_are_found_unless_they_are_excluded():
    found = Promoted(np.array([6, 2]))(ask([], [6], [6, 2]), 5)
    assert shown(found) == [[6, 2], [2], []]
    assert shown(Promoted(np.array([6, 2]))(ask([]), 1)) == [[6]]


def test_promoted_items_move_up_to_their_slots():
    stage = PromotedSlots(np.array([6, 5]), [1, 3])
    lists = listed([0, 1, 2, 5, 6], [5, 0, 1, 6], [0, 1, 2], [6, 5, 0], [])
    # 5 stands before its slot, and 6 moves it back; it need not be moved in the fourth list.
    expected = [[6, 0, 5, 1, 2], [6, 5, 0, 1], [0, 1, 2], [6, 5, 0], []]
    assert shown(stage(ask(*[[]] * 5), lists)) == expected
    # Moving 6 to the first position brings 5 from its slot, to which it returns.
    assert shown(stage(ask([]), listed([0, 1, 5, 6]))) == [[6, 0, 5, 1]]


@pytest.mark.parametrize(
    "keys, slots, message",
    [
        ([1, 2], [1], "2 promoted items have 1 slots"),
        ([1, 2], [3, 3], "slots must ascend"),
        ([1, 1], [1, 2], "none twice"),
        ([-1], [1], "keys from 0"),
        ([1], [0], "slots"),
    ],
)
def test_slots_that_do_not_fit(keys, slots, message):
    with pytest.raises(ValueError, match=message):
        PromotedSlots(np.array(keys), slots)


MERGES = [
    ReciprocalRank(),
    Quotas({"popular": 8}),
    WeightedSum(["popular"], np.ones((1, 1))),
]


def funnel_of(merge, *filters) -> Funnel:
    # All but 5 and 6, in the order of their keys.
    popular = Popularity(np.array([0, 1, 2, 3, 4, 7]), np.float32([6, 5, 4, 3, 2, 1]))
    return Funnel({"popular": Inlet(popular)}, merge, [Filters([Seen(), *filters])], pool=7)


@pytest.mark.parametrize("merge", MERGES, ids=lambda merge: merge.kind)
def test_a_whole_stack_shows_no_promoted_item_that_is_blocked(merge):
    blocked = Blocked.where(CATALOGUE, {"u1": {"genres": ["z"]}, "u2": {"item_id": "i6"}})
    config = RerankingConfig((("mmr", 0.0),), promoted=(("i6", 1), ("i5", 3)))
    funnel = with_reranking(funnel_of(merge, blocked), config, MODEL)
    kinds = ["filters", "mmr", "promoted_slots", "filters"]
    assert [stage.kind for stage in funnel.stages] == kinds
    # Nobody; who blocks all of genre z, which are 5 and 6; who blocks 6; who has seen 5.
    requests = ask([], [], [], [5], user_id=["", "u1", "u2", "u3"])
    expected = [[6, 0, 5, 1, 2], [0, 1, 2, 3, 4], [0, 1, 5, 2, 3], [6, 0, 1, 2, 3]]
    found = funnel(requests, 5)
    assert found.keys.tolist() == expected
    assert (found.columns["promoted_rank"][0] > 0).tolist() == [True, False, True, False, False]


def test_a_policy_at_the_end_takes_what_all_others_let_pass():
    policy = Filters([Blocked.of({"u1": [6]})])
    inlets = {"promoted": Inlet(Promoted(np.array([6])), keep=1)}
    stages = [Filters([Seen()]), PromotedSlots(np.array([6]), [1])]
    before, merge = funnel_of(ReciprocalRank()), ReciprocalRank(weights={"promoted": 0})
    requests = ask([], [], user_id=["u1", "u2"])
    for last, expected in (([], [6, 0, 1]), ([policy], [0, 1, 2])):
        funnel = Funnel(before.sources | inlets, merge, [*stages, *last])
        assert funnel(requests, 3).keys.tolist() == [expected, [6, 0, 1]]


def test_a_promoted_item_does_not_stand_before_others_by_being_promoted():
    for merge in MERGES:
        config = RerankingConfig(promoted=(("i6", 7),))
        found = with_reranking(funnel_of(merge), config, MODEL)(ask([]), 8)
        # A weighted sum gives the last item of a source 0, as it does to those not found.
        assert sorted(found.keys[0, :5]) == [0, 1, 2, 3, 4]


def test_choices_stand_in_their_order():
    config = RerankingConfig((("dpp", 0.3), ("calibration", 0.1)), 2, 5, 10, (("i6", 1),))
    funnel = with_reranking(funnel_of(ReciprocalRank()), config, MODEL)
    names = ["filters", "dpp", "calibration", "at_most", "promoted_slots", "filters"]
    assert [stage.kind for stage in funnel.stages] == names
    dpp, calibration, limits = funnel.stages[1:4]
    assert (dpp.weight, dpp.length, calibration.weight, calibration.length) == (0.3, 10, 0.1, 10)
    assert limits.settings() == {"in_a_row": 2, "in_all": 5, "length": 10}
    plain = funnel_of(ReciprocalRank())
    plain.onboarding = np.array([3, 1])
    same = with_reranking(plain, RerankingConfig(), MODEL)
    assert same.stages == plain.stages and same.onboarding.tolist() == [3, 1]


@pytest.mark.parametrize(
    "choices, message",
    [
        ({"rerank": (("ddp", 0.3),)}, "rerank takes mmr, .*; got 'ddp'"),
        ({"rerank": (("dpp", float("nan")),)}, "weight must lie within"),
        ({"length": 0}, "length must be 1"),
        ({"max_in_a_row": -1}, "max_in_a_row must be 0"),
        ({"promoted": (("a", 2), ("b", 1))}, "slots must ascend"),
    ],
)
def test_choices_that_mean_nothing(choices, message):
    with pytest.raises(ValueError, match=message):
        RerankingConfig(**choices)


def test_promoted_items_that_are_unknown_or_that_the_model_does_not_answer():
    unknown = RerankingConfig(promoted=(("i99", 1),))
    with pytest.raises(ValueError, match=r"items \['i99'\] are not in the catalogue"):
        with_reranking(funnel_of(ReciprocalRank()), unknown, MODEL)
    lacking = type(MODEL)(**{**vars(MODEL), "keys": np.arange(6)})
    with pytest.raises(ValueError, match=r"no vectors of the promoted items \['i6'\]"):
        with_reranking(funnel_of(ReciprocalRank()), RerankingConfig(promoted=(("i6", 1),)), lacking)


def test_choices_from_flags():
    assert parse_rerank(["dpp:0.3", "mmr:1"]) == (("dpp", 0.3), ("mmr", 1.0))
    assert parse_promoted(["260@1", "a@b@12"]) == (("260", 1), ("a@b", 12))
    for wrong in ("dpp", "dpp:", "dpp:nan", "dpp:-1", "dpp:1.2.3"):
        with pytest.raises(ValueError, match=r"such as dpp:0\.3"):
            parse_rerank([wrong])
    for wrong in ("260", "260@", "@1", "260@first"):
        with pytest.raises(ValueError, match="such as 260@1"):
            parse_promoted([wrong])


def test_mmr_at_no_weight_is_no_change():
    lists = listed([0, 1, 2, 3])
    assert shown(Mmr.of_tags(TAGS, 0)(ask([]), lists)) == [[0, 1, 2, 3]]
