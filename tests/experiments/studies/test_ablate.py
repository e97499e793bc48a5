"""The study of losses and negatives: its plan, one small run, going on after an interruption.

One run trains. What the study does with the rows of several is seen with rows that a planted
`train` writes. Two trainings side by side are slow.
"""

import json
import sys

import pytest
import tiny
from absl import flags

sys.path.insert(0, str(tiny.ROOT / "experiments" / "studies"))
from ablation_plan import LOSSES
from sequence_plan import SEQUENCES

from twotower.data.protocols import PROTOCOLS
from twotower.training import flags as recipe_flags
from twotower.training.recipe import CHOICES


@pytest.fixture(scope="module")
def parsed():
    """Flags -> Recipe, without train.py's process."""
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        for name, ((_, field), *_) in CHOICES.items():
            kind = int if field.type == int | None else type(field.default)
            define = {bool: flags.DEFINE_bool, int: flags.DEFINE_integer, float: flags.DEFINE_float}
            default = [str(v) for v in field.default] if kind is tuple else field.default
            define = flags.DEFINE_list if kind is tuple else define.get(kind, flags.DEFINE_string)
            define(name, default, "", flag_values=values)

        # What a flag file says to train.py alone.
        for name in ("dataset", "split", "indexes"):
            flags.DEFINE_string(name, None, "", flag_values=values)
        flags.DEFINE_bool("refit", True, "", flag_values=values)
        flags.DEFINE_float("hidden_items", 0.0, "", flag_values=values)

        def recipe(given):
            values.unparse_flags()
            for name in CHOICES:
                values[name].unparse()
            values(["", *given])
            return recipe_flags.recipe()

        yield recipe


