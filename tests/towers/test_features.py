"""Features and histories: each layer on a table of vectors small enough to work by hand."""

import unicodedata

import numpy as np
import pytest

from twotower.tf import tf
from twotower.towers import words
from twotower.towers.features import Id, Tags, Tokens
from twotower.towers.history import bag as history
from twotower.towers.history.bag import History, MeanHistory
from twotower.towers.history.config import (
    AttentionConfig,
    GRUConfig,
    HSTUConfig,
    MeanConfig,
    RecencyConfig,
    TransformerConfig,
)
from twotower.towers.numbers import Clock, Number, Vector
from twotower.towers.query import HISTORIES

NAN = float("nan")
# Ten times the row number, then the number itself: row 3 of a table is [30, 3].
ROWS = np.stack([10.0 * np.arange(30), np.arange(30.0)], 1).astype(np.float32)


def strings(*values):
    return tf.constant(values, tf.string)


def floats(*values):
    return tf.constant(values, tf.float32)


def times(*values):
    return tf.constant(values, tf.int64)


def numbered(table):
    """Sets row `n` of an embedding of size 2 to [10 n, n]."""
    if not table.built:
        table.build(None)
    table.embeddings.assign(ROWS[: table.input_dim])


def run(feature, training=False, **raw):
    return feature(feature.encode(raw), training=training).numpy()


def test_unknown_and_missing_ids_share_row_zero():
    feature = Id.fit("user", ["b", "a", "", "b"], dim=2)
    numbered(feature.table)
    # Sorted vocabulary a, b: rows 1 and 2.
    assert feature.vocabulary == ("a", "b")
    found = run(feature, user=strings("b", "a", "nobody", ""))
    assert found.tolist() == [[20, 2], [10, 1], [0, 0], [0, 0]]


def test_an_id_without_vocabulary_knows_nobody():
    feature = Id("user", [], dim=2)
    numbered(feature.table)
    assert run(feature, user=strings("a", "")).tolist() == [[0, 0], [0, 0]]


def test_unknown_rate_hides_ids_in_training_only():
    tf.random.set_seed(1)
    feature = Id("user", ["a"], dim=2, unknown_rate=0.3)
    numbered(feature.table)
    users = tf.repeat(strings("a"), 4000)
    hidden = (run(feature, training=True, user=users)[:, 1] == 0).mean()
    # 4,000 draws at .3: standard error .0072, four of them .029.
    assert abs(hidden - 0.3) < 0.029
    assert (run(feature, user=users) == [10, 1]).all()
    never = Id("user", ["a"], dim=2)
    numbered(never.table)
    assert (run(never, training=True, user=users) == [10, 1]).all()
    for rate in (1.0, -0.1):
        with pytest.raises(ValueError, match=r"user: unknown_rate must be in \[0, 1\)"):
            Id("user", ["a"], unknown_rate=rate)


def test_tags_are_averaged():
    feature = Tags.fit("genres", [("drama", "war"), ("war",), ()], dim=2)
    numbered(feature.table)
    # Padding 0, unknown 1, drama 2, war 3.
    genres = strings(["drama", "war", ""], ["war", "", ""], ["", "", ""], ["noir", "war", ""])
    # (20 + 30) / 2 and (2 + 3) / 2; an empty set is zeros; an unknown tag counts: (10 + 30) / 2.
    expected = [[25, 2.5], [30, 3], [0, 0], [20, 2]]
    assert run(feature, genres=genres).tolist() == expected
    # Nobody has any: no column at all.
    assert run(feature, genres=tf.zeros([2, 0], tf.string)).tolist() == [[0, 0], [0, 0]]


