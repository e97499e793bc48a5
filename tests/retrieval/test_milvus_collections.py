"""Collections and files of Milvus: what stays, what goes, and what was changed since."""

import gc
import subprocess
import sys
import tempfile

import numpy as np
import pytest
from clusters import clusters

from twotower.retrieval import build

pytest.importorskip("pymilvus")
pytest.importorskip("milvus_lite")

from milvus_server import AXES, KEYS, QUERY, axes, rows, run, until, where

from twotower.retrieval.backends import milvus_index


@pytest.fixture
def temporary(tmp_path, monkeypatch):
    """A folder for temporary ones, here and in other processes."""
    folder = tmp_path / "temporary"
    folder.mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(folder))
    monkeypatch.setenv("TMPDIR", str(folder))
    return folder


def test_closing(shared):
    index = axes(**where(shared))
    index.close()
    index.close()
    assert index._name in shared.collections()
    with pytest.raises(ValueError, match="is closed"):
        rows(index)
    index.build(*index.live())
    assert rows(index) == [[70, 20, 90, 40]]


def test_the_temporary_file_goes(temporary):
    closed, dropped = axes(), axes()
    assert len(list(temporary.iterdir())) == 2
    closed.close()
    assert len(list(temporary.iterdir())) == 1
    del dropped
    gc.collect()
    assert until(lambda: not list(temporary.iterdir()))


ENDS = """
import sys, numpy as np
from twotower.retrieval import build
indexes = [build.build(build.IndexConfig("milvus"), np.arange(4), np.eye(4))]
if sys.argv[1] == "just before":
    indexes.clear()
print("done")
"""


@pytest.mark.parametrize("garbage", ["never", "just before"])
def test_it_goes_when_python_ends(temporary, garbage):
    done = run(ENDS, garbage)
    assert done.returncode == 0 and done.stdout == "done\n", done.stderr
    assert "Traceback" not in done.stderr, done.stderr
    assert not list(temporary.iterdir())


WRITES = """
import sys, numpy as np
from twotower.retrieval import build
where = {"uri": sys.argv[1], "collection": "c"}
index = build.build(build.IndexConfig("milvus", "dot", where), np.arange(4) + 10, np.eye(4))
index.remove(np.array([11]))
index.add(np.array([3]), np.float32([[2, 0, 0, 0]]))
index.absorb()
build.save(index, sys.argv[2])
print("saved", flush=True)
sys.stdin.read()
"""
READS = """
import sys, numpy as np
from twotower.retrieval import build
index = build.load(sys.argv[2], allowed_uris=[sys.argv[1]])
index._build = None  # nothing is built again
print(index.search_built(np.float32([[4, 3, 2, 1]]), 4).keys.tolist())
"""


def test_a_file_with_a_name_in_one_process_after_another(tmp_path):
    file, saved = tmp_path / "v.db", tmp_path / "i"
    command = [sys.executable, "-c", WRITES, str(file), str(saved)]
    pipes = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(command, **pipes) as first:
        assert first.stdout.readline() == "saved\n"
        second = run(READS, file, saved)  # while the first one has it open
        assert "ConnectionError" in second.stderr and "no other process has it" in second.stderr
        first.stdin.close()
    second = run(READS, file, saved)
    assert second.stdout == "[[3, 10, 12, 13]]\n", second.stderr


@pytest.mark.parametrize("change", ["drop", "length", "count", "vectors", "absorb"])
def test_a_collection_that_changed_since(shared, tmp_path, change):
    where = {"uri": shared.uri, "collection": f"changed_{change}"}
    index = axes(**where)
    build.save(index, tmp_path / "i")
    assert rows(build.load(tmp_path / "i", allowed_uris=[shared.uri])) == [[70, 20, 90, 40]]
    if change == "drop":
        index._client.drop_collection(index._name)
    elif change == "length":
        index.build(KEYS, np.eye(4, 5, dtype=np.float32))
    elif change == "count":
        index.build(KEYS[:3], AXES[:3])
    elif change == "vectors":
        index.build(KEYS, AXES[::-1])
    else:  # as many as before, but one of them at a position that the saved index has not
        index.remove(KEYS[1:2])
        index.add(np.array([1]), AXES[1:2])
        index.absorb()
    wanted = {
        "drop": "is not there. Was it dropped",
        "length": "has vectors of length 5, not 4",
    }
    with pytest.raises(ValueError, match=wanted.get(change, "was changed since")):
        build.load(tmp_path / "i", allowed_uris=[shared.uri])


def test_a_large_collection_that_changed_since(shared, tmp_path):
    # Of 200 positions 16 are looked at, 1 and 2 are not among them; the count tells.
    vectors, _ = clusters(200, 0, 8)
    where = {"uri": shared.uri, "collection": "large"}
    index = build.build(build.IndexConfig("milvus", "dot", where), np.arange(200), vectors)
    build.save(index, tmp_path / "i")
    client, vector = index._client, vectors[1].tolist()
    client.delete("large", ids=[1])
    with pytest.raises(ValueError, match="was changed since"):
        build.load(tmp_path / "i", allowed_uris=[shared.uri])
    client.insert("large", [{"position": 200, "vector": vector}])  # as many, one of them beyond
    with pytest.raises(ValueError, match="was changed since"):
        build.load(tmp_path / "i", allowed_uris=[shared.uri])
    client.delete("large", ids=[200])
    client.insert("large", [{"position": 1, "vector": vector}])
    assert len(build.load(tmp_path / "i", allowed_uris=[shared.uri])) == 200


def test_without_a_name_the_vectors_build_it_again(tmp_path):
    index = axes()
    build.save(index, tmp_path / "i")
    assert not (tmp_path / "i" / milvus_index.DESCRIPTION).exists()
    loaded = build.load(tmp_path / "i")
    index.close()
    assert rows(loaded) == [[70, 20, 90, 40]]
    loaded.remove(KEYS[1:2])
    build.save(loaded.absorb(), tmp_path / "i")
    # What was forgotten stays so: position 1 is not built again.
    assert build.load(tmp_path / "i")._search(QUERY, 4)[0].tolist() == [[0, 2, 3, -1]]
