"""Encoders that read events in their order: the window, the vectors of events, session states.

Such an encoder computes a vector after each event, and the vector after p events depends on these p
events alone. That makes three uses possible:

    training   all prefixes of a sequence at once: p events predict event p + 1 (`at`)
    serving    the vector after the last event (`call`)
    sessions   one more event without reading the others again (`begin`, `step`)
"""

from collections.abc import Sequence
from typing import Any, NamedTuple

import numpy as np

from twotower.data.times import LATEST
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.towers.features import UNKNOWN, Input, embedding_table
from twotower.towers.history.bag import History
from twotower.towers.history.config import SequenceConfig
from twotower.towers.history.content import ItemContent

# Buckets of time spans, each twice as long as the one before, from one second to 34 years and more.
NUM_BUCKETS = 32
# Ratings in half stars, 0 for none.
NUM_RATINGS = 12
# Logit of a token that may not be attended to, or what is added to it. A softmax and a silu both
# give it a weight of exactly zero.
UNSEEN = -1e9


class Window(NamedTuple):
    """The events that an encoder reads, oldest first. Entries past `length` have no meaning.

    Attributes:
        items: `[batch_size, n]` int32, encoded by the encoder's vocabulary.
        times: `[batch_size, n]` int64 seconds; zeros if the encoder reads no times.
        ratings: `[batch_size, n]` float32; NaN for none.
        length: `[batch_size]` int32, number of events.
        request: `[batch_size]` int64, time of the request in seconds; -1 if it is unknown or not
            read.
    """

    items: tf.Tensor
    times: tf.Tensor
    ratings: tf.Tensor
    length: tf.Tensor
    request: tf.Tensor


def bucket(seconds: tf.Tensor) -> tf.Tensor:
    """The bucket of each span of time, int32: 0 for 0 seconds or less, else 1 + floor(log2
    seconds), at most NUM_BUCKETS - 1.

    >>> bucket(tf.constant([-5, 0, 1, 2, 3, 4, 10**12], tf.int64)).numpy().tolist()
    [0, 0, 1, 2, 2, 3, 31]
    """
    # The exponent bits of a double are 1023 + floor(log2 seconds), and 0 for 0 seconds. Reading
    # them is faster than searching among the starts of the buckets.
    bits = tf.bitcast(tf.cast(tf.maximum(seconds, 0), tf.float64), tf.int64)
    number = tf.bitwise.right_shift(bits, tf.constant(52, tf.int64)) - 1022
    return tf.cast(tf.clip_by_value(number, 0, NUM_BUCKETS - 1), tf.int32)


def since(start: tf.Tensor, end: tf.Tensor) -> tf.Tensor:
    """Seconds from `start` to `end`, int64; 0 where one of them is -1, not known.

    >>> since(tf.constant([-1, 5, 5], tf.int64), tf.constant([9, -1, 9], tf.int64)).numpy().tolist()
    [0, 0, 4]
    """
    return tf.where((start < 0) | (end < 0), tf.zeros([], tf.int64), end - start)


def earlier(width: tf.Tensor) -> tf.Tensor:
    """Whether token j is not later than token i, `[width, width]` bool."""
    return tf.range(width)[:, None] >= tf.range(width)


def put(tensor: tf.Tensor, at: tf.Tensor, values: tf.Tensor) -> tf.Tensor:
    """`tf.tensor_scatter_nd_update` of values `[n, ...]` at indices `[n, rank]`, which ignores
    indices outside the tensor, such as -1."""
    return tf.raw_ops.TensorScatterUpdate(
        tensor=tensor, indices=at, updates=values, bad_indices_policy="IGNORE"
    )


