"""Splitting the lines of a document into sentences, for any language.

A splitter is a function from a document's text to its sentences, and a line in `SPLITTERS`. Put
together they are the text again but for line ends: nothing is lost. The caller strips them and
leaves out what is blank.
"""

import re
import sys
from collections.abc import Callable
from itertools import pairwise

Splitter = Callable[[str], list[str]]

# Marks after which a sentence ends only where white space follows: Latin, Arabic, Urdu, Armenian,
# Ethiopic, Devanagari, Burmese, Khmer.
_SPACED = ".!?\u2026\u203d\u061f\u06d4\u0589\u1362\u0964\u0965\u104b\u17d4"
# Marks that end a sentence by themselves: Chinese and Japanese write no spaces.
_CJK = "。！？｡"
_CLOSERS = "\"'”’»›)\\]}」』）】》〉"
# Such a dot ends no sentence: initials (J. Smith), ordinals and list items (3. Oktober), and
# abbreviations without a vowel (Mr. Dr. Mrs. St. Nr.), which are no words in most languages.
_CONSONANTS = "bcdfghjklmnpqrstvwxzBCDFGHJKLMNPQRSTVWXZ"
_NO_ABBREVIATION = "".join(
    rf"(?<!\b{word}\.)"
    for word in (r"[^\W\d_]", r"\d", r"\d\d", f"[{_CONSONANTS}]{{2}}", f"[{_CONSONANTS}]{{3}}")
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


_AFTER = rf"[{_CLOSERS}]*+[^\S\n]++(?=[^{_lower_case_letters()}\s])"
# One pattern a mark: `re` searches a literal first character at 1 GB/s, a class at 0.16 GB/s.
_ENDS = {mark: re.compile(re.escape(mark) + _AFTER) for mark in _SPACED}
_ENDS["."] = re.compile(rf"\.(?=[{_CLOSERS}\s]){_NO_ABBREVIATION}{_AFTER}")
_CJK_END = rf"[{_CJK}]*+[{_CLOSERS}]*+[^\S\n]*+(?=\S)"
_ENDS.update({mark: re.compile(mark + _CJK_END) for mark in _CJK})
_ENDS["\n"] = re.compile("\n")
_ASCII_ENDS = {mark: pattern for mark, pattern in _ENDS.items() if mark.isascii()}


def split_lines(text: str) -> list[str]:
    """Each line is a sentence."""
    return text.split("\n")


def split_at_punctuation(text: str) -> list[str]:
    """Splits lines further after . ! ? … and their likes, and after 。！？ at once.

    Not before a lower-case letter, not after a single letter, a number of one or two digits or an
    abbreviation without vowels, not inside numbers: where in doubt two sentences stay together.
    """
    ends = {0, len(text)}
    for mark, pattern in _ASCII_ENDS.items() if text.isascii() else _ENDS.items():
        if mark in text:
            ends.update([match.end() for match in pattern.finditer(text)])
    return [text[start:end] for start, end in pairwise(sorted(ends))]


SPLITTERS: dict[str, Splitter] = {"lines": split_lines, "punctuation": split_at_punctuation}
