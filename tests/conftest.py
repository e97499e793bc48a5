"""Fixtures: MovieLens where it is on this machine, and small folders of invented films."""

import os
import pathlib

import pytest

ROOT = pathlib.Path(__file__).resolve().parents[1]


def movielens_dir(name: str) -> pathlib.Path:
    """The folder `name` under TWOTOWER_DATA or ../shared/data; skips the test without it."""
    base = pathlib.Path(os.environ.get("TWOTOWER_DATA") or ROOT.parent / "shared" / "data")
    folder = base / name
    if not folder.is_dir():
        pytest.skip(f"no MovieLens folder {name}: set TWOTOWER_DATA to the directory that has it")
    return folder


@pytest.fixture(scope="session")
def ml_1m_dir() -> pathlib.Path:
    """GroupLens folder of MovieLens 1M."""
    return movielens_dir("ml-1m")


@pytest.fixture(scope="session")
def ml_100k_dir() -> pathlib.Path:
    """GroupLens folder of MovieLens 100k."""
    return movielens_dir("ml-100k")


# Films, people and ratings are invented. Film 40 has no rating, user 7's ratings have one time.
SMALL_1M = {
    "movies.dat": (
        "3::Caf\xe9 of Brass (1987)::Drama|Romance\n"
        "10::Tin Moon: Part Two, The (1999)::Children's|Sci-Fi\n"
        "25::Brass Moon (2000) (V)::Comedy\n"
        "40::Nobody's Ferry (1952)::Western\n"
    ),
    "users.dat": "2::F::1::10::01234\n7::M::56::16::98765-4321\n11::M::25::0::55555\n",
    "ratings.dat": (
        "2::10::5::978300760\n"
        "2::3::3::978302109\n"
        "7::25::4::978301968\n"
        "7::3::1::978301968\n"
        "7::10::2::978301968\n"
        "11::3::4::978300275\n"
    ),
}
_FLAGS = {"Drama": 8, "Comedy": 5, "Children's": 4, "unknown": 0}


def _film(item_id: str, title: str, *genres: str) -> str:
    flags = ["0"] * 19
    for genre in genres:
        flags[_FLAGS[genre]] = "1"
    return "|".join([item_id, title, "01-Jan-1990", "", "http://example.com/", *flags]) + "\n"


SMALL_100K = {
    "u.item": (
        _film("1", "Caf\xe9 of Brass (1987)", "Comedy", "Drama")
        + _film("2", "Tin Moon (1990) ", "Children's")
        + _film("3", "unknown", "unknown")
    ),
    "u.user": "1|24|M|technician|85711\n2|53|F|other|94043\n3|7|M|none|T8H1N\n",
    "u.data": "2\t1\t3\t881250949\n1\t3\t4\t881250949\n3\t2\t1\t878887116\n1\t1\t5\t881250950\n",
}


def write_folder(folder: pathlib.Path, files: dict[str, str]) -> pathlib.Path:
    """Writes files in Latin-1, as GroupLens does."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name).write_bytes(text.encode("latin-1"))
    return folder


@pytest.fixture
def small_1m_dir(tmp_path) -> pathlib.Path:
    """A folder laid out as ml-1m: 6 ratings, 4 films, 3 users."""
    return write_folder(tmp_path / "small" / "ml-1m", SMALL_1M)


@pytest.fixture
def small_100k_dir(tmp_path) -> pathlib.Path:
    """A folder laid out as ml-100k: 4 ratings, 3 films, 3 users."""
    return write_folder(tmp_path / "small" / "ml-100k", SMALL_100K)
