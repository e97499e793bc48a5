"""Nodes: which node of a graph each vector has. Vectors that are as good as equal share a node."""

import functools

import numpy as np

from twotower.retrieval.candidates import NO_SCORE


class Nodes:
    """The nodes of a graph, numbered 0, 1, 2, ..., and the positions of each node's vectors.

    If each copy of a vector had a node, copies would be each other's nearest and link to each
    other alone: with 65 copies of each vector a search finds half of what it should, at any effort.
    So a graph links distinct vectors, and an answer holds all copies of each vector found. Copies
    are equal up to rounding (`rounded`), since the same content, computed in batches of other sizes
    or divided by its length, may differ in its last bits. They are answered with one score.

    Args:
        of_position: `[num_positions]` integers, the node of each vector.

    Attributes:
        of_position: The same as int32, which is how FAISS numbers nodes.
        first: `[num_nodes + 1]` int64, the position of each node's first vector. The last entry is
            -1, so that indexing turns the node -1 (nothing found) into the position -1.

    Raises:
        ValueError: Other shapes or types, or a node without a vector.

    >>> nodes = Nodes.of(np.float32([[1, 2], [3, 4], [1, 2]]))
    >>> nodes.of_position.tolist(), nodes.first.tolist()
    ([0, 1, 0], [0, 1, -1])
    """

    def __init__(self, of_position: np.ndarray) -> None:
        is_list = of_position.ndim == 1 and of_position.dtype.kind in "iu"
        nodes, first = np.unique(of_position, return_index=True)
        if not is_list or not np.array_equal(nodes, np.arange(len(nodes))):
            raise ValueError(
                "the nodes of vectors must be [num_positions] integers that are 0, 1, 2, ... "
                f"without a gap; got {of_position.shape} of {of_position.dtype}."
            )
        self.of_position = of_position.astype(np.int32, copy=False)
        self.first = np.append(first, -1)

    @classmethod
    def of(cls, vectors: np.ndarray) -> "Nodes":
        """A node for each distinct vector of `[num_positions, dim]`, in order of appearance."""
        return cls(np.unique(first_equal(vectors), return_inverse=True)[1])

    def appended(self, vectors: np.ndarray) -> "Nodes":
        """These nodes and those of further vectors.

        Args:
            vectors: `[num_positions, dim]`, first the vectors that have nodes, then the new ones.
        """
        num = len(self.of_position)
        first = first_equal(vectors)[num:]
        is_new = first >= num
        node = np.empty(len(first), np.int64)
        node[~is_new] = self.of_position[first[~is_new]]
        node[is_new] = len(self) + np.unique(first[is_new], return_inverse=True)[1]
        return Nodes(np.concatenate([self.of_position, node]))

    def __len__(self) -> int:
        return len(self.first) - 1

    @property
    def has_copies(self) -> bool:
        """Whether a node has more than one vector."""
        return len(self) < len(self.of_position)

    @property
    def is_identity(self) -> bool:
        """Whether each vector's node has the number of its position."""
        return not self.has_copies and bool((self.first[:-1] == self.of_position).all())

    @property
    def num_bytes(self) -> int:
        """Bytes of the arrays, those of the first search among them."""
        copies = 8 * (len(self.of_position) + 2 * len(self)) if self.has_copies else 0
        return self.of_position.nbytes + self.first.nbytes + copies

    @functools.cached_property
    def _copies(self) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """Positions, node after node; where each node begins in them; how many each node has."""
        size = np.bincount(self.of_position)
        return np.argsort(self.of_position, kind="stable"), np.cumsum(size) - size, size

    def expanded(
        self, first: np.ndarray, scores: np.ndarray, k: int
    ) -> tuple[np.ndarray, np.ndarray]:
        """The answer in which each node found is replaced by all its vectors.

        Args:
            first: `[num_queries, n]` positions of nodes' first vectors, best first, -1 for none.
            scores: `[num_queries, n]` float32.
            k: Width of the answer.

        Returns:
            Positions `[num_queries, k]` int64, padded with -1, and their scores.
        """
        by_node, begin, size = self._copies
        node = self.of_position[first]
        if first.shape[1] == k and first.min(initial=0) >= 0 and (size[node] == 1).all():
            return first, scores  # the usual case: no copies among the nodes found
        end = np.minimum(np.cumsum(np.where(first < 0, 0, size[node]), axis=1), k)
        start = np.concatenate([np.zeros((len(end), 1), np.int64), end[:, :-1]], axis=1)
        taken = (end - start).ravel()  # how many vectors of each node found go into the answer
        # For each vector in the answer: which node found it comes from, and which copy it is.
        find = np.repeat(np.arange(len(taken)), taken)
        copy = np.arange(len(find)) - np.repeat(np.cumsum(taken) - taken, taken)
        row, column = find // first.shape[1], start.ravel()[find] + copy
        positions = np.full((len(first), k), -1, np.int64)
        positions[row, column] = by_node[begin[node.ravel()[find]] + copy]
        answered = np.full((len(first), k), NO_SCORE, np.float32)
        answered[row, column] = scores.ravel()[find]
        return positions, answered


def first_equal(vectors: np.ndarray) -> np.ndarray:
    """For each of `[num, dim]` float32 vectors, the position of the first one that is as good as
    equal to it.

    >>> first_equal(np.float32([[1, 2], [3, 4], [1, 2.00001]])).tolist()
    [0, 1, 0]
    """
    # As bytes, since NumPy sorts rows of numbers far more slowly.
    rows = rounded(vectors).view(np.dtype((np.void, vectors.itemsize * vectors.shape[1])))
    _, first, group = np.unique(rows[:, 0], return_index=True, return_inverse=True)
    return first[group]


def rounded(vectors: np.ndarray) -> np.ndarray:
    """`[num, dim]` float32 vectors, each to a grid of 2**-14 of its largest component at least.

    A component near the middle between two points of the grid may still be rounded to either, so
    some copies get two or four nodes. That is few enough for a graph to link them to others.
    """
    largest = np.abs(vectors).max(axis=1, initial=0)
    exponent = np.maximum(np.frexp(largest)[1] - 15, -126)  # below, float32 loses digits
    step = np.ldexp(np.float32(1), exponent)[:, None]
    found = np.rint(vectors / step)
    found *= step
    found += 0  # -0 becomes 0
    return found
