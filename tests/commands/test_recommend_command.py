"""recommend.py as a person runs it, from an index of build_index.py and with filters."""

import json
import re
import shutil

import tiny
from small_runs import run


def test_build_index_then_recommend_from_it(workdir, tmp_path):
    bundle = shutil.copytree(workdir / "bundle", tmp_path / "bundle")
    flag = f"--bundle={bundle}"
    printed = run("build_index.py", flag, "--backend=hnsw", "--name=second", "--k=10").stdout
    recall = float(
        re.search(r"recall@10 against exact search, sample queries: ([\d.]+)", printed)[1]
    )
    assert recall > 0.95
    done = run("recommend.py", flag, "--index=second", "--history=i00003,i00007", "--k=4", "--json")
    answer = json.loads(done.stdout)
    assert (answer["user_id"], answer["index"], answer["history"]) == ("", "second", 2)
    ids = [row["item_id"] for row in answer["items"]]
    assert len(set(ids)) == 4 and not {"i00003", "i00007"} & set(ids)
    scores = [row["score"] for row in answer["items"]]
    assert scores == sorted(scores, reverse=True)
    assert all(row["title"] and row["because"] in ("i00003", "i00007") for row in answer["items"])


def test_recommend_shows_what_users_like_and_keeps_to_genres_and_years(workdir):
    """Two users' histories are looked up; k is beyond the catalogue of 300."""
    made = tiny.dataset()
    frame = made.interactions[made.positive]
    items = made.items.set_index("item_id")
    genre, low = items["genres"].iloc[0][0], int(items["year"].median())
    run_it = ["recommend.py", f"--bundle={workdir / 'bundle'}", "--data_dir=any", "--k=1000"]
    run_it += ["--user_id=u00003,u00004", f"--genres={genre}", f"--years={low}-"]
    answers = run(*run_it, "--json").stdout.splitlines()
    table = run(*run_it, "--shown=2").stdout
    parts = re.split(r"^user ", table, flags=re.M)[1:]
    for user, answer, part in zip(("u00003", "u00004"), map(json.loads, answers), parts):
        liked = frame[frame["user_id"] == user].sort_values("timestamp", kind="stable")["item_id"]
        expected = {
            item for item in {*frame["item_id"]} - {*liked}
            if genre in items["genres"][item] and items["year"][item] >= low
        }  # fmt: skip
        assert expected and {row["item_id"] for row in answer["items"]} == expected
        assert answer["user_id"] == user and answer["history"] == len(liked)
        lines = part.splitlines()
        assert re.fullmatch(rf"{user}, exact, [\d.]+ ms", lines[0])
        assert lines[1] == f"liked {len(liked):,} items, the last of them:"
        assert [line.split()[0] for line in lines[2:4]] == [*liked][-2:]
        rows = lines[5:-1]
        assert [int(row.split()[0]) for row in rows] == list(range(1, len(expected) + 1))
        first = answer["items"][0]
        for text in (first["item_id"], first["title"], f"({first['year']})", genre, "near "):
            assert text in rows[0]
        assert lines[-1] == f"({len(expected)} items: no others meet the filters)"