def num_dropped(num_events: tf.Tensor, max_length: int, stride: int) -> tf.Tensor:
    """How many of the oldest events are not read: none up to `max_length`, then `stride` at a time.

    If the window moved with every event, a session would read it anew each time.

    >>> [int(num_dropped(tf.constant(num), max_length=10, stride=4)) for num in (10, 11, 14, 15)]
    [0, 4, 4, 8]
    """
    return (tf.maximum(num_events - max_length, 0) + stride - 1) // stride * stride


class SequenceHistory(History):
    """Base of the encoders that read events in their order.

    Events are read in the order in which they are given. If times are equal, descend or are not
    known (-1), the gap between the events is 0, and nothing else changes. Items that are not in the
    vocabulary are left out.

    Args:
        name: As in `History`, like `vocabulary`, `config` and `table`.
        content: Features of items that are added to the vectors of their ids.
        longest: Longest time between two events of a user in training, in seconds; see `adapt`.
    """

    config: SequenceConfig

    def __init__(
        self,
        name: str,
        vocabulary: Sequence[str],
        config: SequenceConfig,
        table: tf.keras.layers.Embedding | None = None,
        content: ItemContent | None = None,
        longest: int = 2**NUM_BUCKETS,
    ) -> None:
        super().__init__(name, vocabulary, config, table)
        self.content, self.longest, dim = content, longest, self.dim
        self.begin_vector = self.add_weight(
            "begin", [dim], initializer=tf.keras.initializers.RandomNormal(stddev=dim**-0.5)
        )
        self.gap_table = self.rating_table = self.wait_table = None
        if config.gaps:
            self.gap_table = embedding_table(NUM_BUCKETS, dim)
        if config.ratings:
            self.rating_table = embedding_table(NUM_RATINGS, dim, at_zero=(0,))
        if config.request_time:
            self.wait_table = embedding_table(NUM_BUCKETS, dim)
        self.drop = tf.keras.layers.Dropout(config.dropout)

    @property
    def reads_times(self) -> bool:
        """Whether the times of events are an input."""
        return self.config.gaps or self.config.request_time

    @property
    def inputs(self) -> list[Input]:
        inputs = [Input(self.name, "string", (None,))]
        inputs += [Input(f"{self.name}_time", "int64", (None,))] if self.reads_times else []
        inputs += [Input(f"{self.name}_rating", "float32", (None,))] if self.config.ratings else []
        inputs += [Input("time", "int64")] if self.config.request_time else []
        return inputs

    def adapt(self, times: Ragged, ratings: np.ndarray) -> None:
        """Takes the longest time between two events from the training rows.

        The vectors of longer times are never trained, so a longer time is read as this one.

        Args:
            times: Seconds of each user's events in their order, a row for each user.
            ratings: `[num_events]`, ratings of all events; NaN for none.

        Raises:
            ValueError: Ratings are read, and these have another scale.
        """
        start, stop = times.offsets[:-1], times.offsets[1:]
        start, stop = start[start < stop], stop[start < stop]
        self.longest = int((times.values[stop - 1] - times.values[start]).max(initial=0))
        known = ratings[~np.isnan(ratings)]
        low, high = known.min(initial=np.inf), known.max(initial=-np.inf)
        if self.config.ratings and (low < 0.5 or high > (NUM_RATINGS - 1) / 2):
            raise ValueError(
                f"ratings of past events are levels of half a star from 0.5 to "
                f"{(NUM_RATINGS - 1) / 2}; these go from {low:g} to {high:g}. Scale the column."
            )

    # Inputs.

    def whole(self, encoded: dict[str, tf.Tensor]) -> Window:
        """All events of the encoded histories `[batch_size, n]` as a window.

        Only for sequences that are not longer than a window and have no unknown items inside, as
        training makes them (`data/sequences.py`).
        """
        items = encoded[self.name]  # [batch_size, n]
        times, ratings = tf.zeros_like(items, tf.int64), tf.fill(tf.shape(items), float("nan"))
        request = tf.fill(tf.shape(items)[:1], tf.constant(-1, tf.int64))
        if self.reads_times:
            times = tf.cast(encoded[f"{self.name}_time"], tf.int64)
        if self.config.ratings:
            ratings = encoded[f"{self.name}_rating"]
        if self.config.request_time:
            request = tf.cast(encoded["time"], tf.int64)
        length = tf.reduce_sum(tf.cast(items > UNKNOWN, tf.int32), 1)
        return Window(items, times, ratings, length, request)

    def window(self, encoded: dict[str, tf.Tensor]) -> Window:
        """The most recent known events of the encoded histories `[batch_size, n]`, moved to the
        left."""
        whole = self.whole(encoded)
        known = whole.items > UNKNOWN
        # Known events first, in their order; then padding and unknown ones.
        order = tf.argsort(tf.cast(~known, tf.int32), axis=1, stable=True)
        dropped = num_dropped(whole.length, self.config.length, self.config.stride)
        width = tf.minimum(tf.shape(order)[1], self.config.length)
        # Past the end the last column is taken, which has no meaning there.
        take = tf.minimum(dropped[:, None] + tf.range(width), tf.shape(order)[1] - 1)
        order = tf.gather(order, take, batch_dims=1)  # [batch_size, width]
        columns = [tf.gather(c, order, batch_dims=1) for c in whole[:3]]
        return Window(*columns, whole.length - dropped, whole.request)

    def event_vectors(self, window: Window, training: bool = False) -> tf.Tensor:
        """The vector of each event, `[batch_size, n, dim]`: the sum of the vectors of its item,
        gap and rating, scaled so that components start with a standard deviation of 1."""
        vectors = self.table(self.rows(window.items))
        if self.content is not None:
            vectors += self.content(window.items, training=training)
        if self.config.gaps:
            before = tf.concat([window.times[:, :1], window.times[:, :-1]], 1)
            gap = tf.minimum(since(before, window.times), self.longest)
            vectors += self.gap_table(bucket(gap))
        if self.config.ratings:
            half_stars = tf.clip_by_value(tf.round(2.0 * window.ratings), 1.0, NUM_RATINGS - 1.0)
            level = tf.where(tf.math.is_nan(window.ratings), 0.0, half_stars)
            vectors += self.rating_table(tf.cast(level, tf.int32))
        return vectors * self.dim**0.5

    def tokens(self, window: Window, training: bool = False) -> tf.Tensor:
        """The begin token, which represents a user without events, then a token for each event,
        `[batch_size, n + 1, dim]`."""
        events = self.event_vectors(window, training)
        tokens = tf.concat([self._begin(tf.shape(events)[:1]), events], 1)
        return self._at_positions(tokens, window, tf.range(tf.shape(tokens)[1])[None], training)

    def last_tokens(self, window: Window, positions: tf.Tensor) -> tf.Tensor:
        """The tokens at consecutive `positions` `[batch_size, m]`, `[batch_size, m, dim]`.

        The other tokens are not computed, so a session's event costs the same for any window.
        """
        # Token p is event p - 1. Its gap needs the event before.
        at = tf.maximum(tf.concat([positions[:, :1] - 1, positions], 1) - 1, 0)
        few = {
            name: tf.gather(getattr(window, name), at, batch_dims=1)
            for name in ("items", "times", "ratings")
        }
        events = self.event_vectors(window._replace(**few))[:, 1:]
        begin = self._begin(tf.shape(events)[:1])
        tokens = tf.where(positions[:, :, None] > 0, events, begin)
        return self._at_positions(tokens, window, positions)

    def last_two(self, state: dict[str, tf.Tensor], request: tf.Tensor) -> tf.Tensor:
        """The last two tokens of a state's window, `[batch_size, 2, dim]`. Before the first event
        both are the begin token."""
        positions = tf.maximum(state["length"][:, None] + tf.range(-1, 1), 0)
        return self.last_tokens(self._held(state, request), positions)

    def _begin(self, batch_size: tf.Tensor) -> tf.Tensor:
        """The token before all events, `[batch_size, 1, dim]`."""
        shape = tf.concat([batch_size, [1, 1]], 0)
        return tf.fill(shape, self.dim**0.5) * self.begin_vector

    def _at_positions(
        self, tokens: tf.Tensor, window: Window, positions: tf.Tensor, training: bool = False
    ):
        """Tokens `[batch_size, m, dim]` with the vectors of their request times and positions."""
        if self.config.request_time:
            times, asked = self.token_times(window)
            at = tf.broadcast_to(positions, tf.shape(tokens)[:2])
            wait = tf.minimum(since(times, asked), self.longest)
            wait = tf.gather(wait, at, batch_dims=1)
            tokens += self.wait_table(bucket(wait)) * self.dim**0.5
        return self.drop(self.with_positions(tokens, positions), training=training)

    def with_positions(self, tokens: tf.Tensor, positions: tf.Tensor) -> tf.Tensor:
        """Tokens `[batch_size, m, dim]` plus vectors of their positions `[batch_size or 1, m]`, for
        encoders that have such vectors. Here the tokens alone."""
        return tokens

    def token_times(self, window: Window) -> tuple[tf.Tensor, tf.Tensor]:
        """The time of each token, and the time at which the item after it is requested.

        With `request_time` the second is the time of the next event, or of the request after the
        last one. Otherwise it is the token's time.

        Returns:
            (`[batch_size, n + 1]`, `[batch_size, n + 1]`) int64 seconds.
        """
        first = tf.pad(window.times, [[0, 0], [0, 1]])[:, :1]
        first = tf.where(window.length[:, None] > 0, first, tf.maximum(window.request, 0)[:, None])
        times = tf.concat([first, window.times], 1)
        if not self.config.request_time:
            return times, times
        asked = tf.concat([window.times, window.request[:, None]], 1)
        is_last = tf.range(tf.shape(times)[1]) == window.length[:, None]
        return times, tf.where(is_last, window.request[:, None], asked)

    # The three uses.

    def states(self, window: Window, training: bool = False) -> tf.Tensor:
        """The vectors after 0, 1, ..., n events, `[batch_size, n + 1, dim]`."""
        raise NotImplementedError

    def call(self, encoded: dict[str, tf.Tensor], training: bool = False) -> tf.Tensor:
        window = self.window(encoded)
        return tf.gather(self.states(window, training), window.length, batch_dims=1)

    def at(
        self, encoded: dict[str, tf.Tensor], position: tf.Tensor, training: bool = False
    ) -> tf.Tensor:
        return tf.gather_nd(self.states(self.whole(encoded), training), position)

    def begin(self, encoded: dict[str, tf.Tensor]) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        """Begins a session, as in `History.begin`.

        A state has a row for each session: the window's `items`, `times` and `ratings`
        `[batch_size, length]`; its `length` `[batch_size]`; and `reread` `[batch_size]`, how
        often the window moved and was read anew since. Encoders add parts to it.
        """
        window = self.window(encoded)
        width = tf.shape(window.items)[1]
        state = {}
        for name in ("items", "times", "ratings"):
            column = tf.pad(getattr(window, name), [[0, 0], [0, self.config.length - width]])
            state[name] = tf.ensure_shape(column, [None, self.config.length])
        state |= {"length": window.length, "reread": tf.zeros_like(window.length)}
        return self._read(state, window.request)

    def step(
        self, state: dict[str, tf.Tensor], event: dict[str, tf.Tensor]
    ) -> tuple[dict[str, tf.Tensor], tf.Tensor]:
        columns = {spec.name: event[spec.name] for spec in self.inputs}
        for spec in self.inputs:
            if spec.shape:  # of the history: one event
                columns[spec.name] = columns[spec.name][:, None]
        one = self.whole(columns)
        known = one.length > 0  # an unknown item changes no state
        full = known & (state["length"] == self.config.length)
        if type(self)._go_on is SequenceHistory._go_on:  # reads the whole window at each event
            return self._read(self._added(state, one, known, full), one.request)

        has_room = known & ~full

        def go_on():
            return self._go_on(self._added(state, one, has_room), one.request, has_room)

        def go_on_and_reread():
            at = tf.where(full)  # [num_full, 1]
            moved = self._added(state, one, known, full)
            moved = {name: tf.gather_nd(values, at) for name, values in moved.items()}
            read, vectors = self._read(moved, tf.gather_nd(one.request, at))
            others, vector = go_on()
            put_back = tf.tensor_scatter_nd_update
            together = {name: put_back(others[name], at, read[name]) for name in others}
            return together, put_back(vector, at, vectors)

        return tf.cond(tf.reduce_any(full), go_on_and_reread, go_on)

    def check(self, state: dict[str, tf.Tensor]) -> dict[str, tf.Tensor]:
        window = {name: state[name] for name in ("items", "times", "ratings", "length", "reread")}
        items, times, ratings, length, reread = window.values()
        is_past_end = tf.range(self.config.length) >= length[:, None]
        # Past the end, too: encoders look up the vectors of the whole window.
        is_in_table = (items >= 0) & (items < len(self.vocabulary) + 2)
        is_item = is_in_table & ((items > UNKNOWN) | is_past_end)
        is_length = (length >= 0) & (length <= self.config.length)
        return super().check({n: v for n, v in state.items() if n not in window}) | {
            # A wrong length says nothing about the items.
            "items": tf.reduce_all(is_item, 1) | ~is_length,
            "times": tf.reduce_all((times >= -LATEST) & (times <= LATEST), 1),
            "ratings": ~tf.reduce_any(tf.math.is_inf(ratings), 1),  # NaN where there is none
            "length": is_length,
            "reread": reread >= 0,
        }

    def _added(self, state: dict, one: Window, known: tf.Tensor, full=None) -> dict:
        """A state with one more event where `known`. A window that is `full` first drops its oldest
        events, and the others move to its start."""
        new = dict(state)
        if full is not None:
            dropped = tf.where(full, self.config.stride, 0)
            moved = tf.range(self.config.length) + dropped[:, None]
            moved = tf.minimum(moved, self.config.length - 1)
            for name in ("items", "times", "ratings"):
                new[name] = tf.gather(state[name], moved, batch_dims=1)
            new["length"] -= dropped
            new["reread"] += tf.cast(full, tf.int32)
        # Nothing is written where the event's item is unknown.
        at = tf.where(known, new["length"], -1)
        at = tf.stack([tf.range(tf.size(at)), at], 1)  # [batch_size, 2]
        for name in ("items", "times", "ratings"):
            new[name] = put(new[name], at, getattr(one, name)[:, 0])
        new["length"] += tf.cast(known, tf.int32)
        return new

    def _held(self, state: dict[str, tf.Tensor], request: tf.Tensor) -> Window:
        """The window of a state, with the time of the `request` `[batch_size]`."""
        return Window(*(state[name] for name in ("items", "times", "ratings", "length")), request)

    def _read(self, state: dict, request: tf.Tensor) -> tuple[dict, tf.Tensor]:
        """Reads the whole window of a state. Returns the state and the vector."""
        states = self.states(self._held(state, request))
        return state, tf.gather(states, state["length"], batch_dims=1)

    def _go_on(self, state: dict, request: tf.Tensor, known: tf.Tensor) -> tuple[dict, tf.Tensor]:
        """Reads the last event of a window whose other events were read before. Where `known` is
        false, there is no new event. Returns the state and the vector."""
        return self._read(state, request)

    def get_config(self) -> dict[str, Any]:
        """Arguments of the constructor, without `table` and `content` of an item tower."""
        return super().get_config() | {"longest": self.longest}
