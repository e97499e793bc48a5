"""Datasets by name."""


def load(name: str, data_dir: str | None = None):
    """The dataset `name`.

    Args:
        name: `movielens/1m`, `movielens/100k`, `synthetic`, or `synthetic/small`; or the name that
            a synthetic dataset gave itself, as a bundle's manifest holds it.
        data_dir: For MovieLens, a GroupLens folder or TFDS' data directory.

    Raises:
        ValueError: An unknown name.
        FileNotFoundError: The data is nowhere to be found; the message says what to do.
    """
    if name.startswith("movielens/"):
        from twotower.data import movielens

        return movielens.load(name, data_dir)
    if name.startswith("synthetic"):
        from twotower.data import synthetic

        configs = {"synthetic": synthetic.SyntheticConfig(), "synthetic/small": synthetic.SMALL}
        configs |= {config.name: config for config in configs.values()}
        if name in configs:
            return synthetic.generate(configs[name]).dataset
    raise ValueError(
        f"unknown dataset {name!r}; there are movielens/1m, movielens/100k, synthetic and "
        "synthetic/small. For your own Parquet or CSV files see twotower/data/tables.py."
    )
