"""Damaged, foreign or hand-edited files of an index are refused and named; what is read is what was
described."""

import hashlib
import json
import shutil
import socket

import numpy as np
import pytest
from saved_indexes import files, two_axes

from twotower.retrieval import build


@pytest.fixture
def axes():
    return two_axes()


def refused(folder, name):
    with pytest.raises(ValueError) as caught:
        build.load(folder)
    assert str(folder / name) in str(caught.value)


def test_a_pickle_put_beside_is_not_read(saved):
    folder = saved / "scann" if (saved / "scann").is_dir() else saved
    (folder / "scann_docids.pkl").write_bytes(b"not a pickle")
    with pytest.raises(ValueError, match=r"scann_docids\.pkl is no part of"):
        build.load(saved)


def test_one_byte_of_any_file_changed(saved):
    for path in files(saved):
        content = path.read_bytes()
        for place in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:place] + bytes([content[place] ^ 1]) + content[place + 1 :])
            refused(saved, path.relative_to(saved))
        path.write_bytes(content)
    build.load(saved)  # all are whole again


def test_each_byte_of_the_description_changed(axes, tmp_path):
    build.save(axes, tmp_path / "i", model_version="m1")
    path = tmp_path / "i" / "index.json"
    content = path.read_bytes()
    for place in range(len(content)):
        path.write_bytes(content[:place] + bytes([content[place] ^ 4]) + content[place + 1 :])
        refused(tmp_path / "i", "index.json")


