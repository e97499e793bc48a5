"""Datasets by name."""


def load(name: str, data_dir: str | None = None):
    """The dataset `name`.

    Args:
        name: `movielens/1m`, `movielens/100k`, or `synthetic`.
        data_dir: For MovieLens, a GroupLens folder or TFDS' data directory.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: The data is nowhere to be found; the message says what to do.
    """
    if name.startswith("movielens/"):
        from twotower.data import movielens

        return movielens.load(name, data_dir)
    if name == "synthetic":
        from twotower.data import synthetic

        return synthetic.generate(synthetic.SyntheticConfig()).dataset
    raise ValueError(
        f"unknown dataset {name!r}; there are movielens/1m, movielens/100k and synthetic. For your "
        "own Parquet or CSV files see twotower/data/tables.py."
    )
