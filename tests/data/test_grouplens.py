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
    # 0x8d is not a character of Windows, and a control character in Latin-1.
    expected = ["Amélie", "Café", "Léon – “It’s”", "Léon – “It’s”", "\x8dé"]
    assert found.items["title"].tolist() == expected
    path = small_100k_dir / "u.item"
    path.write_bytes(path.read_bytes().replace(b"Tin Moon", "Tín Moon".encode()))
    found = movielens.load("movielens/100k", small_100k_dir)
    assert found.items["title"].tolist() == ["Café of Brass", "Tín Moon", "unknown"]


def test_columns_of_csv_files_go_by_name(tmp_path):
    swapped = b"movieId,userId,timestamp,rating\r\n5,1,964982703,1\r\n6,2,964981247,4.5\r\n"
    folder = csv_folder(tmp_path / "swapped", b"\xef\xbb\xbf" + swapped, MOVIES)
    found = movielens.load("movielens/latest-small", folder).interactions
    assert found["user_id"].tolist() == ["1", "2"]
    assert found["rating"].tolist() == [1, 4.5]
    for number, (name, data, message) in enumerate(
        [
            (
                "ratings.csv",
                RATINGS.split(b"\n", 1)[1],
                r"no column .userId., which",
            ),
            (
                "movies.csv",
                MOVIES.upper(),
                r"no column .title., which .*movies.csv",
            ),
            ("movies.csv", b"", r"movies.csv cannot be read: it is empty"),
            (
                "ratings.csv",
                RATINGS.replace(b"rating,", b"stars,"),
                r"no column 'rating', which",
            ),
        ]
    ):
        files = {"ratings.csv": RATINGS, "movies.csv": MOVIES, name: data}
        folder = csv_folder(tmp_path / str(number), files["ratings.csv"], files["movies.csv"])
        with pytest.raises(ValueError, match=message):
            movielens.load("movielens/latest-small", folder)
