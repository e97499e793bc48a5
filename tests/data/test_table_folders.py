"""Tables in folders of several files: what is read as their parts, and what is refused."""

import shutil

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from small_tables import HEAD, NAN, plays
from table_writers import arrow, parquet
from three_tables import EXPECTED, load_all

from twotower.data import tables
from twotower.data.dataset import Dataset


def test_folders_named_by_a_value(tmp_path):
    """A folder for each event, as Hive and Spark's partitionBy write them."""
    parquet()(tmp_path)
    whole = arrow("interactions")
    (tmp_path / "interactions.parquet").unlink()
    # By name, the missing event comes first, then skip and watch.
    for row, event in ((0, "watch"), (1, "__HIVE_DEFAULT_PARTITION__"), (2, "skip")):
        part = tmp_path / "interactions" / "year=2024" / f"event={event}"
        part.mkdir(parents=True)
        pq.write_table(whole.slice(row, 1).drop_columns("event"), part / "part-0.parquet")
    found = load_all(tmp_path)
    assert found.interactions["event"].tolist() == ["", "skip", "watch"]
    assert found.interactions["year"].tolist() == ["2024"] * 3
    ordered = found.interactions.drop(columns="year").iloc[[2, 0, 1]]
    assert Dataset("", ordered, found.items, found.users).fingerprint() == EXPECTED.fingerprint()


def test_folders_that_are_refused(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no file or folder of \.parquet.*nowhere"):
        tables.read_tables(tmp_path / "nowhere")
    folder = tmp_path / "plays"
    folder.mkdir()
    (folder / "_SUCCESS").touch()
    (folder / "README.md").write_text("x")
    with pytest.raises(ValueError, match=r"README.md is no .*begins with _"):
        tables.read_tables(folder)
    (folder / "README.md").unlink()
    with pytest.raises(FileNotFoundError, match=r"no file or folder of .*plays"):
        tables.read_tables(folder)
    pq.write_table(plays(), folder / "part-0.parquet")
    assert len(tables.read_tables(folder).interactions) == 2
    pq.write_table(plays(device=pa.array(["tv", None])), folder / "part-1.parquet")
    with pytest.raises(
        ValueError, match=r"part-1.parquet has the columns .*'device'\], and .*part-0"
    ):
        tables.read_tables(folder)
    pq.write_table(plays(timestamp=pa.array(["5", "6"])), folder / "part-1.parquet")
    with pytest.raises(ValueError, match=r"plays: its parts differ: .*timestamp"):
        tables.read_tables(folder)
    (folder / "part-1.parquet").unlink()
    (folder / "part-1.csv").write_bytes(HEAD)
    with pytest.raises(ValueError, match=r"part-0.parquet is Parquet, and .*part-1.csv is text"):
        tables.read_tables(folder)
    (folder / "part-1.csv").unlink()


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("_temporary/0", "holds _temporary: .*not finished"),
        ("_delta_log/0.json", "holds _delta_log: .*as plain Parquet"),
        (".hoodie/x", "holds .hoodie: .*as plain Parquet"),
        ("metadata/v2.metadata.json", "holds metadata/v2.metadata.json: .*as plain Parquet"),
        ("metadata/0-4c1e.gz.metadata.json", "holds metadata/0-4c1e.*: .*as plain Parquet"),
    ],
)
def test_tables_that_are_more_than_their_files(name, message, tmp_path):
    for folder in (tmp_path, tmp_path / "day=1", tmp_path / "day=1" / "hour=2"):
        (folder / name).parent.mkdir(parents=True)
        (folder / name).write_text("{}")
        pq.write_table(plays(), folder / "part-0.parquet")
        with pytest.raises(ValueError, match=f"{folder} {message}"):
            tables.read_tables(tmp_path)
        shutil.rmtree((folder / name).parent)


def test_no_part_of_a_folder_is_passed_over(tmp_path):
    folder, elsewhere = tmp_path / "plays", tmp_path / "elsewhere"
    (folder / "day=1").mkdir(parents=True)
    elsewhere.mkdir()
    (folder / "day=1" / "p0.csv").write_bytes(HEAD + b"u,a,5,tv\n")
    (elsewhere / "p1.csv").write_bytes(HEAD + b"v,b,6,tv\n")
    for name in ("p2", "p3.csv.lz4", "p5.csv.tmp", "day=1/p7"):
        (folder / name).write_bytes(HEAD)
        with pytest.raises(ValueError, match=f"{folder / name} is no .*begins with _"):
            tables.read_tables(folder)
        (folder / name).unlink()
    # Links to files are read, as is the folder itself by way of a link.
    (folder / "day=1" / "p1.csv").symlink_to(elsewhere / "p1.csv")
    (tmp_path / "link").symlink_to(folder)
    for name in ("_SUCCESS", ".p0.csv.crc", "p0.csv.crc", "_old/p.csv", ".old/p.csv"):
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_bytes(b"x")
    # A column may begin with _, as Spark has it.
    (folder / "_day=2").mkdir()
    (folder / "_day=2" / "p2.csv").write_bytes(HEAD + b"w,c,7,tv\n")
    with pytest.raises(ValueError, match=r"p2.csv has .*'_day'.*items=FILE"):
        tables.read_tables(folder)
    shutil.rmtree(folder / "_day=2")
    for path in (folder, tmp_path / "link"):
        assert tables.read_tables(path).interactions["user_id"].tolist() == ["u", "v"]


def test_no_table_of_a_folder_is_passed_over(tmp_path):
    """Items in a file of another kind are not known by their ids alone."""
    (tmp_path / "interactions.csv").write_bytes(HEAD + b"u,a,5,tv\n")
    for name in ("items.json", "users.xlsx", "items.CSV.zip", "users"):
        (tmp_path / name).write_bytes(b"x")
        with pytest.raises(ValueError, match=f"{tmp_path / name} is no .*Convert it"):
            tables.read_tables(tmp_path)
        (tmp_path / name).unlink()
    # Beside the table they may be copies of it.
    (tmp_path / "items.csv").write_text("item_id,title\na,Alien\n")
    (tmp_path / "items.csv.bak").write_text("item_id,title\na,Aliens\n")
    (tmp_path / "items_old.json").write_text("[]")
    assert tables.read_tables(tmp_path).items["title"].tolist() == ["Alien"]


def test_parts_may_lack_values_of_a_column(tmp_path):
    """A part in which a column is all missing has it in another type."""
    pq.write_table(plays(rating=pa.nulls(2), device=pa.nulls(2)), tmp_path / "part-0.parquet")
    pq.write_table(
        plays(rating=pa.array([3, None]), device=pa.array([b"tv", None])),
        tmp_path / "part-1.parquet",
    )
    found = tables.read_tables(tmp_path).interactions
    np.testing.assert_array_equal(found["rating"], [NAN, NAN, 3, NAN])
    assert found["device"].tolist() == ["", "", "tv", ""]
