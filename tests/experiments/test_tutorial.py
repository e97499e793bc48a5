"""The tutorial in one file, on invented films in GroupLens' format.

A second run, on the older format and by way of the study, is slow.
"""

import ast
import json
import re

import numpy as np
import pytest
import tiny

TUTORIAL = tiny.ROOT / "experiments" / "tutorial.py"


def test_it_is_short_and_imports_nothing_of_the_package():
    source = TUTORIAL.read_text()
    assert len(source.splitlines()) <= 120
    modules = set()
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.ImportFrom):
            modules.add(node.module.split(".")[0])
        elif isinstance(node, ast.Import):
            modules |= {alias.name.split(".")[0] for alias in node.names}
    neighbours = {path.stem for path in TUTORIAL.parent.glob("*.py")}
    assert not modules & ({"twotower"} | neighbours)
    assert {"faiss", "tensorflow_recommenders"} < modules


def folder_of(root, files: tuple[str, str], mark: str, film_mark: str):
    """40 users, 120 films, two groups of 20 users and 60 films: each rates 20 of its group's."""
    rng = np.random.default_rng(0)
    pairs = [
        (user, 1 + 60 * (user % 2) + film)
        for user in range(1, 41)
        for film in rng.choice(60, 20, replace=False)
    ]
    ratings, films = files
    lines = [mark.join((str(user), str(film), "4", "978300760")) for user, film in pairs]
    (root / ratings).write_text("\n".join(lines) + "\n", "latin-1")
    lines = [film_mark.join((str(film), f"Café {film} (1999)", "Drama")) for film in range(1, 121)]
    (root / films).write_text("\n".join(lines) + "\n", "latin-1")
    return root


def test_ten_titles_from_each_index(tmp_path):
    data = folder_of(tmp_path, ("ratings.dat", "movies.dat"), "::", "::")
    flags = ["--epochs=2", "--change=adam", "--change=log_q", f"--workdir={tmp_path / 'W'}"]
    printed = tiny.python(TUTORIAL, f"--data_dir={data}", *flags).stdout
    assert len(re.findall(r"^epoch \d: loss of the last batch [\d.]+$", printed, re.M)) == 2
    head, *rows = printed.splitlines()[-11:]
    assert re.match(r"user \d+: HNSW and ScaNN", head)
    hnsw, scann = zip(*(re.findall(r"Café (\d+) \(1999\)", row) for row in rows))
    # Ten titles each; ScaNN computes with codes of the vectors, so a few titles may differ.
    assert len(set(hnsw)) == len(set(scann)) == 10 and len({*hnsw} & {*scann}) >= 6
    metrics = json.loads((tmp_path / "W" / "metrics.json").read_text())
    accuracy = metrics["factorized_top_k/top_100_categorical_accuracy"]
    assert f"top-100 accuracy {accuracy:.4f}; of the 100 most popular films " in printed
    assert all(
        (tmp_path / "W" / x / "saved_model.pb").exists()
        for x in ("query_tower", "item_tower", "scann")
    )


@pytest.mark.slow
def test_it_reads_the_older_format_and_a_result_has_a_row_a_change(tmp_path):
    data = folder_of(tmp_path, ("u.data", "u.item"), "\t", "|")
    output = tmp_path / "tutorial.json"
    changes = TUTORIAL.parent / "studies" / "tutorial_changes.py"
    arguments = [f"--data_dir={data}", f"--output={output}", "--epochs=1"]
    tiny.python(changes, *arguments, "--only=as copied")
    (row,) = json.loads(output.read_text())["rows"]
    assert (row["protocol"], row["part"], row["seeds"]) == ("random-100k+seen", "test", [0])
    found = row["metrics"]["recall_micro@100"]
    assert 0 < found["low"] == found["mean"] == found["high"] < 1
    assert "--only=as copied" in row["command"] and row["commit"] and row["hardware"]
