"""Datasets by name."""

from typing import TYPE_CHECKING, Any

from twotower.storage import paths

if TYPE_CHECKING:
    from twotower.data.dataset import Dataset


def load_dataset(
    name: str, data_dir: str | None = None, min_rating: float | None = None, **reading: Any
) -> "Dataset":
    """The dataset `name`.

    Args:
        name: `movielens/1m`, `movielens/100k`, `synthetic`, `synthetic/small`, or `tables` for your
            own files; or the `name` of a dataset, such as a bundle's manifest holds.
        data_dir: For MovieLens, a GroupLens folder or TFDS' data directory; for `tables`, the
            folder that files are in.
        min_rating: Rows with a lower rating are left out; None for none.
        **reading: For `tables`, arguments of `tables.read_tables`. Without them, `data_dir` has the
            tables `interactions`, `items` and `users` (Parquet or text).

    Raises:
        ValueError: An unknown name, files that cannot be read with these arguments, or a folder
            that is not a path of this machine.
        FileNotFoundError: The data is nowhere to be found; the message says what to do.
    """
    if not isinstance(name, str):
        raise TypeError(
            f"load_dataset takes the name of a dataset, such as 'tables'; got a "
            f"{type(name).__name__}. Dataset(name, interactions, items, users) takes DataFrames."
        )
    data_dir = None if data_dir is None else str(paths.local(data_dir))
    family = name.partition("/")[0]
    if family == "tables":
        from twotower.data import tables

        # A manifest has "." for the tables of data_dir; here it would be the working directory.
        if data_dir is None and reading.get("interactions", ".") in (".", ["."]):
            raise ValueError("tables need data_dir (--data_dir), or interactions=FILE.")
        reading = {"interactions": ".", "data_dir": data_dir, "name": name, **reading}
        return tables.read_tables(min_rating=min_rating, **reading)
    if reading:
        raise ValueError(f"{sorted(reading)} are for the dataset tables, not for {name!r}.")
    if family == "movielens":
        from twotower.data import movielens

        dataset = movielens.load(name, data_dir)
        return dataset if min_rating is None else dataset.rated_at_least(min_rating)
    if family == "synthetic":
        from twotower.data import synthetic

        configs = {"synthetic": synthetic.SyntheticConfig(), "synthetic/small": synthetic.SMALL}
        configs |= {config.name: config for config in configs.values()}
        if name in configs and min_rating is None:
            return synthetic.generate(configs[name]).dataset
    raise ValueError(
        f"unknown dataset {name!r}; there are movielens/1m, movielens/100k, synthetic (which has "
        "no ratings), synthetic/small, and tables for your own files (twotower/data/tables.py)."
    )
