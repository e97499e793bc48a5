"""Mining: no known positive, nobody else's list, harder than the batch, the share as asked."""

import numpy as np
import pytest
import tiny
from asked import asked

from twotower.objective.mining import Miner, MiningConfig, drawn
from twotower.objective.negatives import NegativesConfig
from twotower.ragged import Ragged
from twotower.training.fitting import fit
from twotower.training.training import Training


@pytest.fixture
def rng():
    return np.random.default_rng(0)


def miner(known_positives, num_items, **config):
    return Miner(MiningConfig(**config), Ragged.from_rows(known_positives), np.arange(num_items))


@pytest.mark.parametrize("index", ["exact", "hnsw"])
def test_lists_by_hand(index):
    # Items on a line at 0, 1 .. 5, by inner product: user 0 at +1 wants 5, 4, 3 .., and likes 5 and
    # 3; user 1 at -1 wants 0, 1, 2 .., and likes nothing.
    vectors = np.arange(6, dtype=np.float32)[:, None]
    found = miner([[5, 3], []], 6, depth=3, index=index)
    found.mine(np.float32([[1], [-1]]), vectors)
    assert found.lists.tolist() == [[4, 2, 1], [0, 1, 2]]
    skipping = miner([[5, 3], []], 6, depth=3, skip=1, index=index)
    skipping.mine(np.float32([[1], [-1]]), vectors)
    assert skipping.lists.tolist() == [[2, 1, 0], [1, 2, 3]]
    # Deeper than there are items: padded.
    deep = miner([[5, 3], []], 6, depth=9, index=index)
    deep.mine(np.float32([[1], [-1]]), vectors)
    assert deep.lists.tolist() == [[4, 2, 1, 0] + [-1] * 5, [0, 1, 2, 3, 4, 5] + [-1] * 3]


def test_hard_negatives_are_drawn_from_the_list_of_the_user(rng):
    one = miner([[5, 3], []], 6, depth=3)
    one.mine(np.float32([[1], [-1]]), np.arange(6, dtype=np.float32)[:, None])
    users = np.array([1, 0, 1])
    met = [set(), set()]
    for _ in range(30):
        chosen = one.hard_negatives(users, 2, rng)
        assert chosen.shape == (3, 2) and chosen.dtype == np.int32
        for user, row in zip(users, chosen.tolist()):
            assert len(set(row)) == 2
            met[user] |= set(row)
    assert met == [{4, 2, 1}, {0, 1, 2}]


def test_a_short_list_is_topped_up_without_positives(rng):
    one = miner([[5, 3], [], range(6)], 6, depth=2)
    one.mine(np.float32([[1], [-1], [1]]), np.arange(6, dtype=np.float32)[:, None])
    users = np.array([0, 1, 2])
    for _ in range(20):
        chosen = one.hard_negatives(users, 40, rng)
        # The mined ones are there in any case.
        assert {4, 2} <= set(chosen[0]) <= {0, 1, 2, 4} and {0, 1} <= set(chosen[1])
        assert (chosen[2] == -1).all()  # likes everything
    assert one.hard_negatives(users, 0, rng).shape == (3, 0)


def test_rows_of_a_batch_share_a_bounded_pool(rng):
    liked = [[user] for user in range(40)]
    one = miner(liked, 500, depth=50, distinct=60)
    one.mine(np.float32(rng.normal(size=(40, 8))), np.float32(rng.normal(size=(500, 8))))
    users, batch = np.arange(40), np.arange(100, 130)
    met, asked = set(), 0
    for _ in range(30):
        chosen = one.hard_negatives(users, 30, rng, batch)
        assert chosen.shape == (40, 30) and (chosen >= 0).all()
        assert not (chosen == users[:, None]).any()  # no positive
        new = set(chosen.ravel().tolist()) - set(batch.tolist())
        assert len(new) <= 60
        met |= new
        for user, row in zip(users, chosen.tolist()):
            # All that the pool has of the row's list, before anything else.
            mine = set(one.lists[user].tolist()) & (new | set(batch.tolist()))
            assert len(mine & set(row)) >= min(30, len(mine & set(chosen.ravel().tolist())))
            asked += len(mine & set(row)) / 30
    # Over many batches most items of the lists come up, and much of a row is from its list.
    assert len(met) > 0.8 * len(np.unique(one.lists)) and asked / (30 * 40) > 0.2
    # Without a bound that matters, a row is its list.
    wide = miner(liked, 500, depth=50, distinct=500)
    wide.lists = one.lists
    chosen = wide.hard_negatives(users, 30, rng, batch)
    assert (chosen[:, :, None] == one.lists[:, None]).any(2).all()


