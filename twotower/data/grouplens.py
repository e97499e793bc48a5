"""GroupLens folders: MovieLens as it is unpacked from a zip of grouplens.org -> tables.

Three layouts: `ratings.dat` (1m), `u.data` (100k) and `ratings.csv` (latest-small, 20m, 25m). Each
has a schema and is read as any other files are. What differs between them, or from TFDS, is made
equal here: `item_columns` says how.
"""

import codecs
import dataclasses
import pathlib
import warnings

import numpy as np
import pandas as pd

from twotower.data import files, schema
from twotower.data.columns import check_ids, refuse
from twotower.data.file_frames import frame_of, located, refuse_unused
from twotower.data.text_files import TextFormat
from twotower.data.times import LATEST

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
        files: Name of each table's file, and its separator.
        columns: The schema of all of them.

        Layout(("mine",), {"interactions": ("log.tsv", "\\t")}, "user_id=1,item_id=2,timestamp=3")
    """

    versions: tuple[str, ...]
    files: dict[str, tuple[str, str]]
    columns: str


LAYOUTS = (
    Layout(
        ("1m",),
        {
            "interactions": ("ratings.dat", "::"),
            "items": ("movies.dat", "::"),
            "users": ("users.dat", "::"),
        },
        "user_id=1,item_id=2,rating=3,timestamp=4,items.item_id=1,items.title=2,items.genres=3,"
        "users.user_id=1,users.gender=2,users.age=3,users.occupation=4,users.zip_code=5",
    ),
    Layout(
        ("100k",),
        {
            "interactions": ("u.data", "\t"),
            "items": ("u.item", "|"),
            "users": ("u.user", "|"),
        },
        "user_id=1,item_id=2,rating=3,timestamp=4,items.item_id=1,items.title=2,"
        + ",".join(f"items.{genre}={n}" for n, genre in enumerate(GENRES_100K, 6))
        + ",users.user_id=1,users.age=2,users.gender=3,users.occupation=4,users.zip_code=5",
    ),
    Layout(
        ("latest-small", "20m", "25m"),
        {"interactions": ("ratings.csv", ","), "items": ("movies.csv", ",")},
        "user_id=userId,item_id=movieId,rating=rating,timestamp=timestamp,title=title,"
        "genres=genres",
    ),
)


def layout_of(folder: pathlib.Path, version: str) -> Layout | None:
    """The layout of `folder`; None if it is not a GroupLens folder.

    Raises:
        FileNotFoundError: Some of its files are there and some are missing.
        ValueError: It holds another version than `version`.
    """
    for layout in LAYOUTS:
        names = [name for name, _ in layout.files.values()]
        missing = [name for name in names if not (folder / name).is_file()]
        if len(missing) == len(names):
            continue
        if version not in layout.versions:
            raise ValueError(
                f"{folder} holds MovieLens {' or '.join(layout.versions)}, not {version}. Take "
                f"dataset movielens/{layout.versions[0]}, or give the folder of ml-{version}."
            )
        if missing:
            raise FileNotFoundError(
                f"{folder} is half a MovieLens {version} folder: {', '.join(missing)} is missing. "
                f"Unpack ml-{version}.zip again; it has {', '.join(names)}."
            )
        return layout
    return None


def read_folder(
    folder: pathlib.Path, layout: Layout, version: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Interactions in file order, all items (rated or not) and all users of a folder.

    Raises:
        ValueError: A malformed or truncated line (file and number are named), or a rating of a
            movie or user that the other files do not have.
    """
    entries = schema.parse(layout.columns)
    sources = {}
    for table, (name, sep) in layout.files.items():
        has_header = schema.has_header(entries, table)
        # In the layouts without a header, a quote is a part of a title.
        form = TextFormat(sep, has_header, quoted=has_header, decode=_to_utf8)
        sources[table] = files.read(folder / name, form)
    refuse_unused(entries, sources)
    with located(sources):
        frames = {table: frame_of(source, table, entries)[0] for table, source in sources.items()}
        ratings, items = frames["interactions"], frames["items"]
        _check_ratings(ratings)
        if version == "100k":
            items["genres"] = _genres_100k(items)
        items["genres"] = [genres or [] for genres in items["genres"]]
        users = frames.get("users", pd.DataFrame({"user_id": ratings["user_id"].unique()}))
        if "users" in frames:
            users = _user_columns(users, version)
        for table, frame, key in (("items", items, "item_id"), ("users", users, "user_id")):
            check_ids(table, frame[key])
            lost = ~ratings[key].isin(frame[key])
            if lost.any():
                raise ValueError(
                    f"{sources[table].where(None)} lacks {key} {ratings[key][lost].iloc[0]!r}, "
                    f"which {int(lost.sum()):,} ratings name. Is it truncated?"
                )
    if len(ratings) != NUM_RATINGS[version]:
        warnings.warn(
            f"{sources['interactions'].where(None)} has {len(ratings):,} ratings; the published "
            f"MovieLens {version} has {NUM_RATINGS[version]:,}. Fine for a subset made on purpose; "
            "figures on it compare with nobody's.",
            stacklevel=3,
        )
    return ratings[["user_id", "item_id", "timestamp", "rating"]], item_columns(items), users


