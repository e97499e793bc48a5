"""Splits: a protocol applied to a dataset, with or without the rows of some items.

`protocols.py` describes the protocols.
"""

import dataclasses
import hashlib

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.dataset import Dataset
from twotower.data.protocols import PARTS, PROTOCOLS, divide, eligible_rows
from twotower.data.requests import CONTEXT
from twotower.limits import require_int64, whole_number
from twotower.ragged import Ragged

# Rows of MovieLens 1M, and the sha256 of the loo-5core test targets in the published SASRec file.
ML_1M_ROWS = 1_000_209
ML_1M_TARGETS = "1228619ba83021b836658a32ba061e021d3a80fb0f444ba41dd4c8c932a3af2f"


@dataclasses.dataclass(frozen=True)
class Split:
    """A protocol applied to a dataset, for validation or test.

    Attributes:
        protocol: Its name, with `+time` if the model gets the time of the request.
        part: `validation` or `test`.
        seed: Seed of the random protocols.
        train: `[num_train]` rows of `interactions` that training may use, ascending. For the test
            part of `random` and `temporal` they include the validation rows: select on validation,
            then refit. In `loo` they are the same for both parts.
        candidates: `[num_candidates]` keys of the items that may be recommended, ascending.
        history: `before`: a training query reads the user's earlier rows; or `others`: it reads all
            other rows of the user, as in a protocol whose test queries read the whole training
            history.
        seen_excluded: Whether items of the history are excluded from the answers.
        cases: The queries, by user and time.
        item_counts: `[num_items]`, number of training rows of each item; None if not counted.
        hidden: `[num_hidden]` keys of the items whose training rows `hide_items` removed,
            ascending; None if none are hidden.
        target_sha256: sha256 of the lines "user_id item_id" of the targets, by user.

    Example:
        split = make_split(dataset, "loo")
        print(split)  # Split('loo', 'validation': 3,404 training rows, 239 queries, 200 candidates)
    """

    protocol: str
    part: str
    seed: int
    train: np.ndarray
    candidates: np.ndarray
    history: str
    seen_excluded: bool
    cases: EvalCases
    item_counts: np.ndarray | None = None
    hidden: np.ndarray | None = None
    target_sha256: str = ""

    def __repr__(self) -> str:
        return (
            f"Split({self.protocol!r}, {self.part!r}: {len(self.train):,} training rows, "
            f"{len(self.cases):,} queries, {len(self.candidates):,} candidates)"
        )

    def require_of(self, dataset: Dataset) -> None:
        """Refuses a dataset other than the one that this split was made of.

        A split names rows of `interactions`, and in another table these are other interactions.
        The sizes are compared, and the number of training rows of each item. Users are not: queries
        may be those of new users, whom no dataset has (`EvalCases.as_new_users`).

        Raises:
            ValueError: Another dataset, or `item_counts` that are not those of `train`.
        """
        num_rows = int(self.train.max()) + 1 if len(self.train) else 0
        num_items = len(dataset.items) if self.item_counts is None else len(self.item_counts)
        if num_rows > len(dataset.interactions) or num_items != len(dataset.items):
            difference = (
                f"the split needs {num_items} items and {num_rows} rows or more, and "
                f"{dataset.name} has {len(dataset.items)} items and "
                f"{len(dataset.interactions)} rows"
            )
        elif self.item_counts is None:
            return
        elif (counted := int(np.sum(self.item_counts))) != len(self.train):
            raise ValueError(
                f"the split's item_counts count {counted} training rows, and its train has "
                f"{len(self.train)}. With other training rows, give item_counts=None."
            )
        else:
            counts = np.bincount(dataset.item_keys[self.train], minlength=num_items)
            items = np.flatnonzero(counts != self.item_counts)
            if len(items) == 0:
                return
            item = dataset.catalogue.ids_of(items[:1])[0]
            difference = (
                f"item {item!r} has {counts[items[0]]} training rows in {dataset.name}, and "
                f"{self.item_counts[items[0]]} in the split"
            )
        raise ValueError(
            f"{difference}: it is a split of other data. Take make_split of this dataset."
        )

    def counts_in(self, dataset: Dataset) -> np.ndarray:
        """`[num_items]`, number of training rows of each item of the split's dataset.

        Raises:
            ValueError: As `require_of`.
        """
        self.require_of(dataset)
        if self.item_counts is not None:
            return self.item_counts
        return np.bincount(dataset.item_keys[self.train], minlength=len(dataset.items))

    def describe(self) -> dict:
        """What identifies the split, and its sizes, as JSON for manifests and results."""
        return {
            "protocol": self.protocol,
            "part": self.part,
            "seed": self.seed,
            "train_rows": len(self.train),
            "candidates": len(self.candidates),
            "cases": len(self.cases),
            "users": len(np.unique(self.cases.user_id)),
            "targets": len(self.cases.targets.values),
            "history": self.history,
            "seen_excluded": self.seen_excluded,
            "target_sha256": self.target_sha256,
        }