@pytest.mark.parametrize("distinct", [60, 500])
def test_rows_are_topped_up_at_random_and_not_from_other_lists(rng, distinct):
    # Four kinds of users, each with a list of 50 items of its kind; 300 items are in no list.
    kinds = np.float32(np.eye(4))
    vectors = np.concatenate([np.repeat(kinds, 50, axis=0), np.zeros((300, 4), np.float32)])
    one = miner([[]] * 40, 500, depth=50, distinct=distinct)
    one.mine(np.tile(kinds, (10, 1)), vectors)
    topped, num_mined = [], 0
    for _ in range(50):
        chosen = one.hard_negatives(np.arange(40), 60, rng)
        of_own_kind = (chosen < 200) & (chosen // 50 == np.arange(40)[:, None] % 4)
        num_mined += of_own_kind.sum()
        topped.append(chosen[~of_own_kind])
    topped = np.concatenate(topped)
    # As often from another kind's list as a random item is.
    assert (topped < 200).mean() == pytest.approx(150 / 450, abs=0.05)
    assert len(np.unique(topped)) > 300
    # The count is that of negatives drawn from lists; a random item can be in the list, too.
    assert one.num_drawn == 50 * 40 * 60 and one.num_mined <= num_mined
    if distinct == 500:
        assert one.num_mined == 50 * 40 * 50  # the whole list


def test_lists_are_as_long_as_a_row_needs():
    recipe = tiny.recipe(
        examples={"batch_size": 256}, negatives={"hard_negative_share": 0.5}, mining={"depth": 40}
    )
    assert Training(tiny.dataset(), tiny.split(), recipe).miner.config.depth == 255


def test_nothing_before_the_first_mining(rng):
    assert miner([[0], [1]], 4).hard_negatives(np.array([0, 1, 1]), 5, rng).shape == (3, 0)


def test_when_it_is_due():
    config = MiningConfig(every=10, warmup=25)
    assert [step for step in range(60) if config.is_due(step)] == [25, 35, 45, 55]
    assert MiningConfig(every=10, warmup=0).is_due(0)
    for field, value in (
        ("every", 0),
        ("warmup", -1),
        ("depth", 0),
        ("skip", -1),
        ("distinct", 3),
        ("index", "?"),
    ):
        with pytest.raises(ValueError, match=field):
            MiningConfig(**{field: value})


@pytest.mark.parametrize(
    ("pools", "share", "expected"),
    [
        (("batch",), 0.1, 28),  # 28 of 255 + 28
        (("batch",), 0.5, 255),
        (("batch", "uniform"), 0.1, 142),  # 142 of 255 + 1024 + 142
        (("catalogue",), 0.25, 1000),  # 1000 of 3000 + 1000
        (("batch",), 0.0, 0),
    ],
)
def test_the_share_is_what_the_flag_says(pools, share, expected):
    config = NegativesConfig(negatives=pools, hard_negative_share=share)
    shared = config.num_shared(256, 3001)
    hard = config.num_mined(shared)
    assert hard == expected and hard / (shared + hard) == pytest.approx(share, abs=0.002)


def test_drawn_rows_are_short_where_the_lists_are(rng):
    found = drawn(np.array([[4, 5, -1], [-1, -1, -1]]), 2, rng)
    assert set(found[0]) == {4, 5} and found[1].tolist() == [-1, -1]
    assert drawn(np.array([[4, 5]]), 3, rng).tolist()[0][2] == -1


@pytest.fixture(scope="module")
def trained(tmp_path_factory) -> Training:
    recipe = tiny.recipe(
        examples={"batch_size": 256},
        negatives={"hard_negative_share": 0.1},
        mining={"every": 10, "warmup": 10, "depth": 40},
        fit={"epochs": 2},
    )
    training = Training(tiny.dataset(), tiny.split(), recipe)
    assert next(iter(training.batches())).hard_negatives.shape[1] == 0
    fit(training, tmp_path_factory.mktemp("mining"))
    return training


def test_in_training(trained):
    """No known positive is drawn, no other row's list, and mean scores above those of the batch."""
    num_items, examples = trained.model.num_items, trained.examples
    likes = np.zeros((len(examples.by_user), num_items), bool)
    likes[examples.users, examples.items] = True
    vectors = trained.item_vectors(np.arange(num_items))
    hard, shared, seen = [], [], 0
    for batch in asked(trained.examples, 5):
        users, num = batch["user"], len(batch["item"])
        chosen = trained.row_negatives(users, batch["item"], np.random.default_rng(0))
        assert chosen.shape == (len(users), round((num - 1) / 9)) and (chosen >= 0).all()
        assert not likes[users[:, None], chosen].any()
        lists = trained.miner.lists[users]
        assert (chosen[:, :, None] == lists[:, None]).any(2).mean() > 0.99
        queries = trained.query_vectors(batch["cases"])
        scores = queries @ vectors.T
        hard.append(np.take_along_axis(scores, chosen, 1).mean())
        columns = np.unique(batch["item"])
        shared.append(scores[:, columns][~likes[users][:, columns]].mean())
        seen += len(users)
    assert seen > 100 and min(np.subtract(hard, shared)) > 0.05


def test_shared_lists_would_be_noticed(trained):
    """The check above, on hard negatives that go to the wrong rows."""
    batch = asked(trained.examples, 5)[0]
    chosen = trained.row_negatives(batch["user"], batch["item"], np.random.default_rng(0))
    lists = trained.miner.lists[np.roll(batch["user"], 1)]
    assert (chosen[:, :, None] == lists[:, None]).any(2).mean() < 0.9
