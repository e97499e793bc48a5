"""Runs tutorial.py for every change and seed, and writes its accuracies.

    python experiments/studies/tutorial_changes.py --data_dir=ml-1m --output=tutorial.json

A row a change has the mean, the lowest and the highest accuracy of its seeds. With --only, the
other rows of the file stay.
"""

import json
import pathlib
import subprocess
import sys
import tempfile

import numpy as np
from absl import flags

from twotower.commands import script  # isort: skip  (first: quiets TensorFlow)
from twotower.bundle.provenance import provenance, write_result

CHANGES = {
    "as copied": (),
    "Adam, mean loss": ("adam",),
    "Adam, mean loss, temperature .1": ("adam", "temperature"),
    "Adam, mean loss, log-Q": ("adam", "log_q"),
    "Adam, mean loss, log-Q, temperature .1": ("adam", "log_q", "temperature"),
}
KS = (10, 50, 100)

FLAGS = flags.FLAGS
script.DEFINE_path("data_dir", None, "GroupLens folder.", required=True)
script.DEFINE_path("output", None, "JSON file to write.", required=True)
flags.DEFINE_integer("seeds", 1, "Trainings of each change.", lower_bound=1)
flags.DEFINE_integer("epochs", 10, "Passes over the training ratings.", lower_bound=1)
flags.DEFINE_multi_enum("only", list(CHANGES), list(CHANGES), "Row to measure; may be repeated.")


def accuracies(changes: tuple[str, ...], seed: int) -> dict[str, float]:
    """The test accuracies of one run, by metric."""
    tutorial = pathlib.Path(__file__).parents[1] / "tutorial.py"
    with tempfile.TemporaryDirectory() as workdir:
        arguments = [f"--data_dir={FLAGS.data_dir}", f"--workdir={workdir}", f"--seed={seed}"]
        arguments += [f"--epochs={FLAGS.epochs}", *(f"--change={change}" for change in changes)]
        command = [sys.executable, str(tutorial), *arguments]
        # `script.run` hides standard error from C++ libraries, which would hide errors here, too.
        subprocess.run(command, check=True, stderr=sys.stderr)
        found = json.loads((pathlib.Path(workdir) / "metrics.json").read_text())
    return {
        f"recall_micro@{k}": found[f"factorized_top_k/top_{k}_categorical_accuracy"] for k in KS
    }


def main():
    output, seeds, rows = pathlib.Path(FLAGS.output), list(range(FLAGS.seeds)), {}
    if output.exists():
        rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    for name in FLAGS.only:
        runs = [accuracies(CHANGES[name], seed) for seed in seeds]
        metrics = {}
        for key in runs[0]:
            values = [run[key] for run in runs]
            metrics[key] = {"mean": np.mean(values), "low": min(values), "high": max(values)}
        row = {"name": name, "protocol": "random-100k+seen", "part": "test", "seeds": seeds}
        rows[name] = row | {"epochs": FLAGS.epochs, "metrics": metrics, **provenance()}
        # Written after each row, so that an interrupt loses one.
        write_result(output, {"rows": [rows[name] for name in CHANGES if name in rows]})


if __name__ == "__main__":
    script.run(main)
