"""Text files: records, quotes, encodings and archives that are read or refused with their line."""

import bz2
import gzip

import pytest
from small_tables import HEAD
from table_writers import text
from three_tables import EXPECTED, load_all

from twotower.data import tables, text_files

REFUSED_TEXT = {
    "a field too many": (
        HEAD + b"u,a,5,tv\nu,a,5,tv,x\n",
        "line 3: 5 fields, where the fi.*has 4",
    ),
    "a field too few": (
        HEAD + b"u,a,5,tv\n\nu,a,5\n",
        "line 4: 3 fields, where the fi.*has 4",
    ),
    "every row one more": (HEAD + b"u,a,5,tv,x\n" * 3, "line 2: 5 fields"),
    "behind a text of lines": (HEAD + b'u,a,5,"t\r\nv"\nu,a\n', "line 4: 2 fields"),
    "an open quote": (HEAD + b'u,a,5,"tv\nu,a,5,tv\n', "record after line 1 has a quote that is n"),
    "two open quotes": (
        HEAD + b'u,a,5,"tv\nu,a,5,tv\nu,a,5,"tv\n',
        "record after line 1 has a quote that is n",
    ),
    "backslashes": (
        HEAD + b'u,a,5,"the \\"tv\\""\n',
        r"""record after line 1 .*sed 's/\\\\"/""/g' 'plays.csv' > NEW""",
    ),
    "a quote alone": (HEAD + b'u,a,5,"a" tv\n', r"closed within a field .*written twice \(\"\"\)"),
    "Latin-1": (
        HEAD + b"u,a,5,tv\nu,a,5,\xe9\n",
        "line 3 is not text in UTF-8.*iconv -f CP1252",
    ),
    "UTF-16": (
        (HEAD + b"u,a,5,tv\n").decode().encode("utf-16"),
        "line 1 is not text in UTF-8.*iconv -f UTF-16",
    ),
    "an archive": (
        b"PK\x03\x04\x14\x00\x00\x00\x08\x00\xff",
        "line 1 is not text in UTF-8.*Excel workbook",
    ),
    "JSON lines": (
        b'{"user_id": "u", "item_id": "a"}\n',
        r"read_json\(FILE, lines=True, dtype=False\).*to_parquet",
    ),
    "a JSON array": (
        b'[\n {"user_id": "u", "item_id": "a"}]\n',
        r"holds JSON .*read_json\(FILE, dtype=False\)",
    ),
    "lines of dictionaries": (
        b"{'user_id': 'u', 'item_id': 'a'}\n",
        r"Python's dictionaries.*literal_eval, open\(FILE\)",
    ),
    "nothing": (b"", "it is empty"),
    "nothing but lines": (b"\xef\xbb\xbf\r\n\n", "it is empty"),
    "half an archive": (gzip.compress(HEAD * 99)[:-9], "cannot be unpacked"),
    "two names": (b"user_id,item_id,timestamp,user_id\nu,a,5,v\n", "two columns named 'user_id'"),
    "no header": (
        b"u,a,5,tv\nv,b,6,tv\n",
        r"lacks .*'user_id=1,item_id=2'",
    ),
    "two files in one": (
        b"user_id,item_id\nu,a\nv,b\nuser_id,item_id\nu,b\n",
        "line 4 has the names of the columns again",
    ),
    "two files of Excel's": (
        b"\xef\xbb\xbfuser_id,item_id\nu,a\n\xef\xbb\xbfuser_id,item_id\n\nu,b\n",
        "line 3 has the names of the columns again",
    ),
    "one column of names": (
        b"user_id,item_id\nu,a\nu,item_id\n\\N,b\n",
        "line 4: user_id is missi",
    ),
    "a gap": (HEAD + b"u,a,5,tv\n\\N,a,5,tv\n", "line 3: user_id is missing"),
    "the moment of loading": (
        HEAD + b"u,a,2011-08-20,tv\nu,a,now,tv\n",
        "line 3: .*is 'now', not w",
    ),
    "today alone": (HEAD + b"u,a,today,tv\n", "line 2: timestamp is 'today', not whole seconds"),
    "a far date": (HEAD + b"u,a,9999-12-31,tv\n", "line 2: timestamp is .*year 5138"),
    "a late value": (HEAD + b'u,a,5,"x\ny"\n\nu,a,soon,tv\n', "line 5: timestamp is 'soon'"),
}


