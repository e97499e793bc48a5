"""GroupLens folders: MovieLens as it is unpacked from a zip of grouplens.org -> tables.

Three layouts: `ratings.dat` (1m), `u.data` (100k) and `ratings.csv` (latest-small, 20m, 25m). What
differs between them, or from TFDS, is made equal here: `item_columns` says how.
"""

import codecs
import csv
import dataclasses
import io
import pathlib
import warnings
from collections.abc import Callable

import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.csv

from twotower.data.columns import LATEST

# Ratings in the published files; a folder with another number is loaded with a warning.
NUM_RATINGS = {
    "100k": 100_000,
    "1m": 1_000_209,
    "latest-small": 100_836,
    "20m": 20_000_263,
    "25m": 25_000_095,
}
# MovieLens opened in 1995: an earlier timestamp (1990) is a number that was cut off.
EARLIEST = 631_152_000
# The README of ml-1m, in TFDS' words.
OCCUPATIONS = [
    "other/not specified", "academic/educator", "artist", "clerical/admin", "college/grad student",
    "customer service", "doctor/health care", "executive/managerial", "farmer", "homemaker",
    "K-12 student", "lawyer", "programmer", "retired", "sales/marketing", "scientist",
    "self-employed", "technician/engineer", "tradesman/craftsman", "unemployed", "writer",
]  # fmt: skip
# The order of the flags in u.item.
GENRES_100K = [
    "unknown", "Action", "Adventure", "Animation", "Children's", "Comedy", "Crime", "Documentary",
    "Drama", "Fantasy", "Film-Noir", "Horror", "Musical", "Mystery", "Romance", "Sci-Fi",
    "Thriller", "War", "Western",
]  # fmt: skip
# First year of each age bucket of ml-1m.
AGE_BUCKETS = (1, 18, 25, 35, 45, 50, 56)


@dataclasses.dataclass(frozen=True)
class Layout:
    """How one generation of MovieLens lies on disk.

    Attributes:
        versions: Names of the datasets in this layout.
        ratings, movies: File names; `users` is "" where there are no demographics.
        separator: Between the fields of the ratings file.
        ratings_header, movies_header: First line of these files; "" where they have no names.
    """

    versions: tuple[str, ...]
    ratings: str
    movies: str
    users: str
    separator: str
    ratings_header: str = ""
    movies_header: str = ""


LAYOUTS = (
    Layout(("1m",), "ratings.dat", "movies.dat", "users.dat", "::"),
    Layout(("100k",), "u.data", "u.item", "u.user", "\t"),
    Layout(
        ("latest-small", "20m", "25m"), "ratings.csv", "movies.csv", "", ",",
        "userId,movieId,rating,timestamp", "movieId,title,genres",
    ),
)  # fmt: skip


def layout_of(folder: pathlib.Path, version: str) -> Layout | None:
    """The layout of `folder`, None where it is no GroupLens folder.

    Raises:
        FileNotFoundError: Some of its files are there and some are missing.
        ValueError: It holds another version than the one asked for.
    """
    for layout in LAYOUTS:
        files = [name for name in (layout.ratings, layout.movies, layout.users) if name]
        missing = [name for name in files if not (folder / name).is_file()]
        if len(missing) == len(files):
            continue
        if version not in layout.versions:
            raise ValueError(
                f"{folder} holds MovieLens {' or '.join(layout.versions)}, not {version}. Ask for "
                f"dataset movielens/{layout.versions[0]}, or give the folder of ml-{version}."
            )
        if missing:
            raise FileNotFoundError(
                f"{folder} is half a MovieLens {version} folder: {', '.join(missing)} is missing. "
                f"Unpack ml-{version}.zip again; it has {', '.join(files)}."
            )
        return layout
    return None


