"""A study: one base recipe, one change at a time.

    python experiments/studies/ablate.py --data_dir=ml-1m --workdir=W --plan_only
    python experiments/studies/ablate.py --data_dir=ml-1m --workdir=W --output=ablation.json
    python experiments/studies/ablate.py --study=sequences --data_dir=ml-1m --workdir=S \
        --output=out.json

Prints the plan with an estimate, then trains each run of the study by train.py, in a separate
process: the study's base recipe with the run's flags added. The runs of `losses` are in
ablation_plan.py, those of `sequences` in sequence_plan.py, those of `new_items` in
new_items_plan.py. All figures are on validation, from a training's best epoch; `by_epoch` has those
of all epochs, which shows where a training collapsed. Runs that a conclusion depends on are
repeated with --seeds and on --more_splits. After an interruption the same command goes on: a run
that has a row in its folder or in --output is not repeated, and an unfinished one continues after
its last epoch. --parallel=N trains N at a time, each on its share of the cores, which small batches
use better.

The runs on a large catalogue need --large_dir, the folder of

    python experiments/studies/make_synthetic.py --num_items=200000 --num_users=6000 \
        --num_interactions=1000000 --output=large

W/RUN/row.json has one run: its validation metrics with intervals, wall time, examples a second,
loss by epoch, and how far a vector's length follows its item's popularity. --output has them all.
"""

import concurrent.futures
import json
import os
import pathlib
import queue
import re
import shutil
import subprocess
import sys
import time

import numpy as np
from absl import app, flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from ablation_plan import LOSSES, Plan, Run  # isort: skip
from new_items_plan import NEW_ITEMS  # isort: skip
from sequence_plan import SEQUENCES  # isort: skip
from twotower.bundle.bundle import Bundle
from twotower.bundle.provenance import write_result
from twotower.commands.judging import dataset_of
from twotower.data.protocols import PROTOCOLS
from twotower.data.splits import make_split

ROOT = pathlib.Path(__file__).parents[2]
STUDIES = {"losses": LOSSES, "sequences": SEQUENCES, "new_items": NEW_ITEMS}

FLAGS = flags.FLAGS
flags.DEFINE_enum("study", "losses", [*STUDIES], "Which plan.")
script.DEFINE_path("data_dir", None, "GroupLens folder, for train.py.")
script.DEFINE_path("large_dir", None, "Folder of make_synthetic.py with 200,000 items.")
script.DEFINE_path("workdir", None, "Folder of the runs.", required=True)
flags.DEFINE_list("groups", None, "Only these groups; all by default.")
flags.DEFINE_string("pattern", "", "Only runs whose name matches this regular expression.")
flags.DEFINE_list(
    "seeds", ["0", "1", "2"], "Of the runs that a conclusion depends on; others: the first."
)
flags.DEFINE_list("more_splits", None, "Further protocols of those runs; the plan's by default.")
flags.DEFINE_float("budget", 8.0, "Hours after which no further run is started.")
flags.DEFINE_integer("parallel", 1, "Runs at a time.", lower_bound=1)
flags.DEFINE_bool("plan_only", False, "Print the plan and stop.")
flags.DEFINE_list("extra", [], "Flags to add to every run, such as --epochs=1.")
script.DEFINE_path("output", None, "JSON file with a row for each run that is done, now or before.")


def plan() -> Plan:
    """That of --study."""
    return STUDIES[FLAGS.study]


def jobs() -> list[tuple[Run, str, int]]:
    """(run, protocol, seed), the first seed of every run before any repetition."""
    known = {run.group for run in plan().runs}
    if unknown := set(FLAGS.groups or ()) - known:
        raise app.UsageError(f"--groups: {sorted(unknown)} are none of {sorted(known)}.")
    more_splits = plan().more_splits if FLAGS.more_splits is None else FLAGS.more_splits
    if unknown := set(more_splits) - set(PROTOCOLS):
        raise app.UsageError(f"--more_splits: {sorted(unknown)} are none of {[*PROTOCOLS]}.")
    wanted = [
        run
        for run in plan().runs
        if (not FLAGS.groups or run.group in FLAGS.groups) and re.search(FLAGS.pattern, run.name)
    ]
    if not FLAGS.large_dir:
        wanted = [run for run in wanted if not run.is_large]
    first, *others = [int(seed) for seed in FLAGS.seeds]
    pivotal = [run for run in wanted if run.is_pivotal]
    return [
        *((run, plan().protocol, first) for run in wanted),
        *((run, split, first) for split in more_splits for run in pivotal),
        *((run, plan().protocol, seed) for seed in others for run in pivotal),
    ]


