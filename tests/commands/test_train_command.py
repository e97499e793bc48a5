"""train.py as a person runs it: what it leaves, what it refuses, and what it may start from."""

import json
import pathlib
import shlex

import pytest
import tiny
from absl import flags
from small_runs import TINY, of_seen_rows, run

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import LINEAGE, read_manifest, write_manifest
from twotower.bundle.weights import warm_start
from twotower.commands.train import next_steps
from twotower.training.recipe import Recipe
from twotower.training.training import Training


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


def test_commands_to_copy_have_ids_with_commas_in_quotes():
    lines = next_steps(pathlib.Path("W/bundle"), ["a,1", 'b"c', "d"], "my data").splitlines()
    arguments = [shlex.split(line) for line in lines[1::2]]
    assert [words[:3] for words in arguments] == [
        ["twotower", command, "--bundle=W/bundle"] for command in ("recommend", "evaluate")
    ]
    history = arguments[0][3].removeprefix("--history=")
    assert flags.ListParser().parse(history) == ["a,1", 'b"c', "d"]
    assert arguments[1][-1] == "--data_dir=my data"
