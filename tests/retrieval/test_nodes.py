"""Nodes: vectors as good as equal share one, and an answer holds all vectors of a node."""

import numpy as np
import pytest

from twotower.retrieval.backends.nodes import Nodes, first_equal, rounded

INF = float("inf")
ROWS = np.float32([[1, 2], [3, 4], [1, 2], [5, 6], [3, 4], [1, 2]])


def test_first_equal():
    # Rows 0, 2 and 5 are (1, 2), rows 1 and 4 are (3, 4), row 3 stands alone.
    assert first_equal(ROWS).tolist() == [0, 1, 0, 3, 1, 0]
    # Swapped components and other signs are other vectors; the two zeros are one number.
    rows = np.float32([[1, 2], [2, 1], [-1, 2], [0.0, 1], [-0.0, 1], [0, 0], [-0.0, 0.0]])
    assert first_equal(rows).tolist() == [0, 1, 2, 3, 3, 5, 5]


def test_a_grid_for_each_vector():
    # The largest component of (3, 4) is in [4, 8), so its grid has steps of 8 / 2**15 = .000244:
    # .0001 is rounded away and .0004 is not. A vector a million times smaller has a finer grid.
    near, far = [3.0001, 4], [3.0004, 4]
    assert first_equal(np.float32([[3, 4], near, far])).tolist() == [0, 0, 2]
    assert first_equal(np.float32([[3, 4], near, far]) / 2**20).tolist() == [0, 0, 2]
    assert first_equal(np.float32([[3, 4], [3e-6, 4e-6], [1e-45, 0], [0, 0]])).tolist()[:2] == [
        0,
        1,
    ]
    assert np.isfinite(rounded(np.float32([[1e-45, 0], [1e38, -1e38], [0, 0]]))).all()
    tiny = np.float32([[1e-45, 0], [1e-40, 3e-39]])
    assert np.allclose(rounded(tiny), tiny, rtol=0, atol=2**-126)


@pytest.mark.parametrize("noise", ["last bits", "lengths", "1e-6"])
def test_few_nodes_where_copies_differ_by_rounding(noise):
    rng = np.random.default_rng(0)
    copies = np.repeat(rng.normal(size=(50, 32)), 65, axis=0)
    if noise == "lengths":  # as under cosine: the same directions, divided by other lengths
        vectors = (copies * rng.uniform(0.1, 10, size=(len(copies), 1))).astype(np.float32)
        vectors /= np.linalg.norm(vectors, axis=1, keepdims=True)
    else:
        size = 1e-6 if noise == "1e-6" else 2.0**-24
        vectors = (copies * (1 + size * rng.normal(size=copies.shape))).astype(np.float32)
    assert len(np.unique(vectors, axis=0)) > 3000
    nodes = Nodes.of(vectors)
    assert 50 <= len(nodes) <= (500 if noise == "1e-6" else 100)
    # A node's vectors are copies of one original.
    assert all(
        len(set(np.flatnonzero(nodes.of_position == n) // 65)) == 1 for n in range(len(nodes))
    )


def test_numbered_as_they_come():
    nodes = Nodes.of(ROWS)
    assert nodes.of_position.tolist() == [0, 1, 0, 2, 1, 0]
    assert len(nodes) == 3 and nodes.has_copies
    # The first copy of each node; a last -1 for "none".
    assert nodes.first.tolist() == [0, 1, 3, -1]
    assert not Nodes.of(ROWS[:2]).has_copies


def test_appended():
    # Two nodes, (1, 2) and (3, 4); then (3, 4) joins node 1, and (5, 6) twice is node 2.
    rows = np.float32([[1, 2], [3, 4], [3, 4], [5, 6], [5, 6]])
    nodes = Nodes.of(rows[:2]).appended(rows)
    assert nodes.of_position.tolist() == [0, 1, 1, 2, 2]
    # Where equal vectors have nodes of their own, as in an index of before, they keep them.
    assert Nodes(np.array([1, 0, 2])).appended(rows).of_position.tolist() == [1, 0, 2, 3, 3]


def test_answers_hold_all_copies():
    nodes = Nodes.of(ROWS)
    # Found: node of row 1 (rows 1, 4) before that of row 0 (rows 0, 2, 5); then the other way.
    first, scores = np.array([[1, 0], [0, 1]]), np.float32([[9, 8], [7, 6]])
    positions, expanded = nodes.expanded(first, scores, 4)
    assert positions.tolist() == [[1, 4, 0, 2], [0, 2, 5, 1]]
    assert expanded.tolist() == [[9, 9, 8, 8], [7, 7, 7, 6]]
    # "None found" (-1) has no copies, and what is missing stands behind.
    positions, expanded = nodes.expanded(np.array([[3, -1]]), np.float32([[5, 4]]), 3)
    assert positions.tolist() == [[3, -1, -1]] and expanded.tolist() == [[5, -INF, -INF]]


def test_numbers_that_are_refused():
    for wrong in ([0, 2], [-1, 0], [[0, 1]], [0.0, 1.0]):
        with pytest.raises(ValueError, match=r"0, 1, 2, \.\.\. without a gap"):
            Nodes(np.array(wrong))
