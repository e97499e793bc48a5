"""The live index needs no TensorFlow, which takes seconds to load."""

import subprocess
import sys


def test_no_tensorflow():
    code = "import sys, twotower.live.index; sys.exit('tensorflow' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code]).returncode == 0