def folder_of(run: Run, split: str, seed: int) -> pathlib.Path:
    """Folder of a run."""
    name = re.sub(r"[^a-z0-9.]+", "-", f"{run.group} {run.name}".lower()).strip("-")
    return pathlib.Path(FLAGS.workdir) / f"{name}--{split}-{seed}"


def flags_of(run: Run, split: str) -> list[str]:
    """The flags that a run adds to those of the base recipe."""
    return [*run.flags, *plan().more_flags.get(split, ()), *FLAGS.extra]


def expanded(given: list[str]) -> list[str]:
    """These flags with those of flag files written out, so that a run is repeated if a file has
    changed."""
    return flags.FLAGS.read_flags_from_files(list(given), force_gnu=False)


def recipe(run: Run, split: str) -> dict[str, list[str]]:
    """The flags of the base recipe, and those that the run adds."""
    return {
        "base": expanded([f"--flagfile={ROOT / plan().flagfile}"]),
        "flags": expanded(flags_of(run, split)),
    }


def finished(run: Run, split: str, seed: int) -> dict | None:
    """The row of a run that is done with the flags that it and the base recipe have today."""
    path = folder_of(run, split, seed) / "row.json"
    row = json.loads(path.read_text()) if path.exists() else {}
    same = all(row.get(name) == value for name, value in recipe(run, split).items())
    return row if same else None


def identity(row: dict) -> tuple:
    """What identifies the run of a row."""
    return row["group"], row["name"], row["protocol"], row["seed"]


def written() -> dict[tuple, dict]:
    """The rows of --output."""
    path = pathlib.Path(FLAGS.output)
    rows = json.loads(path.read_text())["rows"] if path.exists() else []
    return {identity(row): row for row in rows}


def collect(todo: list) -> None:
    """Writes all rows to --output, in the plan's order, so that tables begin with the base.

    Rows of --output whose runs are not among `todo` are kept.
    """
    done = {identity(row): row for job in todo if (row := finished(*job))}
    planned = {(run.group, run.name, split, seed) for run, split, seed in todo}
    others = {name: row for name, row in written().items() if name not in planned}
    order = {(run.group, run.name): number for number, run in enumerate(plan().runs)}
    rows = sorted(
        (done | others).values(),
        key=lambda row: order.get((row["group"], row["name"]), len(order)),
    )
    write_result(FLAGS.output, {"rows": rows})


def take_over(todo: list) -> None:
    """Puts rows of an earlier --output into the folders of their runs."""
    old = written()
    for run, split, seed in todo:
        row = old.get((run.group, run.name, split, seed))
        path = folder_of(run, split, seed) / "row.json"
        if row and not path.exists():
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_text(json.dumps(row, indent=1) + "\n")


def print_plan(todo: list) -> None:
    """One line for each job, and the hours that are left."""
    left = 0.0
    for run, split, seed in todo:
        done = finished(run, split, seed)
        minutes = run.cost * plan().minutes
        left += 0 if done else minutes
        state = "done" if done else f"{minutes:4.0f} min"
        print(f"{state:>8s}  {split:19s} seed {seed}  {run.group:12s} {run.name}")
    print(f"{len(todo)} runs, about {left / 60:.1f} hours left", flush=True)


