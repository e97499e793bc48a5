"""MovieLens from a GroupLens folder, from TFDS' prepared copy, or through a download by TFDS.

All three give the same Dataset: interactions in GroupLens' file order (protocols break ties of time
by it), ids as strings, the columns below.

    interactions  user_id, item_id, timestamp, rating
    items         item_id, title (without the year), year (NaN where unknown), genres
    users         user_id, gender (M, F), age (first year of its bucket: 1, 18, 25, 35, 45, 50, 56),
                  occupation (in words), zip_code; 100k has exact_age too. Versions later than 1m
                  have the ids alone.

`items` has the movies that nobody rated, too. TFDS keeps them in a second table (`1m-movies`), so a
prepared copy needs both.
"""

import os
import pathlib
import threading
import urllib.request

import numpy as np
import pandas as pd

from twotower.data import grouplens
from twotower.data.dataset import Dataset
from twotower.storage import paths

HOST = "https://files.grouplens.org/datasets/movielens"


class MovieLensUnavailable(FileNotFoundError):
    """No folder, no prepared copy and no network; the message says what to do.

    try:
        dataset = load("movielens/1m", data_dir)
    except MovieLensUnavailable:
        dataset = twotower.load_dataset("synthetic")
    """


def load(
    dataset: str = "movielens/1m", data_dir: str | os.PathLike | None = None, timeout: float = 3.0
) -> Dataset:
    """MovieLens from the first of three sources that has it.

    1. `data_dir`, or `data_dir/ml-1m`, as a GroupLens folder (1-2 s for 1m);
    2. TFDS' prepared copy under `data_dir` (default: TFDS_DATA_DIR or ~/tensorflow_datasets);
    3. a download by TFDS into that directory, if the host answers within `timeout` seconds.
       (TFDS by itself retries a dead network for over three minutes.)

    Args:
        dataset: `movielens/` and 100k, 1m, latest-small, 20m or 25m.
        data_dir: An existing directory, or None.
        timeout: Seconds to wait for the download host.

    Raises:
        MovieLensUnavailable: None of the three has it.
        FileNotFoundError: `data_dir` does not exist or is half a folder.
        ValueError: An unknown dataset, another version's folder, or a malformed line.
    """
    version = _version(dataset)
    found = find(dataset, data_dir)
    if found is None:
        url = f"{HOST}/ml-{version}.zip"
        if not reachable(url, timeout):
            where = f"{data_dir} is no GroupLens folder" if data_dir else "no data_dir was given"
            raise MovieLensUnavailable(
                f"{dataset} is nowhere to be found: {where}, TFDS has no prepared copy in "
                f"{_tfds_dir(data_dir)}, and {url} did not answer within {timeout:g} s. Unpack "
                f"ml-{version}.zip on a machine with a network and give its folder as data_dir "
                "(--data_dir), or use the dataset 'synthetic'."
            )
        _download(version, _tfds_dir(data_dir))
        found = _require_prepared(_tfds_dir(data_dir), f"{version}-ratings")
    layout = grouplens.layout_of(found, version)
    if layout is not None:
        return Dataset(dataset, *grouplens.read_folder(found, layout, version))
    return Dataset(dataset, *_read_tfds(found, version))


def find(
    dataset: str = "movielens/1m", data_dir: str | os.PathLike | None = None
) -> pathlib.Path | None:
    """The directory that `load` would read without a download; None if there is none. Cheap.

    Raises the errors of `load`, except MovieLensUnavailable.
    """
    version = _version(dataset)
    if data_dir:
        folder = paths.local(data_dir)
        if not folder.is_dir():
            raise FileNotFoundError(f"data_dir {str(data_dir)!r} is not an existing directory.")
        for candidate in (folder, folder / f"ml-{version}"):
            if grouplens.layout_of(candidate, version) is not None:
                return candidate
    tfds_dir = _tfds_dir(data_dir)
    movies = _prepared(tfds_dir, f"{version}-movies")
    return movies and _prepared(tfds_dir, f"{version}-ratings")


