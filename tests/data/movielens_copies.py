"""MovieLens as TFDS prepares it from a folder, and a dataset in a form that compares."""


def prepare(monkeypatch, folder, tfds_dir, *configs):
    """Lets TFDS' own parser read `folder` in place of its download, and write to `tfds_dir`."""
    import tensorflow_datasets as tfds

    monkeypatch.setattr(
        tfds.download.DownloadManager,
        "download_and_extract",
        lambda self, url: str(folder.parent),
    )
    for config in configs:
        tfds.builder(f"movielens/{config}", data_dir=tfds_dir).download_and_prepare()


def tables(dataset):
    """The columns of each table, with None for NaN, which equals nothing."""
    return {
        name: {
            column: [None if value != value else value for value in values]
            for column, values in getattr(dataset, name).to_dict("list").items()
        }
        for name in ("interactions", "items", "users")
    }
