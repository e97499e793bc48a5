"""The five protocols: which rows train, and which questions are asked.

| protocol              | items        | test rows                                               |
|-----------------------|--------------|---------------------------------------------------------|
| `loo-5core`           | >= 5 ratings | each user's last row, validation the one before it      |
| `loo`                 | all rated    | the same                                                |
| `temporal-last`       | >= 5 ratings | rows after the 0.9 quantile of time; each user's last   |
| `temporal-successive` | >= 5 ratings | the same rows, each one a question with all before it   |
| `random`              | all rated    | a fifth of the rows at random: leaks the future         |
| `random-100k+seen`    | all rated    | a fifth of 100,000 random rows; seen may be answered    |

`+time` behind a name tells the model the time of the request. Time orders a user's rows; ties are
broken by the order of the file, which is why nothing may lose it.
"""

import dataclasses
import hashlib

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.ragged import Ragged

PROTOCOLS = (
    "loo-5core",
    "loo",
    "temporal-last",
    "temporal-successive",
    "random",
    "random-100k+seen",
)
PARTS = ("validation", "test")
CONTEXT = ("search_text", "device", "country")

# sha256 of the 6,040 lines "user movie" of the loo-5core test targets on MovieLens 1M, the
# published SASRec file's.
ML_1M_TARGETS = "1228619ba83021b836658a32ba061e021d3a80fb0f444ba41dd4c8c932a3af2f"
ML_1M_ROWS = 1_000_209


@dataclasses.dataclass(frozen=True)
class Split:
    """A protocol applied to a dataset, for validation or test.

    Attributes:
        protocol: Its name, with `+time` where the model is told the time.
        part: `validation` or `test`.
        seed: Of the random protocols.
        train: `[num_train]` rows of `interactions` that may be learned from, ascending. For
            `part="test"` of `random` and `temporal` they include the validation rows: select on
            validation, then refit.
        candidates: `[num_candidates]` keys that may be answered, ascending.
        history: `before` (a training query sees the user's earlier rows) or `others` (all the
            user's other rows; only where the test query sees the whole training history, too).
        seen_excluded: Whether training items of the user may not be answered.
        cases: The questions.
    """

    protocol: str
    part: str
    seed: int
    train: np.ndarray
    candidates: np.ndarray
    history: str
    seen_excluded: bool
    cases: EvalCases


def make_split(dataset: Dataset, protocol: str, part: str = "validation", seed: int = 42) -> Split:
    """Applies a protocol.

    Args:
        dataset: The data; only `dataset.positive` rows count.
        protocol: One of `PROTOCOLS`, or with `+time`.
        part: `validation` or `test`.
        seed: Of the random protocols.

    Raises:
        ValueError: An unknown protocol or part; MovieLens 1M that lost the order of its file; or
            data on which the protocol leaves nothing to ask.
    """
    name = protocol.removesuffix("+time")
    if name not in PROTOCOLS:
        raise ValueError(f"unknown protocol {protocol!r}; there are {PROTOCOLS}, and +time.")
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}; got {part!r}.")
    if name.startswith("random"):
        train, asked, candidates = _random(dataset, name, part, seed)
        shown = train
    else:
        rows = np.flatnonzero(dataset.positive)
        if name != "loo":
            rows = rows[_at_least(dataset.item_keys[rows], 5)]
        candidates = np.unique(dataset.item_keys[rows])
        rows = rows[np.lexsort((dataset.timestamps[rows], dataset.user_rows[rows]))]
        if name.startswith("loo"):
            train, shown, asked = _leave_one_out(dataset, rows, part)
            if name == "loo-5core" and part == "test" and len(dataset.timestamps) == ML_1M_ROWS:
                _check_ml_1m(dataset, asked)
        else:
            train, shown, asked = _temporal(dataset, rows, part, name)
    if len(asked) == 0 or len(train) == 0:
        raise ValueError(
            f"{protocol}, {part}: {len(train)} training rows and {len(asked)} questions; the data "
            f"of {len(dataset.interactions)} rows is too small or too short for it."
        )
    told = protocol.endswith("+time")
    seen_excluded = not name.endswith("+seen")
    cases = _cases(dataset, shown, asked, name, candidates, told, seen_excluded)
    return Split(
        protocol=protocol,
        part=part,
        seed=seed,
        train=np.sort(train),
        candidates=candidates,
        history="others" if name.startswith("random") else "before",
        seen_excluded=seen_excluded,
        cases=cases,
    )


def target_hash(dataset: Dataset, rows: np.ndarray) -> str:
    """sha256 of the lines "user item" of the given rows, by ascending number of the user."""
    users = dataset.interactions["user_id"].to_numpy(object)[rows]
    items = dataset.interactions["item_id"].to_numpy(object)[rows]
    order = np.argsort(users.astype(np.int64), kind="stable")
    lines = "\n".join(f"{user} {item}" for user, item in zip(users[order], items[order]))
    return hashlib.sha256(lines.encode()).hexdigest()


def _check_ml_1m(dataset: Dataset, asked: np.ndarray) -> None:
    if dataset.name == "movielens/1m" and target_hash(dataset, asked) != ML_1M_TARGETS:
        raise ValueError(
            "the leave-one-out targets of this MovieLens 1M are not the published ones: rows with "
            "equal times have lost the order of ratings.dat. Load it with twotower.data.movielens, "
            "which restores the order that TFDS shuffles."
        )


