"""Paths: what is expanded, what is refused before anything is done, what works."""

import os
import pathlib
import re
import subprocess
import sys

import pytest
import tiny

from twotower.bundle.bundle import Bundle
from twotower.bundle.export import export
from twotower.data import load_dataset
from twotower.storage import paths
from twotower.training.fitting import fit
from twotower.training.training import Training

# What TensorFlow reads again as it stands.
HARMLESS = "a ]{}(),;:=&%s%20#$HOME'\"~ü 火"
ADDRESSES = ["gs://bucket/run", "s3://b", "file:///tmp/run", "hdfs://x/y", "gs:/bucket/run"]


def test_home_is_expanded(monkeypatch):
    monkeypatch.setenv("HOME", "/homes/ann")
    assert paths.local("~/run") == pathlib.Path("/homes/ann/run")
    assert paths.literal("~") == pathlib.Path("/homes/ann")
    assert paths.local(pathlib.Path("run/~/x")) == pathlib.Path("run/~/x")  # a name like others
    assert paths.local("./~run") == pathlib.Path("~run")
    with pytest.raises(ValueError, match=r"no such user. A folder of that name is \./~nobody-here"):
        paths.local("~nobody-here/run")


@pytest.mark.parametrize("check", [paths.local, paths.literal])
def test_addresses_are_refused(check):
    for address in [*ADDRESSES, pathlib.Path("gs://bucket/run")]:
        with pytest.raises(ValueError, match="is an address"):
            check(address)
    with pytest.raises(ValueError, match="an empty path"):
        check("")


@pytest.mark.parametrize("name", ["runs[1]", "runs[", "a\\b", "a*", "wh?t", "\udcff"])
def test_what_tensorflow_does_not_find_again_is_refused(name):
    with pytest.raises(ValueError, match=r"takes for a pattern|is not valid UTF-8"):
        paths.literal(f"/srv/{name}/bundle")
    assert str(paths.local(name)) == name  # numpy and pandas read it


def test_harmless_names_are_taken():
    assert str(paths.literal(f"/x/{HARMLESS}")) == f"/x/{HARMLESS}"


@pytest.fixture(scope="module")
def training():
    return Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"epochs": 1}))


@pytest.mark.parametrize("name", ["~nobody-here/w", "gs://w", "runs[1]", "a\\b", "what?"])
def test_nothing_is_done_in_such_a_folder(name, training, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    steps = []
    monkeypatch.setattr(training.model, "fit", lambda *args, **kwargs: steps.append(1))
    for call in (lambda: fit(training, name), lambda: export(training, name)):
        with pytest.raises(ValueError, match=re.escape(repr(name))):
            call()
    if ":" in name or "~" in name:
        for call in (lambda: Bundle(name), lambda: load_dataset("movielens/1m", name)):
            with pytest.raises(ValueError, match=re.escape(repr(name))):
                call()
    assert not steps and not list(tmp_path.iterdir())


def test_a_training_goes_on_in_a_folder_of_many_signs(training, tmp_path):
    folder = tmp_path / HARMLESS
    assert fit(training, folder).epoch == 1
    weights = training.model.query_tower.get_weights()
    again = Training(tiny.dataset(), tiny.split(), training.recipe)
    assert fit(again, folder).epoch == 1
    for one, other in zip(weights, again.model.query_tower.get_weights(), strict=True):
        assert (one == other).all()


def test_every_path_flag_of_every_script_is_checked():
    """One place: a flag that names a file or folder is a DEFINE_path."""
    texts = "Folder|folder|file|File|JSON|directory|Bundle|bundle|Where"
    found = 0
    # All but the tutorial, which uses nothing of this package.
    found_scripts = (tiny.ROOT / "experiments").rglob("*.py")
    scripts = [path for path in found_scripts if path.name != "tutorial.py"]
    for path in [*scripts, *(tiny.ROOT / "twotower" / "commands").glob("*.py")]:
        source = path.read_text()
        found += source.count("script.DEFINE_path")
        strings = re.findall(r'flags\.DEFINE_string\(\s*"(\w+)", [^,]+,\s*"([^"]*)', source)
        suspects = {name: text for name, text in strings if re.search(texts, text)}
        # Names of things inside a bundle, and of people.
        assert set(suspects) <= {"index", "name", "user_id"}, (path.name, suspects)
    assert found > 30


def test_the_package_leaves_the_log_level_alone():
    """It is the whole process's; scripts set it, unless somebody has."""
    environment = {name: v for name, v in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    show = "import os; print(os.environ.get('TF_CPP_MIN_LOG_LEVEL'))"
    imported = [
        "import twotower.data.splits, twotower.bundle.bundle, twotower.retrieval.build",
        "import twotower.commands.script",
    ]
    for statement, expected in zip(imported, ("None", "3")):
        done = subprocess.run(
            [sys.executable, "-c", f"{statement}; {show}"],
            capture_output=True,
            text=True,
            env=environment | {"PYTHONPATH": f"{tiny.ROOT}:{tiny.ROOT / 'experiments'}"},
        )
        assert done.stdout == f"{expected}\n", done.stderr