def dataset_in(data_dir: str | os.PathLike) -> str:
    """Name of the MovieLens whose GroupLens folder `data_dir` is or contains; `movielens/1m` if
    there is none. The folder's name decides between 20m, 25m and latest-small."""
    folder = paths.local(data_dir)
    for layout in grouplens.LAYOUTS:
        first = layout.files["interactions"][0]
        for version in layout.versions:
            if (folder / f"ml-{version}" / first).is_file():
                return f"movielens/{version}"
        if (folder / first).is_file():
            named = [v for v in layout.versions if folder.name == f"ml-{v}"]
            return f"movielens/{(named or layout.versions)[0]}"
    return "movielens/1m"


def _version(dataset: str) -> str:
    family, _, version = dataset.partition("/")
    if family != "movielens" or version not in grouplens.NUM_RATINGS:
        names = ", ".join(f"movielens/{name}" for name in grouplens.NUM_RATINGS)
        raise ValueError(f"unknown dataset {dataset!r}; there are {names}.")
    return version


def _tfds_dir(data_dir: str | os.PathLike | None) -> pathlib.Path:
    default = os.environ.get("TFDS_DATA_DIR") or "~/tensorflow_datasets"
    return paths.local(data_dir or default)


def _prepared(tfds_dir: pathlib.Path, config: str) -> pathlib.Path | None:
    """TFDS' newest finished version of a config; an interrupted one is called `*incomplete*`."""
    finished = [
        path.parent
        for path in (tfds_dir / "movielens" / config).glob("*/dataset_info.json")
        if path.parent.name.replace(".", "").isdigit()
    ]
    by_number = sorted(finished, key=lambda path: [int(n) for n in path.name.split(".")])
    return by_number[-1] if by_number else None


def _require_prepared(tfds_dir: pathlib.Path, config: str) -> pathlib.Path:
    directory = _prepared(tfds_dir, config)
    if directory is None:
        raise MovieLensUnavailable(
            f"TFDS has no finished copy of movielens/{config} in {tfds_dir}. Delete what is there "
            "of it and load it again, or give a GroupLens folder as data_dir (--data_dir)."
        )
    return directory


def reachable(url: str, timeout: float) -> bool:
    """Whether `url` answers within `timeout` seconds, name lookup included.

    Proxies of the environment are honoured, as TFDS does.
    """
    answered = threading.Event()

    def request() -> None:
        try:
            with urllib.request.urlopen(
                urllib.request.Request(url, method="HEAD"), timeout=timeout
            ):
                answered.set()
        except (OSError, ValueError):  # URLError, HTTPError and timeouts are OSErrors
            pass

    # A thread, because no timeout holds for the name lookup.
    thread = threading.Thread(target=request, daemon=True)
    thread.start()
    thread.join(timeout)
    return answered.is_set()


def _download(version: str, tfds_dir: pathlib.Path) -> None:
    """Lets TFDS download and prepare both tables (from one zip, fetched once)."""
    import tensorflow_datasets as tfds

    try:
        for table in ("ratings", "movies"):
            tfds.builder(f"movielens/{version}-{table}", data_dir=tfds_dir).download_and_prepare()
    except Exception as error:
        raise MovieLensUnavailable(
            f"TFDS could not download or prepare movielens/{version} in {tfds_dir}: {error}. "
            f"Unpack ml-{version}.zip yourself and give its folder as data_dir (--data_dir)."
        ) from error


