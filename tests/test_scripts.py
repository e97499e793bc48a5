"""The scripts as a person runs them: each in a process of its own, on the small made-up service.

A process costs some eight seconds, most of it TensorFlow's import; so one work folder serves all.
"""

import json
import re
import shutil

import pytest
import tiny

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
    return tiny.python(SCRIPTS / script, *arguments, check=check)


def refused(script: str, *arguments: str) -> str:
    """What a run that must fail says."""
    done = run(script, *arguments, check=False)
    assert done.returncode != 0, done.stdout
    return done.stdout + done.stderr


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """What train.py leaves."""
    folder = tmp_path_factory.mktemp("scripts") / "W"
    run("train.py", "--dataset=synthetic/small", f"--workdir={folder}", "--indexes=hnsw", *TINY)
    return folder


def test_train_writes_validation_figures_only(workdir):
    assert {path.name for path in workdir.iterdir()} == {
        "bundle", "bundle_validation", "metrics.json", "refit", "selection",
    }  # fmt: skip
    text = (workdir / "metrics.json").read_text()
    metrics = json.loads(text)
    assert (metrics["protocol"], metrics["part"]) == ("random", "validation")
    assert "test" not in {metrics["part"], *metrics}
    assert metrics["epoch"] in (1, 2) and len(metrics["log"]) == 2
    assert metrics["command"].startswith("python ") and "--dataset=synthetic/small" in text
    for key in ("recall_micro@100", "recall@500", "hit_rate@50", "ndcg@10", "mrr@500"):
        value = metrics["metrics"][key]
        assert set(value) == {"mean", "low", "high"}, key
        assert value["low"] <= value["mean"] <= value["high"], key
    # 300 items: popularity finds a quarter in its first 20; 100 of them find more.
    assert metrics["metrics"]["recall_micro@100"]["mean"] > 0.4
    assert set(metrics["training_seconds"]) == {"selection", "refit"}
    assert json.loads((workdir / "bundle" / "manifest.json").read_text())["refit"] is True


@pytest.fixture(scope="session")
def test_rows(workdir, tmp_path_factory):
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


def test_evaluate_judges_the_bundle_beside_popularity(test_rows):
    (model, popularity), printed = test_rows
    assert (model["part"], model["protocol"], model["seed"]) == ("test", "random", 0)
    assert popularity["name"] == "popularity"
    assert model["metrics"].keys() == popularity["metrics"].keys()
    assert all(set(value) == {"mean", "low", "high"} for value in model["metrics"].values())
    assert set(model["segments"]) == {"history_length", "item_popularity"}
    assert model["ann_recall@100"] > 0.95
    line = f"recall_micro@100 .* {model['metrics']['recall_micro@100']['mean']:.4f}"
    assert re.search(line, printed)


def test_evaluate_refuses_what_would_flatter(workdir):
    bundle = f"--bundle={workdir / 'bundle'}"
    assert "trained for protocol 'random', not 'loo'" in refused(
        "evaluate.py", bundle, "--part=test", "--split=loo"
    )
    assert "split_seed 42, not 7" in refused("evaluate.py", bundle, "--part=test", "--split_seed=7")
    message = refused("evaluate.py", bundle, "--part=validation")
    assert "refit on the validation rows" in message and "bundle_validation" in message


def test_evaluate_refuses_other_data(workdir, tmp_path):
    """A manifest whose data differ from what its name loads; the files' sums do not cover it."""
    bundle = shutil.copytree(workdir / "bundle", tmp_path / "bundle")
    manifest = json.loads((bundle / "manifest.json").read_text())
    manifest["dataset_fingerprint"] = "0" * 64
    (bundle / "manifest.json").write_text(json.dumps(manifest))
    message = refused("evaluate.py", f"--bundle={bundle}", "--part=test")
    assert "not the data that the bundle was trained on" in message and "000000000000" in message


