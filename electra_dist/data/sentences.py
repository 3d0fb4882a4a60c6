"""Splitting lines into sentences, for any language.

A splitter is a function from a text to the same text with a line end after each sentence, and a
line in `SPLITTERS`. It only adds line ends: nothing is lost, and no line end is taken away.
"""

import re
import sys
from collections.abc import Callable

Splitter = Callable[[str], str]

# Marks after which a sentence ends only where white space follows: Latin, Arabic, Urdu, Armenian,
# Ethiopic, Devanagari, Khmer, Burmese.
_SPACED = "!?…‽؟۔։።।॥។။"
# Marks that end a sentence by themselves: Chinese and Japanese write no spaces.
_CJK = "。！？｡"
_CLOSERS = "\"'”’»›)\\]}」』）】》〉"
# Before a dot these make no end: initials (J. Smith), ordinals and list items (3. Oktober), and
# abbreviations without a vowel (Mr. Dr. Mrs. St. Nr.), which in most languages are no words.
_CONSONANTS = "bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ"
_NO_ABBREVIATION = (
    rf"(?<!\b[^\W\d_])(?<!\b\d)(?<!\b\d\d)(?<!\b[{_CONSONANTS}]{{2}})(?<!\b[{_CONSONANTS}]{{3}})"
)


def _lower_case_letters() -> str:
    """A regular expression's class of all lower-case letters, as ranges."""
    ranges: list[list[int]] = []
    for code in range(sys.maxunicode + 1):
        if chr(code).islower():
            if ranges and ranges[-1][1] == code - 1:
                ranges[-1][1] = code
            else:
                ranges.append([code, code])
    return "".join(f"\\U{first:08x}-\\U{last:08x}" for first, last in ranges)


_END = re.compile(
    rf"(?:[{_SPACED}]|{_NO_ABBREVIATION}\.)[{_CLOSERS}]*+[^\S\n]++(?=[^{_lower_case_letters()}\s])"
    rf"|[{_CJK}]++[{_CLOSERS}]*+[^\S\n]*+(?=\S)"
)


def split_lines(text: str) -> str:
    """Each line is a sentence."""
    return text


def split_at_punctuation(text: str) -> str:
    """Splits lines further after . ! ? … and their likes, and after 。！？ at once.

    Not before a lower-case letter, not after a single letter, a number of one or two digits or an
    abbreviation without vowels, not inside numbers: where in doubt two sentences stay together.
    """
    start = 0
    parts = []
    for match in _END.finditer(text):
        end = match.end()
        parts.append(text[start:end])
        start = end
    parts.append(text[start:])
    return "\n".join(parts)


SPLITTERS: dict[str, Splitter] = {"lines": split_lines, "punctuation": split_at_punctuation}