def make_split(dataset: Dataset, protocol: str, part: str = "validation", seed: int = 42) -> Split:
    """Applies a protocol to a dataset.

    Args:
        dataset: The data; only its `positive` rows count.
        protocol: One of `PROTOCOLS`. `+time` may follow, but not after the random ones: their
            queries have many targets, each with a different time.
        part: `validation` or `test`.
        seed: Seed of the random protocols.

    Raises:
        ValueError: An unknown protocol or part; a seed that is not an integer; a MovieLens 1M that
            is not in the order of its file; or data of which the protocol leaves no training rows
            or no queries.
        TypeError: The dataset is not a `Dataset`, or the protocol not a string.
    """
    if not isinstance(dataset, Dataset) or not isinstance(protocol, str):
        raise TypeError(
            "make_split takes a dataset and the name of a protocol, as in make_split(data, "
            f"'random'); got a {type(dataset).__name__} and a {type(protocol).__name__}."
        )
    name = protocol.removesuffix("+time")
    with_time = name != protocol
    if name not in PROTOCOLS or (with_time and name.startswith("random")):
        raise ValueError(
            f"unknown protocol {protocol!r}; there are {', '.join(PROTOCOLS)}, and +time after "
            "all but the random ones (whose queries have many targets, each with its time)."
        )
    if with_time and not dataset.has_times:
        raise ValueError(
            f"{protocol}: {dataset.name} has no timestamps, so a model cannot learn from the time "
            f"of a request. Take {name}, which needs the order of the rows alone."
        )
    seed = whole_number(seed, "the split's seed")
    require_int64(seed, "the split's seed")  # since the manifest of a bundle holds it
    if part not in PARTS:
        raise ValueError(f"part must be one of {PARTS}; got {part!r}.")
    if dataset.name == "movielens/1m" and len(dataset.interactions) == ML_1M_ROWS:
        verify_loo_5core_ml1m(dataset)
    rows = eligible_rows(dataset, name)
    candidates = np.unique(dataset.item_keys[rows])
    train, history, targets = divide(dataset, rows, name, part, seed)
    if len(targets) == 0 or len(train) == 0:
        raise ValueError(
            f"{protocol}, {part}: {len(train)} training rows and {len(targets)} queries. The "
            f"{dataset.positive.sum():,} positives among {len(dataset.interactions):,} "
            f"interactions of {dataset.name} are too few for this protocol, or each user has too "
            "few of them with different items. Take another protocol."
        )
    return Split(
        protocol=protocol,
        part=part,
        seed=seed,
        train=np.sort(train),
        candidates=candidates,
        history="others" if name.startswith("random") else "before",
        seen_excluded=not name.endswith("+seen"),
        cases=_cases(dataset, history, targets, name, with_time),
        item_counts=np.bincount(dataset.item_keys[train], minlength=len(dataset.items)),
        target_sha256=target_hash(dataset, targets.values),
    )


def hide_items(dataset: Dataset, split: Split, share: float, seed: int = 0) -> Split:
    """The split without the training rows of a random share of its items, which are then new items.

    They stay candidates, targets and events of histories, so a model can find them by their content
    alone. `only_hidden` and `Report.segments` show how well it does.

    The items are drawn from the candidates, which are the same for all parts of a split. So
    validation and test hide the same items.

    Args:
        dataset: The dataset of the split.
        split: A split.
        share: Share of the candidates, in [0, 1).
        seed: Seed of the draw.

    Raises:
        ValueError: A share outside of its bounds, one that leaves no training row, or a split of
            another dataset.
    """
    if not 0 <= share < 1:
        raise ValueError(f"the share of items to hide must lie in [0, 1); got {share}.")
    split.require_of(dataset)
    if share == 0:
        return split
    draw, count = np.random.default_rng(seed), round(share * len(split.candidates))
    return _hide(dataset, split, np.sort(draw.choice(split.candidates, count, replace=False)))


