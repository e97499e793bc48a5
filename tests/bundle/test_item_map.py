"""The map of a bundle's items: neighbours stay neighbours, and only its training reads it."""

import json
import math

import numpy as np
import pytest

from twotower.bundle import item_map
from twotower.bundle.item_map import ItemMap, make_map
from twotower.retrieval.candidates import Candidates

KEYS = np.array([2, 5, 9])
POINTS = np.float32([[0, 0], [1, 0], [0, 1]])


def found(keys, scores) -> Candidates:
    return Candidates.rank(np.array(keys), np.float32(scores), np.shape(keys)[1])


def test_a_query_lies_among_the_items_that_were_found():
    # Scores 3 and 1 deviate by 1 on average, so the weights are as exp(0) and exp(-2).
    first = 1 / (1 + math.exp(-2))
    queries = found([[5, 9], [9, 2], [5, 4], [4, 7]], [[3, 1], [0.3, 0.1], [8, 8], [1, 0]])
    located = ItemMap(KEYS, POINTS, 1.0).locate(queries)
    np.testing.assert_allclose(located[0], [first, 1 - first], atol=1e-6)
    np.testing.assert_allclose(located[1], [0, first], atol=1e-6)  # whatever the scale
    # Item 4 is not on the map, and neither 4 nor 7 are.
    assert located[2].tolist() == [1, 0] and np.isnan(located[3]).all()
    # A short row ends in no key; equal scores weigh the same.
    short = Candidates.rank(np.array([[9, 5, -1]]), np.float32([[2, 2, -np.inf]]), 3)
    assert ItemMap(KEYS, POINTS, 1.0).locate(short).tolist() == [[0.5, 0.5]]


@pytest.mark.parametrize(
    "keys, points, message",
    [
        (KEYS[::-1].copy(), POINTS, "ascending"),
        (KEYS, POINTS[:2], r"expected float32 \[3, 2\]; got float32 \[2, 2\]"),
        (KEYS, POINTS + 1, "between 0 and 1"),
        (KEYS, POINTS * np.nan, "between 0 and 1"),
    ],
)
def test_what_is_no_map(keys, points, message):
    with pytest.raises(ValueError, match=message):
        ItemMap(keys, points, 1.0)


def test_neighbours_stay_neighbours():
    pytest.importorskip("sklearn")
    # Four bundles of directions; lengths say nothing, since the score is an angle here.
    random = np.random.default_rng(0)
    group = np.arange(80) % 4
    vectors = np.eye(8)[group] + 0.1 * random.normal(size=(80, 8))
    vectors *= random.uniform(0.1, 10, (80, 1))
    made = make_map(np.arange(80) * 3, np.float32(vectors), "cosine")
    distances = np.linalg.norm(made.points[:, None] - made.points, axis=2)
    nearest = np.argsort(distances, axis=1)[:, 1:11]
    assert (group[nearest] == group[:, None]).mean() > 0.95
    assert made.trustworthiness > 0.9 and made.keys[-1] == 237
    span = np.ptp(made.points, axis=0)
    assert span.max() == pytest.approx(1, abs=1e-6)
    np.testing.assert_allclose(made.points.min(0) + made.points.max(0), 1, atol=1e-6)
    with pytest.raises(ValueError, match="10 items or more; got 9"):
        make_map(np.arange(9), np.ones((9, 4), np.float32))


def test_to_disk_and_back(tmp_path):
    folder = tmp_path / "map"
    item_map.save(ItemMap(KEYS, POINTS, 0.75), folder, "v1")
    read = item_map.load(folder, "v1")
    assert read.keys.tolist() == [2, 5, 9] and read.trustworthiness == 0.75
    np.testing.assert_array_equal(read.points, POINTS)
    with pytest.raises(ValueError, match="made for model 'v1', not for 'v2'"):
        item_map.load(folder, "v2")
    (folder / "more.npy").write_bytes(b"")
    with pytest.raises(ValueError, match=r"more\.npy is no part"):
        item_map.load(folder, "v1")
    (folder / "more.npy").unlink()
    content = (folder / "points.npy").read_bytes()
    (folder / "points.npy").write_bytes(content[:-1] + b"\1")
    with pytest.raises(ValueError, match=r"points\.npy is truncated or changed"):
        item_map.load(folder, "v1")
    described = json.loads((folder / "map.json").read_text())
    (folder / "map.json").write_text(json.dumps(described | {"format_version": 99}))
    with pytest.raises(ValueError, match="newer"):
        item_map.load(folder, "v1")
    with pytest.raises(ValueError, match="holds no map"):
        item_map.load(tmp_path / "none", "v1")