def test_rare_tags_are_left_out():
    # war stands in two sets; drama twice in one, which counts once.
    values = [("drama", "drama", "war"), ("war",)]
    assert Tags.fit("genres", values, min_count=2).vocabulary == ("war",)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("Toy's Story: II", ["toys", "story", "ii"]),
        ("  Se7en --  (1995) ", ["se7en", "1995"]),
        ("Café MÜLLER", ["café", "müller"]),
        # Every apostrophe is one: typed, curly, letter, prime, turned, wide.
        *((f"Schindler{mark}s List", ["schindlers", "list"]) for mark in "'’ʼʹ‘＇"),
        # Marks belong to their letters: vowel signs, vowels of Arabic, accents by themselves.
        ("आधुनिक हिन्दी", ["आधुनिक", "हिन्दी"]),
        ("தமிழ் மொழி", ["தமிழ்", "மொழி"]),
        ("الْعَرَبِيَّة", ["الْعَرَبِيَّة"]),
        ("cafe\u0301 u\u0308ber", ["café", "über"]),
        ("e\u0302\u0301 e\u0323\u0302 e\u0302\u0323", ["ế", "ệ", "ệ"]),  # in either order
        ("\u1112\u1161\u11ab\u1100\u1173\u11af", ["한글"]),
        ("x\u0301", ["x\u0301"]),  # no letter of Unicode has both
        ("\u0301 -\u0301-", []),  # of no letter
        # What is not seen separates nothing, but for the space of no width.
        ("मैं\u200dने soft\u00adly \u200eleft\ufeff", ["मैंने", "softly", "left"]),
        ("ภาษา\u200bไทย", ["ภาษา", "ไทย"]),
        # Without spaces: each Han character, and each run of one kana.
        ("千と千尋", ["千", "と", "千", "尋"]),
        ("アナと雪 スター・ウォーズ3", ["アナ", "と", "雪", "スター", "ウォーズ", "3"]),
        ("電影movie", ["電", "影", "movie"]),
        # Pictures are words, of whatever skin.
        ("Pizza🍕🍕 ❤\ufe0f", ["pizza", "🍕", "🍕", "❤"]),
        ("👍🏽 👍", ["👍", "👍"]),
        ("?!", []),
        ("", []),
    ],
)
def test_words_of_a_text(text, expected):
    found = words.words(strings(text)).to_list()
    assert [[word.decode() for word in row] for row in found] == [expected]


def test_training_and_a_request_find_the_same_words():
    feature = Tokens.fit("title", ["Cafe\u0301 d’Or", "हिन्दी"], dim=2)
    assert feature.vocabulary == ("café", "dor", "हिन्दी")
    found = feature.encode({"title": strings("CAFÉ D'OR", "हिन्दी")})["title"]
    assert found.numpy().tolist() == [[2, 3], [4, 0]]


def test_the_composed_form_is_that_of_unicode():
    """Of each character that has parts, whole and in parts, between two others."""
    parts = {chr(code): unicodedata.normalize("NFD", chr(code)) for code in range(0x30000)}
    texts = [f"q{text}x" for pair in parts.items() if len(set(pair)) > 1 for text in pair]
    texts = [*texts[::7], "", "\0"]
    found = [text.decode() for text in words.composed(strings(*texts)).numpy()]
    assert found == [unicodedata.normalize("NFC", text) for text in texts] and len(found) > 2000


def test_tokens_are_averaged():
    feature = Tokens.fit("title", ["Toy's Story: II", "A story"], dim=2)
    assert feature.vocabulary == ("a", "ii", "story", "toys")
    numbered(feature.table)
    # Rows: a 2, ii 3, story 4, toys 5, unknown 1. (5 + 4 + 3) / 3, (4 + 1) / 2, nothing.
    found = run(feature, title=strings("Toys: Story II", "story untold", "..."))
    assert found.tolist() == [[40, 4], [25, 2.5], [0, 0]]
    assert Tokens.fit("title", ["Toy Story", "A story"], min_count=2).vocabulary == ("story",)


