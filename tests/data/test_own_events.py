"""Events of own data as weights, or as events of this project."""

import pytest
from small_tables import write

from twotower.data import tables

LOG = """user_id,item_id,timestamp,event
u,a,1,view
u,a,2,purchase
u,b,3,view
v,b,4,refund
v,b,5,
"""


def test_event_weights(tmp_path):
    write(tmp_path, log__csv=LOG)
    dataset = tables.read_tables(tmp_path / "log.csv", events="view=1,purchase=5")
    frame = dataset.interactions
    assert list(frame) == ["user_id", "item_id", "timestamp", "weight"]
    assert frame["timestamp"].tolist() == [1, 2, 3]
    assert frame["weight"].tolist() == [1, 5, 1]
    assert dataset.positive.all()
    assert dataset.notes[:2] == (
        "dropped 2 of 5 rows by their event: 'refund' (1), '' (1)",
        "weights: view 1, purchase 5",
    )
    # v had nothing else, so v is not there.
    assert dataset.users["user_id"].tolist() == ["u"]


def test_events_of_this_project(tmp_path):
    write(tmp_path, log__csv=LOG)
    dataset = tables.read_tables(
        tmp_path / "log.csv", events={"view": "impression", "purchase": 1, "refund": 0}
    )
    assert dataset.interactions["event"].tolist() == ["impression", "", "impression"]
    assert dataset.positive.tolist() == [False, True, False]
    assert "weight" not in dataset.interactions


@pytest.mark.parametrize(
    ("events", "message"),
    [
        (None, r"log.csv, line 2: event is 'view', not one of .*events='view=1,purchase=5'"),
        ("view", "'view' is no name=value.*weight"),
        ("view=-1", "event view=-1: no weight and no event"),
        ("view=bought", "event view=bought: no weight and no event"),
        ("buy=1", r"no row has an event of \['buy'\], but 'view' \(2\), "),
    ],
)
def test_refused_events(tmp_path, events, message):
    write(tmp_path, log__csv=LOG)
    with pytest.raises(ValueError, match=message):
        tables.read_tables(tmp_path / "log.csv", events=events)


def test_weights_of_events_and_of_the_file(tmp_path):
    """Neither is dropped in silence; nor is an event that no row has."""
    text = "user_id,item_id,event,weight\nu,a,view,7\nu,b,buy,8\n"
    write(tmp_path, log__csv=text)
    with pytest.raises(ValueError, match=r"events give weights .*the interactions have a column w"):
        tables.read_tables(tmp_path / "log.csv", events="view=1,buy=5")
    dataset = tables.read_tables(tmp_path / "log.csv", events="view=1,buy=1,purhcase=1")
    assert dataset.interactions["weight"].tolist() == [7, 8]
    assert "no row has the event 'purhcase'" in dataset.notes
