"""Cleaning text: one kind of line end, no invisible characters, NFC; every change is counted."""

import re
import unicodedata
from collections import Counter
from collections.abc import Sequence

DOCUMENT_END = "\0"
"""Stands between documents while a piece is worked on: a text cannot hold it (it is removed)."""

CLEANING = ("newlines", "control_characters", "zero_width", "nfc", "bom")
"""Names of the counts: line ends rewritten, characters removed (twice), lines changed, files."""

# CRLF, CR, NEL, line and paragraph separator.
_NEWLINES = re.compile("\r\n?|[\x85\u2028\u2029]")
# Category Cc but tab, line feed, and vertical tab and form feed, which are white space.
_CONTROL = re.compile("[\x01-\x08\x0e-\x1f\x7f-\x9f]+")
# Zero-width space, word joiner, byte order mark, soft hyphen. Not U+200C and U+200D: they change
# how Persian, Indic and emoji text reads.
_ZERO_WIDTH = re.compile("[\u200b\u2060\ufeff\xad]+")


def clean(text: str, counts: Counter[str]) -> str:
    """The text in NFC, lines ended by line feeds, no control and zero-width characters.

    `DOCUMENT_END` is kept. Changes are added to `counts`.
    """
    is_ascii = text.isascii()
    if "\r" in text or not is_ascii:
        text, number = _NEWLINES.subn("\n", text)
        if number:
            counts["newlines"] += number
    text = _remove(_CONTROL, text, "control_characters", counts)
    if is_ascii:
        return text
    text = _remove(_ZERO_WIDTH, text, "zero_width", counts)
    if not unicodedata.is_normalized("NFC", text):
        lines = text.split("\n")
        for index, line in enumerate(lines):
            if not unicodedata.is_normalized("NFC", line):
                lines[index] = unicodedata.normalize("NFC", line)
                counts["nfc"] += 1
        text = "\n".join(lines)
    return text


def join_texts(texts: Sequence[str], counts: Counter[str]) -> str:
    """The texts with a `DOCUMENT_END` between each two; any that they hold is removed before."""
    joined = DOCUMENT_END.join(texts)
    inside = joined.count(DOCUMENT_END) - (len(texts) - 1)
    if inside > 0:
        counts["control_characters"] += inside
        joined = DOCUMENT_END.join(text.replace(DOCUMENT_END, "") for text in texts)
    return joined


def _remove(pattern: re.Pattern[str], text: str, name: str, counts: Counter[str]) -> str:
    if pattern.search(text) is None:
        return text
    shorter = pattern.sub("", text)
    counts[name] += len(text) - len(shorter)
    return shorter
