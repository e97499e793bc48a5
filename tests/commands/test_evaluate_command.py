"""evaluate.py as a person runs it: beside a baseline, again from files, and of hidden items.

A second bundle, of the temporal protocols, is slow.
"""

import json
import re

import pytest
from small_runs import TINY, run


@pytest.fixture(scope="module")
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
    """They train on the same rows (tests/data/test_split_counts.py)."""
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
