"""Which sources a funnel asks, for how many candidates, and in which thread."""

import threading

import pytest
from made_up_parts import NUM_ITEMS, Always, Broken, Counted, ask

from twotower.funnel.answer import NoSourceError
from twotower.funnel.filters import Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank


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
