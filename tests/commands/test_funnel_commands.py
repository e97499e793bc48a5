"""build_funnel and evaluate_funnel as a person runs them, on a bundle that has learned little."""

import json
import shutil

import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.commands import build_funnel
from twotower.funnel.making import FunnelConfig, parse_sources
from twotower.training.training import Training

SCRIPTS = tiny.ROOT / "experiments"
SOURCES = "two_tower:100,ease:60,popularity:50"


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """With a funnel in the bundle."""
    folder = tmp_path_factory.mktemp("funnels") / "bundle"
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe())
    export(training, folder, {"refit": False}, scann=False)
    built = tiny.script(
        SCRIPTS / "build_funnel.py",
        f"--bundle={folder}",
        f"--sources={SOURCES}",
        "--bounds=0,10",
        "--rerank=dpp:0.1",
        "--max_in_a_row=9",
        f"--promoted={tiny.dataset().catalogue.ids_of([0])[0]}@7",
    )
    assert "funnels/default: two_tower, ease, popularity" in built.stdout
    assert "weights for histories of 10 events or more: two_tower " in built.stdout
    return folder


def test_settings_of_ials_reach_the_source(folder, tmp_path):
    pytest.importorskip("implicit")
    copy = shutil.copytree(folder, tmp_path / "bundle")
    tiny.script(
        SCRIPTS / "build_funnel.py",
        f"--bundle={copy}",
        "--sources=ials:50,popularity:50",
        "--merge=reciprocal_rank",
        "--ials_alpha=3",
        "--ials_regularization=2",
    )
    source = Bundle(copy).funnel().sources["ials"].source
    assert (source.alpha, source.regularization) == (3.0, 2.0)


def test_rules_and_attributes_reach_their_parts(folder, tmp_path):
    copy = shutil.copytree(folder, tmp_path / "bundle")
    tiny.script(
        SCRIPTS / "build_funnel.py",
        f"--bundle={copy}",
        "--sources=context:50,popularity:50",
        "--merge=reciprocal_rank",
        "--context=hour",
        "--minimum_age=War:18,Sea:12",
        "--hold_out=new:.25",
    )
    funnel = Bundle(copy).funnel()
    assert funnel.sources["context"].source.names == ["hour"]
    _, _, age, hold_out = funnel.stages[0].filters
    assert {*age.least.tolist()} == {0, 12, 18} and hold_out.share == 0.25


def test_ease_is_no_default_source_of_a_large_catalogue(capsys):
    """12 bytes a pair of items: 18,918 items take 3.9997 GiB, and 18,919 take 4.0002."""
    config = FunnelConfig(parse_sources(build_funnel.SOURCES.split(",")))
    assert build_funnel.without_large_ease(config, 18_918) == config
    smaller = build_funnel.without_large_ease(config, 18_919)
    assert [*smaller.sources] == ["two_tower", "ials", "item_knn", "popularity"]
    said = "without the source ease, which would take 4.0 GiB for 18,919 items\n"
    assert capsys.readouterr().out == said


def test_every_stage_is_shown_and_written(folder, tmp_path):
    output = tmp_path / "out.json"
    run = tiny.script(
        SCRIPTS / "evaluate_funnel.py",
        f"--bundle={folder}",
        f"--bundle={folder}",
        f"--output={output}",
    )
    for text in (
        "random, validation",
        "the merge has learned from these cases",
        "seen took",
        "minus each source alone",
        "after each stage",
        "niche_users",
    ):
        assert text in run.stdout, text
    first, second = json.loads(output.read_text())["rows"]
    assert [stage["name"] for stage in first["stages"]] == [
        "two_tower", "ease", "popularity", "promoted", "union", "merge", "filters", "dpp",
        "at_most", "promoted_slots", "filters",
    ]  # fmt: skip
    assert first["metrics"] == second["metrics"] and first["protocol"] == "random"
    ahead = first["ahead"]["popularity"]["ndcg@10"]["mean"]
    alone = first["alone"]["popularity"]["ndcg@10"]["mean"]
    assert ahead == pytest.approx(first["metrics"]["ndcg@10"]["mean"] - alone)
    assert 0 < first["metrics"]["genre_distance@10"]["mean"] < 1
    assert set(first["by_segment"]) == {"new_users", "niche_users", "cold_items"}
    niche = first["by_segment"]["niche_users"]
    assert 0 < niche["num_cases"] < 60 and 0 < niche["recall@500"]["mean"] <= 1
    assert set(niche["others"]) == set(first["alone"])
    assert Bundle(folder).funnel().merge.bounds == [0, 10]


def test_users_can_be_asked_as_new_ones(folder, tmp_path):
    output = tmp_path / "out.json"
    flags = (f"--bundle={folder}", "--newest=3", f"--output={output}")
    tiny.script(SCRIPTS / "evaluate_funnel.py", *flags)
    (row,) = json.loads(output.read_text())["rows"]
    # No training row is of a new user.
    assert row["newest"] == 3
    assert row["by_segment"]["new_users"]["num_cases"] == len(tiny.split().cases)


@pytest.mark.parametrize(
    "script, flag, message",
    [
        *(
            # Choices that fit together: only the bundle is missing.
            ("build_funnel", f"--flagfile={file}", "so /nowhere is no bundle")
            for file in sorted((SCRIPTS / "flags" / "funnel").glob("*.flags"))
        ),
        ("build_funnel", "--sources=eese", "sources are some of two_tower"),
        ("build_funnel", "--name=a/b", "one plain name"),
        ("build_funnel", "--slots=10,x", "--slots takes whole numbers, such as --slots=0,10; got"),
        ("build_funnel", "--bounds=0.5", "--bounds takes whole numbers"),
        ("build_funnel", "--keep=popularity", "keep is a list such as fresh:50,trending:20"),
        ("build_funnel", "--fallback=ials", "none of the sources"),
        ("build_funnel", "--bounds=1", "ascend from 0"),
        ("build_funnel", "--rerank=dpp:1.5", "weight must lie within 0 and 1; got 1.5"),
        ("evaluate_funnel", "--name=other", "no funnel 'other'; it has ['default']"),
        ("evaluate_funnel", "--split=loo", "was trained for protocol 'random'"),
    ],
)
def test_mistakes_are_named(folder, script, flag, message):
    # Choices are checked before a bundle is looked for, and before anything is fitted.
    given = [f"--bundle={'/nowhere' if script == 'build_funnel' else folder}", flag]
    if script == "build_funnel" and not flag.startswith(("--sources", "--flagfile")):
        given.append("--sources=two_tower,popularity")
    run = tiny.script(SCRIPTS / f"{script}.py", *given, check=False)
    assert run.returncode == 1 and message in run.stderr, run.stderr
