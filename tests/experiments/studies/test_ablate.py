"""The study of losses and negatives: its plan, one small run, going on after an interruption."""

import json
import sys

import pytest
import tiny
from absl import flags

sys.path.insert(0, str(tiny.ROOT / "experiments" / "studies"))
from ablation_plan import LOSSES
from sequence_plan import SEQUENCES

from twotower.data.splits import PROTOCOLS
from twotower.training import flags as recipe_flags
from twotower.training.recipe import CHOICES

SMALL = "--dataset=synthetic/small,--epochs=2"


@pytest.fixture(scope="module")
def parsed():
    """Flags -> Recipe, without train.py's process."""
    values = flags.FlagValues()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(flags, "FLAGS", values)
        for name, ((_, field), *_) in CHOICES.items():
            kind = type(field.default)
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
    recipes = [parsed([f"--flagfile={file}"]) for file in files]
    assert len(recipes) > 15 and not [text for recipe in recipes for text in recipe.unread()]


def test_fewer_epochs_where_one_takes_longer(parsed):
    for split, more in LOSSES.more_flags.items():
        assert parsed(["--epochs=6", *more]).fit.epochs == 3 and split in PROTOCOLS


def test_runs_once_and_collects(tmp_path):
    args = [f"--workdir={tmp_path}", "--groups=base", "--seeds=0,1", "--more_splits="]
    args += [f"--extra={SMALL}", f"--output={tmp_path / 'out.json'}"]
    script = tiny.ROOT / "experiments/studies/ablate.py"
    printed = tiny.python(script, *args).stdout
    assert "2 runs, about 0.1 hours left" in printed and printed.count("recall_micro@100") == 2
    rows = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert [(row["seed"], row["protocol"], row["part"]) for row in rows] == [
        (0, "random", "validation"),
        (1, "random", "validation"),
    ]
    for row in rows:
        assert {"commit", "hardware", "command", "loss", "wall_seconds"} <= row.keys()
        assert row["metrics"]["recall_micro@100"]["mean"] > 0.2 and "coverage@10" in row["metrics"]
        assert row["norm_spread"] < 1e-3 and row["command"].endswith("--workdir=W")
    assert rows[0]["loss"] != rows[1]["loss"]
    again = tiny.python(script, *args).stdout
    assert "2 runs, about 0.0 hours left" in again and "recall_micro@100" not in again
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == rows
    # On another machine, from the rows alone: two at a time, what has other flags is run again.
    rows[1]["flags"] = ["--epochs=9"]
    (tmp_path / "out.json").write_text(json.dumps({"rows": rows}))
    args[0] = f"--workdir={tmp_path / 'elsewhere'}"
    printed = tiny.python(script, *args, "--parallel=2").stdout
    assert "2 runs, about 0.1 hours left" in printed and printed.count("recall_micro@100") == 1
    taken, trained = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert taken == rows[0] and trained["seed"] == 1
    assert trained["cores"] == max(1, rows[0]["cores"] // 2)
    # Rows of runs that this call does not ask for stay.
    tiny.python(script, *args[:1], "--groups=base", "--pattern=nothing", *args[-2:])
    kept = json.loads((tmp_path / "out.json").read_text())["rows"]
    assert kept == [taken, trained]


def test_a_run_whose_base_recipe_has_changed_is_another(tmp_path):
    script = tiny.ROOT / "experiments/studies/ablate.py"
    args = [f"--workdir={tmp_path / 'W'}", "--groups=base", "--seeds=0", "--more_splits="]
    args.append(f"--extra={SMALL}")
    tiny.python(script, *args)
    (path,) = (tmp_path / "W").glob("*/row.json")
    row = json.loads(path.read_text())
    assert {"--split=random", "--epochs=6"} <= {*row["base"]} - {*row["flags"]}
    assert "about 0.0 hours left" in tiny.python(script, *args, "--plan_only").stdout
    path.write_text(json.dumps(row | {"base": [*row["base"], "--epochs=9"]}))
    assert "about 0.1 hours left" in tiny.python(script, *args, "--plan_only").stdout


def test_a_run_whose_flag_file_has_changed_is_another(tmp_path):
    script, file = tiny.ROOT / "experiments/studies/ablate.py", tmp_path / "more.flags"
    args = [f"--workdir={tmp_path / 'W'}", "--groups=base", "--seeds=0", "--more_splits="]
    args.append(f"--extra={SMALL},--flagfile={file}")
    for said, left in (("--dim=32", "0.1"), ("--dim=32", "0.0"), ("--dim=64", "0.1")):
        file.write_text(f"# What it is.\n{said}\n")
        assert f"about {left} hours left" in tiny.python(script, *args).stdout
    (row,) = (json.loads(path.read_text()) for path in (tmp_path / "W").glob("*/row.json"))
    assert row["flags"][-1] == "--dim=64" and row["command"].count("--flagfile=") == 2


def test_mistakes_are_named(tmp_path):
    script = tiny.ROOT / "experiments/studies/ablate.py"
    args = [f"--workdir={tmp_path}", "--plan_only"]
    found = tiny.python(script, *args, "--groups=loss,los", check=False)
    assert found.returncode and "['los'] are none of ['base'" in found.stderr
    found = tiny.python(script, *args, "--more_splits=temporal", check=False)
    assert found.returncode and "['temporal'] are none of ['loo-5core'" in found.stderr
    # Every protocol of the plan is one that train.py knows.
    planned = tiny.python(script, *args).stdout
    assert "temporal-successive seed 0  base" in planned


def test_a_run_that_fails_is_told_and_the_others_go_on(tmp_path):
    # Validation on a metric that is none ends the first process before its first epoch is kept.
    script = tiny.ROOT / "experiments/studies/ablate.py"
    args = [f"--workdir={tmp_path}", "--groups=base", "--seeds=0,1", "--more_splits="]
    done = tiny.python(
        script,
        *args,
        f"--extra={SMALL},--metric=nothing",
        f"--output={tmp_path / 'out.json'}",
        check=False,
    )
    assert done.returncode and "2 runs failed; the same command tries them again" in done.stderr
    assert done.stdout.count("failed; see") == 2
    assert json.loads((tmp_path / "out.json").read_text())["rows"] == []
