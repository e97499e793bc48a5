"""index_updates.py and swap.py as a person runs them, and with faults planted in them.

The bundles here are folders of vectors and a manifest, without towers. Two real trainings, each
tower on each index, are slow.
"""

import json

import numpy as np
import pytest
import tiny
from backends import needs

from twotower.bundle.manifest import write_manifest

DIM, NUM = 16, 400
SCRIPTS = tiny.ROOT / "experiments" / "benchmarks"


def units(num: int, seed: int, dim: int = DIM) -> np.ndarray:
    vectors = np.random.default_rng(seed).normal(size=(num, dim))
    return np.float32(vectors / np.linalg.norm(vectors, axis=1, keepdims=True))


def vectors_only(folder, seed: int, dim: int = DIM, **manifest):
    """A bundle without towers, of the training that its folder names: 60 queries, NUM items."""
    (folder / "items").mkdir(parents=True)
    np.save(folder / "items" / "keys.npy", np.arange(NUM))
    np.save(folder / "items" / "vectors.npy", units(NUM, seed, dim))
    np.save(folder / "items" / "sample_queries.npy", units(60, seed + 1, dim))
    described = {"format_version": 1, "model_version": folder.name, "dim": dim, "num_items": NUM}
    inputs = [{"name": "history", "dtype": "string", "shape": [None, None]}]
    described |= {"metric": "dot", "query_inputs": inputs, "refit": False}
    described |= {"dataset": "synthetic/small"}
    described |= {"protocol": "random", "split_seed": 42, "dataset_fingerprint": "0" * 64}
    write_manifest(folder, described | manifest)
    return folder


@pytest.fixture(scope="module")
def bundles(tmp_path_factory):
    """Flags for the bundles of two trainings."""
    folder = tmp_path_factory.mktemp("bundles")
    one, other = (vectors_only(folder / name, 10 * at) for at, name in enumerate("AB"))
    return [f"--bundle={one}", f"--other_bundle={other}"]


def run(script: str, output, *arguments, fault: str = "", check: bool = True):
    """(rows, what was printed, exit status) of a script; `fault` is code that runs before main."""
    arguments = [*arguments, f"--output={output}"]
    if fault:
        code = f"import sys\nsys.path.insert(0, {str(SCRIPTS)!r})\n"
        code += f"import {script} as script\n{fault}\n"
        code += f"sys.argv[0] = '{script}.py'\nscript.script.run(script.main)"
        done = tiny.script("-c", code, *arguments, check=check)
    else:
        done = tiny.script(SCRIPTS / f"{script}.py", *arguments, check=check)
    rows = json.loads(output.read_text())["rows"] if output.exists() else []
    return rows, done.stdout + done.stderr, done.returncode


QUICK = ["--k=10", "--searches=20"]
ROUNDS = ["--rounds=2", "--change_share=.05", *QUICK]


# index_updates.py


@pytest.mark.parametrize("backend", ["ivf", "hnsw"])  # one that absorbs all, one that cannot
def test_three_ways_hold_the_same_items(bundles, backend, tmp_path):
    needs(backend)
    # 1,200 / (1 + 2 * .05 * 2) = 1,000 at first, and 50 new, 50 replaced, 50 removed a round.
    num = "--num_items=1200"
    flags = [bundles[0], "--strategy=incremental,full,dual", f"--backend={backend}", num, *ROUNDS]
    rows, printed, _ = run("index_updates", tmp_path / "out.json", *flags)
    assert [(row["strategy"], row["round"]) for row in rows] == [
        (strategy, number) for strategy in ("incremental", "full", "dual") for number in range(3)
    ]
    for row in rows:
        assert row["num_items"] == 1000  # as many new as removed
        assert row["recall@10"] > 0.9 and 0 < row["p50_ms"] <= row["p99_ms"], row
        assert f"strategy {row['strategy']}  backend {backend}" in printed
        if row["round"]:
            assert row["lost"] == 0 and row["visible_s"] is not None and row["stall_ms"] > 0
            assert row["recall_new@10"] > 0.8 and row["searches_updating"] > 0
        else:
            assert "update_s" not in row and row["recall_new@10"] is None
    incremental, full, dual = (rows[at] for at in (1, 4, 7))
    # Two indexes stand side by side. (In place, what went keeps its float32 vector.)
    assert full["memory_updating_mib"] > 1.4 * incremental["memory_mib"]
    assert dual["memory_updating_mib"] > 1.4 * incremental["memory_mib"]
    # Full: nothing is visible before all is built. Dual: ten batches, an add and a removal each.
    assert full["visible_s"] > 0.5 * full["update_s"]
    assert dual["replayed"] == 20 and dual["visible_s"] < dual["update_s"]


