"""The command line: mistakes in one line, and help."""

import pathlib
import re
import shutil

import tiny
from small_runs import of_seen_rows, run

from twotower.bundle.manifest import LINEAGE, read_manifest, write_manifest
from twotower.training.recipe import CHOICES


def test_mistakes_are_named(workdir, tmp_path):
    other = shutil.copytree(workdir / "bundle", tmp_path / "other")
    # What a bundle of the same protocol on other data would hold.
    write_manifest(other, read_manifest(other) | {"dataset_fingerprint": "0" * 64})
    seen = of_seen_rows(workdir, tmp_path / "seen")
    cold = shutil.copytree(workdir / "bundle_validation", tmp_path / "cold")
    write_manifest(cold, read_manifest(cold) | {"hidden_items": 0.1})
    silent = shutil.copytree(cold, tmp_path / "silent")
    (silent / LINEAGE).unlink()
    write_manifest(silent, read_manifest(cold))
    train = ["train.py", f"--workdir={tmp_path / 'W'}", "--dataset=synthetic/small"]
    judge = ["evaluate.py", f"--bundle={workdir / 'bundle'}", "--part=test"]
    recommend = ["recommend.py", f"--bundle={workdir / 'bundle'}"]
    messages = {
        # A model may have been trained on what another split, or other data, asks.
        "trained for protocol 'random', not 'loo'": [*judge, "--split=loo"],
        "trained for split_seed 42, not 7": [*judge, "--split_seed=7"],
        "refit on the validation rows": ["evaluate.py", f"--bundle={other}"],
        "learned from 100% of the rows that random keeps": ["evaluate.py", f"--bundle={seen}"],
        "learned from 100% of the rows": ["build_funnel.py", f"--bundle={seen}"],
        # Hidden from nobody; or perhaps from nobody.
        "learned from 56% of the rows": ["evaluate.py", f"--bundle={cold}"],
        "does not say which rows": ["evaluate.py", f"--bundle={silent}"],
        "fingerprint": ["evaluate.py", f"--bundle={other}", "--part=test"],
        "Unknown command line flag 'hiden'": [*train, "--hiden=16"],
        "unknown arguments ['W']": [*train, "W"],
        "workdir": ["train.py"],
        # Paths, before anything is read or written.
        "is an address": [*train, "--workdir=gs://bucket/run"],
        "no such user": [*train, "--workdir=~nobody-here/run"],
        "takes for a pattern": [*train, f"--workdir={tmp_path}/runs[1]"],
        "an empty path": [*train, "--workdir="],
        f"{pathlib.Path.home()}/nothing is here": ["recommend.py", "--bundle=~/nothing is here"],
        "is a folder": [*judge, f"--output={tmp_path}"],
        "unknown dataset 'synthetic/huge'": [*train, "--dataset=synthetic/huge"],
        "unknown protocol 'randm'": [*train, "--split=randm"],
        "unknown item features ['colour']": [*train, "--item_features=item_id,colour"],
        "unknown query features ['shoe']": [*train, "--query_features=history,shoe"],
        "optimizer must be one of": [*train, "--optimizer=sgd"],
        "backend must be one of": [*train, "--indexes=hnsw,scam"],
        "it goes with mask_known_positives=False": [*train, "--correction=log_q"],
        "items ['nothing'] are not in": [*recommend, "--history=i00003,nothing"],
        "of user '42' nothing is given": [*recommend, "--user_id=42", "--json"],
        "got 'nineties'": [*recommend, "--years=nineties"],
        "ends before it begins: give 1980-1999": [*recommend, "--years=1999-1980"],
        "Compare bundles of one split": [*judge, f"--bundle={cold}"],
        "has no user 'nobody'": [*recommend, "--user_id=nobody", "--data_dir=any"],
        "has no index 'nope'": [*recommend, "--index=nope"],
        "is no bundle": ["recommend.py", f"--bundle={tmp_path}"],
    }
    for message, arguments in messages.items():
        done = run(*arguments, check=False)
        printed = done.stdout + done.stderr
        assert done.returncode and message in printed, printed
        # What was read is described first; the error is one line behind it.
        assert "Traceback" not in printed and message in "".join(printed.splitlines()[-2:]), printed
    assert not (tmp_path / "W" / "bundle").exists() and not (tmp_path / "runs[1]").exists()


def test_an_error_is_one_line_and_debug_shows_where(tmp_path):
    wrong = ["train.py", f"--workdir={tmp_path}", "--epochs=0"]
    plain, shown = (run(*wrong, *more, check=False) for more in ([], ["--debug"]))
    assert plain.returncode == shown.returncode == 1 and not plain.stdout
    (line,) = plain.stderr.splitlines()
    assert line.endswith("epochs must be 1 or more; got 0. (--debug shows where.)")
    assert "Traceback" in shown.stderr and "recipe.py" in shown.stderr


def test_help_is_quick_and_lists_every_flag_in_groups():
    """Without TensorFlow and pandas, whose imports take seconds; absl's flags stand behind."""
    code = (
        "import sys; from twotower.commands.main import main\n"
        "sys.argv = ['twotower', sys.argv[1], '--help']; main()\n"
        "assert not {'tensorflow', 'pandas', 'scann'} & {*sys.modules}, 'too much is imported'"
    )
    for command in ("train", "evaluate", "build_index", "recommend"):
        source = (tiny.ROOT / "twotower" / "commands" / f"{command}.py").read_text()
        names = re.findall(r'(?:flags|script)\.DEFINE_\w+\(\s*"(\w+)"', source)
        assert len(names) >= 5
        names += [*CHOICES] if command == "train" else []
        printed = tiny.python("-c", code, command).stdout
        for name in names:
            assert len(re.findall(rf"^  --(?:\[no\])?{name}: \S", printed, re.M)) == 1, name
        first = printed.partition("First of all:\n")[2].partition("\n\n")[0]
        assert len(re.findall(r"^  --", first, re.M)) == 5
        assert printed.startswith(f"twotower {command}: ") and "\nWith every command:" in printed


def test_the_command_line_as_a_module():
    assert tiny.python("-m", "twotower.commands.main", "help").stdout.startswith("twotower COMMAND")
