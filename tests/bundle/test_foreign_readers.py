"""A bundle's index read without this package, by the code of BUILD.md."""

import re

import numpy as np
import tiny

from twotower.bundle.bundle import Bundle
from twotower.retrieval import build
from twotower.retrieval.build import IndexConfig


def titles_of(folder, capsys) -> list[str]:
    """What BUILD.md's code prints for a bundle."""
    (code,) = re.findall(r"```python\n(.*?)```", (tiny.ROOT / "BUILD.md").read_text(), re.S)
    assert "twotower" not in code and code.count('"W/bundle"') == 1
    capsys.readouterr()
    exec(code.replace('"W/bundle"', repr(str(folder))), {})
    return eval(capsys.readouterr().out)


def test_faiss_alone_finds_what_a_bundle_finds(exported, capsys):
    bundle = Bundle(exported)
    query = np.load(exported / "items" / "sample_queries.npy")[:1]
    found = bundle.retriever("hnsw").search(query, 10).keys[0]
    assert titles_of(exported, capsys) == bundle.catalogue.items["title"][found].tolist()


def test_of_items_with_equal_vectors_faiss_alone_finds_the_first(copy, capsys):
    bundle = Bundle(copy)
    query = np.load(copy / "items" / "sample_queries.npy")[:1]
    best = np.argsort(-(bundle.vectors @ query[0]))
    vectors, half = bundle.vectors.copy(), len(bundle.vectors) // 2
    # One half of the catalogue gets the vector of the worst item, so the other half is found.
    vectors[:half] = vectors[best[-1]]
    index = build.build(IndexConfig("hnsw"), bundle.keys, vectors)
    build.save(index, copy / "index" / "hnsw", bundle.model_version)
    assert (copy / "index" / "hnsw" / "hnsw_nodes.npy").exists()
    expected = bundle.keys[[position for position in best if position >= half][:10]]
    assert titles_of(copy, capsys) == bundle.catalogue.items["title"][expected].tolist()