def _hide(dataset: Dataset, split: Split, hidden: np.ndarray) -> Split:
    """The split without the training rows of the items `hidden`."""
    train = split.train[~np.isin(dataset.item_keys[split.train], hidden)]
    if len(train) == 0:
        raise ValueError(
            f"hiding {len(hidden)} of {len(split.candidates)} items leaves no training row. Hide "
            "fewer."
        )
    counts = np.bincount(dataset.item_keys[train], minlength=len(dataset.items))
    return dataclasses.replace(split, train=train, item_counts=counts, hidden=hidden)


def with_validation_rows(dataset: Dataset, split: Split) -> Split:
    """The test part of a validation split, with the same protocol, seed and hidden items.

    Its training rows are those of validation and, with all protocols but `loo`, the validation
    rows.

    Raises:
        ValueError: A split of another dataset.
    """
    split.require_of(dataset)
    whole = make_split(dataset, split.protocol, "test", split.seed)
    return whole if split.hidden is None else _hide(dataset, whole, split.hidden)


def only_hidden(split: Split) -> Split:
    """The queries whose targets are hidden items, with hidden items as the only candidates.

    A new item may rank far below known ones. These queries show whether a model ranks the new items
    well among each other. A random order has a recall@k of k / len(split.hidden).

    Raises:
        ValueError: A split that hides no items, or whose hidden items are not targets.
    """
    if split.hidden is None:
        raise ValueError("this split hides no items; see hide_items.")
    targets = split.cases.targets
    keep = np.isin(targets.values, split.hidden)
    targets = Ragged.group(targets.values[keep], targets.row_index[keep], len(targets))
    rows = np.flatnonzero(targets.lengths)
    if len(rows) == 0:
        raise ValueError(f"no query has any of the {len(split.hidden)} hidden items as a target.")
    cases = dataclasses.replace(split.cases, targets=targets).take(rows)
    return dataclasses.replace(split, cases=cases, candidates=split.hidden)


def verify_loo_5core_ml1m(dataset: Dataset) -> None:
    """Checks that the rows of a MovieLens 1M are in the order of `ratings.dat`.

    Its users often rate many items in one second. A quarter of the leave-one-out targets therefore
    depend on the order of the file, and so does every comparison with published figures.

    Raises:
        ValueError: The `loo-5core` test targets are not those of the published SASRec file.
    """
    rows = eligible_rows(dataset, "loo-5core")
    _, _, targets = divide(dataset, rows, "loo-5core", "test", seed=0)
    found = target_hash(dataset, targets.values)
    if found != ML_1M_TARGETS:
        raise ValueError(
            f"the leave-one-out targets of this {dataset.name} have the sha256 {found[:12]}..., "
            f"the published ones {ML_1M_TARGETS[:12]}...: rows of equal time are not in the order "
            "of ratings.dat (TFDS shuffles them). Load it with twotower.data.movielens, which "
            "restores that order."
        )


def target_hash(dataset: Dataset, rows: np.ndarray) -> str:
    """sha256 of the lines "user_id item_id" of `rows` `[num_rows]`, sorted by user; ids that are
    numbers in numeric order."""
    users = dataset.interactions["user_id"].to_numpy(object)[rows]
    items = dataset.interactions["item_id"].to_numpy(object)[rows]
    try:
        order = np.argsort(users.astype(np.int64), kind="stable")
    except ValueError:  # ids that are not numbers
        order = np.argsort(users.astype(str), kind="stable")
    lines = "\n".join(map(" ".join, zip(users[order], items[order])))
    return hashlib.sha256(lines.encode()).hexdigest()


def _cases(
    dataset: Dataset, history: Ragged, targets: Ragged, name: str, with_time: bool
) -> EvalCases:
    """The cases, from histories and targets as rows of `interactions`."""
    frame, first = dataset.interactions, targets.values[targets.offsets[:-1]]
    single = not name.startswith("random")  # the one target's context is that of the query
    rating = np.full(len(frame), np.nan, np.float32)
    if "rating" in frame:
        rating = frame["rating"].to_numpy(np.float32)
    empty = np.full(len(targets), "", object)
    keys = Ragged(dataset.item_keys[history.values], history.offsets)
    return EvalCases(
        user_id=frame["user_id"].iloc[first].to_numpy(object),
        history=keys,
        history_time=Ragged(dataset.timestamps[history.values], history.offsets),
        history_rating=Ragged(rating[history.values], history.offsets),
        exclude=Ragged.empty(len(targets)) if name.endswith("+seen") else keys,
        targets=Ragged(dataset.item_keys[targets.values], targets.offsets),
        time=dataset.timestamps[first] if with_time else np.full(len(targets), -1, np.int64),
        context={
            column: frame[column].iloc[first].to_numpy(object) if single else empty
            for column in CONTEXT
            if column in frame
        },
    )
