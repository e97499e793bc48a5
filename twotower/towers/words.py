"""Words of a text in any script, split in the graph, so alike in training and in a SavedModel.

`data/words.py` has the rule. TensorFlow's regular expressions know the classes of Unicode but not
its normal forms; this file adds the composed form (NFC).
"""

import functools
import unicodedata

import numpy as np

from twotower.data.words import REPLACEMENTS
from twotower.tf import tf

CODES = 0x110000  # number of code points in Unicode


def words(text: tf.Tensor) -> tf.RaggedTensor:
    """The words of each text: `[batch_size]` strings to `[batch_size, (n)]`.

    They are those that `twotower.data.words.words_in` finds.

    >>> [word.decode() for word in words(tf.constant(["Schindler’s List: café"]))[0].numpy()]
    ['schindlers', 'list', 'café']
    """
    text = composed(tf.strings.lower(text, encoding="utf-8"))
    for pattern, replacement in REPLACEMENTS:
        text = tf.strings.regex_replace(text, pattern, replacement)
    return tf.strings.split(text)


def composed(text: tf.Tensor) -> tf.Tensor:
    """The texts `[batch_size]`, in which a letter and its accents are one character if one exists.

    This is Unicode's normal form C, except that marks which no character includes keep their order.
    """
    pairs, wholes, others, forms = (tf.constant(table) for table in _tables())
    points = tf.strings.unicode_decode(text, "UTF-8")
    row, point = points.value_rowids(), points.values  # [num_points]
    # Characters whose normal form is another character, or two or three.
    found = tf.minimum(tf.searchsorted(others, point), tf.size(others) - 1)
    alone = tf.pad(point[:, None], [[0, 0], [0, forms.shape[1] - 1]])
    form = tf.where((tf.gather(others, found) == point)[:, None], tf.gather(forms, found), alone)
    is_there = form > 0
    is_there |= tf.one_hot(0, forms.shape[1], True, False)  # also a character whose code is 0
    row = tf.boolean_mask(tf.repeat(row[:, None], forms.shape[1], 1), is_there)
    point = tf.boolean_mask(form, is_there)
    for _ in range(3):  # a letter has three marks at most
        pair = tf.cast(point[:-1], tf.int64) * CODES + tf.cast(point[1:], tf.int64)
        found = tf.minimum(tf.searchsorted(pairs, pair), tf.size(pairs) - 1)
        is_pair = (tf.gather(pairs, found) == pair) & (row[:-1] == row[1:])
        whole = tf.where(is_pair, tf.gather(wholes, found), point[:-1])
        point = tf.concat([whole, point[tf.size(whole) :]], 0)
        stays = tf.concat([tf.ones_like(row[:1], tf.bool), ~is_pair], 0)
        row, point = tf.boolean_mask(row, stays), tf.boolean_mask(point, stays)
    points = tf.RaggedTensor.from_value_rowids(point, row, points.nrows())
    return tf.strings.unicode_encode(points, "UTF-8")


@functools.cache
def _tables() -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """(pairs of characters, ascending, each as one number; the character that each pair makes;
    characters that no normal form has, ascending; their normal forms, padded with 0)."""
    pairs, forms = {}, {}
    for code in range(0x30000):  # no later character can be decomposed
        character = chr(code)
        parts = unicodedata.normalize("NFD", character)
        if parts == character:
            continue
        normal = unicodedata.normalize("NFC", character)
        if normal != character:
            forms[code] = [ord(part) for part in normal]
            continue
        # With each mark as the last one: marks above and below a letter may come in any order.
        for last in range(1, len(parts)):
            first = unicodedata.normalize("NFC", parts[:last] + parts[last + 1 :])
            if len(first) == 1 and unicodedata.normalize("NFC", first + parts[last]) == character:
                pairs[ord(first) * CODES + ord(parts[last])] = code
    width = max(map(len, forms.values()))
    padded = [form + [0] * (width - len(form)) for form in forms.values()]
    ascending = sorted(pairs)
    return (
        np.array(ascending, np.int64),
        np.array([pairs[pair] for pair in ascending], np.int32),
        np.array([*forms], np.int32),
        np.array(padded, np.int32),
    )
