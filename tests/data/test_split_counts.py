"""The published counts of splits of MovieLens 1M.

The counts of one protocol are quick, and those of the others slow: a split of a million rows takes
seconds.
"""

import dataclasses

import pytest

from twotower.data import movielens
from twotower.data.splits import make_split


@pytest.fixture(scope="module")
def ml_1m(ml_1m_dir):
    return movielens.load("movielens/1m", data_dir=str(ml_1m_dir))


# Training rows, candidates, cases, users and targets.
COUNTS = {
    ("loo-5core", "test"): (987_531, 3_416, 6_040, 6_040, 6_040),
    ("loo", "test"): (988_129, 3_706, 6_040, 6_040, 6_040),
    ("temporal-last", "test"): (899_650, 3_416, 1_209, 1_209, 1_209),
    ("temporal-successive", "test"): (899_650, 3_416, 99_961, 1_209, 99_961),
    ("random", "test"): (800_167, 3_706, 6_034, 6_034, 200_042),
    ("random", "validation"): (760_159, 3_706, 5_477, 5_477, 40_008),
    ("random-100k+seen", "test"): (80_000, 3_706, 4_718, 4_718, 20_000),
}


@pytest.mark.data
@pytest.mark.parametrize(
    "protocol, part",
    [
        pytest.param(*names, marks=[] if names == ("loo-5core", "test") else [pytest.mark.slow])
        for names in COUNTS
    ],
)
def test_counts_on_movielens_1m(ml_1m, protocol, part):
    split = make_split(ml_1m, protocol, part)
    found = split.describe()
    names = ("train_rows", "candidates", "cases", "users", "targets")
    assert tuple(found[name] for name in names) == COUNTS[protocol, part]
    if (protocol, part) == ("loo-5core", "test"):
        assert found["target_sha256"] == (
            "1228619ba83021b836658a32ba061e021d3a80fb0f444ba41dd4c8c932a3af2f"
        )
    if protocol == "temporal-successive":
        trained = ml_1m.interactions["user_id"].to_numpy()[split.train]
        assert len(set(split.cases.user_id) - set(trained)) == 29
        assert (split.item_counts[split.cases.targets.values] == 0).sum() == 57


@pytest.mark.data
def test_a_lost_file_order_is_refused(ml_1m):
    shuffled = ml_1m.interactions.sample(frac=1, random_state=0).reset_index(drop=True)
    lost = dataclasses.replace(ml_1m, interactions=shuffled)
    with pytest.raises(ValueError, match=r"not in the order of ratings\.dat"):
        make_split(lost, "random")