def test_a_long_text_takes_no_memory_for_all_others():
    """Texts are padded to the longest: a million words would be a million columns."""
    texts = ["toy " + 2000 * "story ", "end"]
    feature = Tokens.fit("title", [*texts, 600 * "toy " + "late"], dim=2)
    assert feature.vocabulary == ("end", "story", "toy")  # the 601st word is not read
    encoded = feature.encode({"title": strings(*texts)})["title"]
    assert encoded.shape == (2, 512) and encoded[1].numpy().tolist() == [2] + 511 * [0]


def test_number_is_piecewise_linear():
    # Bins 0-1, 1-3 and 3-7.
    feature = Number("year", [0, 1, 3, 7])
    found = run(feature, year=floats(-5, 0, 0.5, 2, 4, 7, 99, NAN))
    assert found.tolist() == [
        [0, 0, 0, 0],
        [0, 0, 0, 0],
        [0.5, 0, 0, 0],
        [1, 0.5, 0, 0],  # (2 - 1) / 2
        [1, 1, 0.25, 0],  # (4 - 3) / 4
        [1, 1, 1, 0],
        [1, 1, 1, 0],
        [0, 0, 0, 1],  # missing
    ]


def test_quantiles_of_a_number():
    # 0, 2, 4 without NaN: minimum, median, maximum.
    assert Number.fit("year", np.array([4, NAN, 0, 2]), num_bins=2).quantiles == (0, 2, 4)
    # Of 0, 0, 0, 8 minimum and median are equal: one bin is left.
    assert Number.fit("year", np.array([0, 0, 8, 0]), num_bins=2).quantiles == (0, 8)
    with pytest.raises(ValueError, match=r"year: .*\[5\.0\].*Is the column constant"):
        Number.fit("year", np.array([5, 5, 5]))
    with pytest.raises(ValueError, match="year: no value is known"):
        Number.fit("year", np.array([NAN, NAN]))
    with pytest.raises(ValueError, match="two or more quantiles"):
        Number("year", [2, 1])


def codes(values, num_bins=16):
    """What a Number makes of the values that it was fitted on."""
    feature = Number.fit("made", np.asarray(values), num_bins)
    return run(feature, made=tf.constant(np.asarray(values), tf.float32))


def test_quantiles_are_distinct_as_float32():
    # Between 2**30 and 2**31 float32 has every 128th whole number.
    for values in ([1.6e9, 1.6e9 + 1, 1.6e9 + 2], [2**24, 2**24 + 1]):
        with pytest.raises(ValueError, match=r"made: .*float32 cannot tell .* apart.*[Ss]ubtract"):
            codes(values)
        with pytest.raises(ValueError, match=r"made: .*ascending"):
            Number("made", values)
    # Two of the three are one there: a bin is left.
    assert codes([1.6e9, 1.6e9 + 1, 1.6e9 + 128]).tolist() == [[0, 0], [0, 0], [1, 0]]
    # What a processor takes for zero has no code of its own, and no NaN either.
    assert np.isfinite(codes([0, 1e-44])).all()


@pytest.mark.filterwarnings("ignore:overflow encountered in cast")  # by TensorFlow, to infinity
@pytest.mark.parametrize(
    ("values", "expected"),
    [
        # Infinite, in float32 or at all: past the last quantile, or before the first.
        ([0, 1, np.inf, -np.inf], [0, 1, 1, 0]),
        ([0, 1, 1e300, -1e300], [0, 1, 1, 0]),
        # A difference that float32 has no number for: too large, too small.
        ([-3e38, 0, 3e38], [0, 0.5, 1]),
        ([0, 1e-30], [0, 1]),
        ([True, False], [1, 0]),
        (np.array([2**63, 0], np.uint64), [1, 0]),
    ],
)
def test_numbers_at_the_ends_of_what_there_is(values, expected):
    found = codes(values, num_bins=1)
    assert np.allclose(found[:, 0], expected) and (found[:, 1] == 0).all()