@pytest.mark.parametrize(("study", "least"), [(LOSSES, 50), (SEQUENCES, 20)])
def test_every_run_is_a_recipe_that_differs_from_the_base(parsed, study, least, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    given = [f"--flagfile={tiny.ROOT / study.flagfile}"]
    base = parsed(given)
    names = [(one.group, one.name) for one in study.runs]
    assert len(set(names)) == len(names) >= least
    for one in study.runs:
        made = parsed([*given, *one.flags])
        # Hidden items are another split and not another recipe.
        assert (made == base) == (set(one.flags) <= {"--hidden_items=0.1"}), one
    assert study.protocol in PROTOCOLS and {*study.more_flags} <= {*study.more_splits}
    # The dozen rows that a rule hangs on have further seeds and protocols.
    assert 1 <= sum(one.is_pivotal for one in study.runs) <= 12


def test_every_flag_file_is_a_recipe(parsed, monkeypatch):
    monkeypatch.chdir(tiny.ROOT)
    files = sorted((tiny.ROOT / "experiments" / "flags").rglob("*.flags"))
    files = [file for file in files if file.parent.name not in ("funnel", "ranking")]
    recipes = [parsed([f"--flagfile={file}"]) for file in files]
    assert len(recipes) > 15 and not [text for recipe in recipes for text in recipe.unread()]


def test_fewer_epochs_where_one_takes_longer(parsed):
    for split, more in LOSSES.more_flags.items():
        assert parsed(["--epochs=6", *more]).fit.epochs == 3 and split in PROTOCOLS


ABLATE = tiny.ROOT / "experiments" / "studies" / "ablate.py"
SHORT = ["--groups=base", "--more_splits="]
# Runs the study after a change to its module, which is `script`.
CHANGED = f"""
import json, sys
sys.path.insert(0, {str(ABLATE.parent)!r})
import ablate as script
{{change}}
script.script.run(script.main)
"""
# A row as a training writes it, at once.
PLANTED = CHANGED.format(
    change="""
def train(run, split, seed, cores):
    folder = script.folder_of(run, split, seed)
    folder.mkdir(parents=True, exist_ok=True)
    figure = {"mean": 0.5, "low": 0.4, "high": 0.6}
    row = {"group": run.group, "name": run.name, "protocol": split, "seed": seed,
           "metrics": {script.plan().metric: figure}, "wall_seconds": 1, "cores": len(cores),
           **script.recipe(run, split)}
    (folder / "row.json").write_text(json.dumps(row))
    return row
script.train = train
"""
)


def planted(*arguments: str) -> str:
    """What the study prints whose `train` is planted."""
    return tiny.script("-c", PLANTED, *SHORT, *arguments).stdout


def rows_of(path) -> list[dict]:
    return json.loads(path.read_text())["rows"]


def trained(output, *arguments: str) -> list[dict]:
    """The rows of a study that trains."""
    tiny.script(ABLATE, *SHORT, f"--output={output}", *arguments)
    rows = rows_of(output)
    for row in rows:
        assert (row["protocol"], row["part"]) == ("random", "validation")
        assert {"commit", "hardware", "command", "loss", "wall_seconds"} <= row.keys()
        assert row["metrics"]["recall_micro@100"]["mean"] > 0.2 and "coverage@10" in row["metrics"]
        assert row["norm_spread"] < 1e-3 and row["command"].endswith("--workdir=W")
    return rows


def test_a_run_is_a_row(tmp_path):
    file, output = tmp_path / "more.flags", tmp_path / "out.json"
    file.write_text("# What it is.\n--dim=16\n")
    extra = f"--extra=--dataset=synthetic/small,--epochs=1,--flagfile={file}"
    (row,) = trained(output, f"--workdir={tmp_path}", "--seeds=0", extra)
    assert row["seed"] == 0 and len(row["loss"]) == 1
    assert row["flags"][-1] == "--dim=16" and row["command"].count("--flagfile=") == 2


@pytest.mark.slow
def test_two_seeds_side_by_side(tmp_path):
    extra = "--extra=--dataset=synthetic/small,--epochs=2"
    flags = [f"--workdir={tmp_path}", "--seeds=0,1", "--parallel=2", extra]
    rows = trained(tmp_path / "out.json", *flags)
    assert [row["seed"] for row in rows] == [0, 1] and rows[0]["loss"] != rows[1]["loss"]


def test_runs_once_and_collects(tmp_path):
    output = tmp_path / "out.json"
    flags = ["--seeds=0,1", f"--output={output}"]
    printed = planted(f"--workdir={tmp_path}", *flags)
    assert "2 runs, about 0.1 hours left" in printed and printed.count("recall_micro@100") == 2
    rows = rows_of(output)
    assert [(row["seed"], row["protocol"]) for row in rows] == [(0, "random"), (1, "random")]
    again = planted(f"--workdir={tmp_path}", *flags)
    assert "2 runs, about 0.0 hours left" in again and "recall_micro@100" not in again
    assert rows_of(output) == rows
    # On another machine, from the rows alone: two at a time, what has other flags is run again.
    rows[1]["flags"] = ["--epochs=9"]
    output.write_text(json.dumps({"rows": rows}))
    elsewhere = f"--workdir={tmp_path / 'elsewhere'}"
    printed = planted(elsewhere, *flags, "--parallel=2")
    assert "2 runs, about 0.1 hours left" in printed and printed.count("recall_micro@100") == 1
    taken, anew = rows_of(output)
    assert taken == rows[0] and (anew["seed"], anew["flags"]) == (1, [])
    assert anew["cores"] == max(1, rows[0]["cores"] // 2)
    # Rows of runs that this call does not ask for stay.
    planted(elsewhere, "--pattern=nothing", f"--output={output}")
    assert rows_of(output) == [taken, anew]


def test_a_run_whose_base_recipe_has_changed_is_another(tmp_path):
    flags = [f"--workdir={tmp_path / 'W'}", "--seeds=0"]
    planted(*flags)
    (path,) = (tmp_path / "W").glob("*/row.json")
    row = json.loads(path.read_text())
    assert {"--split=random", "--epochs=6"} <= {*row["base"]} - {*row["flags"]}
    assert "about 0.0 hours left" in planted(*flags, "--plan_only")
    path.write_text(json.dumps(row | {"base": [*row["base"], "--epochs=9"]}))
    assert "about 0.1 hours left" in planted(*flags, "--plan_only")


def test_a_run_whose_flag_file_has_changed_is_another(tmp_path):
    file = tmp_path / "more.flags"
    flags = [f"--workdir={tmp_path / 'W'}", "--seeds=0", f"--extra=--flagfile={file}"]
    for text, left in (("--dim=32", "0.1"), ("--dim=32", "0.0"), ("--dim=64", "0.1")):
        file.write_text(f"# What it is.\n{text}\n")
        assert f"about {left} hours left" in planted(*flags)
    (row,) = (json.loads(path.read_text()) for path in (tmp_path / "W").glob("*/row.json"))
    assert row["flags"] == ["--dim=64"]


def test_mistakes_are_named(tmp_path):
    args = [f"--workdir={tmp_path}", "--plan_only"]
    found = tiny.script(ABLATE, *args, "--groups=loss,los", check=False)
    assert found.returncode and "['los'] are none of ['base'" in found.stderr
    found = tiny.script(ABLATE, *args, "--more_splits=temporal", check=False)
    assert found.returncode and "['temporal'] are none of ['loo-5core'" in found.stderr
    # Every protocol of the plan is one that train.py knows.
    planned = tiny.script(ABLATE, *args).stdout
    assert "temporal-successive seed 0  base" in planned


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    # The process of each run ends at once.
    code = CHANGED.format(change="sys.executable = 'false'")
    output = tmp_path / "out.json"
    flags = [f"--workdir={tmp_path}", "--seeds=0,1", f"--output={output}"]
    done = tiny.script("-c", code, *SHORT, *flags, check=False)
    assert done.returncode and "2 runs failed; the same command tries them again" in done.stderr
    assert done.stdout.count("failed; see") == 2
    assert rows_of(output) == []
