"""Several processes change one registry at once, or none of them can write to it."""

import errno
import pathlib
import shutil
import sqlite3

import pytest
from fastapi.testclient import TestClient
from two_versions import served

from twotower.serving import process, service
from twotower.serving import registry as registry_module
from twotower.serving.app import create_app
from twotower.serving.asks import FieldError
from twotower.serving.checks import Checks
from twotower.serving.deployer import Deployer
from twotower.serving.live import Live
from twotower.serving.metrics import Metrics
from twotower.serving.pipeline import Pipeline
from twotower.serving.process import Settings
from twotower.serving.registry import Active, Registry

FIRST, SECOND, THIRD = (f"0123456789abcdef-0000000{number}" for number in (1, 2, 3))


@pytest.fixture(scope="module")
def pipeline(bundle_folder):
    return Pipeline(bundle_folder)


@pytest.fixture
def registry(tmp_path, bundle_folder):
    """Three versions of one bundle: the second is active, and the first was before it."""
    registry = Registry(tmp_path)
    for version in (FIRST, SECOND, THIRD):
        shutil.copytree(bundle_folder, tmp_path / "versions" / version)
    registry.activate(FIRST)
    registry.activate(SECOND)
    return registry


@pytest.fixture
def start(registry, pipeline):
    """Makes the deployer of a process that serves a version. While it loads the first of others, it
    calls `meanwhile`."""

    def start(version: str, meanwhile=lambda: None) -> Deployer:
        calls = [meanwhile]

        def load(_):
            if calls:
                calls.pop()()
            return pipeline

        arguments = registry, load, lambda _: None, Checks(), Metrics()
        return Deployer(Live((pipeline,), versions=(version,)), *arguments)

    return start


def test_two_processes_that_roll_back_at_once_go_back_once(registry, start):
    other = start(SECOND)
    one = start(SECOND, meanwhile=other.roll_back)
    with pytest.raises(FieldError, match=f"another process has made '{FIRST}' active meanwhile"):
        one.roll_back()
    assert registry.active == Active(FIRST, SECOND)
    one.look()
    assert one.live.versions == other.live.versions == (FIRST,)


def test_what_is_activated_while_a_canary_is_loaded_is_followed(registry, start):
    deployer = start(SECOND, meanwhile=lambda: registry.activate(FIRST))
    deployer.deploy(THIRD, 0.5)
    deployer.look()
    assert registry.active == Active(FIRST, SECOND, THIRD, 0.5)
    assert deployer.live.versions == (FIRST, THIRD) and deployer.live.share == 0.5


def test_what_is_activated_while_a_process_starts_is_followed(registry, start):
    deployer = start(FIRST)  # it read the registry before
    deployer.look()
    assert deployer.live.versions == (SECOND,)


def test_a_canary_is_another_version_than_the_active_one(registry, start):
    with pytest.raises(FieldError, match="this is the active version"):
        start(SECOND).deploy(SECOND, 0.5)
    with pytest.raises(ValueError, match="is the active version; a canary is another one"):
        registry.activate(SECOND, 0.5)
    assert registry.active == Active(SECOND, FIRST)


def test_a_registry_that_is_read_only_is_followed(registry, start, monkeypatch):
    def fail(path, missing_ok=False):  # as Linux does, whether the file is there or not
        raise OSError(errno.EROFS, "Read-only file system", str(path))

    registry.activate(THIRD)
    monkeypatch.setattr(pathlib.Path, "unlink", fail)
    deployer = start(SECOND)
    deployer.look()
    assert deployer.live.versions == (THIRD,)


def test_deploys_on_a_full_disk_are_refused_and_nothing_changes(
    tmp_path, bundle_folder, other_folder, monkeypatch, caplog
):
    made, first, second, bad = served(tmp_path, bundle_folder, other_folder)

    def fail(*_):
        raise OSError(errno.ENOSPC, "No space left on device")

    with TestClient(create_app(made)) as client:
        deploy = {"version": second}
        assert client.post("/deploys", json=deploy).status_code == 200
        monkeypatch.setattr(registry_module, "_replace", fail)
        calls = [("/deploys/rollback", {}), ("/deploys", {"version": first})]
        for path, body in calls:
            answer = client.post(path, json=body)
            assert answer.status_code == 503 and answer.headers["retry-after"], answer.text
            assert answer.json()["error"]["code"] == "state"
        # A bundle that is damaged is one, whether that can be noted or not.
        assert client.post("/deploys", json={"version": bad}).status_code == 409
        assert "sha256 differs" in caplog.text and "does not note" in caplog.text
        assert client.get("/readyz").json()["versions"] == [second]


def test_a_start_names_the_state_folder_that_it_cannot_write(tmp_path, bundle_folder, monkeypatch):
    def fail(_):
        raise sqlite3.OperationalError("database or disk is full")

    monkeypatch.setattr(service, "Journal", fail)
    settings = Settings(str(bundle_folder), "", str(tmp_path / "state"))
    with pytest.raises(OSError, match=r"state cannot be written: database or disk is full\. Free"):
        process.service_of(settings)
