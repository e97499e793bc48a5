"""Lineage: what a model has seen, through whatever it started from."""

import dataclasses
import functools

import numpy as np
import pandas as pd
import pytest

from twotower.data import synthetic
from twotower.data.dataset import Dataset
from twotower.data.lineage import Lineage, held_out, row_ids
from twotower.data.protocols import PROTOCOLS
from twotower.data.splits import hide_items, make_split


def dataset_of(rows) -> Dataset:
    """From (user, item, time) rows."""
    interactions = pd.DataFrame(rows, columns=["user_id", "item_id", "timestamp"])
    tables = [
        pd.DataFrame({name: sorted(interactions[name].unique())}) for name in ("item_id", "user_id")
    ]
    return Dataset("test", interactions, *tables)


@functools.cache
def small() -> Dataset:
    """200 users, 300 items, 7,200 watches."""
    return synthetic.generate(synthetic.SMALL).dataset


# By time: a has p q r s, b has q r p. loo trains on p q of a and q of b.
ROWS = [("a", "p", 1), ("b", "q", 2), ("a", "q", 3), ("a", "r", 4)]
ROWS += [("b", "r", 5), ("b", "p", 6), ("a", "s", 7)]


def test_held_out_by_hand():
    dataset = dataset_of(ROWS)
    validation, test = (make_split(dataset, "loo", part) for part in ("validation", "test"))
    # Validation asks for a's r and b's r, rows 3 and 4; test for a's s and b's p, rows 6 and 5.
    assert held_out(dataset, validation)[1].tolist() == row_ids(dataset, [3, 4]).tolist()
    assert held_out(dataset, test)[1].tolist() == row_ids(dataset, [5, 6]).tolist()
    # With p hidden all rows of p are held out, a's first one, too.
    hiding = dataclasses.replace(validation, hidden=dataset.catalogue.keys_of(["p"]))
    hiding = dataclasses.replace(hiding, train=np.array([1, 2]))
    assert held_out(dataset, hiding)[1].tolist() == row_ids(dataset, [0, 3, 4, 5]).tolist()


@pytest.mark.parametrize("protocol", PROTOCOLS)
@pytest.mark.parametrize("hidden", [0.0, 0.2])
def test_a_training_has_not_seen_its_questions(protocol, hidden):
    dataset = small()
    for part in ("validation", "test"):
        split = hide_items(dataset, make_split(dataset, protocol, part), hidden)
        assert Lineage.of(dataset, split).share_seen(dataset, split) == 0
        assert len(held_out(dataset, split)[1]) >= len(split.cases.targets.values)


def test_a_refit_has_seen_all_of_validation():
    dataset = small()
    validation, test = (make_split(dataset, "random", part) for part in ("validation", "test"))
    refit = Lineage.of(dataset, test)
    seen = refit.share_seen(dataset, validation)
    assert seen > 0.9  # all but rows of the same users and items that test asks for, too
    with pytest.raises(ValueError, match=rf"from {seen:.0%} of the rows .* Try again"):
        refit.require_unseen(dataset, validation, "Try again.")
    # Whatever stands between: a child of a child has seen it, too.
    child = Lineage.of(dataset, validation, dataclasses.replace(refit, ancestors=("v1",)))
    grandchild = Lineage.of(dataset, validation, dataclasses.replace(child, ancestors=("v2", "v1")))
    assert grandchild.share_seen(dataset, validation) == seen
    assert grandchild.ancestors == ("v2", "v1")
    # And of another split.
    assert child.share_seen(dataset, make_split(dataset, "loo", "test")) > 0.5


def test_it_knows_the_rows_of_an_earlier_version_of_the_data():
    """Daily retraining: yesterday's training knows nothing of today's questions."""
    whole = small()
    today = whole.interactions.sort_values("timestamp", kind="stable").reset_index(drop=True)
    known = today.iloc[: int(0.95 * len(today))]
    users = whole.users[whole.users["user_id"].isin(known["user_id"])]
    yesterday = Dataset("yesterday", known, whole.items[::-1].reset_index(drop=True), users)
    today = Dataset("today", today, whole.items, whole.users)
    for protocol in ("temporal-successive", "loo"):
        old = Lineage.of(yesterday, make_split(yesterday, protocol, "validation"))
        split = make_split(today, protocol, "validation")
        Lineage.of(today, split, old).require_unseen(today, split, "")
        # The rows that both have are the same rows.
        assert np.isin(old.rows, Lineage.of(today, split).rows).any()
    # A random protocol draws anew: of what it asks some was trained on yesterday.
    old = Lineage.of(yesterday, make_split(yesterday, "random", "validation"))
    split = make_split(today, "random", "validation")
    with pytest.raises(ValueError, match=r"learned from \d+% of the rows that random keeps"):
        old.require_unseen(today, split, "")


