"""The work folder of one small training, for all tests of this folder that need a bundle.

It is written by a process that begins with nothing. Other processes are forked with the imports
done: a process costs some eight seconds, most of it TensorFlow's import.
"""

import pytest
import tiny
from small_runs import SCRIPTS, TINY


@pytest.fixture(scope="session")
def workdir(tmp_path_factory):
    """What train.py leaves."""
    # Of signs that are special to shells, patterns and formats, but not to TensorFlow.
    folder = tmp_path_factory.mktemp("scripts") / "a ]{}(),;:=&%s%20#$HOME'~ü 火" / "W"
    flags = ["--dataset=synthetic/small", f"--workdir={folder}", "--indexes=hnsw", *TINY]
    tiny.python(SCRIPTS / "train.py", *flags)
    return folder
