"""The study of losses and negatives: one base recipe, one change at a time.

    python experiments/ablate.py --data_dir=ml-1m --workdir=W --plan_only
    python experiments/ablate.py --data_dir=ml-1m --workdir=W --output=ablation.json

Prints its plan with an estimate, then trains run after run (experiments/ablation_plan.py) by
train.py in a process of its own, each on the base recipe of experiments/flags/ablation.flags with
the run's flags behind it. Validation figures only. Runs that a rule hangs on are repeated with
--seeds and on --more_splits. Interrupted, the same command goes on: a run whose row is written is
not repeated, and one that was cut short continues after its last epoch.

The runs on a large catalogue need --large_dir, the folder of

    python experiments/make_synthetic.py --num_items=200000 --num_users=6000 \
        --num_interactions=1000000 --output=large

W/RUN/row.json has one run: its validation metrics with intervals, wall time, examples a second,
loss by epoch, and how far a vector's length follows its item's popularity. --output collects them.
"""

import json
import os
import pathlib
import re
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from ablation_plan import FLAGFILE, RUNS, Run  # isort: skip
from twotower.bundle import Bundle
from twotower.data import load
from twotower.data.splits import make_split

ROOT = pathlib.Path(__file__).parent.parent

FLAGS = flags.FLAGS
flags.DEFINE_string("data_dir", None, "GroupLens folder, for train.py.")
flags.DEFINE_string("large_dir", None, "Folder of make_synthetic.py with 200,000 items.")
flags.DEFINE_string("workdir", None, "Folder of the runs.", required=True)
flags.DEFINE_list("groups", None, "Only these groups; all by default.")
flags.DEFINE_string("pattern", "", "Only runs whose name matches this regular expression.")
flags.DEFINE_list("seeds", ["0", "1", "2"], "Of the runs that a rule hangs on; others: the first.")
flags.DEFINE_list("more_splits", ["temporal"], "Further protocols of those runs.")
flags.DEFINE_float("minutes", 3.5, "Time of the base recipe, for the estimate.")
flags.DEFINE_float("budget", 8.0, "Hours after which no further run is started.")
flags.DEFINE_bool("plan_only", False, "Print the plan and stop.")
flags.DEFINE_list("extra", [], "Flags behind those of every run, such as --epochs=1.")
flags.DEFINE_string("output", None, "JSON file with a row for each run that is done.")


def jobs() -> list[tuple[Run, str, int]]:
    """(run, protocol, seed), the first seed of every run before any repetition."""
    known = {one.group for one in RUNS}
    if unknown := set(FLAGS.groups or ()) - known:
        raise app.UsageError(f"--groups: {sorted(unknown)} are none of {sorted(known)}.")
    wanted = [
        one
        for one in RUNS
        if (not FLAGS.groups or one.group in FLAGS.groups) and re.search(FLAGS.pattern, one.name)
    ]
    if not FLAGS.large_dir:
        wanted = [one for one in wanted if not one.is_large]
    first, *others = [int(seed) for seed in FLAGS.seeds]
    pivotal = [one for one in wanted if one.is_pivotal]
    return [
        *((one, "random", first) for one in wanted),
        *((one, split, first) for split in FLAGS.more_splits for one in pivotal),
        *((one, "random", seed) for seed in others for one in pivotal),
    ]


def place(one: Run, split: str, seed: int) -> pathlib.Path:
    """Folder of a run."""
    name = re.sub(r"[^a-z0-9.]+", "-", f"{one.group} {one.name}".lower()).strip("-")
    return pathlib.Path(FLAGS.workdir) / f"{name}--{split}-{seed}"


def print_plan(todo: list) -> None:
    """One line a job, and the hours that are left."""
    left = 0.0
    for one, split, seed in todo:
        done = (place(one, split, seed) / "row.json").exists()
        minutes = one.cost * FLAGS.minutes
        left += 0 if done else minutes
        state = "done" if done else f"{minutes:4.0f} min"
        print(f"{state:>8s}  {split:8s} seed {seed}  {one.group:12s} {one.name}")
    print(f"{len(todo)} runs, about {left / 60:.1f} hours left", flush=True)


