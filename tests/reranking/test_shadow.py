"""A shadow stage: it sees real requests, and nothing of it is seen."""

import threading

import numpy as np
import pandas as pd
import pytest

from twotower.data.catalogue import Catalogue
from twotower.data.requests import Requests
from twotower.funnel import saving
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import ReciprocalRank
from twotower.funnel.sources.popularity import Popularity
from twotower.funnel.stage import Stage
from twotower.reranking.shadow import Shadow
from twotower.retrieval.candidates import Candidates

CATALOGUE = Catalogue(pd.DataFrame({"item_id": ["a", "b", "c"]}))
REQUESTS = Requests.of(CATALOGUE, [["c"]])
GIVEN = Candidates.rank(np.array([[0, 1, 2]]), np.float32([[3, 2, 1]]), k=3)


class Doing(Stage):
    """Does what `action` does."""

    kind = "doing"

    def __init__(self, action) -> None:
        self.action = action

    def __call__(self, requests: Requests, candidates: Candidates) -> Candidates:
        return self.action(requests, candidates)


def spoil(requests: Requests, candidates: Candidates) -> Candidates:
    """Writes into all that it is given."""
    candidates.keys[:] = 2
    candidates.scores[:] = 0
    candidates.counts[:] = 1
    requests.history.values[:] = 0
    return candidates


@pytest.fixture
def records() -> list:
    return []


def test_what_it_finds_is_recorded_and_not_shown(records):
    shadow = Shadow(Doing(spoil), lambda *record: records.append(record))
    answer = shadow(REQUESTS, GIVEN)
    assert answer is GIVEN and shadow.wait(10)
    ((_, shown, found),) = records
    assert answer.keys.tolist() == shown.keys.tolist() == [[0, 1, 2]]
    assert answer.counts.tolist() == [3] and answer.scores.tolist() == [[3, 2, 1]]
    assert found.keys.tolist() == [[2, 2, 2]] and REQUESTS.history.values.tolist() == [2]
    assert (shadow.failed, shadow.left_out) == (0, 0)


def test_its_failures_are_counted_and_break_nothing(records):
    def fail(*_):
        raise RuntimeError("no such feature")

    for stage, record in ((Doing(fail), records.append), (Doing(spoil), fail)):
        shadow = Shadow(stage, record)
        popular = Popularity(np.arange(3), np.float32([3, 2, 1]))
        funnel = Funnel({"popular": Inlet(popular)}, ReciprocalRank(), [shadow])
        for _ in range(3):
            assert funnel(REQUESTS, 2).keys.tolist() == [[0, 1]]  # c was seen
        assert shadow.wait(10) and shadow.failed == 3
        shadow.close()
        assert shadow(REQUESTS, GIVEN) is GIVEN and shadow.failed == 4
    assert not records


def test_one_that_hangs_keeps_nobody_waiting(records):
    go = threading.Event()

    def hang(requests, candidates):
        go.wait(10)
        return candidates

    shadow = Shadow(Doing(hang), lambda *record: records.append(record), backlog=2)
    for _ in range(5):
        assert shadow(REQUESTS, GIVEN) is GIVEN
    assert shadow.left_out == 3 and not shadow.wait(0.01) and not records
    go.set()
    assert shadow.wait(10) and len(records) == 2


def test_it_is_not_saved(tmp_path):
    funnel = Funnel(
        {"popular": Inlet(Popularity(np.arange(3), np.float32([3, 2, 1])))},
        ReciprocalRank(),
        [Shadow(Doing(spoil), print)],
    )
    with pytest.raises(ValueError, match="Shadow cannot be saved"):
        saving.save(funnel, tmp_path / "f", "m")