def test_without_times_a_row_is_known_wherever_it_stands():
    """The order of the rows stands for time, and one more row in front moves all others."""
    rows = [(user, item) for user, item, _ in ROWS]
    old, new = (
        dataclasses.replace(
            dataset_of([(*row, number) for number, row in enumerate(rows)]), has_times=False
        )
        for rows in (rows, [("b", "s"), *rows])
    )
    # A model has learned the first three rows, and one all rows, so what validation asks for, too:
    # a's r and b's r.
    honest, refit = (Lineage(row_ids(old, np.arange(num))) for num in (3, 7))
    for dataset in (old, new):
        validation = make_split(dataset, "loo", "validation")
        assert honest.share_seen(dataset, validation) == 0
        assert refit.share_seen(dataset, validation) == 1


@pytest.mark.parametrize("moves", [(3600,), (-7200, -3600), (20_700,)])
def test_times_of_another_time_zone(moves):
    """The system that exports the rows has changed its time zone, perhaps with summer time, or by
    5:45 hours. A model of the old rows has seen the same share of them as before."""
    old = dataset_of([(user, item, 10**9 + day * 86_400) for user, item, day in ROWS])
    new = dataset_of(
        [(user, item, 10**9 + day * 86_400 + moves[day % len(moves)]) for user, item, day in ROWS]
    )
    # Validation asks for a's r and b's r, rows 3 and 4.
    validation = make_split(new, "loo", "validation")
    honest, half, refit = (Lineage(row_ids(old, np.arange(num))) for num in (3, 4, 5))
    assert [model.share_seen(new, validation) for model in (honest, half, refit)] == [0, 0.5, 1]
    child = Lineage.of(new, validation, half)
    assert child.share_seen(new, validation) == 0.5
    with pytest.raises(ValueError, match=r"50% of .* validation, .* another time zone"):
        child.require_unseen(new, validation, "")
    with pytest.raises(ValueError, match=r"100% of the rows .* for validation, so they"):
        refit.require_unseen(old, make_split(old, "loo", "validation"), "")


def test_a_user_who_comes_back_in_an_hour_is_not_another_time_zone():
    """User a has had r an hour before validation asks for it; that row is not an answer."""
    rows = [(user, item, 10**9 + day * 86_400) for user, item, day in ROWS]
    dataset = dataset_of([*rows, ("a", "r", rows[3][2] - 3600)])
    split = make_split(dataset_of(rows), "loo", "validation")
    split = dataclasses.replace(split, train=np.array([0, 1, 2, 7]))
    assert Lineage(row_ids(dataset, [0, 1, 7])).share_seen(dataset, split) == 0
    assert Lineage(row_ids(dataset, [0, 1, 7, 3])).share_seen(dataset, split) == 0.5


def test_hidden_items_that_an_ancestor_knows_are_seen():
    dataset = small()
    plain = make_split(dataset, "random")
    hiding = hide_items(dataset, plain, 0.1)
    assert Lineage.of(dataset, hiding).share_seen(dataset, hiding) == 0
    # The rows of hidden items that the other training has.
    seen = len(plain.train) - len(hiding.train)
    expected = pytest.approx(seen / len(held_out(dataset, hiding)[1]))
    assert Lineage.of(dataset, plain).share_seen(dataset, hiding) == expected


def test_what_does_not_say_is_refused():
    dataset = dataset_of(ROWS)
    split = make_split(dataset, "loo")
    unknown = Lineage(None, ("v1",))
    child = Lineage.of(dataset, split, unknown)
    assert child.rows is None and child.share_seen(dataset, split) is None
    with pytest.raises(ValueError, match="does not say which rows"):
        child.require_unseen(dataset, split, "")