def train(one: Run, split: str, seed: int) -> dict | None:
    """Runs train.py and returns the row; None where it failed, so that others can go on."""
    folder = place(one, split, seed)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "experiments/train.py", f"--flagfile={FLAGFILE}"]
    command += [f"--split={split}", f"--seed={seed}", *one.flags, *FLAGS.extra]
    hidden, data_dir = [f"--workdir={folder.absolute()}"], FLAGS.data_dir
    if one.is_large:
        command.append("--dataset=tables")
        data_dir = FLAGS.large_dir
    if data_dir:
        hidden.append(f"--data_dir={pathlib.Path(data_dir).absolute()}")
    shown = ["--workdir=W", *([f"--data_dir={pathlib.Path(data_dir).name}"] if data_dir else [])]
    begun = time.perf_counter()
    with open(folder / "log.txt", "a") as log:
        status = subprocess.run(
            [*command, *hidden],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        ).returncode
    if status:
        print(f"{' '.join(command[1:])} failed; see {folder / 'log.txt'}.", flush=True)
        return None
    found = json.loads((folder / "metrics.json").read_text())
    row = {
        "group": one.group,
        "name": one.name,
        "flags": [*one.flags, *FLAGS.extra],
        "seed": seed,
        "protocol": found["protocol"],
        "part": found["part"],
        "epoch": found["epoch"],
        "metrics": found["metrics"],
        "item_popularity": found["segments"]["item_popularity"],
        "loss": [entry["loss"] for entry in found["log"]],
        "examples_per_second": found["examples_per_second"],
        "training_seconds": found["training_seconds"]["selection"],
        "mining_seconds": found.get("mining_seconds", 0.0),
        "wall_seconds": round(time.perf_counter() - begun, 1),
        **norms(folder, split, data_dir),
        **{name: found[name] for name in ("commit", "hardware", "date", "versions")},
        "command": " ".join(["python", *command[1:], *shown]),
    }
    (folder / "row.json").write_text(json.dumps(row, indent=1) + "\n")
    return row


def norms(folder: pathlib.Path, protocol: str, data_dir: str | None) -> dict:
    """How far the lengths of items' vectors differ, and follow the items' popularity."""
    bundle = Bundle(folder / "bundle")
    data = load(bundle.manifest["dataset"], data_dir)
    train = make_split(data, protocol, "validation").train
    counts = np.bincount(data.item_keys[train], minlength=len(data.items))
    lengths = np.linalg.norm(np.load(folder / "bundle" / "items" / "vectors.npy"), axis=1)
    counts = counts[np.load(folder / "bundle" / "items" / "keys.npy")]
    found = {"norm_spread": float(lengths.std() / lengths.mean())}
    if found["norm_spread"] > 1e-3:
        ranks = [np.argsort(np.argsort(values)) for values in (lengths, counts)]
        found["norm_popularity_correlation"] = float(np.corrcoef(*ranks)[0, 1])
    return found


def main(argv):
    if len(argv) > 1:
        raise app.UsageError(f"unknown arguments {argv[1:]}; every flag starts with --.")
    todo = jobs()
    print_plan(todo)
    started, failed = time.perf_counter(), 0
    for one, split, seed in [] if FLAGS.plan_only else todo:
        if (place(one, split, seed) / "row.json").exists():
            continue
        if time.perf_counter() - started > 3600 * FLAGS.budget:
            print(f"{FLAGS.budget} hours are over; the same command goes on.")
            break
        row = train(one, split, seed)
        if row is None:
            failed += 1
            continue
        figure = row["metrics"]["recall_micro@100"]
        print(
            f"{one.group}: {one.name} ({split}, seed {seed})  recall_micro@100 "
            f"{figure['mean']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]  "
            f"{row['wall_seconds']:.0f} s",
            flush=True,
        )
    if FLAGS.output:
        rows = [place(*job) / "row.json" for job in todo]
        rows = [json.loads(path.read_text()) for path in rows if path.exists()]
        pathlib.Path(FLAGS.output).write_text(json.dumps({"rows": rows}, indent=1) + "\n")
    if failed:
        raise SystemExit(f"{failed} runs failed; the same command tries them again.")


if __name__ == "__main__":
    app.run(main)
