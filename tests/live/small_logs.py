"""Logs of a few entries, and what they hold."""

import numpy as np
import pytest

from twotower.live.entries import ADD
from twotower.live.log import WriteAheadLog


def numbers(log, since=0):
    return [entry.sequence for entry in log.since(since)]


def last(log):
    return max([log.truncated, *numbers(log, log.truncated)])


def entries(log):
    return [(entry.op, entry.keys.tolist()) for entry in log.since(log.truncated)]


def fill(log, count):
    """Entry n adds key n with the vector (n, -n)."""
    for number in range(last(log) + 1, last(log) + 1 + count):
        log.append(ADD, "A", np.array([number]), np.array([[number, -number]]))


def refused(path, match):
    with pytest.raises(ValueError, match=match) as caught:
        WriteAheadLog(path)
    assert str(path.parent) in str(caught.value)
