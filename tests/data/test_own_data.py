"""Own data under other names: schemas, files without header, ratings, and what can be read
again."""

import json

import numpy as np
import pandas as pd
import pytest
from small_tables import NEW_YEAR, write

from twotower.data import load_dataset, schema, tables
from twotower.data.summary import summarise


def test_other_names_and_milliseconds(tmp_path):
    write(
        tmp_path,
        log__csv="visitorid;itemid;time;page\nu;7;1704067200999;x\nv;8;1704067201000;y\n",
        shop__csv="id,name,brand,price,sale\n7,Tin Moon,Acme,9.5,true\n8,Ferry,,7,false\n",
    )
    dataset = tables.read_tables(
        "log.csv",
        "shop.csv",
        data_dir=tmp_path,
        columns="user_id=visitorid,item_id=itemid,timestamp=time:ms,items.item_id=id,title=name",
    )
    assert dataset.interactions.to_dict("list") == {
        "user_id": ["u", "v"],
        "item_id": ["7", "8"],
        "timestamp": [NEW_YEAR, NEW_YEAR + 1],
        "page": ["x", "y"],
    }
    assert dataset.items.to_dict("list") == {
        "item_id": ["7", "8"],
        "title": ["Tin Moon", "Ferry"],
        "brand": ["Acme", ""],
        "price": [9.5, 7.0],
        "sale": ["true", "false"],
    }
    assert dataset.notes == ("no table of users: they are known by their ids alone",)


def test_columns_by_number_and_several_files(tmp_path):
    write(tmp_path, a__tsv="u\t7\t3\t5\nu\t8\t4\t6\n", b__tsv="v\t7\t5\t7\n")
    dataset = tables.read_tables(
        ["a.tsv", "b.tsv"], data_dir=tmp_path, columns="user_id=1,item_id=2,timestamp=4"
    )
    assert dataset.interactions.to_dict("list") == {
        "user_id": ["u", "u", "v"],
        "item_id": ["7", "8", "7"],
        "timestamp": [5, 6, 7],
    }
    assert dataset.items["title"].tolist() == ["7", "8"]
    assert dataset.notes[0] == "interactions: left out the columns 3 of the file"
    write(tmp_path, b__tsv="v\t7\t5\t7\nw\t7\t5\tx\n")
    with pytest.raises(ValueError, match=r"b.tsv, line 2: timestamp is 'x', not whole .*dayfirst"):
        tables.read_tables(
            ["a.tsv", "b.tsv"], data_dir=tmp_path, columns="user_id=1,item_id=2,timestamp=4"
        )


def test_separators_of_several_characters(tmp_path):
    write(tmp_path, r__dat='u::"7::4::5\nu::8::3::6\n', i__dat="7::A;B::War|Drama\n")
    with pytest.raises(ValueError, match="quote that is not closed"):
        tables.read_tables(tmp_path / "r.dat", sep="::", columns="user_id=1,item_id=2")
    write(tmp_path, r__dat="u::7::4::5\nu::8::3::6\n")
    dataset = tables.read_tables(
        "r.dat",
        "i.dat",
        data_dir=tmp_path,
        sep="::",
        columns="user_id=1,item_id=2,rating=3,timestamp=4,items.item_id=1,items.title=2,"
        "items.genres=3",
    )
    assert dataset.interactions["rating"].tolist() == [4, 3]
    assert dataset.items["title"].tolist() == ["A;B", "8"]
    assert dataset.items["genres"].tolist() == [("War", "Drama"), ()]


@pytest.mark.parametrize("sep", ["::", "¦"])
def test_a_separator_between_quotes_is_text(tmp_path, sep):
    names = sep.join(["user_id", "item_id", "timestamp", "search_text"])
    write(tmp_path, r__csv=f'{names}\n{sep.join(["u", "a", "5"])}{sep}"x{sep}y"\n')
    dataset = tables.read_tables(tmp_path / "r.csv", sep=sep)
    assert dataset.interactions["search_text"].tolist() == [f"x{sep}y"]


def test_min_rating(tmp_path):
    write(
        tmp_path,
        r__csv="user_id,item_id,timestamp,stars\nu,a,1,1\nu,b,2,4\nv,b,3,\nv,a,4,4.5\n",
    )
    columns = "rating=stars"
    dataset = tables.read_tables(tmp_path / "r.csv", columns=columns, min_rating=4)
    assert dataset.interactions["timestamp"].tolist() == [2, 4]
    assert "dropped 2 of 4 rows, rated below 4" in dataset.notes
    whole = tables.read_tables(tmp_path / "r.csv", columns=columns)
    assert "down to 1 (min_rating)" in str(summarise(whole))
    assert "min_rating" not in str(summarise(dataset))
    with pytest.raises(ValueError, match=r"the highest rating is 4\.5"):
        whole.rated_at_least(5)
    for wrong in ("4", float("nan"), True):
        with pytest.raises(ValueError, match="min_rating must be a number, such as 4; got"):
            whole.rated_at_least(wrong)
    with pytest.raises(ValueError, match=r"has no ratings.*columns='rating=COLUMN'"):
        tables.read_tables(tmp_path / "r.csv", min_rating=4)


def test_how_the_files_were_read_can_be_saved(tmp_path):
    """By a manifest, which is JSON, whatever types the arguments had."""
    (tmp_path / "r.csv").write_text("a\tx\t1\t5\nb\ty\t2\t3\na\ty\t2\t5\n")
    dataset = tables.read_tables(
        tmp_path / "r.csv",
        columns={"user_id": np.int64(1), "item_id": 2, "event": 3, "rating": 4},
        events={1: np.float32(2), np.int64(2): 1},
        min_rating=np.float32(4),
    )
    # The row of b has a rating below 4.
    assert dataset.interactions["weight"].to_list() == [2, 1]
    reading = json.loads(json.dumps(dict(dataset.reading)))
    again = tables.read_tables(**reading)
    assert again.interactions["weight"].to_list() == [2, 1]


