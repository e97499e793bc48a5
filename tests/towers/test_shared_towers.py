"""What both towers can share: dense layers, the table of ids, and the content of past items."""

import numpy as np
import pytest
from three_films import ITEMS, QUERIES, RATED, RAW_QUERIES, SIZES

from twotower.tf import tf
from twotower.towers.history.config import AttentionConfig, GRUConfig, MeanConfig
from twotower.towers.item import ItemConfig, item_tower
from twotower.towers.query import QueryConfig, query_tower


def siamese(shared="tower", features=("history",), items=("item_id",), **options):
    # With one seed in 150, all hidden units of a history are 0, whatever its table holds.
    tf.keras.utils.set_random_seed(0)
    tower = item_tower(ITEMS, ItemConfig(items, id_dim=6, unknown_rate=0.0, **SIZES))
    config = QueryConfig(features, shared=shared, **SIZES | options)
    return tower, query_tower(QUERIES, config, tower)


def test_one_tower_for_both_sides():
    items, queries = siamese()
    ids = np.array(["m1", "m2", "m3"])
    # A history of one event is that event, as the item tower sees it.
    alone = queries.embed({"history": ids[:, None]}).numpy()
    np.testing.assert_allclose(alone, items.embed({"item_id": ids}).numpy(), atol=1e-6)
    assert {id(w) for w in queries.weights} == {id(w) for w in items.weights}
    # Padding and unknown ids count for nothing, though the shared table has no row for padding.
    padded = queries.embed({"history": [["m1", "", ""], ["m1", "what", ""]]}).numpy()
    np.testing.assert_allclose(padded, alone[[0, 0]], atol=1e-6)


@pytest.mark.parametrize("history", [MeanConfig(), AttentionConfig()])
def test_one_table_for_both_sides(history):
    items, queries = siamese("item_embedding", history=history, items=("item_id", "year"))
    assert queries.features[0].table is items.features[0].table and queries.head is not items.head
    assert queries.features[0].dim == 6
    raw = {"history": [["m2", "m1"]], "history_time": [[1, 2]]}
    raw = {spec.name: raw[spec.name] for spec in queries.inputs}
    before = queries.embed(raw).numpy()
    table = items.features[0].table
    at = items.features[0].vocabulary.index("m2") + 1  # row 0 is that of unknown ids
    change = np.zeros(table.embeddings.shape, np.float32)
    change[at] = 1.0
    table.embeddings.assign_add(change)
    assert np.abs(queries.embed(raw).numpy() - before).max() > 1e-3
    other = raw | {"history": [["m3", "m1"]]}
    after = queries.embed(other).numpy()
    table.embeddings.assign_sub(change)
    np.testing.assert_array_equal(queries.embed(other).numpy(), after)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"shared": "all"}, "one of .*; got 'all'"),
        ({"items": ("year",)}, r"needs item_id .*; got \['year'\] and \['history'\]"),
        ({"features": ("user_id",)}, "and the query tower history"),
        ({"features": ("user_id", "history")}, "inputs of one length"),
        ({"items": ("item_id", "year")}, "inputs of one length"),
        ({"history": AttentionConfig()}, "got .* and attention"),
        ({"history": RATED}, "longer than the item's"),
        ({"history": MeanConfig(dim=256)}, "dim 256 cannot share .* whose length is 6"),
    ],
)
def test_what_cannot_be_shared(options, message):
    with pytest.raises(ValueError, match=message):
        siamese(**options)


def test_content_of_past_items():
    """Events bring what their items are: features beside the id, and their weights if shared."""
    config = ItemConfig(("item_id", "genres", "year"), **SIZES)
    items = item_tower(ITEMS, config)
    encoded = items.encode(
        {
            "item_id": tf.constant(list(ITEMS["item_id"])),
            "genres": tf.constant([["drama", "war"], ["drama", ""], ["", ""]]),
            "year": tf.constant(ITEMS["year"], tf.float32),
        }
    )

    def inputs(ids):
        rows = [list(ITEMS["item_id"]).index(item_id) for item_id in ids]
        return {name: tf.gather(values, rows) for name, values in encoded.items()}

    for shared in ("nothing", "item_embedding"):
        wanted = QueryConfig(("history",), history=GRUConfig(content=True), shared=shared, **SIZES)
        tower = query_tower(QUERIES, wanted, items, inputs)
        (history,) = tower.features
        tower.embed(RAW_QUERIES)
        # Rows 0 and 1 are padding and unknown; item m3 is row 4, whichever way it is looked up.
        one, every = history.content(tf.constant([[4, 2]])), history.content.vectors(None, False)
        np.testing.assert_allclose(one[0], tf.gather(every, [2, 0]), atol=1e-6)
        trained = history.content(tf.constant([[4, 2]]), training=True)
        np.testing.assert_allclose(trained, one, atol=1e-6)
        assert (history.content.features[0] is items.features[1]) == (shared != "nothing")
    with pytest.raises(ValueError, match="history_content needs an item tower with more than ids"):
        alone = item_tower(ITEMS, ItemConfig(("item_id",), **SIZES))
        query_tower(QUERIES, wanted, alone, inputs)