def _at_least(keys: np.ndarray, count: int) -> np.ndarray:
    """Which rows are of an item that stands in at least `count` rows."""
    return np.bincount(keys)[keys] >= count


def _random(dataset: Dataset, name: str, part: str, seed: int):
    rows = np.flatnonzero(dataset.positive)
    candidates = np.unique(dataset.item_keys[rows])
    rows = rows[np.random.default_rng(seed).permutation(len(rows))]
    if name == "random-100k+seen":
        rows = rows[:100_000]
    cut = round(0.8 * len(rows))
    train, asked = rows[:cut], rows[cut:]
    if part == "validation":
        cut = round(0.95 * len(train))
        train, asked = train[:cut], train[cut:]
    # A user's rows by time: the history's order.
    train = train[np.lexsort((train, dataset.timestamps[train], dataset.user_rows[train]))]
    return train, np.sort(asked), candidates


def _leave_one_out(dataset: Dataset, rows: np.ndarray, part: str):
    """`rows` by user and time. Training never sees a user's last two rows; a test query does see
    the validation row, which a served user would have seen, too."""
    users = dataset.user_rows[rows]
    lengths = np.bincount(users, minlength=len(dataset.users))
    from_end = np.cumsum(lengths)[users] - np.arange(len(rows))  # 1 for a user's last row
    long = lengths[users] >= 3
    train = rows[(from_end > 2) | ~long]
    at = 1 if part == "test" else 2
    return train, rows[(from_end > at) | ~long], rows[(from_end == at) & long]


def _temporal(dataset: Dataset, rows: np.ndarray, part: str, name: str):
    """`rows` by user and time."""
    times = dataset.timestamps[rows]
    cut = np.quantile(times, 0.9)
    train, asked = rows[times <= cut], rows[times > cut]
    if part == "validation":
        rows, times = train, dataset.timestamps[train]
        cut = np.quantile(times, 0.9)
        train, asked = rows[times <= cut], rows[times > cut]
    # A question sees what stands before it, whether or not it was trained on.
    shown = np.concatenate([train, asked])
    order = np.lexsort((shown, dataset.timestamps[shown], dataset.user_rows[shown]))
    if name == "temporal-last":
        users = dataset.user_rows[asked]
        asked = asked[np.append(users[1:] != users[:-1], True)]
    return train, shown[order], asked


def _cases(dataset, shown, asked, name, candidates, told, seen_excluded) -> EvalCases:
    """Questions from the asked rows; each sees the `shown` rows of its user, in their order.

    Random protocols ask once a user, with all its test items as targets, and see all shown rows.
    Others ask once a row, and see the shown rows that stand before it.
    """
    users, keys = dataset.user_rows, dataset.item_keys
    num_users, num_items = len(dataset.users), np.int64(len(dataset.items))
    offsets = np.concatenate([[0], np.cumsum(np.bincount(users[shown], minlength=num_users))])
    pair = users * num_items + keys
    single = not name.startswith("random")
    if single:
        who, targets = users[asked], Ragged.from_lengths(asked, np.ones(len(asked)))
        place = np.full(len(users), len(shown))
        place[shown] = np.arange(len(shown))
        # Up to itself where it is shown, else all of its user's.
        stop = np.minimum(place[asked], offsets[who + 1])
    else:
        targets = Ragged.group(asked, users[asked], num_users)
        who = np.flatnonzero(targets.lengths)
        targets, stop = targets.take(who), offsets[who + 1]
    lengths = stop - offsets[who]
    inside = np.arange(lengths.sum()) - np.repeat(np.cumsum(lengths) - lengths, lengths)
    rows = Ragged.from_lengths(shown[np.repeat(offsets[who], lengths) + inside], lengths)
    history, wanted = Ragged(keys[rows.values], rows.offsets), keys[targets.values]
    keep = np.isin(wanted, candidates)
    if seen_excluded:
        # A seen item cannot be answered, so it is not asked for.
        seen, first = np.unique(pair[shown], return_index=True)
        at = np.minimum(np.searchsorted(seen, pair[targets.values]), len(seen) - 1)
        keep &= (seen[at] != pair[targets.values]) | (first[at] >= stop[targets.row_index])
    lengths = np.bincount(targets.row_index[keep], minlength=len(who))
    wanted = Ragged.from_lengths(wanted[keep], lengths)
    frame = dataset.interactions
    rating = (
        frame["rating"].to_numpy(np.float32)
        if "rating" in frame
        else np.full(len(frame), np.nan, np.float32)
    )
    cases = EvalCases(
        user_id=dataset.users["user_id"].to_numpy(object)[who],
        history=history,
        history_time=Ragged(dataset.timestamps[rows.values], rows.offsets),
        history_rating=Ragged(rating[rows.values], rows.offsets),
        exclude=history if seen_excluded else Ragged.empty(len(who)),
        targets=wanted,
        time=dataset.timestamps[asked] if told and single else np.full(len(who), -1),
        context={
            column: frame[column].to_numpy(object)[asked]
            if single
            else np.full(len(who), "", object)
            for column in CONTEXT
            if column in frame
        },
    )
    return cases.take(wanted.lengths > 0)
