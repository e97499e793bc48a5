"""A funnel as a whole: what is found is merged and filtered, and some things it never lets through,
whatever is put together."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from made_up_parts import CATALOGUE, NUM_ITEMS, Always, Backwards, ask

from twotower.funnel.filters import Available, Blocked, Filters, Seen, Shown
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Quotas, ReciprocalRank, WeightedSum
from twotower.funnel.pool import sources_of


def test_sources_are_merged_and_every_item_says_who_found_it():
    funnel = Funnel(
        {"a": Inlet(Always(5, 3, 1)), "b": Inlet(Always(3, 7), k=1)},
        ReciprocalRank(constant=1),
        [Filters([Seen()])],
    )
    answer = funnel.recommend(ask([], [3]), k=2)
    found = answer.candidates
    # 3: 1/3 + 1/2, 5: 1/2, 1: 1/4; 7 was not asked for. The second request has seen 3.
    assert found.keys.tolist() == [[3, 5], [5, 1]]
    assert found.scores[0].tolist() == pytest.approx([5 / 6, 1 / 2])
    assert found.columns["a_rank"].tolist() == [[2, 1], [1, 3]]
    assert found.columns["b_rank"].tolist() == [[1, 0], [0, 0]]
    assert found.columns["a_score"].tolist() == [[-1, 0], [0, -2]]
    assert np.isnan(found.columns["b_score"]).tolist() == [[False, True], [True, True]]
    assert sources_of(found) == ("a", "b") and answer.missing == {} and answer.fallback == 0
    assert [step.name for step in answer.steps] == ["a", "b", "merge", "filters"]
    assert answer.steps[-1].lost == {"seen": 1}


def test_repeats_count_once_with_the_best_rank():
    funnel = Funnel({"a": Inlet(Always(5, 3, 5, 5))}, ReciprocalRank(constant=0))
    found = funnel(ask([]), 4)
    assert found.keys.tolist() == [[5, 3, -1, -1]]
    assert found.scores[0, :2].tolist() == [1, 0.5]


def test_where_nothing_is_left_the_fallback_goes_deeper():
    everything = Always(*range(NUM_ITEMS))
    rules = Filters([Seen(), Available(np.array([2, 11]))])
    sources = {"few": Inlet(Always(2, 1)), "all": Inlet(everything, k=2)}
    funnel = Funnel(sources, ReciprocalRank(), [rules], fallback="all")
    answer = funnel.recommend(ask([], [2], [2, 11]), k=2)
    # The second request has only 11 left, the twelfth of `all`; the third nothing at all.
    assert answer.candidates.keys.tolist() == [[2, -1], [11, -1], [-1, -1]]
    assert answer.candidates.columns["all_rank"][1, 0] == 12
    assert answer.fallback == 2
    bare = Funnel(sources, ReciprocalRank(), [rules]).recommend(ask([2]), k=2)
    assert bare.candidates.counts.tolist() == [0] and bare.fallback == 0


def test_a_filter_that_is_not_strict_lets_pass_whom_it_would_empty():
    shown = Shown.count(["u", "u", "u", "v"], np.array([5, 5, 3, 5]), at_least=2)
    both = Shown.count(["w"] * 4, np.array([5, 3, 5, 3]), at_least=2)
    for some, user, keys, relaxed in (
        (shown, "u", [3, -1], {}),
        (shown, "v", [5, 3], {}),
        (both, "w", [5, 3], {"shown": 1}),
    ):
        funnel = Funnel({"a": Inlet(Always(5, 3))}, ReciprocalRank(), [Filters([some])])
        answer = funnel.recommend(ask([], user_id=[user]), k=2)
        assert answer.candidates.keys.tolist() == [keys] and answer.relaxed == relaxed


def test_nothing_in_nothing_out():
    funnel = Funnel({"a": Inlet(Always())}, WeightedSum(["a"], [[1.0]]), fallback="a")
    answer = funnel.recommend(ask([], [1]), k=3)
    assert answer.candidates.counts.tolist() == [0, 0] and answer.fallback == 2
    assert len(funnel(ask(), 3)) == 0


@pytest.mark.parametrize(
    "make, message",
    [
        (lambda a: Funnel({}, ReciprocalRank()), "one at least"),
        (lambda a: Funnel({"a b": a}, ReciprocalRank()), "identifiers"),
        (lambda a: Funnel({"a": a}, ReciprocalRank(), fallback="b"), "none of the sources"),
        (lambda a: Funnel({"a": a}, ReciprocalRank(), pool=0), "pool must be"),
        (lambda a: Funnel({"a": a}, ReciprocalRank())(ask([]), 0), "k must be"),
        (lambda a: Quotas({"a": 0}), "positive"),
        (lambda a: ReciprocalRank(-1), "0 or more"),
        (lambda a: WeightedSum(["a"], [[1, 2]]), r"\[1, 1\].*got \(1, 2\)"),
        (lambda a: WeightedSum(["a"], [[1], [1]], [0, 0]), "ascend"),
        (lambda a: Funnel({"a": a}, Quotas({"a": 1, "b": 1})), r"for \['b'\], which are none"),
        (lambda a: Funnel({"a": a}, ReciprocalRank(weights={"b": 1})), r"for \['b'\]"),
        (lambda a: Funnel({"a": a}, WeightedSum(["a", "b"], [[1, 1]])), r"for \['b'\]"),
    ],
)
def test_mistakes_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make(Inlet(Always(1)))


KEYS = st.lists(st.integers(0, NUM_ITEMS + 3), max_size=8)  # repeats and unknown keys among them


@settings(max_examples=60, deadline=None)
@given(
    sources=st.lists(KEYS, min_size=1, max_size=4),
    histories=st.lists(
        st.lists(st.integers(0, NUM_ITEMS - 1), max_size=6, unique=True), max_size=4
    ),
    merge=st.sampled_from(["reciprocal", "quotas", "sum"]),
    blocked=KEYS,
    backwards=st.booleans(),
    fallback=st.booleans(),
    pool=st.integers(1, 9),
    k=st.integers(1, 9),
)
def test_whatever_is_put_together(sources, histories, merge, blocked, backwards, fallback, pool, k):
    inlets = {f"s{i}": Inlet(Always(*keys)) for i, keys in enumerate(sources)}
    made = {
        "reciprocal": ReciprocalRank(),
        "quotas": Quotas({name: i + 1 for i, name in enumerate(inlets)}),
        "sum": WeightedSum([*inlets], np.ones((1, len(inlets)))),
    }[merge]
    rules = Filters([Available(CATALOGUE.keys), Seen(), Blocked.of({"u": blocked})])
    stages = [Backwards(), rules] if backwards else [rules]
    funnel = Funnel(inlets, made, stages, pool, fallback="s0" if fallback else "")
    requests = ask(*histories, user_id=["u", "", "u", "v"][: len(histories)])
    found = funnel.recommend(requests, k).candidates
    assert found.keys.shape[0] == len(histories) and found.keys.shape[1] <= max(k, 1)
    for row, history in enumerate(histories):
        keys = found.keys[row, : found.counts[row]].tolist()
        assert len(set(keys)) == len(keys) <= k
        forbidden = {*history, *(blocked if requests.user_id[row] == "u" else ())}
        assert not forbidden & set(keys) and set(keys) <= set(range(NUM_ITEMS))
        for column, key in enumerate(keys):
            ranks = [found.columns[f"{name}_rank"][row, column] for name in inlets]
            # True provenance: the rank of the item's first mention, and at least one source.
            mentions = [some.index(key) + 1 if key in some else 0 for some in sources]
            alone = [mentions[0], *[0] * (len(sources) - 1)]  # what the fallback found
            assert any(ranks) and ranks in ([mentions, alone] if fallback else [mentions])
    funnel.close()


def test_other_parts_leave_the_funnel_as_it_was():
    funnel = Funnel({"a": Inlet(Always(5, 3))}, ReciprocalRank(), [Filters([Seen()])])
    other = funnel.with_parts({"a": Inlet(Always(7))}, [])
    assert other.recommend(ask([7]), 1).candidates.keys.tolist() == [[7]]
    assert funnel.recommend(ask([]), 1).candidates.keys.tolist() == [[5]] and funnel.stages
    with pytest.raises(ValueError, match="expected parts for"):
        funnel.with_parts({"b": Inlet(Always(7))}, [])
    funnel.close()
    with pytest.raises(RuntimeError, match="closed"):
        other.recommend(ask([]), 1, deadlines=True)
