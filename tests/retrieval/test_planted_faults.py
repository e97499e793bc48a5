"""Faults that are planted in an index, each of which a random program must find."""

import dataclasses

import numpy as np
import pytest
from backends import needs
from index_programs import PARAMETERS, long_program
from index_twins import make
from oracle import INF

from twotower.retrieval.candidates import Candidates
from twotower.retrieval.store import Store


def forgets_tombstones(index, monkeypatch):
    is_allowed = Store.is_allowed

    def with_removed(store, allow):
        return is_allowed(dataclasses.replace(store, removed=np.zeros_like(store.removed)), allow)

    monkeypatch.setattr(Store, "is_allowed", with_removed)
    monkeypatch.setattr(Store, "count_allowed", lambda store, is_allowed: len(store.built))


def keeps_old_vectors(index, monkeypatch):
    add = index.add

    def add_unknown(keys, vectors):
        new = ~index.knows(keys)
        add(keys[new], vectors[new])

    index.add = add_unknown


def changes_answers(change):
    def fault(index, monkeypatch):
        search = index.search

        def changed(*args, **kwargs):
            found = search(*args, **kwargs)
            keys, scores = change(found.keys.copy(), found.scores.copy())
            return Candidates(keys, scores, (keys >= 0).sum(1))

        index.search = changed

    return fault


def twice(keys, scores):
    keys[:, 1:2] = np.where(keys[:, 1:2] < 0, -1, keys[:, :1])
    return keys, scores


def one_percent(keys, scores):
    return keys, np.where(np.isfinite(scores), 1.01 * scores, scores)


def drops_the_last(keys, scores):
    full = keys[:, -1] >= 0
    keys[full, -1], scores[full, -1] = -1, -INF
    return keys, scores


def ignores_exclusions_in_batches(index, monkeypatch):
    search = index.search

    def ignoring(queries, k, exclude=None, allow=None):
        return search(queries, k, exclude if len(queries) == 1 else None, allow)

    index.search = ignoring


def loses_one_in_absorb(index, monkeypatch):
    absorb = index.absorb

    def losing():
        if len(index.state()["fresh_keys"]):
            index.remove(index.state()["fresh_keys"][-1:])
        return absorb()

    index.absorb = losing


FAULTS = [
    (forgets_tombstones, "a removed key"),
    (keeps_old_vectors, "other scores|not the best"),
    (changes_answers(twice), "a key stands twice"),
    (changes_answers(one_percent), "other scores"),
    (changes_answers(drops_the_last), "a short row"),
    (ignores_exclusions_in_batches, "an excluded key"),
    (loses_one_in_absorb, "the backend lost"),
]


@pytest.mark.parametrize("backend", ["exact", "ivf", "hnsw"])
@pytest.mark.parametrize(("fault", "message"), FAULTS)
def test_faults_are_found(fault, message, backend, monkeypatch):
    index = make(needs(backend), "dot", PARAMETERS.get(backend))
    fault(index, monkeypatch)
    with pytest.raises(AssertionError, match=message):
        # Without going to disk, which would make another index.
        long_program(index, 400, seed=1, events=[("absorb",)])