def test_validation_figures_come_again_from_the_other_bundle(workdir, tmp_path):
    """evaluate.py, through SavedModel and files, repeats what training measured in process."""
    output = tmp_path / "out.json"
    bundle = f"--bundle={workdir / 'bundle_validation'}"
    run("evaluate.py", bundle, "--part=validation", f"--output={output}")
    (row,) = json.loads(output.read_text())["rows"]
    expected = json.loads((workdir / "metrics.json").read_text())["metrics"]
    assert row["metrics"].keys() == expected.keys()
    for name, value in row["metrics"].items():
        assert value["mean"] == pytest.approx(expected[name]["mean"], abs=1e-3), name


def test_build_index_then_recommend_from_it(workdir, tmp_path):
    bundle = shutil.copytree(workdir / "bundle", tmp_path / "bundle")
    flag = f"--bundle={bundle}"
    printed = run("build_index.py", flag, "--backend=hnsw", "--name=second", "--k=10").stdout
    recall = float(
        re.search(r"recall@10 against exact search, sample queries: ([\d.]+)", printed)[1]
    )
    assert recall > 0.95
    done = run(
        "recommend.py", flag, "--index=second", "--history=i00003,i00007", "--k=4", "--format=json"
    )
    answer = json.loads(done.stdout)
    assert (answer["user_id"], answer["index"]) == ("", "second")
    ids = [row["item_id"] for row in answer["items"]]
    assert len(set(ids)) == 4 and not {"i00003", "i00007"} & set(ids)
    scores = [row["score"] for row in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(row["title"] for row in answer["items"])


def test_recommend_prints_a_table_without_what_the_user_watched(workdir):
    """The user's history is looked up; k is beyond the catalogue of 300."""
    made = tiny.dataset()
    frame = made.interactions[made.positive]
    watched = set(frame.loc[frame["user_id"] == "u00003", "item_id"])
    printed = run(
        "recommend.py",
        f"--bundle={workdir / 'bundle'}",
        "--user_id=u00003",
        "--data_dir=any",
        "--k=1000",
    ).stdout
    lines = printed.splitlines()
    assert re.fullmatch(r"user u00003, exact, [\d.]+ ms", lines[0])
    ids = [line.split()[2] for line in lines[1:-1]]
    assert [int(line.split()[0]) for line in lines[1:-1]] == list(range(1, len(ids) + 1))
    assert watched and not watched & set(ids)
    candidates = set(frame["item_id"])
    assert set(ids) == candidates - watched
    assert lines[-1].startswith(f"({len(ids)} items: all others")


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        ("train.py", ["--workdir=W", "--hiden=16"], "Unknown command line flag 'hiden'"),
        ("train.py", ["--workdir=W", "W"], "unknown arguments ['W']"),
        (
            "train.py",
            ["--dataset=synthetic/small", "--item_features=item_id,colour"],
            "unknown item features ['colour']",
        ),
        ("recommend.py", ["--history=i00003,nothing"], "items ['nothing'] are not in the bundle"),
        ("recommend.py", ["--index=nope"], "has no index 'nope'"),
    ],
)
def test_mistakes_are_named(workdir, tmp_path, script, arguments, message):
    if script == "train.py":
        arguments = [f"--workdir={tmp_path / 'W'}", *arguments]
    else:
        arguments = [f"--bundle={workdir / 'bundle'}", *arguments]
    assert message in refused(script, *arguments)
    assert not list(tmp_path.rglob("manifest.json"))


@pytest.mark.parametrize(
    "script", ["train.py", "evaluate.py", "build_index.py", "recommend.py", "quickstart.py"]
)
def test_help_mentions_every_flag_and_the_command(script):
    """`--help` of absl ends with status 1."""
    printed = run(script, "--help", check=False).stdout
    source = (SCRIPTS / script).read_text()
    defined = re.findall(r'flags\.DEFINE_\w+\(\s*"(\w+)"', source)
    assert len(defined) >= 4
    if script == "train.py":
        defined += ["query_features", "item_id_dim", "hidden", "temperature", "patience"]
    for flag in defined:
        assert re.search(rf"^ +--(\[no\])?{flag}: \S", printed, re.M), flag
    assert f"python experiments/{script}" in printed
