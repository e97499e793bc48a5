"""Bundles take each other's place while requests are answered, and bad ones do not."""

import asyncio
import ctypes
import functools
import gc
import json
import sys
import time
import weakref

import httpx2
import pytest
from damaged_files import flip
from two_versions import BODY, served

from twotower.bundle.bundle import Bundle
from twotower.bundle.manifest import BundleError, write_manifest
from twotower.serving import deployer as deployer_module
from twotower.serving.app import create_app
from twotower.serving.checks import Checks, failed
from twotower.serving.deployer import Deployer, DeployRefused
from twotower.serving.live import Live
from twotower.serving.metrics import Metrics
from twotower.serving.pipeline import Pipeline
from twotower.serving.process import started
from twotower.serving.registry import Active, Registry
from twotower.serving.served_bundle import ServedBundle


@pytest.fixture(scope="module")
def live(bundle_folder):
    return Pipeline(bundle_folder)


def test_a_worse_bundle_is_named_by_what_fell(live, copy):
    assert failed(live, None, Checks()) == []
    # Worse figures on the same questions.
    manifest = json.loads((copy / "manifest.json").read_text())
    figures = {"recall@10": {"mean": 0.1}}
    manifest["validation"] = {"protocol": "random", "metrics": figures}
    write_manifest(copy, {k: v for k, v in manifest.items() if k not in ("files", "sha256")})
    before = {"protocol": "random", "metrics": {"recall@10": {"mean": 0.2}}}
    live.bundle.manifest["validation"] = before
    new = Pipeline(copy)
    reasons = failed(new, live, Checks())
    live.bundle.manifest.pop("validation")
    assert any("recall@10: 0.1000; expected 0.1800 or more" in reason for reason in reasons)
    assert len(reasons) == 1, reasons


async def deploy_under_load(service, versions, num_deploys):
    """Answers of requests that went on during the deploys, and the deploys' statuses."""
    transport = httpx2.ASGITransport(create_app(service))
    async with httpx2.AsyncClient(transport=transport, base_url="http://test") as client:
        answers, done = [], False

        async def ask():
            while not done:
                answers.append(await client.post("/recommend", json=BODY))
                await asyncio.sleep(0.002)

        async def deploy():
            nonlocal done
            statuses = []
            try:
                for number in range(num_deploys):
                    version = versions[number % len(versions)]
                    answer = await client.post("/deploys", json={"version": version})
                    statuses.append(answer.status_code)
                    await asyncio.sleep(0.02)
            finally:
                done = True
            return statuses

        await service.start()
        statuses, *_ = await asyncio.gather(deploy(), ask(), ask(), ask(), ask())
        back = await client.post("/deploys/rollback")
        state = (await client.get("/deploys")).json()
        await service.stop()
    return answers, statuses, back, state


