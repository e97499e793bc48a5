"""Cases: rows that are taken, batches, and columns of unequal length."""

import dataclasses

import numpy as np
import pytest
from small_splits import SMALL, dataset_of, rows_of

from twotower.data.splits import make_split
from twotower.ragged import Ragged


def test_cases_take_and_batches():
    cases = make_split(dataset_of(SMALL, device=list("abcdefghi")), "loo+time", "test").cases
    swapped = cases.take([1, 0])
    assert rows_of(swapped) == rows_of(cases)[::-1]
    assert swapped.time.tolist() == [15, 30]
    assert swapped.context["device"].tolist() == cases.context["device"].tolist()[::-1]
    assert swapped.exclude is swapped.history  # one column in memory, as before
    assert rows_of(cases.take(np.array([False, True]))) == rows_of(cases)[1:]
    assert [len(part) for part in cases.batches(1)] == [1, 1]
    assert len(cases.take(np.arange(0))) == 0


def test_cases_of_unequal_columns():
    cases = make_split(dataset_of(SMALL), "loo", "test").cases
    with pytest.raises(ValueError, match="time has 1 rows for 2 requests"):
        dataclasses.replace(cases, time=np.array([1]))
    with pytest.raises(ValueError, match="history_time must have the offsets of history"):
        dataclasses.replace(cases, history_time=Ragged.from_rows([[1], [1]]))
