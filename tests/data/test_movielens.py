"""MovieLens from a folder: its values by hand, and every fault is named."""

import subprocess
import sys

import numpy as np
import pytest
from movielens_copies import tables

from twotower.data import movielens

pytestmark = pytest.mark.filterwarnings("ignore:.*the published MovieLens")


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


def test_a_folder_needs_no_tensorflow(small_1m_dir):
    code = (
        "import sys; from twotower.data import movielens; "
        f"movielens.load('movielens/1m', {str(small_1m_dir)!r}); "
        "assert not any(name.startswith('tensorflow') for name in sys.modules)"
    )
    subprocess.run([sys.executable, "-W", "ignore", "-c", code], check=True)
