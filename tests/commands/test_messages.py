"""What a script shows: its own messages, each a plain line, and one line where Ctrl-C ends it.

That TensorFlow's notes show on demand is slow: it takes one more process that imports it.
"""

import os
import subprocess
import sys

import pytest
import tiny

PROGRAM = """
import os
from twotower.commands import script
from absl import logging

def main():
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


def test_an_interrupt_without_a_message_says_so():
    code = "from twotower.commands import script\ndef main(): raise KeyboardInterrupt\n"
    done = tiny.python("-c", code + "script.run(main)", check=False)
    assert (done.stderr, done.returncode) == ("\ninterrupted\n", 130)


@pytest.mark.parametrize(
    "started, end",
    [
        ("['sh', '-c', 'exit 3']", "sh ended with status 3; it said why above."),
        ("'exit 3', shell=True", "exit 3 ended with status 3; it said why above."),
        # As for want of memory: it said nothing.
        ("['sh', '-c', 'kill -9 $$', 'x.py']", "x.py was ended by the signal SIGKILL."),
    ],
)
def test_another_script_that_fails_is_named(started, end):
    code = (
        "import subprocess\nfrom twotower.commands import script\n"
        f"def main(): subprocess.run({started}, check=True)\nscript.run(main)"
    )
    done = tiny.python("-c", code, check=False)
    assert (done.stderr, done.returncode) == (f"-c: {end}\n", 1)


@pytest.mark.slow
def test_notes_show_to_those_who_ask():
    done = run(TF_CPP_MIN_LOG_LEVEL="0")
    assert "a note of a C++ library" in done.stderr and "epoch 1\n" in done.stderr


def test_a_script_of_experiments_has_the_help_and_errors_of_a_command(tmp_path):
    script, output = tiny.ROOT / "experiments/studies/make_synthetic.py", f"--output={tmp_path}/W"
    help_text = tiny.script(script, "--help").stdout
    assert help_text.startswith("make_synthetic.py: Writes a synthetic dataset")
    for name in ("num_users", "seed", "output", "flagfile", "debug"):
        assert f"\n  --{name}: " in help_text or f"\n  --[no]{name}: " in help_text, name
    for arguments, message in (
        ([output, "--num_items=3"], "90000 watches of 2000 users are more"),
        ([], "Flag --output must have a value"),
        ([output, "--num_user=3"], "Did you mean: num_users? Try make_synthetic.py --help."),
        ([output, "more"], r"unknown arguments ['more']; every flag starts with --."),
    ):
        done = tiny.script(script, *arguments, check=False)
        assert done.returncode == 1 and message in done.stderr, done.stderr
        assert done.stderr.startswith("make_synthetic.py: ") and done.stderr.count("\n") == 1


def test_every_script_that_measures_runs_this_way():
    for folder in ("benchmarks", "studies"):
        for path in (tiny.ROOT / "experiments" / folder).glob("*.py"):
            text = path.read_text()
            assert ("def main(" in text) == ("script.run(main)" in text), path
