"""What a word is, in any script. The towers and the search split their texts by this rule.

The rule is a list of replacements, after which a text is split at its spaces. TensorFlow runs them
in the graph (`towers/words.py`), and Python runs them here, for those who must not import it. No
rule of this kind finds words in a script that puts nothing between them: Thai, Lao, Khmer and
Burmese are split only where their writer left a space.
"""

import functools
import itertools
import re
import unicodedata

# Ranges of characters, for use within brackets, as TensorFlow's regular expressions write them.
# Typed, curly, wide, prime and turned apostrophes, and those that Unicode counts as letters.
APOSTROPHES = (
    r"'`\x{B4}\x{2B9}-\x{2BD}\x{2018}\x{2019}\x{201B}\x{2032}\x{55A}\x{5F3}\x{A78C}\x{FF07}"
)
# Joiners, direction marks, variants of a glyph and skin tones: none of them changes the word.
INVISIBLE = r"\p{Cf}\x{FE00}-\x{FE0F}\x{E0100}-\x{E01EF}\x{1F3FB}-\x{1F3FF}"
PICTURES = r"\x{2600}-\x{27BF}\x{1F000}-\x{1FAFF}"
LETTERS = r"\p{L}\p{M}\p{N}"
# Python knows no scripts, so they are listed.
HAN = (
    r"\x{2E80}-\x{2FD5}\x{3005}\x{3007}\x{3021}-\x{3029}\x{3038}-\x{303B}\x{3400}-\x{4DBF}"
    r"\x{4E00}-\x{9FFF}\x{F900}-\x{FAD9}\x{16FE2}\x{16FE3}\x{16FF0}\x{16FF1}\x{20000}-\x{323AF}"
)
HIRAGANA = (
    r"\x{3041}-\x{3096}\x{309D}-\x{309F}\x{1B001}-\x{1B11F}\x{1B132}\x{1B150}-\x{1B152}\x{1F200}"
)
KATAKANA = (
    r"\x{30A1}-\x{30FA}\x{30FD}-\x{30FF}\x{31F0}-\x{31FF}\x{32D0}-\x{32FE}\x{3300}-\x{3357}"
    r"\x{FF66}-\x{FF6F}\x{FF71}-\x{FF9D}\x{1AFF0}-\x{1AFFE}\x{1B000}\x{1B120}-\x{1B122}\x{1B155}"
    r"\x{1B164}-\x{1B167}"
)
FLAG = r"[\x{1F1E6}-\x{1F1FF}]{2}"
KANA = "|".join(rf"[{kana}][{kana}\x{{30FC}}]*" for kana in (HIRAGANA, KATAKANA))
ALONE = rf"({FLAG}|[{PICTURES}]|[{HAN}]|{KANA})"
# (pattern, replacement), in this order, of a text in lower case and in its composed form (NFC).
REPLACEMENTS = (
    (r"\x{200B}", " "),  # a space of no width: invisible, but it separates
    (f"[{APOSTROPHES}{INVISIBLE}]", ""),
    (ALONE, r" \1 "),
    (rf"(^|[^{LETTERS}])[\p{{M}}]+", r"\1"),  # marks without a letter
    (f"[^{LETTERS}{PICTURES}]+", " "),
)


def words_in(text: str) -> list[str]:
    """The words of a text.

    The text is lowercased and brought to its composed form. A word is a run of letters and digits
    with their marks (vowel signs, accents). Apostrophes of all kinds and invisible characters are
    dropped; all other characters separate words. Each Han character, run of one kana and emoji is a
    word of its own, whatever stands beside it.

    >>> words_in("Schindler’s List: café")
    ['schindlers', 'list', 'café']
    """
    text = unicodedata.normalize("NFC", text.lower())
    for pattern, replacement in _replacements():
        text = pattern.sub(replacement, text)
    return text.split()


@functools.cache
def _replacements() -> list[tuple[re.Pattern[str], str]]:
    """`REPLACEMENTS` in Python's syntax, which has no classes of Unicode."""

    def in_python(pattern: str) -> str:
        pattern = re.sub(r"\\x\{(\w+)\}", lambda code: f"\\U{int(code[1], 16):08x}", pattern)
        return re.sub(r"\\p\{(\w+)\}", lambda name: _classes()[name[1]], pattern)

    return [(re.compile(in_python(pattern)), by) for pattern, by in REPLACEMENTS]


@functools.cache
def _classes() -> dict[str, str]:
    """Class of Unicode -> ranges of its characters, for use within brackets."""
    ranges: dict[str, list[str]] = {}
    start = 0
    for name, run in itertools.groupby(unicodedata.category(chr(code)) for code in range(0x110000)):
        end = start + sum(1 for _ in run)
        for part in (name, name[0]):
            ranges.setdefault(part, []).append(f"\\U{start:08x}-\\U{end - 1:08x}")
        start = end
    return {name: "".join(parts) for name, parts in ranges.items()}
