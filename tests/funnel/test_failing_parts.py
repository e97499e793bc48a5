"""Sources that are late, fail or answer badly are left out and named, as re-rankers are; a filter
that fails lets nothing pass."""

import dataclasses
import threading
import time

import numpy as np
import pytest
from made_up_parts import Always, Backwards, Broken, ask

from twotower.data.requests import Requests
from twotower.funnel.filters import Available, Filter, Filters, Seen
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.stage import Stage
from twotower.retrieval.candidates import Candidates


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


@pytest.mark.parametrize("deadline", [None, 20.0])
def test_a_source_whose_own_time_is_out_is_not_said_to_be_late(deadline):
    def fail(requests, k):
        raise TimeoutError("the index does not answer")

    sources = {"good": Inlet(Always(5)), "slow": Inlet(Broken(fail), deadline=deadline)}
    found = Funnel(sources, ReciprocalRank()).recommend(ask([]), k=1)
    assert found.missing == {"slow": "TimeoutError: the index does not answer"}


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


def test_a_source_that_returns_more_than_it_is_asked_for_is_cut():
    sources = {
        "long": Inlet(Broken(lambda r, k: Always(1, 2, 3, 4)(r, 4)), k=2),
        "short": Inlet(Always(5)),
    }
    answer = Funnel(sources, ReciprocalRank()).recommend(ask([]), k=9)
    assert answer.steps[0].candidates.keys.tolist() == [[1, 2]] and answer.missing == {}
    assert answer.candidates.keys[0].tolist() == [1, 5, 2, -1, -1, -1, -1, -1, -1]


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


class Marks(Stage):
    """Adds a column, and raises for a single request, as the fallback gets it below."""

    kind = "marks"

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        if len(requests) == 1:
            raise OSError("no marks")
        marks = np.full(candidates.keys.shape, 7.0)
        return dataclasses.replace(candidates, columns={**candidates.columns, "mark": marks})


def test_a_stage_that_fails_only_for_the_fallback():
    stages = [Filters([Seen()]), Marks()]
    sources = {"few": Inlet(Always(3)), "all": Inlet(Always(3, 4), k=1)}
    funnel = Funnel(sources, ReciprocalRank(), stages, fallback="all")
    answer = funnel.recommend(ask([], [3]), 1)  # the second has seen what both sources find
    assert answer.candidates.keys.tolist() == [[3], [4]]
    assert answer.failed == {"marks": "OSError: no marks"} and answer.fallback == 1
    marks = answer.candidates.columns["mark"]
    assert marks[0, 0] == 7 and np.isnan(marks[1, 0])


@pytest.mark.parametrize("answer", [None, Candidates.empty(2, 1)])
def test_a_stage_that_returns_no_lists_for_the_requests_is_left_out(answer):
    class Wrong(Stage):
        kind = "wrong"

        def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
            return answer

    for stages in ([Wrong()], [Wrong(), Filters([Seen()])]):
        found = Funnel({"a": Inlet(Always(1))}, ReciprocalRank(), stages).recommend(ask([]), 1)
        assert found.candidates.keys.tolist() == [[1]] and list(found.failed) == ["wrong"]


def test_a_filter_that_fails_lets_nothing_pass():
    for fallback in ("", "a"):
        funnel = Funnel(
            {"a": Inlet(Always(1, 2))}, ReciprocalRank(), [Filters([Judge()])], fallback=fallback
        )
        with pytest.raises(RuntimeError, match=r"the stage filters failed\. OSError: no rules"):
            funnel.recommend(ask([]), 2)
