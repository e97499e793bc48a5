"""Groups of targets that share a query: their sizes, and that none is in its own history."""

import numpy as np
import pytest
from asked import asked, by_item, flat
from six_ratings import NAN, ROWS, by_hand, examples_of

from twotower.data.examples import Examples, ExamplesConfig
from twotower.data.splits import make_split


def test_one_target_a_query_leaves_out_one_row():
    examples = examples_of("others", targets_per_query=1)
    assert by_item(asked(examples, 3), "history") == {
        ("a", 0): [1, 2, 3],
        ("a", 1): [0, 2, 3],
        ("a", 2): [0, 1, 3],
        ("a", 3): [0, 1, 2],
        ("b", 0): [1],
        ("b", 1): [0],
    }
    ratings = by_item(asked(examples, 3), "history_rating")["a", 0]
    np.testing.assert_array_equal(ratings, [NAN, 3, 1])


@pytest.mark.parametrize("targets_per_query", [1, 2, 8])
def test_all_rows_of_a_target_are_left_out(targets_per_query):
    # User a watches item 0 three times: its other rows would give the target away.
    dataset = by_hand([*ROWS, ("a", 0, 15, 4.0), ("a", 0, 5, 4.0)])
    examples = examples_of("others", dataset, targets_per_query=targets_per_query)
    found = flat(asked(examples, 0))
    assert sorted(one["item"] for one in found if one["user"] == "a") == [0, 0, 0, 1, 2, 3]
    assert not any(one["item"] in one["history"] for one in found)
    if targets_per_query == 1:
        histories = [one["history"] for one in found if one["user"] == "a"]
        assert sorted(histories)[-1] == [1, 2, 3] and [0, 0, 0, 2, 3] in histories


@pytest.mark.parametrize(
    ("share", "expected"),
    [
        (0.0, ([1, 1, 1, 1], [1, 1])),
        (0.25, ([1, 1, 1, 1], [1, 1])),  # one of four, and half a row of two is one
        (0.5, ([2, 2], [1, 1])),
        (0.7, ([1, 3], [2])),  # 2.8 and 1.4 rows, rounded up
    ],
)
def test_a_group_is_a_share_of_the_history(share, expected):
    examples = examples_of("others", targets_per_query=1, targets_share=share, batch_size=3)
    groups = {}
    for batch in asked(examples, 0):
        for query, user in enumerate(batch["cases"].user_id):
            groups.setdefault(user, []).append(int((batch["row"] == query).sum()))
    assert tuple(sorted(sizes) for _, sizes in sorted(groups.items())) == expected
    assert examples.alone == (share == 0)


def test_each_user_has_a_share_of_its_own(made):
    split = make_split(made, "random")
    config = ExamplesConfig(
        10_000, targets_per_query=1, targets_share=0.4, targets_share_spread=0.3
    )
    examples = Examples(made, split, config)
    many = examples.by_user.lengths >= 20
    shares = []
    for epoch in range(3):
        (batch,) = asked(examples, epoch)
        largest = np.zeros(len(many), int)
        np.maximum.at(largest, batch["user"], np.bincount(batch["row"]))
        # The first group of a user is as large as its share, rounded up.
        shares.append(largest[many] / examples.by_user.lengths[many])
    shares = np.stack(shares)
    assert 0.1 <= shares.min() < 0.2 and 0.6 < shares.max() < 0.7 + 1 / 20
    assert (shares[0] != shares[1]).mean() > 0.9  # another one each epoch
    for share, spread in ((1.0, 0.0), (0.4, 0.5), (0.6, 0.4), (0.2, -0.1), (-0.1, 0.0)):
        with pytest.raises(ValueError, match="targets_share must lie in"):
            ExamplesConfig(targets_share=share, targets_share_spread=spread)


@pytest.mark.parametrize("targets_per_query", [2, 3, 8])
def test_a_group_of_targets_is_not_in_its_history(targets_per_query):
    examples = examples_of("others", targets_per_query=targets_per_query, batch_size=3)
    sizes = {"a": [], "b": []}
    for batch in asked(examples, 0):
        cases = batch["cases"]
        assert (np.diff(batch["row"]) >= 0).all()
        for query in range(len(cases)):
            targets = batch["item"][batch["row"] == query].tolist()
            history = cases.history[query].tolist()
            # Together they are all the user's rows, each once.
            user = cases.user_id[query]
            assert sorted(targets + history) == {"a": [0, 1, 2, 3], "b": [0, 1]}[user]
            assert history == sorted(history)  # oldest first: here the items ascend with time
            sizes[user].append(len(targets))
    # Four and two rows in groups: 2 + 2 and 2 | 3 + 1 and 2 | 4 and 2.
    expected = {2: ([2, 2], [2]), 3: ([1, 3], [2]), 8: ([4], [2])}[targets_per_query]
    assert (sorted(sizes["a"]), sorted(sizes["b"])) == expected


def test_groups_change_from_epoch_to_epoch():
    examples = examples_of("others", targets_per_query=2)
    seen = {str(sorted(by_item(asked(examples, n), "history")["a", 0])) for n in range(15)}
    # Item 0 shares its query with one of 1, 2, 3: the history is the two others.
    assert seen == {"[1, 2]", "[1, 3]", "[2, 3]"}
