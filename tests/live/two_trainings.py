"""Pairs of tower and index of two trainings, whose answers show which of both they are of."""

from unittest import mock

import numpy as np

from twotower.bundle.bundle import Bundle
from twotower.live.pair import Checks, Pair
from twotower.retrieval import build

# Item n of training A has the vector TABLE[n], of length 1. Training B has the axes backwards and
# all items twice as long. Request n asks for item n, so a pair of one training answers n first,
# with the score 1 (A) or 2 (B); tower and index of two trainings find some other item.
DIM, NUM = 16, 40
TABLE = np.random.default_rng(0).normal(size=(4096, DIM))
TABLE = np.float32(TABLE / np.linalg.norm(TABLE, axis=1, keepdims=True))
SCORES = {"A": 1, "B": 2}


def turned(version, vectors):
    return {"A": vectors, "B": vectors[:, ::-1]}[version]


def tower(version):
    return lambda inputs: turned(version, TABLE[inputs["request"]])


def items(version):
    """The item tower, which is what `embed` asks."""
    return lambda keys: SCORES[version] * turned(version, TABLE[keys])


def ask(keys):
    return {"request": np.asarray(keys)}


def index(version="A", keys=range(NUM), backend="exact", metric="dot"):
    config = build.IndexConfig(backend, metric)
    return build.build(config, np.array(keys), items(version)(np.array(keys)))


def pair(version="A", keys=range(NUM), sequence=0, backend="exact"):
    return Pair(tower(version), index(version, keys, backend), version, version, sequence)


CHECKS = Checks(ask([3, 1, 4]), k=5)


def add(live, keys, ids=None):
    version = live.pair.model_version
    return live.add(np.array(keys), items(version)(np.array(keys)), version, ids)


def wrong_rows(answer, requests):
    """The detector: rows that a pair of one training, the one named, cannot have answered."""
    found = answer.candidates
    right = found.keys[:, 0] == requests
    right &= np.abs(found.scores[:, 0] - SCORES[answer.model_version]) < 1e-4
    return int((~right).sum())


def holds(live, keys, vectors=None):
    """Whether the index has these items and no others, with the vectors of its training."""
    found, stored = live.pair.retriever.live()
    wanted = items(live.pair.model_version)(np.sort(keys)) if vectors is None else vectors
    order = np.argsort(found)
    return found[order].tolist() == sorted(keys) and np.array_equal(stored[order], wanted)


VECTOR = TABLE[:1]
NAN = np.where(np.arange(DIM) == 2, np.nan, VECTOR)

CALLS = {
    "add": lambda live, folder: add(live, [70]),
    "remove": lambda live, folder: live.remove([3]),
    "snapshot": lambda live, folder: live.snapshot(folder / "s"),
    "swap": lambda live, folder: live.swap(pair("B"), items("B")),
}


def bundle(version="A"):
    made = mock.create_autospec(Bundle, instance=True)  # refuses names that Bundle has not
    made.model_version, made.query_tower = version, tower(version)
    made.id_hashes = np.arange(100, 100 + NUM, dtype=np.uint64)
    made.retriever.side_effect = lambda name, allowed_uris: index(version, backend=name)
    return made