def test_growth_with_and_without_drift_and_the_same_command_goes_on(bundles, tmp_path):
    output = tmp_path / "out.json"
    flags = [bundles[0], "--strategy=growth", "--growth=.1,1", "--num_items=2000", *QUICK]
    rows, *_ = run("index_updates", output, *flags)
    assert [(row["drift"], row["new_share"], row["way"]) for row in rows] == [
        (drift, share, way)
        for drift in (False, True)
        for share in (0.1, 1)
        for way in ("absorbed", "rebuilt", "retuned")
    ]
    assert [row["num_items"] for row in rows[:6]] == [1100] * 3 + [2000] * 3
    # Held out by whole neighbourhoods, new items are less like the old ones than other copies of
    # the same items are.
    assert rows[0]["nearest_old"] > rows[6]["nearest_old"] + 0.05
    absorbed, same, anew = rows[3:6]
    assert absorbed["efforts"] == same["efforts"] and {"num_probes"} == set(anew["efforts"])
    assert all(row["scored"] > 0 and row["recall_new@10"] > 0.5 for row in rows)
    again, printed, _ = run("index_updates", output, *flags)
    assert again == rows and "strategy growth" not in printed
    more, *_ = run("index_updates", output, *flags, "--recall_target=.9")
    assert len(more) == 2 * len(rows) and more[: len(rows)] == rows
    # The first row of each run says which command made it.
    told = [number for number, row in enumerate(more) if "command" in row]
    assert told == [0, len(rows)]
    assert ["--recall_target=.9" in more[number]["command"] for number in told] == [False, True]


def test_wear_is_told_beside_the_untouched_index(bundles, tmp_path):
    flags = [bundles[0], "--strategy=wear", "--backend=ivf", "--num_items=1000", *QUICK]
    flags += ["--tombstones=0,.1,.4", "--buffers=0,300,12000"]
    rows, *_ = run("index_updates", tmp_path / "out.json", *flags)
    assert [(row["wear"], row["level"], row["num_items"]) for row in rows] == [
        ("untouched", 0, 1000),
        ("tombstones", 0, 1000),
        ("tombstones", 0.1, 900),
        ("tombstones", 0.4, 600),
        ("buffer", 0, 1000),
        ("buffer", 300, 1300),
        ("buffer", 12000, 13000),
    ]
    assert rows[0]["p50_ratio"] == rows[0]["p99_ratio"] == 1
    # Over .2, and over 10,000.
    assert [bool(row["needs_rebuild"]) for row in rows] == [False] * 3 + [True, False, False, True]
    assert all(row["p50_ratio"] > 0 and row["p99_ratio"] > 0 for row in rows)
    assert all(row["recall@10"] > 0.9 for row in rows)


LOSES = """
import update_ways
def swap(self, pair, embed=None, checks=None):
    self._applied[pair.retriever] = self._log._last  # what came meanwhile is taken for replayed
    self._pair = pair
update_ways.LiveIndex.swap = swap
"""
STALLS = """
import time
from twotower.retrieval.backends.ivf import IvfIndex
absorb = IvfIndex.absorb
IvfIndex.absorb = lambda self: (time.sleep(.3), absorb(self))[1]
"""


def test_a_swap_that_loses_changes_is_seen(bundles, tmp_path):
    flags = [bundles[0], "--strategy=dual", "--num_items=1100", *ROUNDS, "--rounds=1"]
    output = tmp_path / "out.json"
    rows, printed, status = run("index_updates", output, *flags, fault=LOSES, check=False)
    assert status == 1 and "items wrong after an update" in printed
    # 1,000 at first, then 100 keys (50 new) and 50 removals in 20 parts: of 5 keys each, the first
    # ten with 3 removals and the others with 2. The last ten are lost: new items are missing,
    # replaced ones have their old vectors, removed ones are there.
    assert rows[1]["lost"] == 10 * 5 + 10 * 2


def test_a_stall_of_the_readers_is_seen(bundles, tmp_path):
    flags = [bundles[0], "--strategy=incremental", "--num_items=1200", *ROUNDS]
    rows, *_ = run("index_updates", tmp_path / "out.json", *flags, fault=STALLS)
    assert all(row["stall_ms"] > 200 and row["update_s"] > 0.3 for row in rows[1:])
    assert all(row["visible_s"] < 0.3 for row in rows[1:])


# swap.py

SHORT = ["--identity", "--seconds=.6", "--every=.05", "--load_every=.2", "--k=5"]


def test_exchanges_under_load(bundles, tmp_path):
    rows, printed, _ = run("swap", tmp_path / "out.json", *bundles, *SHORT)
    assert [row["phase"] for row in rows] == ["calm", "exchange", "load"]
    assert [row["strategy"] for row in rows] == ["exchange"] * 3
    for row in rows:
        assert (row["errors"], row["mixed"], row["requests"]) == (0, 0, 60)
        assert row["searches"] > 20 and 0 < row["p99_ms"] <= row["longest_ms"]
        assert f"phase {row['phase']}" in printed
    assert rows[0]["exchanges"] == 0 and rows[0]["p99_ratio"] == 1
    assert 1 <= rows[1]["exchanges"] <= 12 and 1 <= rows[2]["exchanges"] <= 3
    assert rows[2]["make_s"] > 0 and rows[1]["swap_s"] > 0