def test_any_file_truncated_or_missing(saved):
    for path in files(saved):
        content = path.read_bytes()
        for length in {0, len(content) // 2, len(content) - 1} if content else ():
            path.write_bytes(content[:length])
            refused(saved, path.relative_to(saved))
        path.unlink()
        refused(saved, path.relative_to(saved))
        path.write_bytes(content)
    build.load(saved)


def test_newer_format(saved):
    described = json.loads((saved / "index.json").read_text())
    described["format_version"] = build.FORMAT_VERSION + 1
    (saved / "index.json").write_text(json.dumps(described))
    with pytest.raises(ValueError, match=r"index\.json: format 2 is newer than this code reads"):
        build.load(saved)


@pytest.mark.parametrize(
    "text",
    [
        "",
        "[]",
        "3",
        "{}",
        '{"files": {}}',
        '{"format_version": 1, "files": {}}',
        '{"format_version": "one", "files": {}}',
        '{"format_version": null, "files": []}',
    ],
)
def test_description_of_something_else(tmp_path, text):
    (tmp_path / "index.json").write_text(text)
    refused(tmp_path, "index.json")


def test_foreign_folder(tmp_path):
    (tmp_path / "notes.txt").write_text("shopping list")
    with pytest.raises(ValueError, match=r"index\.json does not exist, so .* holds no index"):
        build.load(tmp_path)
    with pytest.raises(ValueError, match="holds no index"):
        build.load(tmp_path / "no" / "folder")


def test_other_model(saved):
    with pytest.raises(ValueError, match=r"index\.json: .* model 'm1', not of 'm2'"):
        build.load(saved, model_version="m2")
    with pytest.raises(ValueError, match="not of ''"):
        build.load(saved, model_version="")
    assert len(build.load(saved)) == 299  # nobody asks


def test_other_dimension(saved):
    with pytest.raises(ValueError, match=r"index\.json: .*\[num_items, 8\]; expected .* 16\]"):
        build.load(saved, dim=16)
    assert len(build.load(saved, dim=8)) == 299


def test_arrays_of_another_shape(axes, tmp_path):
    # The plain files without their description: two keys for three vectors.
    axes.save(tmp_path)
    np.save(tmp_path / "vectors.npy", np.eye(3, 2, dtype=np.float32))
    with pytest.raises(ValueError, match=r"vectors\.npy: expected \[2, None\].*got \[3, 2\]"):
        build.make(build.IndexConfig("exact")).load(tmp_path)


def described(folder, **entries) -> None:
    """Changes entries of index.json, whose last one is the sha256 of the others."""
    text = json.loads((folder / "index.json").read_text())
    del text["sha256"]
    text |= entries
    digest = hashlib.sha256(json.dumps(text, indent=1).encode()).hexdigest()
    text["sha256"] = digest
    (folder / "index.json").write_text(json.dumps(text, indent=1) + "\n")


def test_an_index_described_anew_loads(axes, tmp_path):
    """The helper above writes what `load` takes."""
    build.save(axes, tmp_path / "i")
    described(tmp_path / "i", model_version="m9")
    assert build.load(tmp_path / "i", model_version="m9").keys.tolist() == [1, 3]


STRAYS = ["hnsw_nodes.npy", "scann_positions.npy", "milvus.json"]


@pytest.mark.parametrize("name", STRAYS)
def test_a_file_that_is_not_listed(saved, name):
    """Left by a copy of another index over this one: a backend would read it."""
    if (saved / name).exists():  # a file of this very index
        name = f"another_{name}"
    (saved / name).write_bytes((saved / "keys.npy").read_bytes())
    with pytest.raises(ValueError) as caught:
        build.load(saved)
    assert str(saved / name) in str(caught.value) and "is no part of" in str(caught.value)


@pytest.mark.parametrize("link", [True, False])
def test_a_folder_that_is_not_listed(axes, tmp_path, link):
    build.save(axes, tmp_path / "i")
    build.save(axes, tmp_path / "other")
    if link:
        (tmp_path / "i" / "fresh").symlink_to(tmp_path / "other")
    else:
        shutil.copytree(tmp_path / "other", tmp_path / "i" / "fresh")
    with pytest.raises(ValueError, match=r"fresh.* is no part of"):
        build.load(tmp_path / "i")


def test_hidden_files_are_passed_over(axes, tmp_path):
    """What a Mac leaves on a disk."""
    build.save(axes, tmp_path / "i")
    for name in (".DS_Store", "._keys.npy"):
        (tmp_path / "i" / name).write_bytes(b"anything")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


def test_listed_files_may_be_links(axes, tmp_path):
    build.save(axes, tmp_path / "i")
    (tmp_path / "i" / "vectors.npy").rename(tmp_path / "v.npy")
    (tmp_path / "i" / "vectors.npy").symlink_to(tmp_path / "v.npy")
    assert build.load(tmp_path / "i").keys.tolist() == [1, 3]


@pytest.mark.parametrize(
    "entries",
    [
        {"files": {}},
        {"files": []},
        {"files": {"keys.npy": {"sha256": 3}}},
        {"files": {"keys.npy": "abc"}},
        {"files": {"../keys.npy": 64 * "0"}},
        {"files": {"/etc/passwd": 64 * "0"}},
        {"format_version": True},
        {"format_version": 0},
        {"format_version": 1.0},
        {"backend": 3},
        {"backend": "voyager"},
        {"metric": None},
        {"metric": "manhattan"},
        {"parameters": []},
        {"parameters": {"nothing": 3}},
        {"dim": "2"},
        {"dim": -2},
        {"num_items": None},
        {"num_items": 2.0},
        {"model_version": None},
        {"tuned": [1]},
    ],
)
def test_a_description_of_other_types(axes, tmp_path, entries):
    """With the right hash over itself."""
    build.save(axes, tmp_path / "i")
    described(tmp_path / "i", **entries)
    with pytest.raises(ValueError):
        build.load(tmp_path / "i")


@pytest.mark.parametrize("name", ["k", "num_items"])
@pytest.mark.parametrize("value", ["x", [1], -1, 1.5, True, None])
def test_a_tuning_that_cannot_be(axes, tmp_path, name, value):
    build.save(axes, tmp_path / "i")
    for wrong in (value, 0) if name == "k" else (value,):
        described(tmp_path / "i", tuned={"k": 10, "num_items": 2} | {name: wrong})
        with pytest.raises(ValueError, match=rf"index\.json: {name} of tuned must be an integer"):
            build.load(tmp_path / "i")
    described(tmp_path / "i", tuned={"k": 10, "num_items": 2})
    assert build.load(tmp_path / "i").tuned["k"] == 10


@pytest.mark.parametrize("text", ["[" * 100_000, '{"a":' * 100_000, "9" * 10_000, "\ud800"])
def test_a_description_that_no_parser_takes(tmp_path, text):
    (tmp_path / "index.json").write_text(text, errors="surrogatepass")
    refused(tmp_path, "index.json")


@pytest.mark.parametrize("kind", ["server", "file"])
def test_an_index_dials_nobody_by_itself(axes, tmp_path, kind):
    build.save(axes, tmp_path / "i", "m1")
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(0.2)
        uri = f"http://127.0.0.1:{server.getsockname()[1]}"
        if kind == "file":
            uri = str(tmp_path / "made.db")
        parameters = {"uri": uri, "collection": "c", "timeout": 0.2}
        described(tmp_path / "i", backend="milvus", parameters=parameters)
        for allowed in ({}, {"allowed_uris": ["http://127.0.0.1:1"]}):
            with pytest.raises(ValueError, match="allowed_uris") as caught:
                build.load(tmp_path / "i", **allowed)
            assert uri in str(caught.value)
        with pytest.raises(TimeoutError):
            server.accept()
    assert not (tmp_path / "made.db").exists()


def test_addresses_are_a_list(axes, tmp_path):
    """The port 1953 is a part of the text, and not the address that it allows."""
    build.save(axes, tmp_path / "i")
    parameters = {"uri": "http://127.0.0.1:1953", "collection": "c", "timeout": 0.2}
    described(tmp_path / "i", backend="milvus", parameters=parameters)
    with pytest.raises(ValueError, match=r"allowed_uris is a list .*:19530'\]; got a text"):
        build.load(tmp_path / "i", allowed_uris="http://127.0.0.1:19530")
