"""The commit that a result names: dirty where code differs, not where results are written."""

import os
import shutil
import subprocess
import sys

import tiny


def test_a_commit_is_dirty_by_code_and_not_by_results(tmp_path):
    for folder in ("twotower/bundle", "experiments/results"):
        (tmp_path / folder).mkdir(parents=True)
    shutil.copy(tiny.ROOT / "twotower/bundle/provenance.py", tmp_path / "twotower/bundle")
    code, result = tmp_path / "twotower" / "__init__.py", tmp_path / "experiments/results/a.json"
    code.write_text("")
    result.write_text("{}")
    git = ["git", "-C", str(tmp_path), "-c", "user.name=x", "-c", "user.email=x@example.com"]
    for words in (["init", "-q"], ["add", "-A"], ["commit", "-qm", "x"]):
        subprocess.run([*git, *words], check=True)
    head = subprocess.check_output([*git, "rev-parse", "--short=12", "HEAD"], text=True).strip()

    def commit():
        found = "from twotower.bundle.provenance import commit; print(commit())"
        environment = {**os.environ, "PYTHONPATH": str(tmp_path)}
        command = [sys.executable, "-c", found]
        return subprocess.check_output(command, text=True, cwd=tmp_path, env=environment).strip()

    assert commit() == head
    result.write_text('{"rows": []}')
    assert commit() == head
    code.write_text("x = 1\n")
    assert commit() == f"{head}-dirty"
