"""The page on your own data: its commands, from its own text, on small made-up files."""

import re
import shlex

import numpy as np
import pandas as pd
import pytest
import tiny

PAGE = (tiny.ROOT / "experiments" / "your_own_data.md").read_text()
COMMANDS = re.findall(r"^    python (experiments/\S+\.py .*)$", PAGE, re.M)
TINY = ["--hidden=16", "--dim=8", "--epochs=2", "--indexes=hnsw"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """The three folders that the page speaks of: 30 users with one of three tastes, 30 items."""
    folder = tmp_path_factory.mktemp("own")
    rng = np.random.default_rng(0)
    users = np.repeat(np.arange(30), 8)
    items = np.concatenate([rng.permutation(10)[:8] + 10 * (user % 3) for user in range(30)])
    times = pd.to_datetime(1_704_067_200 + 3600 * np.arange(len(users)), unit="s")
    names = [f"{['Tin', 'Red', 'Old'][n // 10]} Thing {n}" for n in range(30)]
    (folder / "books").mkdir()
    stars = np.where(np.arange(len(users)) % 8 == 0, 2, 5)
    pd.DataFrame(
        {
            "reader": np.where(users == 0, "anna", users.astype(str)),
            "isbn": [f"b{n}" for n in items],
            "stars": stars,
            "day": times.strftime("%d.%m.%Y"),
        }
    ).to_csv(folder / "books" / "ratings.csv", sep=";", index=False)
    pd.DataFrame(
        {
            "isbn": [f"b{n}" for n in range(30)],
            "name": names,
            "author": [f"A{n // 5}" for n in range(30)],
            "year": 1990 + np.arange(30),
        }
    ).to_csv(folder / "books" / "books.csv", index=False)
    (folder / "shop").mkdir()
    pd.DataFrame(
        {
            "user": np.where(users == 0, "c17", users.astype(str)),
            "event": np.resize(["view", "view", "cart", "purchase", "return"], len(users)),
            "item": [f"p{n}" for n in items],
            "time": times.to_numpy("datetime64[ms]").astype(np.int64) + 123,
        }
    ).to_csv(folder / "shop" / "events.tsv", sep="\t", header=False, index=False)
    (folder / "songs").mkdir()
    songs = pd.DataFrame(
        {"track_id": np.arange(30), "track": names, "live": np.arange(30) % 4 == 0}
    )
    plays = {"user_id": users, "track_id": items, "timestamp": times}
    songs.to_parquet(folder / "songs" / "items.parquet")
    pd.DataFrame(plays).to_parquet(folder / "songs" / "interactions.parquet")
    ages = pd.DataFrame({"user_id": np.arange(30), "age": 20 + np.arange(30) % 3})
    ages.to_parquet(folder / "songs" / "users.parquet")
    return folder


def run(folder, command: str) -> str:
    """What a command of the page prints, in `folder`, with a small and short model."""
    script, *arguments = shlex.split(command)
    if script.endswith("train.py"):
        arguments += TINY
    if script.endswith("quickstart.py"):
        arguments += ["--epochs=1"]
    return tiny.script(tiny.ROOT / script, *arguments, cwd=folder).stdout


def commands(workdir: str) -> list[str]:
    return [command for command in COMMANDS if workdir in command]


def titles(text: str) -> list[str]:
    """The ranked lines of a list of titles."""
    return re.findall(r"^ *\d+ +-?\d\.\d+ +(.*)$", text, re.M)


def test_the_page_has_three_examples_of_two_commands():
    assert [len(commands(name)) for name in ("W_books", "W_shop", "W_songs", "W_first")] == [
        2,
        2,
        2,
        1,
    ]
    assert len(COMMANDS) == 7


def test_a_log_of_events_to_ten_titles(folder):
    train, recommend = commands("W_shop")
    said = run(folder, train)
    assert "rows     192 interactions, 6.4 a user" in said  # a fifth of 240 are returns
    assert "note     dropped 48 of 240 rows by their event: 'return' (48)" in said
    assert "note     weights: view 1, cart 3, purchase 5" in said
    assert "item tower reads item_id; not title (ids, no titles)" in said
    found = titles(run(folder, recommend))
    assert len(found) == 10 and all(re.match(r"p\d+ +p\d+\b", line) for line in found)
    # The bundle remembers how the files are read, so that test figures need no flags for it.
    judged = run(
        folder, "experiments/evaluate.py --bundle=W_shop/bundle --data_dir=shop --part=test"
    )
    assert "loo, test: 30 questions" in judged


@pytest.mark.slow
def test_ratings_under_other_names_to_ten_titles(folder):
    train, recommend = commands("W_books")
    said = run(folder, train)
    assert "note     dropped 30 of 240 rows, rated below 4" in said
    assert "period   2024-01-01 to 2024-01-10" in said
    assert "item tower reads item_id, title, maker, year" in said
    found = titles(run(folder, recommend))
    assert len(found) == 10 and all("Thing" in line for line in found)


@pytest.mark.slow
def test_parquet_to_ten_titles(folder):
    train, recommend = commands("W_songs")
    said = run(folder, train)
    assert "query tower reads history; not user_id, age (--query_features)" in said
    assert "item tower reads item_id, title, live" in said
    assert len(titles(run(folder, recommend))) == 10
    found = titles(run(folder, commands("W_first")[0]))
    assert len(found) % 10 == 0 and found  # ten from each index
    assert all("Thing" in line for line in found)
