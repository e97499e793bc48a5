"""The quickstart's refusals; what it prints is looked at with the page on your own data."""

import tiny


def test_an_unknown_user_is_refused_before_anything_is_trained_or_written(tmp_path, monkeypatch):
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    arguments = ("--user_id=zzz", "--synthetic")
    done = tiny.script(tiny.ROOT / "experiments/quickstart.py", *arguments, check=False)
    line = "user 'zzz' is not among the validation cases. (--debug shows where.)"
    assert (done.stdout, done.stderr) == ("", f"quickstart.py: {line}\n")
    assert done.returncode == 1 and not [*tmp_path.iterdir()]
