"""Words of texts in many scripts, and what a feature makes of them."""

import unicodedata

import pytest
from numbered_tables import numbered, run, strings

from twotower.data.words import HAN, HIRAGANA, KATAKANA, words_in
from twotower.tf import tf
from twotower.towers import words
from twotower.towers.features import Tokens

# All characters that have a meaning in Python's version of Unicode.
KNOWN = [chr(n) for n in range(1, 0x110000) if unicodedata.category(chr(n)) not in "Cn Cs Co"]


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
    assert words_in(text) == expected


def test_training_and_a_request_find_the_same_words():
    feature = Tokens.fit("title", ["Cafe\u0301 d’Or", "हिन्दी"], dim=2)
    assert feature.vocabulary == ("café", "dor", "हिन्दी")
    found = feature.encode({"title": strings("CAFÉ D'OR", "हिन्दी")})["title"]
    assert found.numpy().tolist() == [[2, 3], [4, 0]]


def test_the_search_and_the_towers_split_at_the_same_characters():
    """Each character between two letters and by itself; of Han and the rare ones every fifth."""
    texts = [f"q{character}x {character}" for character in KNOWN]
    texts = [text.lower() for text in [*texts[:20_000], *texts[20_000::5]]]
    found = [[word.decode() for word in row] for row in words.words(strings(*texts)).to_list()]
    differ = [text for text, row in zip(texts, found) if words_in(text) != row]
    assert not differ and len(found) > 40_000


def test_the_scripts_are_those_of_unicode():
    for name, ranges in (("Han", HAN), ("Hiragana", HIRAGANA), ("Katakana", KATAKANA)):
        listed = tf.strings.regex_full_match(KNOWN, f"[{ranges}]").numpy()
        assert listed.any()
        assert (listed == tf.strings.regex_full_match(KNOWN, rf"\p{{{name}}}").numpy()).all()


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
