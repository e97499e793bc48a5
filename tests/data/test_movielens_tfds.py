"""MovieLens in a copy of TFDS: the same values in the same order as from its folder."""

import numpy as np
import pytest
from movielens_copies import prepare, tables

from twotower.data import movielens

pytestmark = pytest.mark.filterwarnings("ignore:.*the published MovieLens")


@pytest.mark.parametrize("version", ["1m", "100k"])
def test_tfds_gives_the_same_dataset(version, request, tmp_path, monkeypatch):
    folder = request.getfixturevalue(f"small_{version}_dir")
    prepare(monkeypatch, folder, tmp_path / "tfds", f"{version}-ratings", f"{version}-movies")
    expected = movielens.load(f"movielens/{version}", folder)
    found = movielens.load(f"movielens/{version}", tmp_path / "tfds")
    assert tables(found) == tables(expected)
    assert found.fingerprint() == expected.fingerprint()
    # The default directory is TFDS' own.
    monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path / "tfds"))
    assert movielens.load(f"movielens/{version}").fingerprint() == expected.fingerprint()


def test_a_copy_without_its_movie_table_is_none(small_1m_dir, tmp_path, monkeypatch):
    prepare(monkeypatch, small_1m_dir, tmp_path, "1m-ratings")
    assert movielens.find("movielens/1m", tmp_path) is None


def test_tfds_order_that_cannot_be_restored_is_refused(small_1m_dir, tmp_path, monkeypatch):
    prepare(monkeypatch, small_1m_dir, tmp_path, "1m-ratings", "1m-movies")
    monkeypatch.setattr(movielens, "_file_rows", lambda num_rows: np.arange(num_rows))
    with pytest.raises(ValueError, match="does not come out in GroupLens' order"):
        movielens.load("movielens/1m", tmp_path)


def test_several_shards_are_read_one_after_another(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    # 3,000 ratings in 3 shards; read in turns, as TFDS does by default, they would mix.
    ratings = [f"{row // 100 + 1}::{row % 100 + 1}::3::{978300000 + row}\n" for row in range(3000)]
    folder = tmp_path / "raw" / "ml-1m"
    folder.mkdir(parents=True)
    (folder / "ratings.dat").write_text("".join(ratings))
    (folder / "users.dat").write_text("".join(f"{n}::F::1::1::0\n" for n in range(1, 31)))
    (folder / "movies.dat").write_text("".join(f"{n}::A (1990)::War\n" for n in range(1, 101)))
    monkeypatch.setattr(
        tfds.core.writer.shard_utils.ShardConfig, "get_number_shards", lambda *args, **kwargs: 3
    )
    prepare(monkeypatch, folder, tmp_path / "tfds", "1m-ratings", "1m-movies")
    assert len(list((tmp_path / "tfds").glob("movielens/1m-ratings/*/*.tfrecord*"))) == 3
    found = movielens.load("movielens/1m", tmp_path / "tfds")
    expected = movielens.load("movielens/1m", folder)
    assert found.interactions.equals(expected.interactions)
    assert found.fingerprint() == expected.fingerprint()
