"""GroupLens folders: the csv layout, headers and encodings of lines."""

import numpy as np
import pytest

from twotower.data import grouplens, movielens

# Two ratings are not what GroupLens published.
pytestmark = pytest.mark.filterwarnings("ignore:.*the published MovieLens")


def test_csv_folder(tmp_path):
    (tmp_path / "movies.csv").write_text(
        'movieId,title,genres\n5,"Moon, The (2001)",Drama|Comedy\n6,Odd,(no genres listed)\n'
        "7,Long (2006–2007),Comedy\n",
        "utf-8",
    )
    (tmp_path / "ratings.csv").write_text(
        "userId,movieId,rating,timestamp\n1,6,0.5,964982703\n1,5,4.5,964981247\n", "utf-8"
    )
    dataset = movielens.load("movielens/latest-small", tmp_path)
    assert dataset.items["title"].tolist() == ["Moon, The", "Odd", "Long"]
    np.testing.assert_array_equal(dataset.items["year"], [2001, np.nan, 2006])
    assert dataset.items["genres"].tolist() == [("Drama", "Comedy"), (), ("Comedy",)]
    assert dataset.interactions["rating"].tolist() == [0.5, 4.5]
    assert dataset.users.to_dict("list") == {"user_id": ["1"]}


@pytest.mark.parametrize(
    ("age", "bucket"), [(7, "1"), (17, "1"), (18, "18"), (55, "50"), (99, "56")]
)
def test_age_buckets(age, bucket):
    assert grouplens.age_bucket(age) == bucket


def csv_folder(folder, ratings, movies):
    """A folder laid out as ml-latest-small, from the bytes of its two files."""
    folder.mkdir()
    (folder / "ratings.csv").write_bytes(ratings)
    (folder / "movies.csv").write_bytes(movies)
    return folder


RATINGS = b"userId,movieId,rating,timestamp\n1,5,0.5,964982703\n2,6,4.5,964981247\n"
MOVIES = b"movieId,title,genres\n5,Moon (2001),Drama\n6,Odd,Comedy\n"


def test_lines_in_several_encodings(tmp_path, small_100k_dir):
    # One Latin-1 and one Windows line between lines in UTF-8, the first with a byte order mark.
    lines = ["\ufeffmovieId,title,genres\n5,Amélie (2001),Drama\n".encode()]
    lines += ["6,Café,Drama\n".encode("latin-1"), "7,Léon – “It’s”,\n".encode("cp1252")]
    lines += ["8,Léon – “It’s”,Drama\n".encode(), b"9,\x8d\xe9,Drama\n"]
    found = movielens.load(
        "movielens/latest-small", csv_folder(tmp_path / "csv", RATINGS, b"".join(lines))
    )
    # 0x8d is no character of Windows, and a control character in Latin-1.
    expected = ["Amélie", "Café", "Léon – “It’s”", "Léon – “It’s”", "\x8dé"]
    assert found.items["title"].tolist() == expected
    path = small_100k_dir / "u.item"
    path.write_bytes(path.read_bytes().replace(b"Tin Moon", "Tín Moon".encode()))
    found = movielens.load("movielens/100k", small_100k_dir)
    assert found.items["title"].tolist() == ["Café of Brass", "Tín Moon", "unknown"]


@pytest.mark.parametrize("name", ["ratings.csv", "movies.csv"])
def test_headers_of_csv_files(tmp_path, name):
    files = {"ratings.csv": RATINGS, "movies.csv": MOVIES}
    header, rows = files[name].split(b"\n", 1)
    swapped = b",".join([*header.split(b",")[1::-1], *header.split(b",")[2:]])
    wrong = [swapped + b"\n" + rows, rows, b"\n" + files[name], b"", header.upper() + b"\n" + rows]
    for number, data in enumerate(wrong):
        folder = csv_folder(tmp_path / str(number), *{**files, name: data}.values())
        message = rf"{name}, line 1: expected the names '{header.decode()}'; got '.*'\. "
        with pytest.raises(ValueError, match=message):
            movielens.load("movielens/latest-small", folder)
    for number, end in enumerate((b"\n", b"\r\n")):
        data = b"\xef\xbb\xbf" + files[name].replace(b"\n", end)
        folder = csv_folder(tmp_path / f"good{number}", *{**files, name: data}.values())
        found = movielens.load("movielens/latest-small", folder)
        assert (len(found.interactions), len(found.items)) == (2, 2)
