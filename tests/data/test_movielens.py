"""MovieLens from a folder and from TFDS: same values, same order, and every fault is named."""

import hashlib
import socket
import subprocess
import sys
import time
import warnings

import numpy as np
import pytest

from twotower.data import movielens

pytestmark = pytest.mark.filterwarnings("ignore:.*the published MovieLens")


def prepare(monkeypatch, folder, tfds_dir, *configs):
    """Lets TFDS' own parser read `folder` in place of its download, and write to `tfds_dir`."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, url: str(folder.parent),
    )
    for config in configs:
        tfds.builder(f"movielens/{config}", data_dir=tfds_dir).download_and_prepare()


def tables(dataset):
    """The columns of each table, with None for NaN, which equals nothing."""
    return {
        name: {
            column: [None if value != value else value for value in values]
            for column, values in getattr(dataset, name).to_dict("list").items()
        }
        for name in ("interactions", "items", "users")
    }


def test_1m_folder(small_1m_dir):
    dataset = movielens.load("movielens/1m", small_1m_dir)
    # By hand from SMALL_1M: é is one Latin-1 byte; "(V)" and the year leave the title; occupation
    # 10 is a K-12 student; nobody rated film 40 and it stays; order is the file's.
    assert tables(dataset) == {
        "interactions": {
            "user_id": ["2", "2", "7", "7", "7", "11"],
            "item_id": ["10", "3", "25", "3", "10", "3"],
            "timestamp": [978300760, 978302109, 978301968, 978301968, 978301968, 978300275],
            "rating": [5.0, 3.0, 4.0, 1.0, 2.0, 4.0],
        },
        "items": {
            "item_id": ["3", "10", "25", "40"],
            "title": ["Café of Brass", "Tin Moon: Part Two, The", "Brass Moon", "Nobody's Ferry"],
            "year": [1987, 1999, 2000, 1952],
            "genres": [("Drama", "Romance"), ("Children", "Sci-Fi"), ("Comedy",), ("Western",)],
        },
        "users": {
            "user_id": ["2", "7", "11"],
            "gender": ["F", "M", "M"],
            "age": ["1", "56", "25"],
            "occupation": ["K-12 student", "self-employed", "other/not specified"],
            "zip_code": ["01234", "98765-4321", "55555"],
        },
    }
    assert dataset.interactions["timestamp"].dtype == np.int64
    assert dataset.interactions["rating"].dtype == np.float32
    assert dataset.items["year"].dtype == np.int64


def test_100k_folder(small_100k_dir):
    dataset = movielens.load("movielens/100k", small_100k_dir)
    # 24 -> 18, 53 -> 50, 7 -> 1; the film "unknown" has neither year nor genre.
    assert tables(dataset) == {
        "interactions": {
            "user_id": ["2", "1", "3", "1"],
            "item_id": ["1", "3", "2", "1"],
            "timestamp": [881250949, 881250949, 878887116, 881250950],
            "rating": [3.0, 4.0, 1.0, 5.0],
        },
        "items": {
            "item_id": ["1", "2", "3"],
            "title": ["Café of Brass", "Tin Moon", "unknown"],
            "year": [1987, 1990, None],
            "genres": [("Comedy", "Drama"), ("Children",), ()],
        },
        "users": {
            "user_id": ["1", "2", "3"],
            "gender": ["M", "F", "M"],
            "age": ["18", "50", "1"],
            "occupation": ["technician", "other", "none"],
            "zip_code": ["85711", "94043", "T8H1N"],
            "exact_age": ["24", "53", "7"],
        },
    }


def test_data_dir_may_be_the_directory_above(small_1m_dir):
    assert movielens.find("movielens/1m", small_1m_dir.parent) == small_1m_dir
    above = movielens.load("movielens/1m", small_1m_dir.parent)
    assert above.fingerprint() == movielens.load("movielens/1m", small_1m_dir).fingerprint()


def test_a_subset_warns(small_1m_dir):
    with pytest.warns(UserWarning, match=r"6 ratings; the published MovieLens 1m has 1,000,209"):
        movielens.load("movielens/1m", small_1m_dir)


def test_the_last_line_needs_no_line_end_and_windows_ends_are_fine(small_1m_dir):
    expected = movielens.load("movielens/1m", small_1m_dir).fingerprint()
    for path in small_1m_dir.iterdir():
        path.write_bytes(path.read_bytes().rstrip(b"\n").replace(b"\n", b"\r\n"))
    assert movielens.load("movielens/1m", small_1m_dir).fingerprint() == expected


@pytest.mark.parametrize("bom", [b"", b"\xef\xbb\xbf"])
@pytest.mark.parametrize("version", ["1m", "100k"])
def test_files_that_were_saved_again_in_utf8(version, bom, request):
    folder = request.getfixturevalue(f"small_{version}_dir")
    expected = movielens.load(f"movielens/{version}", folder)
    assert expected.items["title"][0] == "Café of Brass"
    for path in folder.iterdir():
        path.write_bytes(bom + path.read_bytes().decode("latin-1").encode())
    found = movielens.load(f"movielens/{version}", folder)
    assert tables(found) == tables(expected)


@pytest.mark.parametrize(
    ("name", "old", "new", "message"),
    [
        # The last line of a file cut off in a field, behind it, or inside the time.
        ("ratings.dat", "11::3::4::978300275\n", "11::3::", r"ratings.dat, line 6.*'11::3::'"),
        ("ratings.dat", "11::3::4::978300275\n", "11::3", r"ratings.dat, line 6.*'11::3'"),
        (
            "ratings.dat",
            "11::3::4::978300275\n",
            "11::3::4::97830",
            r"line 6: .*unpack the zip again",
        ),
        (
            "ratings.dat",
            "2::3::3::",
            "2::3::3::9::",
            r"ratings.dat, line 2: 5 fields",
        ),
        ("ratings.dat", "2::3::3", "2::3::9", r"line 2: .*rating of 0.5 to 5"),
        ("ratings.dat", "2::3::3", "2:3::3", r"line 2: "),
        ("ratings.dat", "2::3::3", "2::3::x", r"line 2: "),
        ("ratings.dat", "2::3::3", "2::::3", r"line 2: "),
        ("ratings.dat", "2::3::3", "2::3::nan", r"line 2: "),
        ("ratings.dat", "2::3::3", "2::3::inf", r"line 2: "),
        ("ratings.dat", "978302109", "978302109000", r"line 2: .*seconds since 1970"),
        ("ratings.dat", "978302109", "-9223372036854775808", r"line 2: .*seconds since 1970"),
        ("movies.dat", "::Comedy", "", r"movies.dat, line 3: 2 fields, where"),
        ("movies.dat", "40::Nob", "3::Nob", r"movies.dat, line 4: item_id is '3', which stands"),
        ("movies.dat", "25::B", "26::B", r"movies.dat lacks item_id '25', which 1 ratings"),
        ("users.dat", "11::M::25::0::55555\n", "11::M::2", r"users.dat, line 3: "),
        ("users.dat", "11::M::25::0::55555\n", "", r"users.dat lacks user_id '11'"),
        ("users.dat", "::10::", "::21::", r"users.dat, line 1: "),
    ],
)
def test_malformed_lines_are_named(small_1m_dir, name, old, new, message):
    path = small_1m_dir / name
    text = path.read_bytes()
    assert text.count(old.encode()) == 1
    path.write_bytes(text.replace(old.encode(), new.encode()))
    with pytest.raises(ValueError, match=message):
        movielens.load("movielens/1m", small_1m_dir)


@pytest.mark.parametrize("name", ["ratings.dat", "movies.dat", "users.dat"])
def test_empty_files_are_refused(small_1m_dir, name):
    (small_1m_dir / name).write_bytes(b"")
    with pytest.raises(ValueError, match=name):
        movielens.load("movielens/1m", small_1m_dir)


def test_100k_with_a_flag_missing(small_100k_dir):
    path = small_100k_dir / "u.item"
    path.write_bytes(path.read_bytes()[:-3])
    with pytest.raises(ValueError, match=r"u.item, line 3: 23 fields, where the first line has 24"):
        movielens.load("movielens/100k", small_100k_dir)


@pytest.mark.parametrize("name", ["ratings.dat", "movies.dat", "users.dat"])
def test_half_a_folder_names_the_missing_file(small_1m_dir, name):
    (small_1m_dir / name).unlink()
    with pytest.raises(FileNotFoundError, match=f"half .*: {name} is missing") as caught:
        movielens.find("movielens/1m", small_1m_dir)
    # Not "unavailable": a script must not fall back to other data over a broken folder.
    assert not isinstance(caught.value, movielens.MovieLensUnavailable)


def test_another_versions_folder(small_1m_dir):
    with pytest.raises(ValueError, match=r"holds MovieLens 1m, not 100k.*dataset movielens/1m"):
        movielens.load("movielens/100k", small_1m_dir)


def test_unknown_dataset_and_directory(tmp_path):
    with pytest.raises(ValueError, match=r"unknown dataset 'movielens/2m'; there are .*100k"):
        movielens.load("movielens/2m")
    with pytest.raises(FileNotFoundError, match=r"'.*/typo' is not an existing directory"):
        movielens.load("movielens/1m", tmp_path / "typo")


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


def test_a_folder_needs_no_tensorflow(small_1m_dir):
    code = (
        "import sys; from twotower.data import movielens; "
        f"movielens.load('movielens/1m', {str(small_1m_dir)!r}); "
        "assert not any(name.startswith('tensorflow') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)


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
