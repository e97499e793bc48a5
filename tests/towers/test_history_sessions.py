"""Sessions: an encoder that reads one event more gives the vector of the whole history.

The SavedModels of encoders whose parts another one has too are slow.
"""

import itertools

import numpy as np
import pytest
from small_histories import ENCODERS, NAN, answers, encoder, raw

from twotower.bundle.saved_models import save_tower
from twotower.tf import tf
from twotower.towers.dense import DenseHead, Tower


@pytest.mark.parametrize("name", ENCODERS)
def test_a_session_is_the_whole_history_encoded(name):
    feature, rng = encoder(name), np.random.default_rng(1)
    rows = [rng.integers(0, 12, 12).tolist(), rng.integers(0, 12, 12).tolist()]
    # One session begins with nothing, and the other, in the same batch, with three events.
    begun = [rows[0][:0], rows[1][:3]]
    state, vector = feature.begin(feature.encode(raw(begun, request=7)))
    np.testing.assert_allclose(vector, answers(feature, begun, request=7), atol=1e-4)
    for number in range(9):
        sofar = [rows[0][: number + 1], rows[1][: number + 4]]
        whole, request = raw(sofar, request=10_000 + number), 10_000 + number
        last = {
            key: tf.stack([whole[key][0, number], whole[key][1, number + 3]])
            for key in ("past", "past_time", "past_rating")
        }
        event = feature.encode(last | {"time": whole["time"]})
        state, vector = feature.step(state, event)
        np.testing.assert_allclose(vector, answers(feature, sofar, request=request), atol=1e-4)
    if "reread" in state:
        # A window of 6 is full after 6 events and then lets go of 2 at a time: read anew at events
        # 7, 9, ... of 9 and of 12, the first three of which came before.
        assert state["reread"].numpy().tolist() == [2, 3]


# Encoder and part of a state -> numbers that no session of two events has, at the last place.
IMPOSSIBLE = {
    ("mean", "num"): [-1.0, 0.5, 2.5, 1e38, NAN],
    ("mean, ratings", "num_rated"): [-1.0, 0.5, 3.0, 1e38],
    # g ** 0 + g ** 1 is between 1 and 2.
    ("recency", "weight"): [-1.0, 0.5, 2.1, 1e38, NAN],
    # Behind the length, too, since the encoder looks the vectors of the whole window up.
    ("attention", "items"): [-1, 14, 10**6],
}


@pytest.mark.parametrize(("name", "part"), IMPOSSIBLE)
def test_a_state_that_no_session_has_is_not_right(name, part):
    feature = encoder(name)
    state, _ = feature.begin(feature.encode(raw([[3, 1, 99], [2, 5]])))
    for number in IMPOSSIBLE[name, part]:
        values = state[part].numpy()
        values.reshape(2, -1)[1, -1] = number
        right = feature.check(state | {part: values})
        assert right.pop(part).numpy().tolist() == [True, False], number
        assert all(rows.numpy().all() for rows in right.values())


@pytest.mark.parametrize("name", ENCODERS)
def test_every_state_of_a_session_is_right(name):
    feature = encoder(name)
    state, _ = feature.begin(feature.encode(raw([[3, 1, 99], [], [4] * 7])))
    for number in range(20):
        for part, rows in feature.check(state).items():
            assert rows.numpy().all(), (part, number)
        event = feature.encode(raw([[number % 12], [5 if number % 3 else 99], [1]]))
        event = {key: v[:, 0] if v.shape.rank == 2 else v for key, v in event.items()}
        state, _ = feature.step(state, event)


def test_only_full_windows_are_read_anew(monkeypatch):
    feature = encoder("transformer")
    state, _ = feature.begin(feature.encode(raw([[3, 1], [3, 1, 4, 1, 5, 9], [2]])))
    read, reading = [], feature._read

    def counted(state, request):
        read.append(state["length"].numpy().tolist())
        return reading(state, request)

    monkeypatch.setattr(feature, "_read", counted)
    event = feature.encode({"past": tf.constant(["i7"] * 3)})
    state, vector = feature.step(state, event)
    assert read == [[5]]  # the second's, less two events and with the new one
    rows = [[3, 1, 7], [4, 1, 5, 9, 7], [2, 7]]
    np.testing.assert_allclose(vector, answers(feature, rows), atol=1e-5)
    assert state["reread"].numpy().tolist() == [0, 1, 0]


QUICK = ("mean, ratings", "gru, all inputs", "transformer, all inputs", "hstu")


@pytest.mark.parametrize(
    "name",
    [pytest.param(n, marks=[] if n in QUICK else [pytest.mark.slow]) for n in ENCODERS],
)
def test_sessions_in_a_saved_model(name, tmp_path):
    feature = encoder(name)
    tower = Tower([feature], DenseHead((), 4), name="query_tower")
    names = [spec.name for spec in tower.inputs]
    inputs = {key: value for key, value in raw([[1, 2], [3]]).items() if key in names}
    tower.embed(inputs)
    save_tower(tower, tmp_path / "tower", model_version="a")
    signatures = tf.saved_model.load(str(tmp_path / "tower")).signatures
    answer = signatures["begin"](**inputs)
    np.testing.assert_allclose(answer["embedding"], tower.embed(inputs), atol=1e-5)
    longer = raw([[1, 2], [3]])
    for number in itertools.count(3):
        rows = [[1, 2] + [5] * (number - 2), [3] + [5] * (number - 2)]
        longer = {key: value for key, value in raw(rows).items() if key in names}
        event = {
            key: value if key == "time" else tf.stack([value[0, number - 1], value[1, number - 2]])
            for key, value in longer.items()
        }
        state = {key: value for key, value in answer.items() if key != "embedding"}
        answer = signatures["step"](**state, **event)
        np.testing.assert_allclose(answer["embedding"], tower.embed(longer), atol=1e-4)
        if number == 9:
            break
    other = state | {"state_version": state["state_version"] + 1}
    with pytest.raises(tf.errors.InvalidArgumentError, match="of another training"):
        signatures["step"](**other, **event)
