"""A funnel as a whole: what it does with sources that are late, fail or answer badly, and what it
never lets through, whatever is put together."""

import threading
import time

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.funnel.filters import Available, Blocked, Filter, Filters, Seen, Shown
from twotower.funnel.funnel import Funnel, Inlet, NoSourceError
from twotower.funnel.merge import Quotas, ReciprocalRank, WeightedSum
from twotower.funnel.pool import sources_of
from twotower.funnel.stage import Source, Stage
from twotower.retrieval.candidates import Candidates

NUM_ITEMS = 12
CATALOGUE = Catalogue(pd.DataFrame({"item_id": [f"i{key}" for key in range(NUM_ITEMS)]}))


class Always(Source):
    """Answers the same keys to all, best first, whatever they exclude."""

    kind = "always"

    def __init__(self, *keys: int) -> None:
        self.keys = np.array(keys, np.int64)

    def __call__(self, requests: Requests, k: int) -> Candidates:
        keys = np.broadcast_to(self.keys[:k], (len(requests), len(self.keys[:k]))).copy()
        scores = -np.arange(keys.shape[1], dtype=np.float32)
        counts = np.full(len(keys), keys.shape[1])
        return Candidates(keys, np.broadcast_to(scores, keys.shape).copy(), counts)


class Broken(Source):
    """Does what `fault` does."""

    kind = "broken"

    def __init__(self, fault) -> None:
        self.fault = fault

    def __call__(self, requests: Requests, k: int) -> Candidates:
        return self.fault(requests, k)


def ask(*histories, **more) -> Requests:
    return Requests.of(CATALOGUE, [[f"i{key}" for key in keys] for keys in histories], **more)


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


def test_a_late_source_costs_its_deadline_and_a_failing_one_nothing():
    gate = threading.Event()

    def wait(requests, k):
        gate.wait(20)
        return Always(9)(requests, k)

    def fail(requests, k):
        raise OSError("no connection")

    sources = {
        "good": Inlet(Always(5, 3)),
        "late": Inlet(Broken(wait), deadline=0.05),
        "dead": Inlet(Broken(fail)),
    }
    funnel = Funnel(sources, ReciprocalRank())
    begun = time.perf_counter()
    answers = [funnel.recommend(ask([]), k=5) for _ in range(12)]  # more than it has threads
    assert time.perf_counter() - begun < 10  # and not 12 times 20 s
    for answer in answers:
        assert answer.candidates.keys.tolist() == [[5, 3, -1, -1, -1]]
        assert answer.missing == {
            "late": "not within its deadline of 50 ms",
            "dead": "OSError: no connection",
        }
        assert answer.candidates.columns["late_rank"].tolist() == [[0] * 5]
    gate.set()
    while "late" in funnel.recommend(ask([]), k=5).missing:  # its threads come back
        assert time.perf_counter() - begun < 30
    assert set(funnel(ask([]), 5).keys[0]) == {5, 3, 9, -1}
    funnel.close()


@pytest.mark.parametrize(
    "answer, message",
    [
        (lambda r, k: Candidates.empty(len(r) + 1, k), "answered 2 of 1 requests"),
        (lambda r, k: np.array([[1]]), "AttributeError"),
        (
            lambda r, k: Candidates(np.array([[1, 2]]), np.float32([[1, 2]]), np.array([2])),
            "must descend",
        ),
        (
            lambda r, k: Candidates(np.array([[1]]), np.float32([[np.nan]]), np.array([1])),
            "without NaN",
        ),
        (
            lambda r, k: Candidates(np.array([[-3]]), np.float32([[1]]), np.array([1])),
            "negative key",
        ),
    ],
)
def test_an_answer_that_breaks_the_rules_is_left_out(answer, message):
    funnel = Funnel({"bad": Inlet(Broken(answer)), "good": Inlet(Always(4))}, ReciprocalRank())
    found = funnel.recommend(ask([]), k=1)
    assert found.candidates.keys.tolist() == [[4]] and message in found.missing["bad"]
    alone = Funnel({"bad": Inlet(Broken(answer))}, ReciprocalRank())
    with pytest.raises(RuntimeError, match=r"no source of this funnel answered\. bad: "):
        alone.recommend(ask([]), k=1)


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


class Backwards(Stage):
    """Turns lists round, as a re-ranker might."""

    kind = "backwards"

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        return Candidates.rank(
            candidates.keys,
            np.where(candidates.valid, -candidates.scores, -np.inf),
            candidates.keys.shape[1],
            candidates.columns,
        )


class Fault(Stage):
    """Raises."""

    kind = "fault"

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        raise KeyError("no such column")


class Judge(Filter):
    """A filter that raises."""

    kind = "judge"

    def keep(self, requests: Requests, candidates: Candidates) -> np.ndarray:
        raise OSError("no rules")


def test_a_re_ranker_that_fails_is_left_out_and_named():
    stages = [Fault(), Filters([Available(np.array([1, 2]))]), Backwards()]
    funnel = Funnel({"a": Inlet(Always(1, 2, 3))}, ReciprocalRank(), stages)
    answer = funnel.recommend(ask([]), 3)
    assert answer.candidates.keys[0, :2].tolist() == [2, 1]  # the stages after it did their work
    assert answer.failed == {"fault": "KeyError: 'no such column'"} and answer.missing == {}
    assert [step.name for step in answer.steps][2:] == ["fault", "filters", "backwards"]
    with pytest.raises(RuntimeError, match="fault: KeyError"):  # no figure without a stage
        funnel(ask([]), 3)


