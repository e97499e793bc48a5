"""The commands as a person runs them: each in a process of its own, on the small made-up service.

A process costs some eight seconds, most of it TensorFlow's import; so one work folder serves all.
It is written by a process that begins with nothing. The others are forked with the imports done.
A second bundle, of the temporal protocols, is slow.
"""

import json
import pathlib
import re
import shlex
import shutil

import numpy as np
import pytest
import tiny
from absl import flags

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import LINEAGE, read_manifest, write_manifest
from twotower.bundle.weights import warm_start
from twotower.commands.train import next_steps
from twotower.training.recipe import CHOICES, Recipe
from twotower.training.trainer import Training

SCRIPTS = tiny.ROOT / "experiments"
TINY = [
    "--hidden=16",
    "--dim=8",
    "--batch_size=256",
    "--epochs=2",
    "--learning_rate=0.01",
    "--warmup_steps=5",
]


def run(script: str, *arguments: str, check: bool = True):
    return tiny.script(SCRIPTS / script, *arguments, check=check)


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """What train.py leaves."""
    # Of signs that are special to shells, patterns and formats, but not to TensorFlow.
    folder = tmp_path_factory.mktemp("scripts") / "a ]{}(),;:=&%s%20#$HOME'~ü 火" / "W"
    flags = ["--dataset=synthetic/small", f"--workdir={folder}", "--indexes=hnsw", *TINY]
    tiny.python(SCRIPTS / "train.py", *flags)
    return folder


def test_train_writes_validation_figures_only(workdir):
    assert {path.name for path in workdir.iterdir()} == {
        "bundle", "bundle_validation", "metrics.json", "refit", "selection",
    }  # fmt: skip
    text = (workdir / "metrics.json").read_text()
    metrics = json.loads(text)
    assert (metrics["protocol"], metrics["part"]) == ("random", "validation")
    assert '"test"' not in text
    assert metrics["epoch"] in (1, 2) and len(metrics["log"]) == 2
    assert metrics["command"].startswith("python ") and "--dataset=synthetic/small" in text
    for key in ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500"):
        value = metrics["metrics"][key]
        assert set(value) == {"mean", "low", "high"}, key
        assert value["low"] <= value["mean"] <= value["high"], key
    segments = metrics["segments"]["item_popularity"].values()
    total = sum(one["num_targets"] * one["recall_micro@100"]["mean"] for one in segments)
    recall = total / sum(one["num_targets"] for one in segments)
    assert recall == pytest.approx(metrics["metrics"]["recall_micro@100"]["mean"], abs=1e-6)
    # 300 items: popularity finds a quarter in its first 20; 100 of them find more.
    assert metrics["metrics"]["recall_micro@100"]["mean"] > 0.4
    assert set(metrics["training_seconds"]) == {"selection", "refit"}
    assert json.loads((workdir / "bundle" / "manifest.json").read_text())["refit"] is True


@pytest.mark.parametrize(
    "name", ["bundle/mine.txt", "bundle_validation/mine.txt", "metrics.json/x"]
)
def test_what_a_training_could_not_replace_is_refused_before_it(tmp_path, name):
    (tmp_path / name).parent.mkdir()
    (tmp_path / name).touch()
    done = run("train.py", "--dataset=synthetic/small", f"--workdir={tmp_path}", *TINY, check=False)
    assert done.returncode == 1 and name.partition("/")[0] in done.stderr
    assert not [*tmp_path.glob("selection/checkpoints/*")] and "epoch 1/" not in done.stderr


@pytest.fixture(scope="session")
def judged(workdir, tmp_path_factory):
    """(rows of the JSON, printed text) of evaluate.py on test."""
    output = tmp_path_factory.mktemp("evaluated") / "new" / "out.json"
    done = run(
        "evaluate.py",
        f"--bundle={workdir / 'bundle'}",
        "--part=test",
        "--split=random",
        "--split_seed=42",
        "--index=hnsw",
        "--baselines=popularity",
        f"--output={output}",
    )
    return json.loads(output.read_text())["rows"], done.stdout


def test_evaluate_judges_the_bundle_beside_popularity(judged):
    (model, popularity), printed = judged
    assert (model["part"], model["protocol"], model["seed"]) == ("test", "random", 0)
    assert popularity["name"] == "popularity"
    assert model["metrics"].keys() == popularity["metrics"].keys()
    assert all(set(value) == {"mean", "low", "high"} for value in model["metrics"].values())
    for name, ahead in popularity["ahead"].items():
        between = model["metrics"][name]["mean"] - popularity["metrics"][name]["mean"]
        assert ahead["mean"] == pytest.approx(between), name
        assert ahead["low"] <= ahead["mean"] <= ahead["high"]
    assert set(model["segments"]) == {"history_length", "item_popularity"}
    assert model["ann_recall@100"] > 0.95
    # Side by side, and the first minus the second.
    means = [row["metrics"]["recall_micro@100"]["mean"] for row in (model, popularity)]
    pair = r"recall_micro@100 +{:.4f} ± +0\.\d+ +{:.4f} ± ".format(*means)
    ahead = rf"recall_micro@100 +{re.escape(f'{means[0] - means[1]:+.4f}')} ± "
    assert re.search(rf"^{pair}", printed, re.M) and re.search(rf"^{ahead}", printed, re.M)


