"""MovieLens by way of TFDS' download, and machines without network."""

import socket
import time

import pytest
from movielens_copies import prepare

from twotower.data import movielens

pytestmark = pytest.mark.filterwarnings("ignore:.*the published MovieLens")


def test_without_network_it_gives_up_soon_and_says_what_to_do(tmp_path, monkeypatch):
    # A host that accepts the connection and then says nothing.
    with socket.create_server(("127.0.0.1", 0)) as silent:
        monkeypatch.setattr(movielens, "HOST", f"http://127.0.0.1:{silent.getsockname()[1]}")
        monkeypatch.setenv("TFDS_DATA_DIR", str(tmp_path))
        monkeypatch.setenv("no_proxy", "127.0.0.1")
        assert movielens.find("movielens/1m") is None
        started = time.monotonic()
        with pytest.raises(movielens.MovieLensUnavailable, match=r"ml-1m.zip .*--data_dir"):
            movielens.load("movielens/1m", timeout=0.3)
        assert 0.2 < time.monotonic() - started < 3


def test_a_slow_name_lookup_counts_too(monkeypatch):
    def lookup(*args, **kwargs):
        time.sleep(2)
        raise socket.gaierror("no such host")

    monkeypatch.setattr(socket, "getaddrinfo", lookup)
    started = time.monotonic()
    assert not movielens.reachable("http://no-such-host.invalid/", 0.2)
    assert time.monotonic() - started < 1.5


def test_tfds_download_after_the_probe(small_1m_dir, tmp_path, monkeypatch):
    prepare(monkeypatch, small_1m_dir, tmp_path)  # patches the download alone
    monkeypatch.setattr(movielens, "reachable", lambda url, timeout: url.endswith("/ml-1m.zip"))
    target = tmp_path / "new"
    target.mkdir()
    found = movielens.load("movielens/1m", target)
    assert found.fingerprint() == movielens.load("movielens/1m", small_1m_dir).fingerprint()


def test_a_failed_download_is_unavailable(tmp_path, monkeypatch):
    import tensorflow_datasets as tfds

    def fail(self, url):
        raise ConnectionError("reset by peer")

    monkeypatch.setattr(tfds.download.DownloadManager, "download_and_extract", fail)
    monkeypatch.setattr(movielens, "reachable", lambda url, timeout: True)
    with pytest.raises(movielens.MovieLensUnavailable, match=r"reset by peer.*data_dir"):
        movielens.load("movielens/1m", tmp_path)
    # What TFDS left behind half done is not taken for a copy.
    (tmp_path / "movielens" / "1m-ratings" / "0.1.1.incompleteABC").mkdir(parents=True)
    (tmp_path / "movielens/1m-ratings/0.1.1.incompleteABC/dataset_info.json").touch()
    assert movielens.find("movielens/1m", tmp_path) is None
