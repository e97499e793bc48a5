"""A process that is forked after its parent has searched: pools of threads do not come along."""

import os
import subprocess
import sys

import pytest
from backends import needs

pytestmark = pytest.mark.skipif(not hasattr(os, "fork"), reason="the child is a fork")

# Searches, forks, and does in the child what an index can do. A child that does not end is killed.
PROGRAM = """
import os, signal, sys, tempfile, threading, time
import numpy as np

backends, first = sys.argv[1].split(), sys.argv[2]
if first:
    import twotower
    import tensorflow as tf

    tf.linalg.matmul(tf.ones([500, 500]), tf.ones([500, 500]))

from twotower.retrieval import build

rng = np.random.default_rng(0)
vectors = np.float32(rng.normal(size=(1200, 8)))
queries = np.float32(rng.normal(size=(100, 8)))


def make(backend):
    parameters = {} if backend == "exact" else {"threads": 2}
    config = build.IndexConfig(backend, "dot", parameters)
    return build.build(config, np.arange(1200), vectors)


def child(backend, index, wanted):
    assert np.array_equal(index.search(queries, 10).keys, wanted)
    assert np.array_equal(index.search(queries[:1], 10).keys, wanted[:1])
    assert make(backend).search(queries, 10).keys.shape == wanted.shape
    with tempfile.TemporaryDirectory() as folder:
        build.save(index, folder + "/i")
        assert np.array_equal(build.load(folder + "/i").search(queries, 10).keys, wanted)
    index.remove(np.arange(50))
    index.add(np.arange(2000, 2100), -vectors[:100])
    index.absorb().search(queries, 10)
    thread = threading.Thread(target=index.search, args=(queries, 10))
    thread.start()
    thread.join()
    waited("grandchild of " + backend, lambda: index.search(queries, 10))


def waited(name, run):
    pid = os.fork()
    if not pid:
        try:
            run()
        except BaseException as error:
            print(name, repr(error), flush=True)
            os._exit(1)
        os._exit(0)
    end = time.time() + 60
    while time.time() < end:
        done, status = os.waitpid(pid, os.WNOHANG)
        if done:
            assert status == 0, f"{name}: status {status}"
            return
        time.sleep(0.01)
    os.kill(pid, signal.SIGKILL)
    sys.exit(f"{name} hangs")


for backend in backends:
    index = make(backend)
    if backend == "tiered":
        index.add(np.array([1500]), vectors[:1])
    wanted = index.search(queries, 10).keys
    waited(backend, lambda: child(backend, index, wanted))
    # The parent goes on as before.
    assert np.array_equal(index.search(queries, 10).keys, wanted)
    print(backend)
"""


def run(backends, first=""):
    command = [sys.executable, "-c", PROGRAM, " ".join(backends), first]
    done = subprocess.run(command, capture_output=True, text=True, timeout=500, check=False)
    assert done.returncode == 0, done.stdout + done.stderr[-2000:]
    assert done.stdout.split() == backends


FAISS = ["exact", "flat", "hnsw", "ivf", "ivf_pq", "tiered"]


def test_a_child_answers():
    needs("flat")
    run(FAISS)


@pytest.mark.slow
def test_a_child_of_scann_answers():
    run([needs("scann")])


@pytest.mark.slow
def test_a_child_of_tensorflow_answers():
    needs("flat")
    run([*FAISS, needs("scann")], "tensorflow")