def test_validation_figures_come_again_from_the_other_bundle(workdir, tmp_path):
    """evaluate.py, through SavedModel and files, repeats what training measured in process. The
    bundle of train.py has learned from the validation rows, so the one beside it answers."""
    output = tmp_path / "out.json"
    bundles = [f"--bundle={workdir / name}" for name in ("bundle", "bundle_validation")]
    printed = run("evaluate.py", *bundles, f"--output={output}").stdout
    assert "bundle_validation answers in its place. --part=test asks" in printed
    row, again = json.loads(output.read_text())["rows"]
    assert row["metrics"] == again["metrics"] and again["ahead"]["ndcg@10"]["mean"] == 0
    expected = json.loads((workdir / "metrics.json").read_text())["metrics"]
    assert row["metrics"].keys() == expected.keys()
    for name, value in row["metrics"].items():
        assert value["mean"] == pytest.approx(expected[name]["mean"], abs=1e-3), name


@pytest.mark.slow
def test_one_temporal_bundle_answers_both_protocols(tmp_path):
    """They train on the same rows (tests/data/test_splits.py)."""
    split = ["--split=temporal-last+time", "--epochs=1", "--indexes=", "--norefit"]
    run("train.py", "--dataset=synthetic/small", f"--workdir={tmp_path}", *TINY, *split)
    judge = ["evaluate.py", f"--bundle={tmp_path / 'bundle'}", "--part=test"]
    printed = run(*judge, "--split=temporal-successive+time").stdout
    assert printed.startswith("temporal-successive+time, test: ")
    for other in ("loo", "temporal-successive"):  # of which the second tells no time
        assert f"not '{other}'" in run(*judge, f"--split={other}", check=False).stderr


def test_without_further_rows_there_is_no_refit(tmp_path):
    train = ["train.py", "--dataset=synthetic/small", f"--workdir={tmp_path / 'W'}", *TINY]
    run(*train, "--split=loo", "--epochs=1", "--indexes=", "--hidden_items=0.2")
    assert not (tmp_path / "W" / "bundle_validation").exists()
    bundle = f"--bundle={tmp_path / 'W' / 'bundle'}"
    # No row of which was trained on.
    out = tmp_path / "out.json"
    judge = [bundle, "--part=validation", f"--output={out}", "--baselines=content_ials"]
    judge.append("--trained_alone")
    printed = run("evaluate.py", *judge).stdout
    metrics = json.loads((tmp_path / "W" / "metrics.json").read_text())
    assert f"{metrics['metrics']['ndcg@10']['mean']:.4f}" in printed
    # Of 297 candidates 59 are hidden: found among themselves, and among all.
    model, trained, baseline = json.loads(out.read_text())["rows"]
    # The 59 take places from the others, and are never answered where they may not be.
    assert trained["name"] == "two towers, trained items alone"
    assert trained["metrics"]["coverage@500"]["mean"] <= (297 - 59) / 297
    assert model["metrics"]["coverage@500"]["mean"] > (297 - 59) / 297
    for row in (model, baseline):
        found = row["hidden"]
        assert (found["num_items"], found["chance@20 among hidden"]) == (59, 20 / 59)
        assert 0 < found["recall@20 among hidden"]["mean"] <= 1
        assert f"{found['recall@20 among hidden']['mean']:.4f}" in printed
    assert model["hidden"] != baseline["hidden"]
    # What training measured in its process comes again through files.
    in_process = metrics["segments"]["hidden_items"]["recall_micro@100"]["mean"]
    again = model["hidden"]["recall_micro@100 of hidden"]["mean"]
    assert again == pytest.approx(in_process, abs=0.01)


def of_seen_rows(workdir, folder):
    """The bundle of a training that did not see its validation rows, but started from one that
    did: as `train.py --allow_seen` writes it."""
    bundle = shutil.copytree(workdir / "bundle_validation", folder)
    refit = Bundle(workdir / "bundle")
    np.save(bundle / LINEAGE, refit.lineage.rows)
    manifest = read_manifest(bundle) | {"ancestors": [refit.model_version]}
    write_manifest(bundle, manifest)
    return bundle


