"""Funnels on disk: what is read is what was written, and nothing else is read."""

import json

import numpy as np
import pytest
from made_up_parts import Always, ask

from twotower.data.requests import Requests
from twotower.funnel import saving
from twotower.funnel.filters import Available, Blocked, Filters, HoldOut, MinimumAge, Seen, Shown
from twotower.funnel.funnel import Funnel, Inlet
from twotower.funnel.merge import Quotas, ReciprocalRank, WeightedSum
from twotower.funnel.stage import Source
from twotower.retrieval.candidates import Candidates


class Counted(Source):
    """Scores in an array, for all alike."""

    kind = "counted"
    ARRAYS = ("counts float [num_items]",)

    def __init__(self, counts: np.ndarray) -> None:
        self.counts = counts

    def __call__(self, requests: Requests, k: int) -> Candidates:
        scores = np.repeat(self.counts[None], len(requests), axis=0)
        return Candidates.of_scores(scores, min(k, len(self.counts)), requests.exclude)


@pytest.fixture(autouse=True)
def known_kind(monkeypatch):
    module = type("module", (), {"Counted": Counted})
    monkeypatch.setitem(saving.KINDS, "counted", ("test_module", "Counted"))
    load = saving.importlib.import_module
    monkeypatch.setattr(
        saving.importlib,
        "import_module",
        lambda name: module if name.endswith("test_module") else load(name),
    )


def funnel_of(merge) -> Funnel:
    rules = [
        Seen(), Available(np.arange(9)), Blocked.of({"u": [4, 5]}), Shown.of({"v": [8]}),
        HoldOut(np.linspace(0, 1, 12, endpoint=False), 0.1),
        MinimumAge(np.float32([0] * 11 + [18]), np.array(["u"]), np.array(["9"])),
    ]  # fmt: skip
    counts = np.arange(12, dtype=np.float32)
    sources = {"up": Inlet(Counted(counts), 7, 0.25, keep=2), "down": Inlet(Counted(-counts))}
    return Funnel(sources, merge, [Filters(rules)], 6, "down", onboarding=[4, 2])


@pytest.mark.parametrize(
    "merge",
    [
        ReciprocalRank(7, {"up": 2.5}),
        Quotas({"up": 2, "down": 1}),
        WeightedSum(["up", "down"], [[1, 0.5], [0, 2]], [0, 2]),
    ],
    ids=lambda merge: merge.kind,
)
def test_what_comes_back_answers_alike(tmp_path, merge):
    saving.save(funnel_of(merge), tmp_path / "f", "m1")
    back = saving.load(tmp_path / "f", None, "m1")
    requests = ask([], [3], [1, 2, 11], user_id=["u", "v", ""])
    first, second = (some.recommend(requests, 5) for some in (funnel_of(merge), back))
    for name in ("keys", "scores", "counts"):
        np.testing.assert_array_equal(
            getattr(first.candidates, name), getattr(second.candidates, name)
        )
    assert back.sources["up"].k == 7 and back.sources["up"].deadline == 0.25
    assert back.sources["up"].keep == 2
    assert (back.pool, back.fallback) == (6, "down")
    assert back.onboarding.tolist() == [4, 2] and back.onboarding.dtype == np.int64
    assert not [path for path in tmp_path.rglob("*") if path.suffix not in ("", ".npy", ".json")]


def test_a_funnel_of_an_earlier_version_keeps_nothing(tmp_path):
    saving.save(funnel_of(ReciprocalRank()), tmp_path / "f", "m1")
    path = tmp_path / "f" / saving.DESCRIPTION
    entries = json.loads(path.read_text())
    for source in entries["sources"].values():
        del source["keep"]
    saving.description.write(path, entries)
    back = saving.load(tmp_path / "f", None, "m1")
    assert {inlet.keep for inlet in back.sources.values()} == {0}


def test_a_funnel_without_an_onboarding_list(tmp_path):
    # As those of earlier versions are.
    funnel = funnel_of(ReciprocalRank())
    saving.save(Funnel(funnel.sources, funnel.merge), tmp_path / "f", "m1")
    assert not (tmp_path / "f" / "onboarding.npy").exists()
    assert saving.load(tmp_path / "f", None, "m1").onboarding.tolist() == []


def test_a_funnel_of_another_training_and_damages(tmp_path):
    saving.save(funnel_of(ReciprocalRank()), tmp_path / "f", "m1")
    with pytest.raises(ValueError, match="made for model 'm1', not for 'm2'"):
        saving.load(tmp_path / "f", None, "m2")
    with pytest.raises(ValueError, match="holds no funnel"):
        saving.load(tmp_path, None, "m1")
    counts = tmp_path / "f" / "sources" / "up" / "counts.npy"
    whole = counts.read_bytes()
    counts.write_bytes(whole[:-1] + b"\x01")
    with pytest.raises(ValueError, match=r"counts\.npy is truncated or changed"):
        saving.load(tmp_path / "f", None, "m1")
    counts.unlink()
    with pytest.raises(ValueError, match=r"counts\.npy is missing"):
        saving.load(tmp_path / "f", None, "m1")
    counts.write_bytes(whole)
    (tmp_path / "f" / "merge").mkdir()
    (tmp_path / "f" / "merge" / "more.npy").write_bytes(whole)
    with pytest.raises(ValueError, match=r"more\.npy is no part"):
        saving.load(tmp_path / "f", None, "m1")


@pytest.mark.parametrize(
    "entry, value, message",
    [
        ("merge", {"kind": "votes", "settings": {}, "arrays": []}, "unknown kind 'votes'"),
        ("merge", {"kind": "seen", "settings": {}, "arrays": []}, "'seen' is no merge"),
        ("merge", {"kind": "quotas", "settings": {"quota": 1}, "arrays": []}, "unexpected keyword"),
        ("sources", {}, "one at least"),
        ("sources", {"up": {"settings": {}}}, "'kind'"),
        ("stages", [{"kind": "filters", "filters": [{"kind": "filters"}]}], "no filter"),
        ("fallback", "nobody", "none of the sources"),
    ],
)
def test_a_description_that_does_not_fit(tmp_path, entry, value, message):
    saving.save(funnel_of(ReciprocalRank()), tmp_path / "f", "m1")
    path = tmp_path / "f" / "funnel.json"
    saving.description.write(path, json.loads(path.read_text()) | {entry: value})
    with pytest.raises(ValueError, match=message):
        saving.load(tmp_path / "f", None, "m1")


def test_a_part_that_nobody_registered_is_not_saved(tmp_path):
    funnel = Funnel({"a": Inlet(Always(1))}, ReciprocalRank())
    with pytest.raises(ValueError, match="Always cannot be saved"):
        saving.save(funnel, tmp_path / "f", "m1")
    assert not (tmp_path / "f").exists()
