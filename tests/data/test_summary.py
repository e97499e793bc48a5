"""What a summary notes of data from which little can be learned."""

import pytest
from small_splits import dataset_of

from twotower.data.summary import summarise

USERS = "nearly every user has one interaction, so there is no history to learn from"
ITEMS = "nearly every item has one interaction, which says little about it; if fields hold several"


@pytest.mark.parametrize(
    ("num_users", "num_items", "noted"),
    # Of 20 rows: 19 are more than nine tenths, and 18 are not.
    [(19, 5, [USERS]), (5, 19, [ITEMS]), (18, 18, []), (20, 20, [USERS, ITEMS])],
)
def test_users_or_items_with_one_interaction_each(num_users, num_items, noted):
    rows = [(f"u{row % num_users}", row % num_items, 10**9 + row) for row in range(20)]
    text = str(summarise(dataset_of(rows)))
    assert [note for note in (USERS, ITEMS) if note in text] == noted
