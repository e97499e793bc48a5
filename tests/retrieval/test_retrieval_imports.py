"""Retrieval and its evaluation need no TensorFlow, but for ScaNN."""

import subprocess
import sys


def test_no_tensorflow_without_scann():
    names = [
        "twotower.evaluation.metrics",
        "twotower.evaluation.evaluate",
        "twotower.retrieval.base",
        "twotower.retrieval.backends.brute_force",
        "twotower.retrieval.backends.faiss_index",
        "twotower.retrieval.backends.ivf_pq",
        "twotower.retrieval.build",
    ]
    code = (
        f"import importlib, sys\nfor name in {names!r}:\n"
        "    importlib.import_module(name)\n"
        "    assert 'tensorflow' not in sys.modules, name\nprint('done')"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.strip() == "done"
