"""ItemsFile: the items of the live bundle as Parquet that training reads, with all their changes.

    python experiments/train.py --interactions=W/state/events --items=W/state/items.parquet ...

A training that reads only the events knows an item that was added by its id alone: the journal has
its title and genres. This file has them, of all items, in the columns of the bundle's catalogue.
"""

import json
import os
import pathlib

import pyarrow as pa
import pyarrow.parquet as parquet

from twotower.data.files import NOTES
from twotower.serving.pipeline import Pipeline
from twotower.storage.syncing import sync

# Name of the entry in the file's metadata that says which changes it has.
ENTRY = b"twotower"
# Note of a training on the file. It names the vectors that the item tower read, or that items were
# added with.
LACKING = (
    "a service wrote the items, without their vectors: add the columns {} to the table of items, "
    "or the towers are trained without them"
)


class ItemsFile:
    """The items that a service answers, in a Parquet file beside its events.

    The file has the rows of the bundle's catalogue. Items that were added or replaced have the
    columns that they were given, and removed items have no row. A catalogue has no columns of
    vectors, and so the file has none. It names those that it lacks, and a training on it says so.

        ItemsFile("W/state/items.parquet", journal.id).write(pipeline)

    Args:
        path: The file. Several processes may write it.
        journal: Id of the journal whose changes the file has (`Journal.id`).
    """

    def __init__(self, path: str | pathlib.Path, journal: str) -> None:
        self.path, self._journal = pathlib.Path(path), journal

    def write(self, pipeline: Pipeline) -> bool:
        """Writes the file, unless it has all changes that the pipeline has; returns whether it did.

        The file is there as a whole or not at all, and on disk when this returns.

        Args:
            pipeline: The live one.

        Raises:
            OSError: Nothing could be written, as on a full disk.
        """
        # Read before the items, which may get ahead meanwhile: then the next call writes them.
        model_version, sequence = pipeline.model_version, pipeline.sequence
        if self._has(model_version, sequence):
            return False
        removed, items = pipeline.bundle.removed, pipeline.catalogue.items
        table = pa.Table.from_pandas(items.drop(index=removed), preserve_index=False)
        entry = json.dumps(
            {"model_version": model_version, "journal": self._journal, "sequence": sequence}
        )
        lacking = sorted(pipeline.bundle.vector_columns)
        notes = [LACKING.format(", ".join(lacking))] if lacking else []
        metadata = {ENTRY: entry, NOTES: json.dumps(notes)}
        temporary = self.path.with_name(f".{self.path.name}.{os.getpid()}")
        try:
            parquet.write_table(table.replace_schema_metadata(metadata), temporary)
            sync(temporary)
            os.replace(temporary, self.path)
        finally:
            temporary.unlink(missing_ok=True)
        sync(self.path.parent)
        return True

    def _has(self, model_version: str, sequence: int) -> bool:
        """Whether the file is of this training and this journal, and has these changes.

        It may have later changes, too, which another process has written.
        """
        try:
            metadata = parquet.read_schema(self.path).metadata or {}
            entry = json.loads(metadata.get(ENTRY, b"{}"))
        except (OSError, ValueError, pa.ArrowException):  # none, or one that is damaged
            return False
        found = entry.get("model_version"), entry.get("journal")
        return found == (model_version, self._journal) and entry.get("sequence", -1) >= sequence