def test_a_filter_that_fails_lets_nothing_pass():
    for fallback in ("", "a"):
        funnel = Funnel(
            {"a": Inlet(Always(1, 2))}, ReciprocalRank(), [Filters([Judge()])], fallback=fallback
        )
        with pytest.raises(RuntimeError, match=r"the stage filters failed\. OSError: no rules"):
            funnel.recommend(ask([]), 2)


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


class Counted(Always):
    """Notes how many candidates it is asked for, and in which thread."""

    def __call__(self, requests: Requests, k: int) -> Candidates:
        self.asked, self.thread = k, threading.current_thread()
        return super().__call__(requests, k)


def test_a_source_without_k_is_asked_for_as_many_as_the_list_has():
    source, other = Counted(*range(NUM_ITEMS)), Counted(1)
    funnel = Funnel({"a": Inlet(source, k=None), "b": Inlet(other)}, ReciprocalRank(), pool=7)
    assert funnel.recommend(ask([]), k=3).candidates.keys.shape == (1, 3)
    assert (source.asked, other.asked) == (3, 500)
    assert len(funnel.find(ask([]))[0].candidates.keys[0]) == 7  # no list: the pool
    assert len(funnel.find(ask([]), 4)[0].candidates.keys[0]) == 4


def test_only_the_named_sources_are_asked():
    sources = {"a": Inlet(Counted(5, 3)), "b": Inlet(Counted(7, 3)), "c": Inlet(Counted(9))}
    funnel = Funnel(sources, ReciprocalRank(), [Filters([Seen()])], fallback="c")
    answer = funnel.recommend(ask([]), 5, sources=["b"])
    assert answer.candidates.keys[0].tolist()[:2] == [7, 3] and answer.candidates.counts[0] == 2
    assert [hasattr(sources[name].source, "asked") for name in "abc"] == [False, True, False]
    # Every source has its columns, so that a ranker need not ask who was there.
    assert answer.candidates.columns["a_rank"][0, :2].tolist() == [0, 0] and not answer.missing
    # Nothing is left of what the source found: the fallback answers in any case.
    assert funnel.recommend(ask([7, 3]), 5, sources=["b"]).candidates.keys[0, 0] == 9
    # So it does if the named source fails.
    funnel.sources["b"] = Inlet(Broken(lambda requests, k: 1 / 0))
    answer = funnel.recommend(ask([]), 5, sources=["b"])
    assert answer.candidates.keys[0, 0] == 9 and "ZeroDivisionError" in answer.missing["b"]
    funnel.sources["c"] = funnel.sources["b"]
    with pytest.raises(NoSourceError, match="b: ZeroDivisionError"):
        funnel.recommend(ask([]), 5, sources=["b"])
    with pytest.raises(ValueError, match=r"some of \['a', 'b', 'c'\]; got \['d'\]"):
        funnel.recommend(ask([]), 5, sources=["d", "a"])


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


def test_what_was_found_gives_the_same_answer_and_asks_nobody():
    source = Counted(*range(NUM_ITEMS))
    sources = {"a": Inlet(source, k=4), "b": Inlet(Always(7, 2))}
    funnel = Funnel(sources, ReciprocalRank(), [Filters([Seen()])], fallback="a")
    requests = ask([], [3])
    found = funnel.find(requests)
    source.asked = 0
    answer, again = funnel.answer(requests, found, 5), funnel.recommend(requests, 5)
    assert source.asked == 4  # by `recommend`
    assert answer.candidates.keys.tolist() == again.candidates.keys.tolist()
    assert [step.name for step in answer.steps] == ["a", "b", "merge", "filters"]
    source.asked = 0
    assert funnel.answer(requests, found[1:], 2).candidates.keys.tolist() == [[7, 2], [7, 2]]
    assert source.asked == 0
    # Of what was found nothing is left for the second: the fallback is asked.
    assert funnel.answer(ask([], [7, 2]), found[1:], 1).candidates.keys.tolist() == [[7], [0]]
    assert source.asked > NUM_ITEMS
    with pytest.raises(ValueError, match=r"candidates of 1 requests; got {'a': 2, 'b': 2}"):
        funnel.answer(ask([]), found, 5)


def test_one_source_that_is_waited_for_answers_in_the_thread_of_the_caller():
    sources = {name: Counted(1) for name in ("a", "b", "c")}
    inlets = {name: Inlet(source) for name, source in sources.items()}
    inlets["c"] = Inlet(sources["c"], deadline=20)
    funnel = Funnel(inlets, ReciprocalRank())
    here = threading.current_thread()
    funnel.recommend(ask([]), k=1)
    assert [source.thread is here for source in sources.values()] == [False, True, False]
    funnel.recommend(ask([]), k=1, deadlines=False)
    assert [source.thread is here for source in sources.values()] == [False, False, True]
    funnel.close()
    with pytest.raises(RuntimeError, match="closed"):
        funnel.recommend(ask([]), k=1)