def _check_ratings(ratings: pd.DataFrame) -> None:
    """Raises ColumnError for a rating outside 0.5 to 5, or a time that was cut off."""
    for name, low, high, what in (
        ("rating", 0.5, 5, "a rating of 0.5 to 5"),
        ("timestamp", EARLIEST, LATEST, "seconds since 1970"),
    ):
        wrong = ~ratings[name].between(low, high)
        refuse("interactions", ratings[name], wrong, f"is {{}}, not {what}; unpack the zip again")


def _genres_100k(items: pd.DataFrame) -> list[list[str]]:
    """The genres whose flags are 1."""
    for genre in GENRES_100K:
        wrong = ~items[genre].isin([0, 1])
        refuse("items", items[genre], wrong, "is {}, not a flag of 0 or 1; unpack the zip again")
    flags = items[GENRES_100K].to_numpy() == 1
    return [[GENRES_100K[n] for n in np.flatnonzero(row)] for row in flags]


def _user_columns(users: pd.DataFrame, version: str) -> pd.DataFrame:
    """Ages as buckets and occupations in words, as ml-1m has both."""
    ages = pd.to_numeric(users["age"], errors="coerce")
    refuse("users", users["age"], ages.isna(), "is {}, not an age; unpack the zip again")
    if version == "100k":
        users = users.assign(age=[age_bucket(age) for age in ages], exact_age=users["age"])
    else:
        codes = pd.to_numeric(users["occupation"], errors="coerce")
        wrong = ~codes.isin(range(len(OCCUPATIONS)))
        refuse("users", users["occupation"], wrong, "is {}, not the number of an occupation")
        users = users.assign(occupation=[OCCUPATIONS[int(code)] for code in codes])
    refuse("users", users["zip_code"], users["zip_code"] == "", "is missing")
    names = ["user_id", "gender", "age", "occupation", "zip_code", "exact_age"]
    return users[[name for name in names if name in users]]


def _to_utf8(data: bytes) -> bytes:
    """A file whose lines are UTF-8, cp1252 or Latin-1, each by itself, in UTF-8.

    1m and 100k are published in Latin-1. Editors save them again in UTF-8, and lines of another
    encoding are pasted in. Accented Latin-1 text is practically never valid UTF-8.
    """
    lines = data.removeprefix(codecs.BOM_UTF8).split(b"\n")
    return "\n".join(map(_decode_line, lines)).encode()


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

    - `title` loses "(1995)" and "(V)" at its end; `year` is NaN if the title has none.
    - Genres keep the file's order. "Children's" is "Children" (as in TFDS and later versions);
      "unknown" and "(no genres listed)" are not genres and become an empty tuple.
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
