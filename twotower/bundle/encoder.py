"""From requests to query vectors, through a bundle's query tower."""

from collections.abc import Callable, Mapping, Sequence

import numpy as np
import pandas as pd

from twotower.data.catalogue import Catalogue
from twotower.data.dataset import Dataset
from twotower.data.inputs import REQUEST_INPUTS, QueryInputs
from twotower.data.requests import Requests, encoded, once


def encoder(
    tower: Callable[[Mapping[str, np.ndarray]], np.ndarray], inputs: QueryInputs, dim: int
) -> Callable[[Requests], np.ndarray]:
    """A function from requests to their vectors, `[num_requests, dim]` float32.

    The vectors of the same requests are computed once (`requests.once`).

    Args:
        tower: Raw inputs by name -> `[batch_size, dim]`.
        inputs: Makes the tower's inputs from requests.
        dim: Length of a vector.
    """

    return once(lambda requests: encoded(requests, lambda part: tower(inputs(part)), dim))


def without_users(catalogue: Catalogue, names: Sequence[str]) -> Dataset:
    """A dataset without users and interactions, so that all columns of a user come from requests.

    Args:
        catalogue: The items.
        names: Inputs of the query tower.
    """
    columns = {"user_id", *names} - set(REQUEST_INPUTS)
    return users_of(pd.DataFrame({name: np.array([], object) for name in columns}), catalogue)


def users_of(users: pd.DataFrame, catalogue: Catalogue) -> Dataset:
    """A dataset of these users and a catalogue's items, without interactions.

    The users may come from newer or older data than the items.

    Args:
        users: `user_id` and further columns, as in `Dataset.users`.
        catalogue: The items, whose keys the dataset gets.
    """
    events = {"user_id": object, "item_id": object, "timestamp": np.int64}
    nothing = {name: np.array([], kind) for name, kind in events.items()}
    return Dataset("", pd.DataFrame(nothing), catalogue.items, users)
