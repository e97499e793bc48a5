"""What an epoch asks, read back from its batches, for tests: keys in place of encoded ids."""

import numpy as np

from twotower.data.cases import EvalCases
from twotower.data.examples import Examples
from twotower.data.inputs import ItemInputs, QueryInputs
from twotower.data.sequences import Sequences
from twotower.ragged import Ragged
from twotower.tf import tf
from twotower.training.batches import PLAN, TrainingBatches

HISTORY = ("history", "history_time", "history_rating")


def asked(source: Examples | Sequences, epoch: int = 0) -> list[dict]:
    """The batches of an epoch as dictionaries.

    Of `Examples`: `cases`, `known_positives` and `user` have a row for each query; `row`, `item`,
    `weight` and `time` one for each example. Of `Sequences`: `cases` has a row for each window, and
    for each target there are also `position` (window, events before it), `num_earlier`, `user` and
    `request_time`. Each batch is made by itself, without a `tf.data` pipeline: to trace one takes a
    second.
    """
    examples = source.examples if isinstance(source, Sequences) else source
    dataset = examples._dataset
    is_sequence = isinstance(source, Sequences)
    names = [*HISTORY, "user_id", "time", *examples.context]
    make = TrainingBatches(
        examples,
        source.epoch,
        QueryInputs(dataset, names),
        frozenset(HISTORY if is_sequence else ()),
        ItemInputs(dataset, examples.split.train, []),
        np.ones(len(dataset.items), np.float32),
    )
    rows = {user_id: row for row, user_id in enumerate(examples.user_ids)}
    plan, done, found = source.epoch(epoch), 0, []
    tensors = {
        name: tf.constant(values, PLAN[name].dtype)
        for name, values in make._planned(epoch, num_replicas=1).items()
    }
    for number in range(len(plan.batches) - 1):
        batch, _ = make._batch(tensors, tf.constant(number, tf.int64))
        targets = batch.targets()
        num = len(targets.item)
        events = plan.targets.values[done : done + num]
        done += num
        query = {name: values.numpy() for name, values in batch.query.items()}
        if is_sequence:
            query |= {
                name: batch.of_targets(batch.query[name]).numpy()
                for name in query
                if name not in HISTORY
            }
        user_id = np.array([one.decode() for one in query["user_id"]], object)
        context = {
            name: np.array([one.decode() for one in query[name]], object)
            for name in examples.context
        }
        ids = query["history"].astype(str)
        lengths = (ids != "").sum(1)
        inside = np.arange(ids.shape[1]) < lengths[:, None]
        values = dict(zip(HISTORY, (ids, query["history_time"], query["history_rating"])))
        keys = dataset.catalogue.keys_of(values["history"][inside].astype(object))
        ragged = {"history": Ragged.from_lengths(keys, lengths)} | {
            name: Ragged.from_lengths(values[name][inside], lengths) for name in HISTORY[1:]
        }
        for name, padding in (("history_time", -1), ("history_rating", np.nan)):
            np.testing.assert_array_equal(values[name][~inside], padding)
        row = targets.row.numpy()
        of_row = user_id[np.searchsorted(row, np.arange(len(lengths)))] if is_sequence else user_id
        none = Ragged.empty(len(lengths))
        cases = EvalCases(
            user_id=of_row,
            **ragged,
            exclude=none,
            targets=none,
            time=np.full(len(lengths), -1) if is_sequence else query["time"],
            context={} if is_sequence else context,
        )
        known = batch.known_positives
        one = {
            "cases": cases,
            "row": row,
            "item": targets.item.numpy(),
            "weight": targets.weight.numpy(),
            "time": examples.times[events],
            "known_positives": Ragged(
                known.flat_values.numpy().astype(int), known.row_splits.numpy()
            ),
            "user": np.array([rows[name] for name in user_id]),
        }
        if is_sequence:
            position = batch.of_targets(batch.position).numpy()
            one |= {
                "position": np.stack([row, position], 1),
                "num_earlier": batch.of_targets(batch.num_earlier).numpy(),
                "request_time": query["time"],
                "context": context,
            }
        found.append(one)
    assert done == len(plan.targets.values)
    return found


def flat(batches) -> list[dict]:
    """One dictionary an example."""
    found = []
    for batch in batches:
        cases = batch["cases"]
        for place, query in enumerate(batch["row"]):
            found.append(
                {
                    "user": cases.user_id[query],
                    "item": int(batch["item"][place]),
                    "time": int(batch["time"][place]),
                    "weight": float(batch["weight"][place]),
                    "history": cases.history[query].tolist(),
                    "history_time": cases.history_time[query].tolist(),
                    "history_rating": cases.history_rating[query].tolist(),
                    "known_positives": batch["known_positives"][query].tolist(),
                    "request_time": int(cases.time[query]),
                    "context": {name: values[query] for name, values in cases.context.items()},
                }
            )
    return found


def by_item(batches, field) -> dict:
    """(user, item) -> a field of that example."""
    return {(one["user"], one["item"]): one[field] for one in flat(batches)}


def equal(one, two) -> bool:
    """Whether two lists of batches are the same to the last bit."""
    return len(one) == len(two) and all(same_batch(a, b) for a, b in zip(one, two))


def arrays(batch: dict) -> dict[str, np.ndarray]:
    """Every array of a batch by name."""
    cases = batch["cases"]
    found = {name: batch[name] for name in ("row", "item", "time", "weight")}
    found |= {"user_id": cases.user_id, "request_time": cases.time, **cases.context}
    for name in ("history", "history_time", "history_rating", "exclude", "targets"):
        ragged = getattr(cases, name)
        found |= {name: ragged.values, f"{name}.offsets": ragged.offsets}
    return found | {
        "known_positives": batch["known_positives"].values,
        "known_positives.offsets": batch["known_positives"].offsets,
    }


def same_batch(a: dict, b: dict) -> bool:
    one, two = arrays(a), arrays(b)
    return one.keys() == two.keys() and all(
        one[name].dtype == two[name].dtype
        and np.array_equal(one[name], two[name], equal_nan=one[name].dtype.kind == "f")
        for name in one
    )