@pytest.mark.parametrize("case", REFUSED_TEXT)
def test_refused_text(case, tmp_path):
    data, message = REFUSED_TEXT[case]
    (tmp_path / "plays.csv").write_bytes(data)
    with pytest.raises(ValueError, match=f"plays.csv.*{message}"):
        tables.read_tables(tmp_path / "plays.csv")


def titles_of(folder, text):
    """The titles of two films in a tab-separated file, and the error of a film's row, if any."""
    (folder / "plays.csv").write_text("user_id,item_id,timestamp\nu,a,5\nu,b,6\n")
    (folder / "films.tsv").write_text(text)
    return tables.read_tables(folder / "plays.csv", folder / "films.tsv").items["title"].tolist()


def test_quotes_between_tabs_are_text_where_they_enclose_no_field(tmp_path):
    # Both titles begin with a quote. The first has a second one in the middle, the other has none.
    assert titles_of(tmp_path, 'item_id\ttitle\na\t"Weird Al" Live\nb\t"Heroes\n') == [
        '"Weird Al" Live',
        '"Heroes',
    ]
    # Read with quotes, this is one film with a title of two lines.
    inches = 'item_id\ttitle\na\t"Heroes\nb\tSingle 7"\n'
    assert titles_of(tmp_path, inches) == ['"Heroes', 'Single 7"']
    # A line of an error is counted in the same way.
    with pytest.raises(ValueError, match=r"films.tsv, line 4: item_id is missing"):
        titles_of(tmp_path, inches + "\t\n")


def test_quotes_between_tabs_enclose_fields_where_they_can(tmp_path):
    # As pandas writes a title with quotes, and one of two lines.
    whole = 'item_id\ttitle\na\t"The ""Best"""\nb\t"Two\nlines"\n'
    assert titles_of(tmp_path, whole) == ['The "Best"', "Two\nlines"]
    # Beside a line with a field too many, a quote that is not closed is an error.
    with pytest.raises(ValueError, match="record after line 1 has a quote that is not closed"):
        titles_of(tmp_path, 'item_id\ttitle\na\t"Heroes\nb\tB\tx\n')


@pytest.mark.parametrize("module", [gzip, bz2])
def test_a_file_of_several_streams(module, tmp_path):
    """As Hadoop, pbzip2 and `cat` write them: each is read, or the file is refused."""
    path = tmp_path / "plays.csv"
    first, second = module.compress(HEAD + b"u,a,5,tv\n"), module.compress(b"v,b,6,tv\n" * 99)
    path.write_bytes(first + second)
    assert len(tables.read_tables(path).interactions) == 100
    middle = bytearray(second)
    middle[20] ^= 1
    for damaged in (middle, second[:-5], second[:3], second + b"left over", b"v,b,6,tv\n"):
        path.write_bytes(first + damaged)
        with pytest.raises(ValueError, match=r"plays.csv cannot be unpacked"):
            tables.read_tables(path)


def test_a_file_longer_than_arrow_parses_at_once(tmp_path, monkeypatch):
    """Blocks end inside records, and inside a text of several lines."""
    text()(tmp_path)
    monkeypatch.setattr(text_files, "BLOCK_SIZE", 130)
    assert load_all(tmp_path).fingerprint() == EXPECTED.fingerprint()


def test_a_header_alone_is_a_table_without_rows(tmp_path):
    for data in (HEAD, HEAD[:-1]):
        (tmp_path / "plays.csv").write_bytes(data)
        assert len(tables.read_tables(tmp_path / "plays.csv").interactions) == 0


def test_texts_of_any_length(tmp_path):
    """Those between quotes, too, which Python reads with a limit of 131,072 characters."""
    (tmp_path / "plays.csv").write_text("user_id,item_id,timestamp\nu,a,5\n")
    (tmp_path / "films.csv").write_text('item_id,title\na,"' + 200_000 * "x" + '"\nb\n')
    with pytest.raises(ValueError, match=r"films.csv, line 3: 1 fields, where"):
        tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.csv")
    (tmp_path / "films.csv").write_text('item_id,title\na,"' + 200_000 * "x" + '"\n')
    dataset = tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.csv")
    assert len(dataset.items["title"][0]) == 200_000
    (tmp_path / "films.csv").write_text("item_id,title\na," + 200_000 * "x" + ",\n")
    with pytest.raises(ValueError, match=r"films.csv, line 2: 3 fields, where") as error:
        tables.read_tables(tmp_path / "plays.csv", tmp_path / "films.csv")
    assert len(str(error.value)) < 500
