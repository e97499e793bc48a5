"""What a user did before, as one vector: the base of all history encoders, and the bag."""

import dataclasses
from collections.abc import Sequence
from typing import Any

from twotower.tf import tf
from twotower.towers.features import UNKNOWN, Input, StringFeature, embedding_table
from twotower.towers.history.config import HistoryConfig, MeanConfig, changed

# In training a bag is a product of counts [batch_size, num_items] with the table: for histories of
# hundreds of events several times faster than gathering and scattering their vectors (a third of a
# training step on MovieLens 1M), and its memory does not grow with the length of histories. Up to
# this many items the counts are a dense matrix, past it a sparse one.
COUNT_MATRIX_LIMIT = 20_000
# Past it a count of events in float32 stays as it is when one is added.
MAX_COUNT = 2.0**24


class History(StringFeature):
    """Base of the history encoders: inputs and lookup of aligned sequences, oldest first.

    Inputs are `<name>`, `[batch_size, n]` strings padded on the right with "", and if an encoder
    reads them, `<name>_time` (int64 seconds, -1 for padding) and `<name>_rating` (float32, NaN for
    none), both of the same shape as `<name>`. An item that is not in the vocabulary is left out.

    Args:
        name: Name of the input.
        vocabulary: Ids of the items of the training rows.
        config: What the encoder reads, and its sizes; each encoder has a config class (config.py).
        table: Vectors of an item tower's `Id`, to share them; a new table by default.

    Raises:
        ValueError: The config's `dim` is not the length of the table's vectors.
    """

    is_sequence = True
    # Whether the vector after p events depends on these alone. If not, training hides events and
    # predicts them.
    is_causal = True

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        config: HistoryConfig,
        table: tf.keras.layers.Embedding | None = None,
    ) -> None:
        super().__init__(name, vocabulary, mask_token="")
        config = config.sized(None if table is None else table.output_dim)
        self.config, self.dim = config, config.dim
        self.is_shared = table is not None
        self.table = table or embedding_table(len(self.vocabulary) + 2, self.dim)

    @property
    def size(self) -> int:
        """Length of the encoder's vector."""
        return self.dim

    def rows(self, index: tf.Tensor) -> tf.Tensor:
        """Encoded items, `[batch_size, n]` or of any other shape, to rows of the table. The table
        of an item tower has no row for padding."""
        return tf.maximum(index - 1, 0) if self.is_shared else index

    def begin(self, encoded: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Begins a session.

        Args:
            encoded: The encoder's encoded inputs.

        Returns:
            (the state, name -> `[batch_size, ...]`; the history's vector `[batch_size, size]`).
        """
        raise NotImplementedError

    def step(
        self, state: dict[str, tf.Tensor], event: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Adds an event to a session. Returns what `begin` returns for the longer history.

        Args:
            state: As returned by `begin` or `step`.
            event: The encoder's encoded inputs for one event, each `[batch_size]`.
        """
        raise NotImplementedError

    def check(self, state: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        """Which rows of each part of a state are valid, name -> `[batch_size]` bool. Here these are
        the rows whose numbers are all finite."""
        finite = {name: tf.math.is_finite(values) for name, values in state.items()}
        return {
            name: tf.reduce_all(rows, range(1, rows.shape.rank)) for name, rows in finite.items()
        }

    def kept(self, index: tf.Tensor, training: bool) -> tf.Tensor:
        """Which events of `index`, `[batch_size, n]` or of any other shape, are used: bool of that
        shape. These are the known ones, of which training drops a random share."""
        kept = index > UNKNOWN
        if training and self.config.dropout > 0:
            kept &= tf.random.uniform(tf.shape(index)) >= self.config.dropout
        return kept

    def get_config(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "vocabulary": self.vocabulary,
            "config": dataclasses.asdict(self.config),
        }

    @classmethod
    def from_config(cls, config: dict[str, Any]) -> "History":
        """An encoder as `get_config` describes it, with new weights and a table of its size."""
        return cls(**config | {"config": changed(MeanConfig(), **config["config"])})


@tf.keras.saving.register_keras_serializable("twotower")
class MeanHistory(History):
    """Bag of past items: the sum of their vectors, divided by (number of events) ** `power`.

    With `dropout` p, training leaves events out at random, so that the tower does not rely on a
    single one (input dropout of Mult-DAE, Liang et al., WWW 2018, section 2), and divides the sum
    of the others by 1 - p.

    With `power` 1 this is the mean, which gets shorter with each event if the items differ. With
    1/2 a sum of independent vectors keeps its length. An empty history gives zeros.

    With `ratings` there is a second bag, of vectors from a second table. It weighs each event by
    its rating minus the user's mean rating, which tells items that were liked from items that were
    only seen.

    >>> history = MeanHistory("history", ["a", "b"], MeanConfig(dim=2))
    >>> encoded = history.encode({"history": tf.constant([["a", "b"], ["", ""]])})
    >>> encoded["history"].numpy().tolist(), history(encoded).numpy()[1].tolist()
    ([[2, 3], [0, 0]], [0.0, 0.0])
    """

    config: MeanConfig

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        config: MeanConfig,
        table: tf.keras.layers.Embedding | None = None,
    ) -> None:
        super().__init__(name, vocabulary, config, table)
        if config.ratings:
            self.rating_table = embedding_table(len(self.vocabulary) + 2, self.dim)

    @property
    def size(self) -> int:
        return 2 * self.dim if self.config.ratings else self.dim

    @property
    def inputs(self) -> list[Input]:
        rating = [Input(f"{self.name}_rating", "float32", (None,))] if self.config.ratings else []
        return [Input(self.name, "string", (None,)), *rating]

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        bag = self._of(self._sums(encoded, training))
        # The expected bag is then that of serving, which drops nothing.
        return bag / (1.0 - self.config.dropout) if training else bag

    def at(
        self, encoded: dict[str, tf.Tensor], position: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        index = encoded[self.name]  # [num_sequences, n]
        kept = tf.cast(self.kept(index, training), tf.float32)[:, :, None]
        count = tf.cumsum(tf.cast(index > UNKNOWN, tf.float32), 1)[:, :, None]
        scale = 1.0 / (tf.maximum(count, 1.0) ** self.config.power)
        if training:
            scale /= 1.0 - self.config.dropout
        bags = tf.cumsum(self.table(self.rows(index)) * kept, 1) * scale
        if self.config.ratings:
            rating = encoded[f"{self.name}_rating"][:, :, None]
            rated = tf.cast(~tf.math.is_nan(rating), tf.float32) * kept
            rating = tf.where(rated > 0, rating, 0.0)
            vectors = self.rating_table(index)
            mean = tf.math.divide_no_nan(tf.cumsum(rating, 1), tf.cumsum(rated, 1))
            liked = tf.cumsum(rating * vectors, 1) - mean * tf.cumsum(rated * vectors, 1)
            bags = tf.concat([bags, liked * scale], 2)
        return tf.gather_nd(tf.pad(bags, [[0, 0], [1, 0], [0, 0]]), position)

    def begin(self, encoded: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        state = self._sums(encoded)
        return state, self._of(state)

    def step(
        self, state: dict[str, tf.Tensor], event: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        more = self._sums({name: values[:, None] for name, values in event.items()})
        state = {name: values + more[name] for name, values in state.items()}
        return state, self._of(state)

    def check(self, state: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        right = super().check(state)
        for name, most in (("num", MAX_COUNT), ("num_rated", state["num"])):
            if name in state:
                count = state[name]
                right[name] &= (count >= 0) & (count <= most) & (count == tf.floor(count))
        # A wrong number of events says nothing about the rated ones.
        if "num_rated" in state:
            right["num_rated"] |= ~right["num"]
        return right

    def _sums(self, encoded: dict, training: bool = False) -> dict[str, tf.Tensor]:
        """The sums that make a bag, name -> `[batch_size]` or `[batch_size, dim]`. Those of two
        histories together are the sums of both."""
        events = {i.name: encoded[i.name] for i in self.inputs}
        index = events[self.name]  # [batch_size, n]
        # A request has so few events that reading the whole table would take longer than all
        # else. An exported tower cannot know the size of its batches, so it gathers: a choice in
        # the graph by `tf.cond` would cost a third of a request.
        is_known, num_cells = index > UNKNOWN, index.shape.num_elements()
        if training or (num_cells is not None and num_cells >= self.table.input_dim // 2):
            events = known_events(events, is_known)
            index = events[self.name]  # [batch_size, (n)]
        each = tf.ragged.map_flat_values  # computes values of an event each, ragged or not
        kept = each(lambda index: tf.cast(self.kept(index, training), tf.float32), index)
        state = {
            "num": tf.math.count_nonzero(is_known, 1, dtype=tf.float32),
            "sum": weighted_bag(self.table, each(self.rows, index), kept),
        }
        if self.config.ratings:
            rating = events[f"{self.name}_rating"]
            rated = each(lambda r, kept: tf.where(tf.math.is_nan(r), 0.0, kept), rating, kept)
            rating = each(tf.math.multiply_no_nan, rating, rated)
            state |= {
                "num_rated": tf.reduce_sum(rated, 1),
                "rating": tf.reduce_sum(rating, 1),
                "rated": weighted_bag(self.rating_table, index, rated),
                "rating_sum": weighted_bag(self.rating_table, index, rating),
            }
        return state

    def _of(self, state: dict[str, tf.Tensor]) -> tf.Tensor:
        """The bag `[batch_size, size]`, from what `_sums` returns."""
        scale = 1.0 / tf.maximum(state["num"], 1.0)[:, None] ** self.config.power
        bags = [state["sum"] * scale]
        if self.config.ratings:
            mean = tf.math.divide_no_nan(state["rating"], state["num_rated"])[:, None]
            bags.append((state["rating_sum"] - mean * state["rated"]) * scale)
        return tf.concat(bags, 1)


def known_events(events: dict[str, tf.Tensor], is_known: tf.Tensor) -> dict[str, tf.RaggedTensor]:
    """The known events of histories, without padding, name -> `[batch_size, (n)]`.

    A batch is padded to its longest history, so most of its cells are padding.

    Args:
        events: Name -> values, `[batch_size, n]`.
        is_known: `[batch_size, n]` bool.
    """
    known = {name: tf.boolean_mask(values, is_known) for name, values in events.items()}
    lengths, first = tf.math.count_nonzero(is_known, 1), next(iter(known.values()))
    rows = tf.RaggedTensor.from_row_lengths(first, lengths, validate=False)
    return {name: rows.with_flat_values(values) for name, values in known.items()}


def weighted_bag(
    table: tf.keras.layers.Embedding,
    index: tf.Tensor | tf.RaggedTensor,
    weight: tf.Tensor | tf.RaggedTensor,
) -> tf.Tensor:
    """sum_j weight[i, j] * table[index[i, j]].

    Args:
        table: Embedding of `rows` rows.
        index: `[batch_size, n]` int32, or ragged for a large batch.
        weight: Float32 of the same shape, 0 for an entry that does not count.

    Returns:
        `[batch_size, dim]`.
    """
    rows = table.input_dim
    if not table.built:
        table.build(None)
    if not isinstance(index, tf.RaggedTensor):
        return tf.einsum("bn,bnd->bd", weight, table(index))
    if rows <= COUNT_MATRIX_LIMIT:
        counts = tf.math.bincount(index, weight, minlength=rows, maxlength=rows, axis=-1)
        counts = tf.ensure_shape(counts, [None, rows])  # [batch_size, rows]
        return tf.linalg.matmul(counts, table.embeddings)
    cells = tf.stack([index.value_rowids(), tf.cast(index.flat_values, tf.int64)], 1)
    is_used = weight.flat_values != 0
    counts = tf.SparseTensor(
        tf.boolean_mask(cells, is_used),  # [num_events, 2]
        tf.boolean_mask(weight.flat_values, is_used),
        tf.cast([index.nrows(), rows], tf.int64),
    )
    return tf.sparse.sparse_dense_matmul(counts, table.embeddings)