def test_a_warm_start_must_not_know_the_answers(workdir, tmp_path):
    recipe = Recipe.from_json(read_manifest(workdir / "bundle")["recipe"])
    training = Training(tiny.dataset(), tiny.split(), recipe)
    before = training.fingerprint()
    refit, selected = Bundle(workdir / "bundle"), Bundle(workdir / "bundle_validation")
    with pytest.raises(ValueError, match=r"learned from 100% of the rows that random keeps"):
        warm_start(training, refit)
    assert training.ancestor is None and training.fingerprint() == before
    assert warm_start(training, selected)["fresh"] == 0
    assert training.lineage().share_seen(training.dataset, training.split) == 0
    assert training.lineage().ancestors == (selected.model_version,)
    assert warm_start(training, refit, allow_seen=True)["fresh"] == 0
    assert training.lineage().share_seen(training.dataset, training.split) == 1
    # A checkpoint of one ancestor is not continued with another, or as if it had none.
    assert training.fingerprint() != before
    # Not by way of a bundle in between, or of one that does not say.
    child = Bundle(of_seen_rows(workdir, tmp_path / "child"))
    assert child.lineage.ancestors == (selected.model_version, refit.model_version)
    with pytest.raises(ValueError, match="learned from 100%"):
        warm_start(training, child)
    (child.directory / LINEAGE).unlink()
    write_manifest(child.directory, child.manifest)
    with pytest.raises(ValueError, match="does not say which rows"):
        warm_start(training, Bundle(child.directory))


def test_build_index_then_recommend_from_it(workdir, tmp_path):
    bundle = shutil.copytree(workdir / "bundle", tmp_path / "bundle")
    flag = f"--bundle={bundle}"
    printed = run("build_index.py", flag, "--backend=hnsw", "--name=second", "--k=10").stdout
    recall = float(
        re.search(r"recall@10 against exact search, sample queries: ([\d.]+)", printed)[1]
    )
    assert recall > 0.95
    done = run("recommend.py", flag, "--index=second", "--history=i00003,i00007", "--k=4", "--json")
    answer = json.loads(done.stdout)
    assert (answer["user_id"], answer["index"], answer["history"]) == ("", "second", 2)
    ids = [row["item_id"] for row in answer["items"]]
    assert len(set(ids)) == 4 and not {"i00003", "i00007"} & set(ids)
    scores = [row["score"] for row in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(row["title"] and row["because"] in ("i00003", "i00007") for row in answer["items"])


def test_recommend_shows_what_users_like_and_keeps_to_genres_and_years(workdir):
    """Two users' histories are looked up; k is beyond the catalogue of 300."""
    made = tiny.dataset()
    frame = made.interactions[made.positive]
    items = made.items.set_index("item_id")
    genre, low = items["genres"].iloc[0][0], int(items["year"].median())
    run_it = ["recommend.py", f"--bundle={workdir / 'bundle'}", "--data_dir=any", "--k=1000"]
    run_it += ["--user_id=u00003,u00004", f"--genres={genre}", f"--years={low}-"]
    answers = run(*run_it, "--json").stdout.splitlines()
    table = run(*run_it, "--shown=2").stdout
    parts = re.split(r"^user ", table, flags=re.M)[1:]
    for user, answer, part in zip(("u00003", "u00004"), map(json.loads, answers), parts):
        liked = frame[frame["user_id"] == user].sort_values("timestamp", kind="stable")["item_id"]
        expected = {
            item for item in {*frame["item_id"]} - {*liked}
            if genre in items["genres"][item] and items["year"][item] >= low
        }  # fmt: skip
        assert expected and {row["item_id"] for row in answer["items"]} == expected
        assert answer["user_id"] == user and answer["history"] == len(liked)
        lines = part.splitlines()
        assert re.fullmatch(rf"{user}, exact, [\d.]+ ms", lines[0])
        assert lines[1] == f"liked {len(liked):,} items, the last of them:"
        assert [line.split()[0] for line in lines[2:4]] == [*liked][-2:]
        rows = lines[5:-1]
        assert [int(row.split()[0]) for row in rows] == list(range(1, len(expected) + 1))
        first = answer["items"][0]
        for text in (first["item_id"], first["title"], f"({first['year']})", genre, "near "):
            assert text in rows[0]
        assert lines[-1] == f"({len(expected)} items: no others meet the filters)"


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


def test_commands_to_copy_have_ids_with_commas_in_quotes():
    lines = next_steps(pathlib.Path("W/bundle"), ["a,1", 'b"c', "d"], "my data").splitlines()
    arguments = [shlex.split(line) for line in lines[1::2]]
    assert [words[:3] for words in arguments] == [
        ["twotower", command, "--bundle=W/bundle"] for command in ("recommend", "evaluate")
    ]
    history = arguments[0][3].removeprefix("--history=")
    assert flags.ListParser().parse(history) == ["a,1", 'b"c', "d"]
    assert arguments[1][-1] == "--data_dir=my data"


def test_the_command_line_as_a_module():
    assert tiny.python("-m", "twotower.commands.main", "help").stdout.startswith("twotower COMMAND")


def test_an_error_is_one_line_and_debug_shows_where(tmp_path):
    wrong = ["train.py", f"--workdir={tmp_path}", "--epochs=0"]
    plain, shown = (run(*wrong, *more, check=False) for more in ([], ["--debug"]))
    assert plain.returncode == shown.returncode == 1 and not plain.stdout
    (line,) = plain.stderr.splitlines()
    assert line.endswith("epochs must be 1 or more; got 0. (--debug shows where.)")
    assert "Traceback" in shown.stderr and "recipe.py" in shown.stderr
