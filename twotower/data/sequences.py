"""Next-item training: each user's events in windows, of which all prefixes are queries at once.

A window of m events has m queries: the first reads no event and should find the first item, the
second reads one event and should find the second item, and so on. `Examples` (examples.py) has as
many queries, but encodes the history of each one separately. For an encoder that reads events in
their order that is far more work: each event is read once for every later one.
"""

import numpy as np

from twotower.data.examples import Epoch, Examples, ExamplesConfig
from twotower.ragged import Ragged

# Windows whose lengths differ by less than this come into batches in random order.
LENGTH_STEP = 8


class Sequences:
    """Cuts each user's events into windows. A batch has windows of similar length.

    A window has up to `sequence_length` queries. Where a user's events are cut changes each epoch,
    and so does the order of the windows; both depend on the seed. Each training row is in one
    window.

    With a causal encoder each row of a window is a target, and the window also has the event before
    its first target, unless that is the user's first event. With a cloze encoder a random share of
    the rows and the last row are targets, which the encoder must hide. Other rows with the item of
    a target are targets, too, since they would reveal it.

    Args:
        examples: The training rows. Their config has `sequence_length`, `hidden_share` and
            `batch_size`, which here counts events.
        is_causal: Whether the encoder's vector after p events depends on these alone, so that each
            prefix is a query for the next event. Otherwise the task is a cloze.
        is_cut: Whether events are cut into windows. Not for an encoder that reads whole histories
            in serving.
        reads_request_time: Whether the encoder reads the time of the request. For others, a cloze
            replaces the times of hidden events.

    Raises:
        ValueError: A protocol whose histories have later events; `stratify` or `max_history`; a
            batch that is smaller than a window; or a `hidden_share` for a causal encoder.

    Example:
        examples = Examples(dataset, make_split(dataset, "loo"), ExamplesConfig(sequence_length=50))
        Sequences(examples).epoch(0).targets  # indices into examples.rows, a row for each window
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
                f"batch_size counts events, of which a window has up to {self.length}; got "
                f"{config.batch_size}. Set it to {self.length} or more."
            )

    def windows(self, rng: np.random.Generator) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
        """(first event, first target, end) of each window, indices into `examples.rows`,
        `[num_windows]` each; the end is the index after the last event."""
        begin, end = self.examples.by_user.offsets[:-1], self.examples.by_user.offsets[1:]
        begin, end = begin[end > begin], end[end > begin]
        # Short sequences are one window. In the others the first window has a random length.
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
        """The plan of the epoch with this number: a row for each window."""
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
            # A causal window's last event is only a target.
            history=np.stack([start, stop - self.is_causal], 1),
            known=np.stack([first_of_user, stop], 1),
            group=np.empty(0, np.int64),
            position=targets.values - start[targets.row_index] + (not self.is_causal),
            times=times,
        )

    def _hidden(self, events: Ragged, rng: np.random.Generator) -> np.ndarray:
        """Which events of the windows a cloze hides, `[num_events]` bool."""
        hidden = rng.random(len(events.values)) < self.examples.config.hidden_share
        hidden[events.offsets[1:] - 1] = True  # the last one, as in serving
        items = self.examples.items
        item_of_window = events.row_index * (items.max() + 1) + items[events.values]
        return hidden | np.isin(item_of_window, item_of_window[hidden])


def _without_hidden(times: Ragged, hidden: np.ndarray) -> np.ndarray:
    """Times `[num_events]` without those of hidden events, which serving would not know either.

    A hidden event gets the time of the last visible event before it in its window, else of the
    first one after it, else 0.
    """
    number = np.arange(len(hidden))
    start, stop = times.offsets[times.row_index], times.offsets[times.row_index + 1]
    before = np.maximum.accumulate(np.where(hidden, -1, number))
    after = np.minimum.accumulate(np.where(hidden, len(hidden), number)[::-1])[::-1]
    values = np.append(times.values, 0)
    return values[np.where(before >= start, before, np.where(after < stop, after, -1))]