def test_clock():
    feature = Clock("time", dim=2)
    numbered(feature.hour)
    numbered(feature.weekday)
    # 2001-09-09 01:46:40 UTC was a Sunday (6 from Monday); 1970-01-01 00:00 a Thursday (3), four
    # days later minus a second is Sunday 23:59:59 and then it is Monday. Not told: 24 and 7.
    found = run(feature, time=times(1_000_000_000, 0, 345_599, 345_600, -1))
    assert found[:, [1, 3]].tolist() == [[1, 6], [0, 3], [23, 6], [0, 0], [24, 7]]


def test_vector_with_nan_is_zeros_and_a_flag():
    found = run(Vector("sound", 2), sound=floats([1, -2], [3, NAN], [0, np.inf]))
    assert found.tolist() == [[1, -2, 0], [0, 0, 1], [0, 0, 1]]
    for values in ([[1.0, 2.0], [3.0]], [["a"]], [[]], [1.0, 2.0]):
        with pytest.raises(ValueError, match=r"sound: .* of one length"):
            Vector.fit("sound", values)
    with pytest.raises(ValueError, match="sound: no value is known"):
        Vector.fit("sound", [[NAN, 1.0]])


def test_what_no_training_value_lacked_reads_as_usual_where_it_is_missing():
    # The flag of a missing value has a weight, which only missing values of training can move.
    for values, missing in (([4, 0, 1], [1, 0, 0]), ([4, 0, 1, NAN], [0, 0, 1])):
        feature = Number.fit("year", np.array(values), num_bins=2)
        assert run(feature, year=floats(1.75, NAN)).tolist() == [[1, 0.25, 0], missing]
    # The median 1 above; of vectors the mean.
    for values, missing in (
        ([[1, 2], [3, 6]], [2, 4, 0]),
        ([[1, 2], [NAN, 6]], [0, 0, 1]),
    ):
        feature = Vector.fit("sound", np.float32(values))
        assert run(feature, sound=floats([5, 5], [NAN, NAN])).tolist() == [[5, 5, 0], missing]


@pytest.mark.parametrize(
    ("feature", "raw"),
    [
        (Id("user", ["a"], dim=3), {"user": strings("?", "")}),
        (Tags("genres", ["war"], dim=3), {"genres": strings(["?"], [""])}),
        (Tokens("title", ["moon"], dim=3), {"title": strings("?", "gone")}),
        (Clock("time", 3), {"time": times(-1, -1)}),
    ],
)
def test_what_training_never_met_is_nothing_and_not_a_drawn_vector(feature, raw):
    assert (run(feature, **raw) == 0).all()
    assert feature.trainable_weights and all(
        np.abs(weight.numpy()).max() > 0 for weight in feature.trainable_weights
    )


def test_what_training_meets_starts_like_all_else():
    assert run(Id("user", ["a"], dim=3, unknown_rate=0.1), user=strings("?")).all()
    for count, expected in ((1, False), (2, True)):
        feature = Tags.fit("genres", [("war", "noir"), ("war", "")], min_count=count, dim=3)
        assert feature.has_rare == expected
        assert run(feature, genres=strings(["?"])).all() == expected


GENRES = strings(["war", "", "drama"])
PAST = {
    "past": strings(["a", "b", "?", ""]),
    "past_time": times([10, 20, 30, -1]),
    "past_rating": floats([1, 2, 3, NAN]),
}
CONFIGS = [
    (Id("user", ["a", "b"], dim=3, unknown_rate=0.25), {"user": strings("b", "?")}),
    (Tags("genres", ["drama", "war"], dim=3), {"genres": GENRES}),
    (Tokens("title", ["moon", "tin"], dim=3), {"title": strings("Tin, moon? No.")}),
    (Number("year", [1900, 1950, 2000]), {"year": floats(1960, NAN)}),
    (Clock("time", 3), {"time": times(5, -1)}),
    (Vector("sound", 2), {"sound": floats([1, 2])}),
    (MeanHistory("past", ["a", "b"], MeanConfig(3, dropout=0.5, power=0.75, ratings=True)), PAST),
]


