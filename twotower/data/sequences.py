"""Training by sequences: each user's events in windows, of which all prefixes are queries at once.

A window of m events asks m times: after none of them for the first, after the first for the second,
and so on. `Examples` (examples.py) asks as often, but has each history encoded by itself, which for
an encoder that reads events one after another is as many times the work as histories are long.
"""

import numpy as np

from twotower.data.examples import Epoch, Examples, ExamplesConfig
from twotower.ragged import Ragged

# Windows whose lengths differ by less than this may share a batch in any order.
LENGTH_STEP = 8


class Sequences:
    """Windows of like length in a batch, in a new order each epoch, the same for the same seed.

    A user's events are cut into windows of `sequence_length` queries, at another place each epoch;
    a window begins with the event before its first target, and the user's first one with none; of a
    cloze with the first target. Each training row is in one window, and a target there (of a cloze,
    if it is drawn or the last, or of the same item as such a one, which would give it away).

    Args:
        examples: The training rows; their config has `sequence_length`, `hidden_share` and
            `batch_size`, here the targets of a batch.
        is_causal: Whether prefixes ask for the next event. Otherwise (cloze) a share of events is
            asked for by all others of the window, which the encoder must not show itself.
        is_cut: Whether sequences are cut into windows at all; one who is asked with whole histories
            learns from whole ones.
        reads_request_time: Whether the encoder reads the time of the request; to others a cloze
            does not show when the events that it asks for came.

    Raises:
        ValueError: A protocol whose queries see later events, examples that are drawn or weighed by
            more than one row, a batch that has no room for a window, or a share to hide of events
            that are not hidden.
    """

    def __init__(
        self,
        examples: Examples,
        is_causal: bool = True,
        is_cut: bool = True,
        reads_request_time: bool = False,
    ) -> None:
        self.examples, self.is_causal = examples, is_causal
        self.reads_request_time = reads_request_time
        config = examples.config
        if is_causal and config.hidden_share != ExamplesConfig.hidden_share:
            raise ValueError(
                f"hidden_share {config.hidden_share}: this encoder hides no events, it asks for "
                "each one by those before it. Leave it out, or take a masked_transformer."
            )
        if examples.shared:
            raise ValueError(
                f"sequences train the next event, which {examples.split.protocol} does not ask "
                "for: take loo or temporal, or set sequence_length=0."
            )
        if config.stratify:
            raise ValueError("sequences take each row once; set stratify=0 or sequence_length=0.")
        if config.max_history:
            raise ValueError("sequence_length already limits what a query sees; set max_history=0.")
        longest = int(np.diff(examples.by_user.offsets).max(initial=1))
        self.length = min(config.sequence_length, longest) if is_cut else longest
        if config.batch_size < self.length:
            raise ValueError(
                f"batch_size counts targets, of which a window has up to {self.length}; got "
                f"{config.batch_size}. Set it to {self.length} or more."
            )

    def windows(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """First event, first target and end of each window, as places in `examples.rows`, each
        `[num_windows]`."""
        begin, end = self.examples.by_user.offsets[:-1], self.examples.by_user.offsets[1:]
        begin, end = begin[end > begin], end[end > begin]
        # Short sequences stay whole; of the others the first window ends anywhere.
        first = np.minimum(rng.integers(1, self.length + 1, len(begin)), end - begin)
        first = np.where(end - begin <= self.length, end - begin, first)
        more = -(-(end - begin - first) // self.length)  # windows after the first
        number = np.arange((more + 1).sum())
        number -= np.repeat(np.cumsum(more + 1) - more - 1, more + 1)
        begin, end, first = (np.repeat(values, more + 1) for values in (begin, end, first))
        target = np.where(number == 0, begin, begin + first + (number - 1) * self.length)
        stop = np.minimum(begin + first + number * self.length, end)
        return np.maximum(target - 1, begin) if self.is_causal else target, target, stop

    def epoch(self, epoch: int) -> Epoch:
        """What the epoch of this number asks: a row for each window."""
        examples, config = self.examples, self.examples.config
        rng = np.random.default_rng([config.seed, epoch])
        start, target, stop = self.windows(rng)
        order = np.lexsort((rng.random(len(start)), (stop - start) // LENGTH_STEP))
        batch = (np.cumsum((stop - target)[order]) - 1) // config.batch_size
        groups = np.split(order, np.flatnonzero(np.diff(batch)) + 1)
        groups = [groups[number] for number in rng.permutation(len(groups))]
        order = np.concatenate(groups)
        start, target, stop = start[order], target[order], stop[order]
        targets, times = Ragged.ranges(target, stop - target), examples.times
        if not self.is_causal:
            hidden = self._hidden(targets, rng)
            if not self.reads_request_time:
                times = times.copy()
                seen = Ragged(examples.times[targets.values], targets.offsets)
                times[targets.values] = _without_hidden(seen, hidden)
            lengths = np.bincount(targets.row_index[hidden], minlength=len(targets))
            targets = Ragged.from_lengths(targets.values[hidden], lengths)
        first_of_user = examples.by_user.offsets[examples.users[start]]
        return Epoch(
            targets,
            np.cumsum([0, *map(len, groups)]),
            # The last event of a window is a target alone.
            history=np.stack([start, stop - self.is_causal], 1),
            known=np.stack([first_of_user, stop], 1),
            group=np.empty(0, np.int64),
            position=targets.values - start[targets.row_index] + (not self.is_causal),
            times=times,
        )

    def _hidden(self, events: Ragged, rng: np.random.Generator) -> np.ndarray:
        """Which events of the windows a cloze asks for, `[num_events]` bool."""
        hidden = rng.random(len(events.values)) < self.examples.config.hidden_share
        hidden[events.offsets[1:] - 1] = True  # the last one, as in serving
        items = self.examples.items
        item_of_window = events.row_index * (items.max() + 1) + items[events.values]
        return hidden | np.isin(item_of_window, item_of_window[hidden])


def _without_hidden(times: Ragged, hidden: np.ndarray) -> np.ndarray:
    """Times in which a hidden event has that of the last one seen before it, or of the first one
    seen after it, or 0: when it came is not known in serving either."""
    number = np.arange(len(hidden))
    start, stop = times.offsets[times.row_index], times.offsets[times.row_index + 1]
    before = np.maximum.accumulate(np.where(hidden, -1, number))
    after = np.minimum.accumulate(np.where(hidden, len(hidden), number)[::-1])[::-1]
    values = np.append(times.values, 0)
    return values[np.where(before >= start, before, np.where(after < stop, after, -1))]
