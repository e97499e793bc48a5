"""What a new pair must show before it takes the place of the live one."""

import dataclasses

import numpy as np
import pytest
from two_trainings import CHECKS, NAN, NUM, TABLE, ask, index, items, pair, tower, wrong_rows

from twotower.live.index import LiveIndex, SwapRefused
from twotower.live.pair import Checks
from twotower.retrieval.backends.brute_force import BruteForceIndex
from twotower.retrieval.vectors import KeyedVectors


def crippled():
    class Crippled(BruteForceIndex):
        def _search(self, queries, k):
            return super()._search(-queries, k)

    return Crippled().build(np.arange(NUM), items("B")(np.arange(NUM)))


def changed(**fields):
    return dataclasses.replace(pair("B"), **fields)


def raises(inputs):
    raise KeyError("history")


# name -> (a pair with one fault, what the message says: measured and expected).
FAULTS = {
    "dim": (
        lambda: changed(query_tower=lambda inputs: TABLE[inputs["request"], :-1]),
        r"dim: the query tower gives \(3, 15\); the index expects \(3, 16\)",
    ),
    "rows": (lambda: changed(query_tower=lambda inputs: TABLE[:1]), r"gives \(1, 16\).*\(3, 16\)"),
    "nan": (
        lambda: changed(query_tower=lambda inputs: np.repeat(NAN, 3, 0)),
        "finite: 3 of 3 queries hold NaN or inf; expected 0",
    ),
    "raises": (lambda: changed(query_tower=raises), r"probe: KeyError\('history'\); expected"),
    "items": (
        lambda: changed(retriever=index("B", range(19))),
        "items: the index holds 19; expected 0.5 of the live 40, or more",
    ),
    "version": (
        lambda: changed(index_version="C"),
        "model version: the query tower is of 'B', the index of 'C'",
    ),
    "recall": (lambda: changed(retriever=crippled()), r"recall@5: 0\.0000 .*; expected 0\.95"),
    "empty": (lambda: changed(retriever=BruteForceIndex()), "items: the index holds 0; .*dim: "),
    "lost log": (lambda: changed(sequence=3), "replay: entries after 3 are not in the log"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_a_failed_check_keeps_the_old_pair(live, fault):
    make, match = FAULTS[fault]
    before = live.pair
    with pytest.raises(SwapRefused, match=match) as refused:
        live.swap(make())
    assert "the old one stays" in str(refused.value)
    assert len(refused.value.failed) == (2 if fault == "empty" else 1)
    assert live.pair is before and wrong_rows(live.search(ask([7]), 1), [7]) == 0
    live.swap(pair("B"))  # the same without the fault
    assert live.pair.model_version == "B"


def test_every_failed_check_is_named(live):
    with pytest.raises(SwapRefused) as refused:
        live.swap(
            changed(query_tower=raises, retriever=index("B", range(19)), index_version="C"),
            checks=dataclasses.replace(CHECKS, expected_items=20),
        )
    names = [line.split(":")[0] for line in refused.value.failed]
    assert names == ["model version", "items", "items", "probe"]
    assert "holds 19; expected exactly 20" in str(refused.value)


def test_the_bounds_of_the_checks(live):
    live.swap(pair("B", range(20)))  # half of 40
    strict = dataclasses.replace(CHECKS, expected_items=40)
    live.swap(pair("A"), checks=strict)
    assert live.pair.model_version == "A"
    with pytest.raises(SwapRefused, match="holds 41; expected exactly 40"):
        live.swap(pair("A", range(41)), checks=strict)
    with pytest.raises(SwapRefused, match=r"holds 30; expected 0\.9 of the live 40"):
        live.swap(pair("B", range(30)), checks=dataclasses.replace(CHECKS, min_items=0.9))


def test_recall_is_the_backends_own(live, backend):
    live.swap(pair("B", backend=backend))
    with pytest.raises(SwapRefused, match=r"recall@5: 1\.0000"):
        live.swap(pair("A", backend=backend), checks=dataclasses.replace(CHECKS, recall_target=1.1))


def test_equal_items_are_equal_answers_to_the_checks(live):
    """Ten copies of every item. The new index finds the last ones, an exact scan the first ones."""

    class LastOfEqual(BruteForceIndex):
        def _search(self, queries, k):
            flipped = KeyedVectors(self._store.built.keys, self._vectors[::-1], self.metric)
            positions, scores = flipped.best(queries, k)
            return len(self._vectors) - 1 - positions, scores

    vectors = np.tile(items("B")(np.arange(NUM)), (10, 1))
    new = LastOfEqual().build(np.arange(10 * NUM), vectors)
    exact = new.search_built(tower("B")(ask([3])), 5, exact=True)
    assert exact.keys.tolist() == [[3, 43, 83, 123, 163]]
    found = new.search_built(tower("B")(ask([3])), 5)
    assert found.keys.tolist() == [[203, 243, 283, 323, 363]]
    live.swap(changed(retriever=new), checks=dataclasses.replace(CHECKS, recall_target=1))


def test_no_checks_no_swap(log):
    live = LiveIndex(pair(), log)
    with pytest.raises(ValueError, match="a swap needs Checks"):
        live.swap(pair("B"))
    live.swap(pair("B"), checks=CHECKS)
    assert live.pair.model_version == "B"
    for empty in ({}, ask([])):
        with pytest.raises(ValueError, match="one request or more"):
            Checks(empty)