@pytest.mark.parametrize("feature, raw", CONFIGS, ids=lambda value: type(value).__name__)
def test_a_config_makes_the_same_feature(feature, raw):
    again = type(feature).from_config(feature.get_config())
    assert again.get_config() == feature.get_config() and again.inputs == feature.inputs
    one, two = feature.encode(raw), again.encode(raw)
    assert one.keys() == two.keys() == {spec.name for spec in feature.inputs}
    for name in one:
        np.testing.assert_array_equal(one[name], two[name])
    assert feature(one).shape == again(two).shape


@pytest.mark.parametrize("feature, raw", CONFIGS, ids=lambda value: type(value).__name__)
def test_what_is_encoded_passes_through(feature, raw):
    once = feature.encode(raw)
    assert all(values.dtype != tf.string for values in once.values())
    twice = feature.encode(once)
    for name in once:
        np.testing.assert_array_equal(once[name], twice[name])


ORDERED = {"length": 4, "stride": 2, "ratings": True}
WITHOUT_HISTORY = [feature for feature, _ in CONFIGS[:-1]]
ENCODERS = [
    HISTORIES[config.encoder]("past", ["a", "b"], config)
    for config in (
        MeanConfig(4, ratings=True),
        RecencyConfig(4),
        AttentionConfig(4),
        GRUConfig(4, gaps=True, **ORDERED),
        TransformerConfig(4, gaps=True, **ORDERED),
        HSTUConfig(4, request_time=True, **ORDERED),
    )
]


@pytest.mark.parametrize(
    "feature", [*WITHOUT_HISTORY, *ENCODERS], ids=lambda value: type(value).__name__
)
def test_a_missing_value_has_one_code_in_training_and_in_a_signature(feature):
    """As the manifest says that it is written; of a history also inside it."""
    shapes = {spec.name: [2, *(size or 3 for size in spec.shape)] for spec in feature.inputs}
    raw = {spec.name: np.full(shapes[spec.name], spec.missing) for spec in feature.inputs}
    if isinstance(feature, History):
        raw["past"] = np.array([["a", "b", ""], ["", "", ""]])  # times and ratings are missing
    raw = {spec.name: tf.constant(raw[spec.name], spec.dtype) for spec in feature.inputs}
    wanted = run(feature, **raw)
    assert np.isfinite(wanted).all()
    signature = tf.function(lambda **raw: feature(feature.encode(raw))).get_concrete_function(
        **{spec.name: spec.spec for spec in feature.inputs}
    )
    # Two programs of the same numbers: the order of their sums differs with the threads.
    np.testing.assert_allclose(signature(**raw), wanted, atol=1e-5)
    # Tables of numpy hold integers and floats of 64 bits.
    wide = {
        name: values.numpy().astype("f8" if values.dtype.is_floating else "i8")
        for name, values in raw.items()
        if values.dtype != tf.string
    }
    np.testing.assert_allclose(run(feature, **raw | wide), wanted, atol=1e-6)


def mean_history(**options):
    """Over items a, b, c, which are rows 2, 3, 4; 0 is padding, 1 unknown."""
    config = MeanConfig(dim=2, **{"dropout": 0.0, **options})
    feature = MeanHistory("past", ["a", "b", "c"], config)
    numbered(feature.table)
    if config.ratings:
        numbered(feature.rating_table)
    return feature


# a, b and c | b, an unknown item and b again | nothing | only an unknown item.
EVENTS = strings(["a", "b", "c"], ["b", "?", "b"], ["", "", ""], ["?", "", ""])


