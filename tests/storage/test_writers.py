"""Several writers of one folder, and a reader meanwhile."""

import json
import os
import subprocess
import sys
import textwrap

import numpy as np
import pytest
import tiny
from exact_indexes import exact, keys_of, names

from twotower.retrieval import build

VERSIONS = {"A": 2000, "B": 3000}


@pytest.mark.parametrize("is_there", [True, False])
@pytest.mark.parametrize("exchanges", [True, False])
def test_two_writers_of_one_folder(is_there, exchanges, tmp_path, monkeypatch):
    """The second begins and ends while the first one works; the last to end stands there."""
    if not exchanges:
        from twotower.storage import replacing

        monkeypatch.setattr(replacing, "_exchange", lambda one, other: False)
    if is_there:
        build.save(exact(3), tmp_path / "i")
    with build.replacing(tmp_path / "i", "index.json") as folder:
        (folder / "live.json").write_text('{"format_version": 1, "sequence": 3}')
        build.save(exact(8), tmp_path / "i")
        assert keys_of(tmp_path / "i") == [8]
        build.save(exact(9), folder / "index")
    assert names(tmp_path) == ["i"] and names(tmp_path / "i") == ["index", "live.json"]
    assert keys_of(tmp_path / "i" / "index") == [9]


def test_a_writer_that_ends_while_another_one_looks(tmp_path, monkeypatch):
    """What is listed is then another folder's than what is there."""
    from twotower.storage import replacing

    build.save(exact(3), tmp_path / "i")
    real, calls = replacing._contents, []

    def files(directory):
        calls.append(directory)
        if len(calls) == 1:
            hnsw = build.IndexConfig("hnsw")  # which has other files
            build.save(build.build(hnsw, np.arange(9), np.eye(9, dtype=np.float32)), tmp_path / "i")
        return real(directory)

    monkeypatch.setattr(replacing, "_contents", files)
    build.save(exact(9), tmp_path / "i")
    assert keys_of(tmp_path / "i") == [9] and names(tmp_path) == ["i"]


def saving(folder, num: int) -> str:
    """Code that saves indexes of A and B in turn, `num` times, and prints one line a save."""
    return textwrap.dedent(f"""
        import numpy as np
        from twotower.retrieval import build
        indexes = [
            build.build(
                build.IndexConfig("exact"),
                np.arange(num),
                np.random.default_rng(num).normal(size=(num, 32)).astype(np.float32),
            )
            for num in {tuple(VERSIONS.values())}
        ]
        for step in range({num}):
            version = step % 2
            build.save(indexes[version], {str(folder)!r}, "AB"[version])
            print("saved", flush=True)
    """)


def consistent(index, version: str) -> None:
    num = VERSIONS[version]
    vectors = np.random.default_rng(num).normal(size=(num, 32)).astype(np.float32)
    assert len(index) == num and np.array_equal(index.live()[1], vectors)


def writers(folder, count: int, num: int) -> list[subprocess.Popen]:
    command = [sys.executable, "-c", saving(folder, num)]
    env = {**os.environ, "PYTHONPATH": str(tiny.ROOT)}
    return [subprocess.Popen(command, stdout=subprocess.PIPE, env=env) for _ in range(count)]


@pytest.mark.parametrize(("count", "num"), [(2, 20), pytest.param(3, 200, marks=pytest.mark.slow)])
def test_processes_that_write_one_folder_at_once(count, num, tmp_path):
    running = writers(tmp_path / "i", count, num)
    printed = [process.communicate(timeout=300)[0] for process in running]
    assert [process.returncode for process in running] == [0] * count
    assert [len(text.split()) for text in printed] == [num] * count
    assert names(tmp_path) == ["i"]
    version = json.loads((tmp_path / "i" / "index.json").read_text())["model_version"]
    consistent(build.load(tmp_path / "i"), version)


@pytest.mark.parametrize(("num", "some"), [(40, 5), pytest.param(500, 50, marks=pytest.mark.slow)])
def test_a_folder_replaced_again_and_again_under_a_reader(num, some, tmp_path):
    """One index or the other, or one clear error; never the vectors of one under another's name."""
    (writer,) = writers(tmp_path / "i", 1, num)
    writer.stdout.readline()
    found = {"A": 0, "B": 0, "replaced": 0, "of another": 0}
    while writer.poll() is None:
        for version in "AB":
            try:
                index = build.load(tmp_path / "i", model_version=version)
                consistent(index, version)
                found[version] += 1
            except ValueError as error:
                is_other = f"not of {version!r}" in str(error)
                assert is_other or "was replaced" in str(error), error
                found["of another" if is_other else "replaced"] += 1
    assert writer.returncode == 0
    print(found)
    assert found["A"] + found["B"] >= some, found
