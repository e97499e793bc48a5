"""A made-up service, for all tests of this folder that need every kind of event."""

import pytest

from twotower.data import synthetic
from twotower.data.dataset import Dataset


@pytest.fixture(scope="session")
def made() -> Dataset:
    """80 users, 100 items, 2,000 events; every kind of event and context."""
    config = synthetic.SyntheticConfig(num_users=80, num_items=100, num_interactions=2_000)
    return synthetic.generate(config).dataset