def test_a_frame_is_no_file():
    frame = pd.DataFrame({"user_id": ["a"], "item_id": ["b"]})
    with pytest.raises(ValueError, match=r"got a DataFrame.*Dataset\(name, interactions"):
        tables.read_tables(frame)
    with pytest.raises(TypeError, match=r"got a DataFrame. Dataset\(name, interactions"):
        load_dataset(frame)


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ("user_id", "'user_id' is no name=value. Entries are name=column"),
        ("user_id=user,user_id=u", "'user_id' stands twice"),
        ("user_id=user,item_id=user", "r.csv: .* column 'user' twice, as 'user_id' and as 'item_"),
        ("films.title=name", "there is no table 'films'"),
        ("timestamp=time:hours", "'hours' is no unit of times"),
        ("user_id=customer", r"no column 'customer', which 'user_id' should be: .*r.csv has"),
        ("rating=stars", r"no column 'stars', which 'rating' should be: .*r.csv has \['user'"),
        ("title=name", "no column 'name'.*no file of that table is given"),
        ("items.title=name", "no column 'name'.*no file of that table is given"),
        ("user_id=1,item_id=9", "no column '9'"),
        ("user_id=1,item_id=2", "r.csv, line 1: user_id is 'user_id', so the file begins with n"),
        ("user_id=user,timestmap=item", "no column 'timestmap'; did you mean 'timestamp'"),
        ("user_id=user,rating=item:ms", "rating is no time, so it has no unit"),
        (["user_id=user"], r"\['user_id=user'\] is neither a text nor a dictionary. Entries are"),
        ("", r"r.csv lacks \['user_id', 'item_id'\]; it has \['user', 'item'\]. Say which"),
    ],
)
def test_refused_schemas(tmp_path, columns, message):
    names = "user_id,item" if message.startswith("r.csv, line 1") else "user,item"
    write(tmp_path, r__csv=f"{names}\nu,a\n")
    with pytest.raises(ValueError, match=message):
        tables.read_tables(tmp_path / "r.csv", columns=columns)


def test_two_names_for_one_column_where_only_one_is_read(tmp_path):
    """`id` is the user of one table and the item of another, and no column of the interactions."""
    write(tmp_path, r__csv="user_id,item_id\nu,a\n", i__csv="id\na\n", u__csv="id\nu\n")
    paths = [tmp_path / name for name in ("r.csv", "i.csv", "u.csv")]
    dataset = tables.read_tables(*paths, columns="user_id=id,item_id=id")
    assert len(dataset.users) == len(dataset.items) == 1


def test_no_file_of_interactions():
    with pytest.raises(ValueError, match="no file of interactions is given"):
        load_dataset("tables", interactions=[])


@pytest.mark.parametrize("reading", [{}, {"interactions": "."}, {"interactions": ["."]}])
def test_the_working_directory_is_not_read_in_silence(tmp_path, monkeypatch, reading):
    """A bundle's manifest has "." where its data was a folder, which evaluate needs again."""
    write(tmp_path, interactions__csv="user_id,item_id\nu,a\n")
    assert load_dataset("tables", str(tmp_path)).reading["interactions"] == ["."]
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match=r"tables need data_dir \(--data_dir\)"):
        load_dataset("tables", **reading)


def test_a_column_of_our_name_that_is_another(tmp_path):
    """`timestamp` of the file is not the one asked for: it is left out, with a note."""
    write(tmp_path, r__csv="user_id,item_id,timestamp,seen\nu,a,yesterday,5\n")
    dataset = tables.read_tables(tmp_path / "r.csv", columns="timestamp=seen")
    assert dataset.interactions["timestamp"].tolist() == [5]
    assert "interactions: left out the columns timestamp of the file" in dataset.notes


def test_the_entries_of_a_schema():
    assert schema.parse("a=b, items.c=d:ms") == [
        schema.Entry("", "a", "b"),
        schema.Entry("items", "c", "d", "ms"),
    ]
    assert schema.parse({"timestamp": "day:%d, %m:%Y"})[0].unit == "%d, %m:%Y"


def test_load_by_name_reads_the_same_again(tmp_path):
    write(
        tmp_path,
        interactions__csv="visitor,item_id,timestamp,rating\nu,a,1,5\nu,b,2,3\nv,b,3,4\n",
        items__tsv="item_id\ttitle\na\tOne\nb\tTwo\n",
    )
    reading = {"columns": "user_id=visitor", "min_rating": 4}
    dataset = load_dataset("tables", str(tmp_path), **reading)
    assert dataset.name == "tables"
    assert dataset.items["title"].tolist() == ["One", "Two"]
    again = load_dataset("tables", str(tmp_path), **dataset.reading)
    assert again.fingerprint() == dataset.fingerprint()
    assert again.interactions["timestamp"].tolist() == [1, 3]
    by_hand = tables.read_tables("interactions.csv", "items.tsv", data_dir=tmp_path, **reading)
    assert by_hand.fingerprint() == dataset.fingerprint()
    again = load_dataset(by_hand.name, str(tmp_path), **by_hand.reading)
    assert again.fingerprint() == dataset.fingerprint()
    with pytest.raises(ValueError, match=r"\['sep'\] are for the dataset tables"):
        load_dataset("synthetic", sep=";")
    (tmp_path / "items.csv").write_text("item_id\n")
    with pytest.raises(ValueError, match=r"has \['items.csv', 'items.tsv'\]; keep one"):
        load_dataset("tables", str(tmp_path), **reading)