def _read_tfds(
    directory: pathlib.Path, version: str
) -> tuple[pd.DataFrame, pd.DataFrame, pd.DataFrame]:
    """Interactions in GroupLens' order, items and users, each ascending by id as in the files."""
    rows = _stored(directory)
    rows = rows.iloc[np.argsort(_file_rows(len(rows)))].reset_index(drop=True)
    if version == "1m" and not rows["user_id"].astype(np.int64).is_monotonic_increasing:
        raise ValueError(
            f"{directory} does not come out in GroupLens' order, so ties of time would be broken "
            "at random. Was it written by another version of TFDS? Use a GroupLens folder."
        )
    movies = _stored(_require_prepared(directory.parents[2], f"{version}-movies"))
    items = movies.rename(
        columns={"movie_id": "item_id", "movie_title": "title", "movie_genres": "genres"}
    )
    by_number = {"key": lambda ids: ids.astype(np.int64), "ignore_index": True}
    users = _users(rows.drop_duplicates("user_id")).sort_values("user_id", **by_number)
    names = {"movie_id": "item_id", "user_rating": "rating"}
    interactions = rows.rename(columns=names)[["user_id", "item_id", "timestamp", "rating"]]
    return interactions, grouplens.item_columns(items.sort_values("item_id", **by_number)), users


def _file_rows(num_rows: int) -> np.ndarray:
    """The file's row number of each row that TFDS stored, `[num_rows]` int64.

    TFDS stores examples ascending by the md5 of the split's name and the row number, to shuffle.
    """
    from tensorflow_datasets.core import hashing

    hash_key = hashing.Hasher("train").hash_key
    return np.array(sorted(range(num_rows), key=hash_key), np.int64)


def _stored(directory: pathlib.Path) -> pd.DataFrame:
    """A TFDS table in stored order; of ratings without the columns of their movies.

    Parses the records a batch at a time, which takes seconds where `as_dataset`, a record at a
    time, takes a minute; and one file after another, where that reads 16 in turns.
    """
    import tensorflow as tf
    import tensorflow_datasets as tfds

    builder = tfds.builder_from_directory(str(directory))
    if builder.info.file_format.value != "tfrecord":
        raise ValueError(
            f"{builder.data_path} is stored as {builder.info.file_format.value}; only tfrecord is "
            "read here. Prepare it without file_format, or use a GroupLens folder."
        )
    spec = {}
    for name, feature in builder.info.features.items():
        is_rating = "user_rating" in builder.info.features
        if is_rating and name in ("movie_genres", "movie_title"):
            continue
        dtype = feature.tf_dtype
        if dtype.is_bool or dtype.is_integer:
            dtype = tf.int64  # the only integer that a tf.train.Example knows
        is_list = name == "movie_genres"
        spec[name] = tf.io.RaggedFeature(dtype) if is_list else tf.io.FixedLenFeature([], dtype)
    records = tf.data.TFRecordDataset(builder.info.splits["train"].filepaths)
    batches = records.batch(16_384).map(lambda batch: tf.io.parse_example(batch, spec))
    frames = [
        pd.DataFrame({name: _values(tensor) for name, tensor in batch.items()}) for batch in batches
    ]
    frame = pd.concat(frames, ignore_index=True)
    if "movie_genres" in frame:
        names = np.array(builder.info.features["movie_genres"].feature.names, object)
        frame["movie_genres"] = [names[labels] for labels in frame["movie_genres"]]
    return frame


def _values(tensor) -> list | np.ndarray:
    """A batch's values of one column, text decoded, lists as a list."""
    if hasattr(tensor, "row_splits"):
        return tensor.to_list()
    values = tensor.numpy()
    return [value.decode() for value in values] if values.dtype == object else values


def _users(rows: pd.DataFrame) -> pd.DataFrame:
    """One row for each user, in the words of the GroupLens reader."""
    users = {"user_id": rows["user_id"]}
    if "user_gender" in rows:
        users["gender"] = np.where(rows["user_gender"] == 1, "M", "F").astype(object)
        users["age"] = rows["bucketized_user_age"].astype(np.int64).astype(str)
        users["occupation"] = rows["user_occupation_text"]
        users["zip_code"] = rows["user_zip_code"]
    if "raw_user_age" in rows:
        users["exact_age"] = rows["raw_user_age"].astype(np.int64).astype(str)
    return pd.DataFrame(users)
