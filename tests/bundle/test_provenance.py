"""The commit that a result names: dirty where code differs, not where results are written."""

import json
import os
import shutil
import subprocess
import sys

import tiny

from twotower.bundle import provenance


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


def test_a_result_has_a_row_a_line(tmp_path):
    path = tmp_path / "new" / "out.json"
    result = {"rows": [{"a": 1, "b": [1, 2]}, {"a": 2}], "k": 3, "sizes": [1, 2]}
    provenance.write_result(path, result)
    assert path.read_text().splitlines() == [
        "{",
        '"rows": [',
        '{"a": 1, "b": [1, 2]},',
        '{"a": 2}',
        "],",
        '"k": 3,',
        '"sizes": [1, 2]',
        "}",
    ]
    assert json.loads(path.read_text()) == result
    assert [entry.name for entry in path.parent.iterdir()] == ["out.json"]


def test_a_command_can_be_copied(monkeypatch, tmp_path):
    script = str(tiny.ROOT / "experiments" / "benchmarks" / "latency.py")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", [script, "--output=/a/b/out.json", "--name=two towers"])
    expected = "python experiments/benchmarks/latency.py --output=out.json '--name=two towers'"
    assert provenance.command() == expected
    monkeypatch.setattr(sys, "argv", [script, "--bundles=/a/A,/a/B", "--clients=1,8"])
    assert provenance.command().endswith("latency.py --bundles=A,B --clients=1,8")
    for given, expected in (
        ("--bundle=/a/b,c/W/bundle", "--bundle=bundle"),
        ("--bundles=A,/b/B", "--bundles=A,B"),
        ("--extra=--data_dir=/a/b,--epochs=1", "--extra=--data_dir=b,--epochs=1"),
        ("--url=http://127.0.0.1:8000/a,b", "--url=http://127.0.0.1:8000/a,b"),
        ("/a/b/", "b"),
        ("--name=a/b", "--name=a/b"),
        ('--output=/a/it\'s "x".json', "'--output=it'\"'\"'s \"x\".json'"),
    ):
        monkeypatch.setattr(sys, "argv", [script, given])
        assert provenance.command().endswith(f"latency.py {expected}"), given
