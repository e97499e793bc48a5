"""Training by sequences: each user's events in windows, of which all prefixes are queries at once.

A window of m events asks m times: after none of them for the first, after the first for the second,
and so on. `Examples` (examples.py) asks as often, but has each history encoded by itself, which for
an encoder that reads events one after another is as many times the work as histories are long.
"""

from collections.abc import Iterator

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.examples import Examples, ExamplesConfig
from twotower.ragged import Ragged

# Windows whose lengths differ by less than this may share a batch in any order.
LENGTH_STEP = 8


class Sequences:
    """Batches of windows of like length, in a new order each epoch, the same for the same seed.

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
        is_told: Whether the encoder reads the time of the request; to others a cloze does not show
            when the events that it asks for came.

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
        is_told: bool = False,
    ) -> None:
        self.examples, self.is_causal, self.is_told = examples, is_causal, is_told
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

    def epoch(self, epoch: int) -> Iterator[dict]:
        """Batches of one epoch.

        Yields:
            `cases`: the windows, `EvalCases` `[num_windows]`; `asked`: of each target user, time
            and context, `EvalCases` `[num_targets]` without histories; `place`: of each target,
            its window and how many of its events are read before it (cloze: its number in the
            window, from 1), `[num_targets, 2]`; `item`; `time`; `weight`; `user`: row of each
            target's user, `[num_targets]`; `row` as in `Examples.epoch`, where every target is a
            query; `own`: keys of each window's user's events up to its end, those before the window
            among them, `[num_windows]` rows; `num_own`: how many of them come before each target,
            `[num_targets]`.
        """
        rng = np.random.default_rng([self.examples.config.seed, epoch])
        start, target, stop = self.windows(rng)
        order = np.lexsort((rng.random(len(start)), (stop - start) // LENGTH_STEP))
        start, target, stop = start[order], target[order], stop[order]
        batch = (np.cumsum(stop - target) - 1) // self.examples.config.batch_size
        groups = np.split(np.arange(len(start)), np.flatnonzero(np.diff(batch)) + 1)
        for number in rng.permutation(len(groups)):
            rows = groups[number]
            yield self._batch(start[rows], target[rows], stop[rows], rng)

    def _batch(self, start, target, stop, rng) -> dict:
        examples = self.examples
        targets = Ragged.ranges(target, stop - target)
        window, at = targets.row_index, targets.values
        if not self.is_causal:
            hidden = rng.random(len(at)) < examples.config.hidden_share
            hidden |= at == stop[window] - 1  # the last one, as in serving
            item = window * (examples.items.max() + 1) + examples.items[at]  # of each window
            hidden |= np.isin(item, item[hidden])
            window, at = window[hidden], at[hidden]
        # The last event of a window is a target alone.
        events = Ragged.ranges(start, stop - start - self.is_causal)
        columns = examples.histories(events)
        if not self.is_causal and not self.is_told:
            hidden = np.zeros(len(events.values), bool)
            hidden[events.offsets[window] + at - start[window]] = True
            columns["history_time"] = _untold(columns["history_time"], hidden)
        users, of_user = examples.users[at], examples.by_user.offsets[examples.users[start]]
        before = at - start[window] + (not self.is_causal)
        own = Ragged.ranges(of_user, stop - of_user)
        return {
            "cases": EvalCases(
                user_id=examples.user_ids[examples.users[start]],
                **columns,
                exclude=Ragged.empty(len(start)),
                targets=Ragged.empty(len(start)),
                # The request of the last prefix; those before it are told by the events.
                time=self._told(stop - 1),
            ),
            "asked": EvalCases(
                user_id=examples.user_ids[users],
                **examples.histories(Ragged.empty(len(at))),
                exclude=Ragged.empty(len(at)),
                targets=Ragged.empty(len(at)),
                time=self._told(at),
                context={name: values[at] for name, values in examples.context.items()},
            ),
            "place": np.stack([window, before], 1).astype(np.int32),
            "item": examples.items[at].astype(np.int32),
            "time": examples.times[at],
            "weight": examples.weights[at],
            "user": users,
            "row": np.arange(len(at), dtype=np.int32),
            "own": Ragged(examples.items[own.values], own.offsets),
            "num_own": (at - of_user[window]).astype(np.int32),
        }

    def _told(self, at: np.ndarray) -> np.ndarray:
        """Times of requests, -1 where the protocol does not tell them."""
        told = self.examples.time_told
        return self.examples.times[at] if told else np.full(len(at), -1)


def _untold(times: Ragged, hidden: np.ndarray) -> Ragged:
    """Times in which a hidden event has that of the last one seen before it, or of the first one
    seen after it, or 0: when it came is not told, as in serving."""
    place = np.arange(len(hidden))
    start, stop = times.offsets[times.row_index], times.offsets[times.row_index + 1]
    before = np.maximum.accumulate(np.where(hidden, -1, place))
    after = np.minimum.accumulate(np.where(hidden, len(hidden), place)[::-1])[::-1]
    values = np.append(times.values, 0)
    found = np.where(before >= start, before, np.where(after < stop, after, -1))
    return Ragged(values[found], times.offsets)
