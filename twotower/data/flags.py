"""Flags of a command that reads a dataset, your own files included."""

from typing import TYPE_CHECKING

from absl import flags

from twotower.data import load_dataset

if TYPE_CHECKING:  # pandas, without which --help is faster
    from twotower.data.dataset import Dataset

OWN_DATA = ("interactions", "items", "users", "columns", "sep", "events", "min_rating")

# The flags belong to the calling command, so that its --help shows them.
flags.disclaim_key_flags()


def define() -> list[str]:
    """Defines the flags of your own data beside --dataset and --data_dir; returns their names."""
    flags.DEFINE_list(
        "interactions",
        [],
        "Your own data: files (Parquet, CSV, TSV) or a folder of who did what when; relative to "
        "--data_dir.",
    )
    flags.DEFINE_list("items", [], "Files of the items, with what is known of each.")
    flags.DEFINE_list("users", [], "Files of the users, with what is known of each.")
    flags.DEFINE_string(
        "columns",
        "",
        "Which column is which, and how times are written, such as "
        "user_id=visitorid,item_id=itemid,timestamp=time:ms; by number, such as user_id=1, where "
        "a file has no header (twotower/data/schema.py).",
    )
    flags.DEFINE_string("sep", "", "Between fields of text files; found in the first line if ''.")
    flags.DEFINE_string(
        "events", "", "Weights of the events that count, such as view=1,purchase=5."
    )
    flags.DEFINE_float("min_rating", None, "Leave out rows with a lower rating.")
    return list(OWN_DATA)


def dataset() -> "Dataset":
    """The dataset that --dataset, --data_dir and the flags of `define` select.

    With --interactions and no --dataset, it is `tables`.
    """
    values = flags.FLAGS
    reading = {name: values[name].value for name in OWN_DATA if values[name].present}
    if "sep" in reading:
        reading["sep"] = values.sep.replace("\\t", "\t")
    is_own = "interactions" in reading and not values["dataset"].present
    name = "tables" if is_own else values.dataset
    return load_dataset(name, values.data_dir, **reading)