@pytest.mark.parametrize("training", [False, True])
def test_mean_history_by_hand(training):
    # Sums [90, 9] of three, [60, 6] of two known ones, nothing, nothing.
    mean = run(mean_history(power=1.0), training, past=EVENTS)
    np.testing.assert_allclose(mean, [[30, 3], [30, 3], [0, 0], [0, 0]], rtol=1e-6)
    root = run(mean_history(power=0.5), training, past=EVENTS)
    expected = [[90 / 3**0.5, 9 / 3**0.5], [60 / 2**0.5, 6 / 2**0.5], [0, 0], [0, 0]]
    np.testing.assert_allclose(root, expected, rtol=1e-6)


@pytest.mark.parametrize("training", [False, True])
def test_ratings_bag_by_hand(training):
    # First: mean (5 + 1) / 2 = 3, c has no rating: 2 a - 2 b = [-20, -2]; of three events, power
    # 1: a third. Second: the unknown item's rating does not count, both b's are at the mean 4.
    ratings = floats([5, 1, NAN], [4, 1, 4], [NAN, NAN, NAN], [5, NAN, NAN])
    feature = mean_history(power=1.0, ratings=True)
    found = run(feature, training, past=EVENTS, past_rating=ratings)
    np.testing.assert_allclose(found[:, :2], [[30, 3], [30, 3], [0, 0], [0, 0]], rtol=1e-6)
    expected = [[-20 / 3, -2 / 3], [0, 0], [0, 0], [0, 0]]
    np.testing.assert_allclose(found[:, 2:], expected, rtol=1e-6)


@pytest.mark.parametrize("num_cases, length", [(1, 1), (1, 3), (40, 30)])
@pytest.mark.parametrize("training", [False, True])
def test_both_ways_to_a_bag_are_equal(monkeypatch, num_cases, length, training):
    rng = np.random.default_rng(0)
    vocabulary = [f"i{item}" for item in range(20)]
    ids = np.array(["", "?", *vocabulary], object)[rng.integers(0, 22, (num_cases, length))]
    raw = {
        "past": tf.constant(ids, tf.string),
        "past_rating": floats(*rng.integers(1, 6, (num_cases, length)).tolist()),
    }
    feature = MeanHistory("past", vocabulary, MeanConfig(dim=4, dropout=0.0, ratings=True))
    counted = run(feature, training, **raw)
    monkeypatch.setattr(history, "COUNT_MATRIX_LIMIT", 0)
    gathered = run(feature, training, **raw)
    # Outside training fewer than 11 events are gathered in either case: half of the 22 rows.
    np.testing.assert_allclose(counted, gathered, atol=1e-5)
    assert counted.shape == (num_cases, 8)


def test_both_ways_have_the_same_gradient(monkeypatch):
    feature = mean_history()

    def gradient():
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(feature(feature.encode({"past": EVENTS}), training=True) ** 2)
        return tf.convert_to_tensor(tape.gradient(loss, feature.table.embeddings)).numpy()

    counted = gradient()
    monkeypatch.setattr(history, "COUNT_MATRIX_LIMIT", 0)
    np.testing.assert_allclose(gradient(), counted, rtol=1e-5)
    # Rows of padding and of unknown items never learn.
    assert (counted[:2] == 0).all() and (counted[2:] != 0).all()


def test_history_dropout_thins_training_only():
    tf.random.set_seed(2)
    feature = mean_history(power=0.0, dropout=0.4)
    events = tf.repeat(strings(["a"]), 4000)[None, :]
    # Row a is [20, 2], the sum of all 8000. Of n kept ones it is 2 n / .6, on average the same:
    # standard error of n / 4000 .0077, over .6 and four times .052.
    assert 0.001 < abs(run(feature, training=True, past=events)[0, 1] / 8000 - 1.0) < 0.052
    assert run(feature, past=events)[0, 1] == 8000


def test_nobody_has_a_history():
    # All cases of a batch are new: the padded width is 0.
    assert (run(mean_history(), past=tf.zeros([2, 0], tf.string)) == 0).all()
