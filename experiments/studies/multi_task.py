"""What each task gains or loses when several share a network, on made-up data.

    python experiments/studies/multi_task.py --output=experiments/results/ranking/multi_task.json

Tasks: will a shown item be watched (`click`); of what is watched, for how long (`watch_time`, log
seconds), and will a like or a share follow (`like`, `share`). A shared bottom, MMoE and PLE each
predict all four. They are compared with four models of one task each, every one as large as the
shared bottom. One row for each model and seed; the rows of test are a random tenth of the events,
and the number of epochs is chosen on another tenth.
"""

import dataclasses
import itertools

import numpy as np
import pandas as pd
from absl import flags
from ctr_table import coded

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from sklearn.metrics import r2_score, roc_auc_score

from twotower.bundle.provenance import provenance, write_result
from twotower.data.dataset import Dataset
from twotower.data.planted import SyntheticConfig
from twotower.data.synthetic import generate
from twotower.ranking.config import TASKS, RankerConfig
from twotower.ranking.inputs import RankerInputs
from twotower.ranking.multi_task import masked_loss
from twotower.ranking.ranker import Ranker, make_ranker
from twotower.tf import tf

FLAGS = flags.FLAGS
flags.DEFINE_list("seeds", ["0", "1", "2"], "Seeds of data, split and weights.")
flags.DEFINE_integer("users", 2000, "Users of the made-up service.", lower_bound=1)
flags.DEFINE_integer("rows", 150_000, "Its events.", lower_bound=1)
flags.DEFINE_integer("epochs", 8, "At most.", lower_bound=1)
script.DEFINE_path("output", None, "JSON file to write.")

KINDS = {"click": "logit", "watch_time": "number", "like": "logit", "share": "logit"}
# Experts of MMoE and PLE and the shared bottom have about the same number of weights together.
NETWORKS = {
    "shared_bottom": {"expert_hidden": (96, 32)},
    "mmoe": {"expert_hidden": (24, 32), "experts": 4},
    "ple": {"expert_hidden": (20, 32), "experts": 1},
}
BATCH_SIZE, LEARNING_RATE = 2048, 4e-3
ALONE = "one task"


@dataclasses.dataclass(frozen=True)
class Events:
    """What was shown, and what came of it.

    Attributes:
        inputs: What the networks read.
        columns: Name of an input -> `[num_rows, ...]`.
        labels: Task -> `[num_rows]` float32, NaN where the task does not apply.
    """

    inputs: RankerInputs
    columns: dict[str, np.ndarray]
    labels: dict[str, np.ndarray]


def events(dataset: Dataset) -> Events:
    """A row for each watch, skip and impression; likes and shares are labels of the watches."""
    rows = dataset.interactions
    pair = pd.MultiIndex.from_frame(rows[["user_id", "item_id"]])
    event = rows["event"].to_numpy()
    followed = {name: pair.isin(pair[event == name]) for name in ("like", "share")}
    shown = np.isin(event, ["watch", "skip", "impression"])
    watched = (event == "watch")[shown]
    labels = {name: np.where(watched, found[shown], np.nan) for name, found in followed.items()}
    labels["click"] = watched
    seconds = np.log(np.maximum(rows["value"].to_numpy(np.float64)[shown], 1))
    labels["watch_time"] = np.where(watched, (seconds - 6.8) / 0.6, np.nan)
    rows = rows[shown]
    item = dataset.items.set_index("item_id").index.get_indexer(rows["item_id"])
    items = dataset.items.iloc[item]
    users = dataset.users.set_index("user_id").loc[rows["user_id"]]
    time = rows["timestamp"].to_numpy()
    raw = {
        "user": rows["user_id"],
        "item": rows["item_id"],
        "maker": items["maker"],
        "genre": items["genres"].str[0],
        "age": users["age"],
        "gender": users["gender"],
        "occupation": users["occupation"],
        "device": rows["device"],
        "hour": time // (4 * 3600) % 6,
    }
    fields, columns = coded(raw)
    days = (time - items["released"].to_numpy()) / 86_400
    columns["numbers"] = np.stack(
        [np.log1p(np.maximum(days, 0)), items["year"], items["quality"]], axis=1
    ).astype(np.float32)
    inputs = RankerInputs(tuple(fields), ("log_days", "year", "quality"))
    return Events(
        inputs.fitted(columns["numbers"]),
        columns,
        {name: labels[name].astype(np.float32) for name in KINDS},
    )


