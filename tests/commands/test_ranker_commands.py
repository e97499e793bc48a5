"""train_ranker and evaluate_ranker as a person runs them, on a bundle that has learned little."""

import json

import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.funnel.making import FunnelConfig, make_funnel
from twotower.training.training import Training

SCRIPTS = tiny.ROOT / "experiments"
QUICK = ("--folds=2", "--epochs=1", "--hidden=8", "--candidates=30")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a funnel, and a ranker that a person has trained."""
    folder = tmp_path_factory.mktemp("rankers") / "bundle"
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe())
    bundle = export(training, folder, {"refit": False}, scann=False)
    bundle.encode = bundle.encoder(tiny.dataset())
    config = FunnelConfig({"two_tower": 60, "popularity": 50})
    bundle.add_funnel(make_funnel(config, bundle, tiny.dataset(), tiny.split()))
    run = tiny.script(SCRIPTS / "train_ranker.py", f"--bundle={folder}", *QUICK)
    assert "ndcg@10 of requests that a model did not learn from: given" in run.stdout
    assert [f"fold {n} of 2" in run.stderr for n in (1, 2, 3)] == [True, True, False]
    return folder


def test_it_stands_behind_the_filters(folder):
    bundle = Bundle(folder)
    assert bundle.rankers == ["default"]
    assert [stage.kind for stage in bundle.funnel().stages] == ["filters", "rank"]
    about = bundle.ranker_entries("default")["about"]
    assert about["protocol"] == "random"
    assert about["choices"]["hidden"] == [8] and {*about["held_out"]} == {"given", "ranked"}


def test_rankers_are_compared_with_what_they_are_given(folder, tmp_path):
    tiny.script(
        SCRIPTS / "train_ranker.py",
        f"--bundle={folder}",
        "--name=random",
        "--negatives=random",
        "--requests=40",
        "--noplace",
        *QUICK,
    )
    assert Bundle(folder).ranker_entries("random")["about"]["requests"] == 40
    output = tmp_path / "out.json"
    run = tiny.script(
        SCRIPTS / "evaluate_ranker.py", f"--bundle={folder}", "--timed=3", f"--output={output}"
    )
    for text in (
        "the ranker default and the ranker random have learned",
        "default minus the others",
        "random minus the others",
        "calibration error",
    ):
        assert text in run.stdout, text
    rows = {row["name"]: row for row in json.loads(output.read_text())["rows"]}
    assert [*rows] == ["default", "random", "given", "two_tower", "popularity"]
    ahead = rows["default"]["ahead"]["given"]["ndcg@10"]["mean"]
    mean = rows["default"]["metrics"]["ndcg@10"]["mean"]
    assert ahead == pytest.approx(mean - rows["given"]["metrics"]["ndcg@10"]["mean"])
    assert rows["random"]["milliseconds"]["50"] > 0
    # The ranker does not change what the funnel holds.
    for metric in ("recall@500", "recall_micro@500"):
        assert rows["default"]["metrics"][metric] == rows["given"]["metrics"][metric]
    assert [stage.kind for stage in Bundle(folder).funnel().stages] == ["filters", "rank"]
    some = tiny.script(
        SCRIPTS / "evaluate_ranker.py", f"--bundle={folder}", "--users=7", f"--output={output}"
    )
    assert "7 questions" in some.stdout  # this protocol has one for each user
    assert {row["users"] for row in json.loads(output.read_text())["rows"]} == {7}


@pytest.mark.parametrize(
    "script, flag, message",
    [
        ("train_ranker", "--name=a/b", "one plain name"),
        ("train_ranker", "--weights=like", "relevance=1,like=0.5"),
        ("train_ranker", "--hidden=wide", "widths such as 64,32"),
        ("train_ranker", "--heads=share", "heads are some of like, rating"),
        ("train_ranker", "--folds=1", "folds"),
        ("train_ranker", "--requests=2", "take more requests or fewer folds"),
        ("train_ranker", "--split=temporal-last", "was trained for protocol"),
        ("evaluate_ranker", "--rankers=large", "has no ranker 'large'"),
        ("evaluate_ranker", "--funnel=large", "has no funnel 'large'"),
    ],
)
def test_mistakes_are_one_line(folder, script, flag, message):
    run = tiny.script(SCRIPTS / f"{script}.py", f"--bundle={folder}", flag, check=False)
    assert run.returncode == 1 and message in run.stderr and run.stderr.count("\n") <= 1