def read_folder(
    folder: pathlib.Path, layout: Layout, version: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Interactions in file order, all items (rated or not) and all users of a folder.

    Raises:
        ValueError: A malformed or truncated line (file and number are named), a csv file that does
            not begin with its names, or a rating of a movie or user that the other files do not
            have.
    """
    ratings = read_ratings(folder / layout.ratings, layout)
    if len(ratings) != NUM_RATINGS[version]:
        warnings.warn(
            f"{folder / layout.ratings} has {len(ratings):,} ratings; the published MovieLens "
            f"{version} has {NUM_RATINGS[version]:,}. Fine for a subset made on purpose; "
            "figures on it compare with nobody's.",
            stacklevel=3,
        )
    parse = {"1m": _movie_1m, "100k": _movie_100k}.get(version)
    items = _records(folder / layout.movies, parse, layout.movies_header)
    if layout.users:
        users = _records(folder / layout.users, {"1m": _user_1m, "100k": _user_100k}[version])
    else:
        users = pd.DataFrame({"user_id": ratings["user_id"].unique()})
    for name, table, key in ((layout.movies, items, "item_id"), (layout.users, users, "user_id")):
        lost = ~ratings[key].isin(table[key])
        if lost.any():
            raise ValueError(
                f"{folder / name} lacks {key} {ratings[key][lost].iloc[0]!r}, which "
                f"{int(lost.sum()):,} lines of {layout.ratings} name. Is it truncated?"
            )
    return ratings, items, users


def read_ratings(path: pathlib.Path, layout: Layout) -> pd.DataFrame:
    """`user_id`, `item_id`, `timestamp` int64, `rating` float32, in file order."""
    data = path.read_bytes()
    _check_header(path, data, layout.ratings_header)
    delimiter = layout.separator
    if len(delimiter) > 1:  # pyarrow wants one character
        data, delimiter = data.replace(delimiter.encode(), b"\t"), "\t"
    names = {"user_id": pa.string(), "item_id": pa.string()}
    names |= {"rating": pa.float32(), "timestamp": pa.int64()}
    num_skipped = 1 if layout.ratings_header else 0
    try:
        table = pyarrow.csv.read_csv(
            pa.BufferReader(data),
            pyarrow.csv.ReadOptions(column_names=list(names), skip_rows=num_skipped),
            pyarrow.csv.ParseOptions(delimiter=delimiter, quote_char=False),
            pyarrow.csv.ConvertOptions(column_types=names, null_values=[]),
        )
    except pa.ArrowInvalid as error:
        raise _fault(path, layout, str(error)) from error
    frame = table.to_pandas()[["user_id", "item_id", "timestamp", "rating"]]
    good = frame["rating"].between(0.5, 5) & frame["timestamp"].between(EARLIEST, LATEST)
    good &= (frame["user_id"] != "") & (frame["item_id"] != "")
    if not good.all():
        raise _fault(path, layout, f"row {int(good.to_numpy().argmin())} is out of range")
    return frame


def _check_header(path: pathlib.Path, data: bytes, header: str) -> None:
    """Raises for a file that begins otherwise: its columns may be swapped, or its names missing."""
    first = _decode(data[:1000]).split("\n")[0].rstrip("\r")
    if header and first != header:
        raise ValueError(
            f"{path}, line 1: expected the names {header!r}; got {first!r}. Bring the columns into "
            "this order, or write the line above the rows."
        )


def _fault(path: pathlib.Path, layout: Layout, otherwise: str) -> ValueError:
    """The slow way, taken only when something is wrong: finds the first bad line and names it."""
    with open(path, encoding="latin-1", newline="\n") as lines:
        for number, line in enumerate(lines, 1):
            fields = line.rstrip("\r\n").split(layout.separator)
            if (layout.ratings_header and number == 1) or fields == [""]:
                continue
            try:
                user, item, rating, time = fields
                if user and item and 0.5 <= float(rating) <= 5 and EARLIEST <= int(time) <= LATEST:
                    continue
            except ValueError:
                pass
            expected = repr(layout.separator.join(("user", "movie", "rating", "seconds")))
            return ValueError(
                f"{path}, line {number}: expected {expected} with a rating of 0.5 to 5 and "
                f"seconds since 1970; got {line.rstrip()!r}. A cut-off file must be unpacked again."
            )
    return ValueError(f"{path}: {otherwise}. Unpack the zip again.")


def _records(
    path: pathlib.Path, parse: Callable[[str], dict] | None, header: str = ""
) -> pd.DataFrame:
    """A small file, a line a row; `parse` None is the csv layout's movies."""
    data = path.read_bytes()
    _check_header(path, data, header)
    text = _decode(data)
    if parse is None:
        rows = csv.reader(io.StringIO(text, newline=""))
        numbered = [(number, row) for number, row in enumerate(rows, 1) if row][1:]
        parse = _movie_csv
    else:
        # Split by "\n" alone: str.splitlines also breaks at Latin-1's \x85.
        lines = text.split("\n")
        numbered = [(n, line.rstrip("\r")) for n, line in enumerate(lines, 1) if line.strip()]
    records = []
    for number, line in numbered:
        try:
            records.append(parse(line))
        except (ValueError, IndexError) as error:
            raise ValueError(
                f"{path}, line {number}: {line!r} is not a line of this file ({error}). "
                "A cut-off file must be unpacked again."
            ) from error
    if not records:
        raise ValueError(f"{path} is empty. Unpack the zip again.")
    frame = pd.DataFrame(records)
    key = frame.columns[0]
    if frame[key].duplicated().any():
        twice = frame.index[frame[key].duplicated()][0]
        raise ValueError(f"{path}, line {numbered[twice][0]}: {key} {frame[key][twice]!r} again.")
    return item_columns(frame) if key == "item_id" else frame


def _decode(data: bytes) -> str:
    """Text of a file whose lines are UTF-8, cp1252 or Latin-1, each read on its own.

    1m and 100k are published in Latin-1. Editors save them again in UTF-8, and lines of another
    encoding are pasted in. Accented Latin-1 text is practically never valid UTF-8.
    """
    return "\n".join(map(_decode_line, data.removeprefix(codecs.BOM_UTF8).split(b"\n")))


def _decode_line(line: bytes) -> str:
    # cp1252 has quotes and dashes at 0x80 to 0x9f, but for five bytes; the rest is Latin-1's.
    for encoding in ("utf-8", "cp1252"):
        try:
            return line.decode(encoding)
        except UnicodeDecodeError:
            pass
    return line.decode("latin-1")


def item_columns(frame: pd.DataFrame) -> pd.DataFrame:
    """`title` split into title and `year`, genre names made equal across versions.

    - `title` loses "(1995)" and "(V)" behind it; `year` is NaN where the title has none.
    - Genres keep the file's order. "Children's" is "Children" (as in TFDS and later versions);
      "unknown" and "(no genres listed)" are no genre: an empty tuple.
    """
    found = frame["title"].str.extract(r"^(.*?)\s*\((\d{4})(?:[-–]\d*)?\)\s*(?:\(V\))?\s*$")
    frame["year"] = pd.to_numeric(found[1]).astype(np.float64)
    frame["title"] = found[0].where(found[1].notna(), frame["title"].str.strip())
    none = ("unknown", "Unknown", "(no genres listed)")
    rename = {"Children's": "Children"}
    frame["genres"] = [
        tuple(rename.get(genre, genre) for genre in genres if genre not in none)
        for genres in frame["genres"]
    ]
    return frame[["item_id", "title", "year", "genres"]]


def age_bucket(age: int) -> str:
    """The bucket of ml-1m that an age lies in, by its first year."""
    return str(AGE_BUCKETS[max(int(np.searchsorted(AGE_BUCKETS, age, "right")) - 1, 0)])


def _movie_1m(line: str) -> dict:
    item_id, title, genres = line.split("::")
    return {"item_id": item_id, "title": title, "genres": genres.strip().split("|")}


def _movie_100k(line: str) -> dict:
    item_id, title, _, _, _, *flags = line.strip().split("|")
    if len(flags) != len(GENRES_100K) or not set(flags) <= {"0", "1"}:
        raise ValueError(f"expected {len(GENRES_100K)} genre flags of 0 or 1, got {flags}")
    genres = [genre for genre, flag in zip(GENRES_100K, flags) if flag == "1"]
    return {"item_id": item_id, "title": title, "genres": genres}


def _movie_csv(row: list[str]) -> dict:
    item_id, title, genres = row
    return {"item_id": item_id, "title": title, "genres": genres.split("|")}


def _user_1m(line: str) -> dict:
    user_id, gender, age, occupation, zip_code = line.strip().split("::")
    user = {"user_id": user_id, "gender": gender, "age": str(int(age))}
    return user | {"occupation": OCCUPATIONS[int(occupation)], "zip_code": zip_code}


def _user_100k(line: str) -> dict:
    user_id, age, gender, occupation, zip_code = line.strip().split("|")
    user = {"user_id": user_id, "gender": gender, "age": age_bucket(int(age))}
    return user | {"occupation": occupation, "zip_code": zip_code, "exact_age": age}