def trained(data: Events, config: RankerConfig, tasks: tuple[str, ...], parts, seed: int) -> Ranker:
    """A ranker of these tasks, with the weights of its best epoch by validation loss."""
    tf.keras.utils.set_random_seed(seed)
    ranker = make_ranker(data.inputs, config, tasks)
    ranker.compile(
        tf.keras.optimizers.Adam(LEARNING_RATE),
        loss={task: masked_loss(KINDS[task]) for task in tasks},
    )
    columns = {name: tf.constant(values) for name, values in data.columns.items()}
    labels = {task: tf.constant(data.labels[task]) for task in tasks}

    def gather(rows):
        return tf.nest.map_structure(lambda values: tf.gather(values, rows), (columns, labels))

    train, validation, _ = parts
    shuffled = tf.data.Dataset.from_tensor_slices(train).shuffle(len(train), seed)
    whole = tf.data.Dataset.from_tensor_slices(validation)
    stopping = tf.keras.callbacks.EarlyStopping(patience=1, restore_best_weights=True)
    ranker.fit(
        shuffled.batch(BATCH_SIZE, drop_remainder=True).map(gather).prefetch(2),
        validation_data=whole.batch(8192).map(gather),
        epochs=FLAGS.epochs,
        callbacks=[stopping],
        verbose=0,
    )
    return ranker


def quality(data: Events, ranker: Ranker, rows: np.ndarray) -> dict[str, float]:
    """Task -> AUC, or the share of variance explained of a number."""
    columns = {name: values[rows] for name, values in data.columns.items()}
    found = ranker.predict(columns, batch_size=8192, verbose=0)
    scores = {}
    for task in ranker.heads:
        labels = data.labels[task][rows]
        known = np.isfinite(labels)
        score = roc_auc_score if KINDS[task] == "logit" else r2_score
        scores[task] = float(score(labels[known], found[task][known]))
    return scores


def network_weights(ranker: Ranker) -> int:
    """Number of weights without the tables of vectors."""
    tables = sum(table.count_params() for table in ranker.tables.values())
    return ranker.count_params() - tables


def main():
    rows = []
    for seed in map(int, FLAGS.seeds):
        data = events(
            generate(
                SyntheticConfig(num_users=FLAGS.users, num_interactions=FLAGS.rows, seed=seed)
            ).dataset
        )
        num_rows = len(data.labels["click"])
        order = np.random.default_rng(seed).permutation(num_rows)
        test, validation, train = np.split(order, [num_rows // 10, num_rows // 5])
        parts = (train, validation, test)
        models = [(tasks, tasks, tuple(KINDS)) for tasks in TASKS]
        models += [(ALONE, "shared_bottom", (task,)) for task in KINDS]
        for name, tasks, heads in models:
            config = RankerConfig(
                "dcn",
                dim=12,
                hidden=(),
                cross_layers=1,
                l2=3e-6,
                dropout=0.1,
                tasks=tasks,
                **NETWORKS[tasks],
            )
            ranker = trained(data, config, heads, parts, seed)
            row = {
                "name": name,
                "seed": seed,
                "heads": list(heads),
                "weights_without_tables": network_weights(ranker),
                "part": "test",
                "num_rows": len(test),
                "quality": quality(data, ranker, test),
            }
            rows.append(row)
            shown = ", ".join(f"{task} {score:.4f}" for task, score in row["quality"].items())
            print(f"{name}, seed {seed}: {shown}", flush=True)
            if FLAGS.output:
                result = {"rows": rows, "gains": gains(rows), "kinds": KINDS}
                write_result(FLAGS.output, {**result, **provenance()})


def gains(rows: list[dict]) -> list[dict]:
    """For each network and task: with all tasks less alone, the mean over seeds and each seed's."""
    found = []
    for network, task in itertools.product(TASKS, KINDS):
        together, alone = (
            {
                row["seed"]: row["quality"][task]
                for row in rows
                if row["name"] == name and task in row["heads"]
            }
            for name in (network, ALONE)
        )
        seeds = sorted(set(together) & set(alone))
        if seeds:
            differences = [together[seed] - alone[seed] for seed in seeds]
            found.append(
                {
                    "network": network,
                    "task": task,
                    "alone": float(np.mean([alone[seed] for seed in seeds])),
                    "together": float(np.mean([together[seed] for seed in seeds])),
                    "gain": float(np.mean(differences)),
                    "gain_by_seed": differences,
                }
            )
    return found


if __name__ == "__main__":
    script.run(main)
