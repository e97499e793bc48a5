"""What a script shows: its own messages, each a plain line, and one line where Ctrl-C ends it."""

import os
import subprocess
import sys

import tiny

PROGRAM = """
import os
from twotower.commands import script
from absl import logging

def main(argv):
    script.show_messages()
    os.write(2, b"I0000 00:00:1 partitioner.cc:58] a note of a C++ library\\n")
    logging.info("epoch %d", 1)
    logging.warning("careful")
    import tensorflow as tf
    tf.get_logger().info("a note of TensorFlow")
    tf.constant(0)
    raise KeyboardInterrupt("The same command goes on.")

script.run(main)
"""


def run(**environment: str) -> subprocess.CompletedProcess:
    kept = {name: value for name, value in os.environ.items() if name != "TF_CPP_MIN_LOG_LEVEL"}
    return subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        timeout=300,
        env=kept | environment,
        cwd=tiny.ROOT / "experiments",
    )


def test_nothing_shows_but_the_project_s_messages():
    done = run()
    assert done.stderr == "epoch 1\nwarning: careful\n\nThe same command goes on.\n"
    assert done.stdout == "" and done.returncode == 130


def test_notes_show_to_those_who_ask():
    done = run(TF_CPP_MIN_LOG_LEVEL="0")
    assert "a note of a C++ library" in done.stderr and "epoch 1\n" in done.stderr
