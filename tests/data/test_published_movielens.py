"""MovieLens as published: its counts, and the same from TFDS."""

import hashlib
import warnings

import pytest
from movielens_copies import prepare

from twotower.data import movielens


def target_hash(dataset) -> str:
    """sha256 over "user movie" of each user's last item with 5 ratings or more, ascending users."""
    frame = dataset.interactions
    frame = frame[frame.groupby("item_id")["item_id"].transform("size") >= 5]
    last = frame.sort_values("timestamp", kind="stable").groupby("user_id")["item_id"].last()
    lines = [f"{user} {last[str(user)]}" for user in sorted(map(int, last.index))]
    return hashlib.sha256("\n".join(lines).encode()).hexdigest()


# Of the SASRec file for MovieLens 1M, the way everybody splits it.
TARGETS = "1228619ba83021b836658a32ba061e021d3a80fb0f444ba41dd4c8c932a3af2f"


@pytest.mark.data
def test_real_1m(ml_1m_dir):
    with warnings.catch_warnings():
        warnings.simplefilter("error")  # the published number of ratings: no warning
        dataset = movielens.load("movielens/1m", ml_1m_dir)
    # From the README of the data.
    assert (len(dataset.interactions), len(dataset.items), len(dataset.users)) == (
        1_000_209,
        3883,
        6040,
    )
    assert dataset.interactions["item_id"].nunique() == 3706
    counts = dataset.interactions["rating"].value_counts().sort_index()
    assert counts.tolist() == [56174, 107557, 261197, 348971, 226310]
    assert dataset.items["year"].between(1919, 2000).all()
    assert dataset.items["genres"].map(len).min() == 1
    assert target_hash(dataset) == TARGETS


@pytest.mark.data
def test_real_100k(ml_100k_dir):
    dataset = movielens.load("movielens/100k", ml_100k_dir)
    assert (len(dataset.interactions), len(dataset.items), len(dataset.users)) == (
        100_000,
        1682,
        943,
    )
    # One entry of this version is called "unknown"; a second one has that genre.
    assert dataset.items["year"].isna().sum() == 1
    assert len(dataset.catalogue.where(year=(None, None))) == 1681
    assert (dataset.items["genres"].map(len) == 0).sum() == 2


@pytest.mark.slow
@pytest.mark.data
@pytest.mark.parametrize("version", ["1m", "100k"])
def test_real_movielens_through_tfds(version, request, tmp_path, monkeypatch):
    """TFDS' own parser and storage (about 2 minutes for 1m) give the folder's Dataset back."""
    folder = request.getfixturevalue(f"ml_{version}_dir")
    prepare(monkeypatch, folder, tmp_path, f"{version}-ratings", f"{version}-movies")
    found = movielens.load(f"movielens/{version}", tmp_path)
    assert found.fingerprint() == movielens.load(f"movielens/{version}", folder).fingerprint()
    if version == "1m":
        assert target_hash(found) == TARGETS