def train(run: Run, split: str, seed: int, cores: set[int]) -> dict:
    """Runs train.py on some cores and returns the row.

    Raises:
        RuntimeError: It failed; others can go on.
    """
    folder = folder_of(run, split, seed)
    if (folder / "row.json").exists():  # of other flags, so its checkpoints are another recipe's
        shutil.rmtree(folder)
    folder.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "experiments/train.py", f"--flagfile={plan().flagfile}"]
    command += [f"--split={split}", f"--seed={seed}", *flags_of(run, split)]
    hidden, data_dir = [f"--workdir={folder.absolute()}"], FLAGS.data_dir
    if run.is_large:
        command.append("--dataset=tables")
        data_dir = FLAGS.large_dir
    if data_dir:
        hidden.append(f"--data_dir={pathlib.Path(data_dir).absolute()}")
    shown = ["--workdir=W", *([f"--data_dir={pathlib.Path(data_dir).name}"] if data_dir else [])]
    begun = time.perf_counter()
    with open(folder / "log.txt", "a") as log:
        process = subprocess.Popen(
            [*command, *hidden],
            cwd=ROOT,
            stdout=log,
            stderr=log,
            env={**os.environ, "TF_CPP_MIN_LOG_LEVEL": "2"},
        )
        # Before TensorFlow counts the cores, which takes it seconds to come to.
        if hasattr(os, "sched_setaffinity"):
            os.sched_setaffinity(process.pid, cores)
    if process.wait():
        raise RuntimeError(f"{' '.join(command[1:])} failed; see {folder / 'log.txt'}.")
    found = json.loads((folder / "metrics.json").read_text())
    segments = found["segments"]
    row = {
        "group": run.group,
        "name": run.name,
        **recipe(run, split),
        "seed": seed,
        "protocol": found["protocol"],
        "part": found["part"],
        "epoch": found["epoch"],
        "metrics": found["metrics"],
        # Only the table of cold items reads it.
        **({"item_popularity": segments["item_popularity"]} if run.group == "cold items" else {}),
        "hidden_items": segments.get("hidden_items"),
        "loss": [entry["loss"] for entry in found["log"]],
        "by_epoch": [entry.get(plan().metric) for entry in found["log"]],
        "examples_per_second": found["examples_per_second"],
        "training_seconds": found["training_seconds"]["selection"],
        "mining_seconds": found.get("mining_seconds", 0.0),
        "mined": found["log"][-1].get("mined"),
        "cores": len(cores),
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
    data = dataset_of(bundle, data_dir)
    train = make_split(data, protocol, "validation").train
    counts = np.bincount(data.item_keys[train], minlength=len(data.items))
    lengths = np.linalg.norm(np.load(folder / "bundle" / "items" / "vectors.npy"), axis=1)
    counts = counts[np.load(folder / "bundle" / "items" / "keys.npy")]
    found = {"norm_spread": float(lengths.std() / lengths.mean())}
    if found["norm_spread"] > 1e-3:
        ranks = [np.argsort(np.argsort(values)) for values in (lengths, counts)]
        found["norm_popularity_correlation"] = float(np.corrcoef(*ranks)[0, 1])
    return found


def print_row(row: dict | None) -> None:
    """Prints the line of a run."""
    if row is None:
        print(f"{FLAGS.budget} hours are over; the same command goes on.", flush=True)
        return
    figure = row["metrics"][plan().metric]
    print(
        f"{row['group']}: {row['name']} ({row['protocol']}, seed {row['seed']})  {plan().metric} "
        f"{figure['mean']:.4f} [{figure['low']:.4f}, {figure['high']:.4f}]  "
        f"{row['wall_seconds']:.0f} s",
        flush=True,
    )


def main():
    todo = jobs()
    if FLAGS.output:
        take_over(todo)
    print_plan(todo)
    if FLAGS.plan_only:
        return
    free, cores = queue.Queue(), range(os.cpu_count())
    if hasattr(os, "sched_getaffinity"):
        cores = sorted(os.sched_getaffinity(0))
    for share in range(FLAGS.parallel):
        free.put(set(cores[share :: FLAGS.parallel]) or set(cores))
    started, failed = time.perf_counter(), 0

    def work(job: tuple) -> dict | None:
        """The row; None where the budget is over."""
        if time.perf_counter() - started > 3600 * FLAGS.budget:
            return None
        share = free.get()
        try:
            return train(*job, share)
        finally:
            free.put(share)

    with concurrent.futures.ThreadPoolExecutor(FLAGS.parallel) as pool:
        running = [pool.submit(work, job) for job in todo if not finished(*job)]
        for done in concurrent.futures.as_completed(running):
            try:
                print_row(done.result())
            except RuntimeError as error:
                print(error, flush=True)
                failed += 1
            if FLAGS.output:
                collect(todo)
    if FLAGS.output:
        collect(todo)
    if failed:
        raise SystemExit(f"{failed} runs failed; the same command tries them again.")


if __name__ == "__main__":
    script.run(main)