def check_deploys(folder, bundle_folder, other_folder, num_deploys):
    service, first, second, bad = served(folder, bundle_folder, other_folder)
    truth = {}
    for path in (bundle_folder, other_folder):
        bundle = Bundle(path)
        truth[bundle.model_version] = bundle.recommend(BODY["history"], k=8, index="hnsw").ids
    assert len({*map(tuple, truth.values())}) == 2
    versions = [second, first, bad, second, first]
    answers, statuses, back, state = asyncio.run(deploy_under_load(service, versions, num_deploys))
    assert statuses == [200, 200, 409, 200, 200] * (num_deploys // 5)
    assert {answer.status_code for answer in answers} == {200}
    found = [answer.json() for answer in answers]
    mixed = [a for a in found if [i["item_id"] for i in a["items"]] != truth[a["model_version"]]]
    assert not mixed and {answer["model_version"] for answer in found} == {*truth}
    assert back.json()["versions"] == [second] and state["active"]["version"] == second
    assert "sha256 differs" in state["refused"][bad][0]
    assert str(folder) not in json.dumps(state)
    return answers


def test_deploys_under_load(tmp_path, bundle_folder, other_folder):
    check_deploys(tmp_path, bundle_folder, other_folder, 10)


@pytest.mark.slow
def test_a_hundred_deploys_under_load(tmp_path, bundle_folder, other_folder):
    check_deploys(tmp_path, bundle_folder, other_folder, 100)


def test_a_bundle_is_loaded_in_the_background(tmp_path, bundle_folder, live, monkeypatch):
    registry, before, seen = Registry(tmp_path), sys.getswitchinterval(), []
    version = registry.put(bundle_folder)
    rests: list[float] = []
    monkeypatch.setattr(deployer_module.time, "sleep", rests.append)

    def verify(folder):
        seen.append(sys.getswitchinterval())
        begun = time.perf_counter()
        while time.perf_counter() < begun + 0.1:
            str(begun)

    monkeypatch.setattr(deployer_module, "verify", verify)

    def deploy(load) -> None:
        arguments = registry, load, lambda pipeline: None, Checks(), Metrics()
        Deployer(Live((live,)), *arguments).deploy(version)

    with pytest.raises(DeployRefused):
        deploy(None)  # it cannot be called
    assert sys.getswitchinterval() == before and sys.getprofile() is None
    deploy(lambda folder: live)
    assert sys.getswitchinterval() == before and seen == [pytest.approx(1e-4)] * 2
    # It rests longer than it works, and not at each call of a function.
    assert {*rests} == {deployer_module.REST} and 20 < len(rests) < 1000


class MallInfo(ctypes.Structure):
    """What mallinfo2(3) returns."""

    _fields_ = [("counts", ctypes.c_size_t * 10)]


@pytest.mark.slow
@pytest.mark.skipif(not hasattr(ctypes.CDLL(None), "mallinfo2"), reason="needs glibc 2.33")
def test_towers_that_were_let_go_leave_no_memory(bundle_folder):
    """What TensorFlow prepared for their calls is 3 MiB each."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = MallInfo

    def used_after_loads(count: int) -> float:
        for _ in range(count):
            ServedBundle(bundle_folder).vectors_of([{"item_id": "n1"}])
            gc.collect()
        return libc.mallinfo2().counts[7] / 2**20  # uordblks: MiB that are in use

    before = used_after_loads(2)
    assert used_after_loads(5) - before < 5 * 0.5


def test_what_another_process_activated_is_followed(tmp_path, bundle_folder, other_folder):
    service, first, second, bad = served(tmp_path, bundle_folder, other_folder)

    def look(version: str) -> str:
        service._deployer.registry.activate(version)
        service._look()
        return service.live.pipelines[0].model_version

    # An index process that does not have it yet is waited for.
    service._deployer._lacks = lambda training, _: "not yet" if training == second[:16] else ""
    assert look(second) == first[:16]
    service._deployer._lacks = None
    assert look(second) == second[:16]
    assert look(bad) == second[:16] and service._deployer.registry.refused(bad)
    # So there is a good one to go back to, and a later start is with a good one.
    assert service._deployer.registry.active == Active(second)
    # Items added here are in whatever is deployed next.
    service.journal.append([{"item_id": "n1", "year": 2024}], [])
    assert look(first) == first[:16]
    assert service.live.pipelines[0].bundle.similar("n1", 1, "")
    asyncio.run(service.stop())


def test_a_deploy_that_the_registry_cannot_note_is_none(
    tmp_path, bundle_folder, other_folder, monkeypatch
):
    service, first, second, _ = served(tmp_path, bundle_folder, other_folder)

    def fail(*_):
        raise OSError("no space left on device")

    with monkeypatch.context() as full:
        full.setattr(Registry, "_write", fail)
        for share in (1.0, 0.5):
            with pytest.raises(OSError, match="no space"):
                asyncio.run(service.deploy(second, share))
            # What a restart would serve.
            assert service.live.versions == (first,)
    asyncio.run(service.deploy(second))
    with monkeypatch.context() as full:
        full.setattr(Registry, "_write", fail)
        with pytest.raises(OSError, match="no space"):
            asyncio.run(service.roll_back())
    assert service.live.versions == (second,)
    asyncio.run(service.stop())


def test_a_start_takes_what_is_good(tmp_path, bundle_folder, other_folder):
    registry = Registry(tmp_path)
    first, second = registry.put(bundle_folder), registry.put(other_folder)
    load = functools.partial(Pipeline, source_deadline=60)

    def start() -> tuple[str, ...]:
        return started(registry, load).versions

    registry.activate(first)
    registry.activate(second)
    assert start() == (second,)
    registry.activate(first, share=0.5)
    assert start() == (second, first)
    # A service has refused the active one: the next start must not take it after all.
    registry.refuse(second, ["items: it has 0.000 of the live items"])
    assert start() == (first,) and registry.active == Active(first)
    registry.accept(second)
    # The active one is damaged where it stands, and then the canary.
    registry.activate(second)
    flip(registry.path(second) / "items" / "vectors.npy")
    assert start() == (first,) and "sha256 differs" in registry.refused(second)[0]
    registry.activate(second, share=0.5)
    assert start() == (first,) and registry.active.canary == ""
    flip(registry.path(first) / "items" / "vectors.npy")
    with pytest.raises(BundleError, match=r"no version of .* can be served.*sha256 differs"):
        start()
    flip(registry.path(first) / "items" / "vectors.npy")  # repaired
    assert start() == (first,)


def test_a_version_that_is_good_after_all_is_no_longer_refused(tmp_path, bundle_folder, live):
    registry = Registry(tmp_path)
    version = registry.put(bundle_folder)
    registry.refuse(version, ["recall@100: 0.4; expected 0.95 or more"])
    arguments = registry, lambda folder: live, lambda pipeline: None, Checks(), Metrics()
    Deployer(Live((live,)), *arguments).deploy(version)
    assert registry.refused(version) == []


def test_bundles_that_have_left_are_freed_though_collections_are_seldom(
    tmp_path, bundle_folder, other_folder, live
):
    registry, opened = Registry(tmp_path), []

    class Open(Pipeline):
        def __init__(self, folder):
            super().__init__(folder)
            self.cycle = self
            opened.append(weakref.ref(self))

    versions = [registry.put(bundle_folder), registry.put(other_folder)] * 2
    deployer = Deployer(Live((live,)), registry, Open, lambda pipeline: None, Checks(), Metrics())
    gc.disable()
    try:
        for version in versions:
            deployer.deploy(version)
            # The one that answers, and the one that it has just replaced.
            assert sum(pipeline() is not None for pipeline in opened) <= 2
    finally:
        gc.enable()
    assert len(opened) == 4


def test_the_versions_of_a_registry_are_listed_beside_what_is_live(
    tmp_path, bundle_folder, other_folder
):
    service, first, second, bad = served(tmp_path, bundle_folder, other_folder)
    found = service.deploys()
    assert {*found["versions"]} == {first, second, bad} and found["active"]["version"] == first
    asyncio.run(service.deploy(second))
    lines = service.metrics_text().decode().splitlines()
    live = [line for line in lines if line.startswith("twotower_model_info{")]
    assert live == [f'twotower_model_info{{model_version="{second[:16]}"}} 1.0']
    service.metrics_text()
    asyncio.run(service.deploy(first))
    lines = service.metrics_text().decode().splitlines()
    assert f'twotower_model_info{{model_version="{second[:16]}"}} 0.0' in lines
    asyncio.run(service.stop())
