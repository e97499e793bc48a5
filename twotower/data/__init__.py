"""Datasets by name."""

from twotower.storage import paths


def load_dataset(name: str, data_dir: str | None = None):
    """The dataset `name`.

    Args:
        name: `movielens/1m`, `movielens/100k`, `synthetic`, `synthetic/small`, or `tables` for your
            own; or the name that a synthetic dataset gave itself, as a bundle's manifest holds it.
        data_dir: For MovieLens, a GroupLens folder or TFDS' data directory; for `tables`, a folder
            with `interactions.parquet`, `items.parquet` and `users.parquet`.

    Raises:
        ValueError: An unknown name, or a folder that is no path of this machine.
        FileNotFoundError: The data is nowhere to be found; the message says what to do.
    """
    data_dir = None if data_dir is None else str(paths.local(data_dir))
    if name.startswith("movielens/"):
        from twotower.data import movielens

        return movielens.load(name, data_dir)
    if name.startswith("synthetic"):
        from twotower.data import synthetic

        configs = {"synthetic": synthetic.SyntheticConfig(), "synthetic/small": synthetic.SMALL}
        configs |= {config.name: config for config in configs.values()}
        if name in configs:
            return synthetic.generate(configs[name]).dataset
    if name == "tables":
        from twotower.data import tables

        if data_dir is None:
            raise ValueError("tables needs data_dir, the folder that they are in.")
        return tables.load(data_dir, name=name)
    raise ValueError(
        f"unknown dataset {name!r}; there are movielens/1m, movielens/100k, synthetic, "
        "synthetic/small and tables, a folder of Parquet files as twotower/data/tables.py has it."
    )