TORN = """
class Torn(script.LiveIndex):
    def search(self, inputs, k):  # reads the reference for the tower, and once more for the index
        queries = self.pair.query_tower(inputs)
        script.time.sleep(.01)
        return script.Answer(self.pair.retriever.search(queries, k), self.pair.model_version)
script.LiveIndex = Torn
"""
FAILS = """
class Failing(script.LiveIndex):
    def search(self, inputs, k):
        if inputs["request"][0] == 7:
            raise RuntimeError("planted")
        return super().search(inputs, k)
script.LiveIndex = Failing
"""


@pytest.mark.parametrize("fault, counted", [(TORN, "mixed"), (FAILS, "errors")])
def test_a_planted_fault_is_counted(bundles, fault, counted, tmp_path):
    output = tmp_path / "out.json"
    rows, printed, status = run("swap", output, *bundles, *SHORT, fault=fault, check=False)
    assert status == 1 and "an exchange did harm" in printed
    assert rows[1][counted] > 0
    if counted == "mixed":
        assert rows[0]["mixed"] == 0  # nothing is torn in calm
    else:
        assert "planted" in rows[0]["first_error"]


TRAINED = """
import sys
import tiny
from twotower.bundle.export import export, scann_index
from twotower.training.fitting import fit
from twotower.training.training import Training
scann_index.available = lambda: False  # the layer takes a while to tune
for seed, name in enumerate("AB"):
    training = Training(tiny.dataset(), tiny.split(), tiny.recipe(fit={"seed": seed}))
    fit(training, f"{sys.argv[1]}/fit{name}")
    export(training, f"{sys.argv[1]}/{name}", {"refit": False})
"""


@pytest.mark.slow
def test_with_query_towers(tmp_path):
    """Two trainings of the made-up service: under load, and each tower on each index."""
    paths = f"import sys\nsys.path.insert(0, {str(tiny.ROOT / 'tests')!r})\n"
    tiny.script("-c", paths + TRAINED, tmp_path)
    flags = [f"--bundle={tmp_path / 'A'}", f"--other_bundle={tmp_path / 'B'}"]
    short = ["--k=10", "--seconds=1", "--every=.2", "--load_every=1", "--requests=40"]
    rows, *_ = run("swap", tmp_path / "out.json", *flags, *short)
    assert [row["phase"] for row in rows] == ["calm", "exchange", "load"]
    assert all((row["errors"], row["mixed"], row["tower"]) == (0, 0, "SavedModel") for row in rows)
    assert all(row["exchanges"] for row in rows[1:])
    rows, *_ = run("swap", tmp_path / "mismatch.json", *flags, "--mismatch")
    assert [(row["tower"], row["index"]) for row in rows] == [
        ("A", "A"), ("B", "B"), ("B", "A"), ("A", "B"), ("popularity", None),
    ]  # fmt: skip
    recall = [row["recall_micro@100"]["mean"] for row in rows]
    assert min(recall[:2]) > max(recall[2:4])
    assert {(row["protocol"], row["part"]) for row in rows} == {("random", "validation")}


# Flags and files.


def test_mistakes_are_named(bundles, tmp_path):
    narrow = vectors_only(tmp_path / "narrow", 3, dim=8)
    refit = vectors_only(tmp_path / "refit", 5, refit=True)
    one, other = bundles
    same = other.replace("/B", "/A")
    output = f"--output={tmp_path / 'out.json'}"
    update = ["benchmarks/index_updates.py", one, output]
    swap = ["benchmarks/swap.py", output, "--seconds=.1"]
    messages = {
        "--strategy: ['increment'] are none of": [*update, "--strategy=increment"],
        "--backend: ['annoy'] are none of": [*update, "--backend=annoy"],
        "--tombstones: expected floats, 0 to 0.9; got ['1']": [*update, "--tombstones=1"],
        "--buffers: expected ints": [*update, "--buffers=1e3"],
        "--change_share: expected over 0": [*update, "--change_share=0"],
        "would replace 0 of": [*update, "--change_share=.001"],
        "unknown arguments ['ivf']": [*update, "ivf"],
        "rounds": [*update, "--rounds=0"],
        "is no bundle": ["benchmarks/index_updates.py", f"--bundle={tmp_path}", output],
        "take two trainings": [*swap, one, same, "--identity"],
        "expected bundles alike in shape; vectors of length: 16 and 8": [
            *swap, one, f"--other_bundle={narrow}", "--identity",
        ],
        "leave out --identity": [*swap, one, other, "--identity", "--mismatch"],
        "has no index 'nope'": [*swap, one, other, "--identity", "--index=nope"],
        "was refit on the validation rows": [
            *swap, f"--bundle={refit}", other, "--mismatch",
        ],
        "is not the data that": [*swap, one, other, "--mismatch"],
        "Flag --other_bundle must have a value": [*swap, one],
    }  # fmt: skip
    for message, (script, *arguments) in messages.items():
        done = tiny.script(tiny.ROOT / "experiments" / script, *arguments, check=False)
        assert done.returncode and message in done.stdout + done.stderr, done
    assert not (tmp_path / "out.json").exists()
