import unicodedata
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.data.cleaning import CLEANING, clean, join_texts

ZERO_WIDTH = "\u200b\u2060\ufeff\u00ad"
ALPHABET = (
    "ab e\u0301\u00e9\u1112\u1161\u2126\t\n\r\x0b\x0c\x85\u2028\u2029\x00\x01\x1b\x7f\x9f"
    + (ZERO_WIDTH + "\u200c\u200d中\U0001f469")
)


def plain_clean(text: str) -> str:
    """The oracle: one character after the other."""
    kept = []
    for line_end in ("\r\n", "\r", "\x85", "\u2028", "\u2029"):
        text = text.replace(line_end, "\n")
    for character in text:
        control = unicodedata.category(character) == "Cc" and character not in "\t\n\x0b\x0c"
        if not control and character not in ZERO_WIDTH:
            kept.append(character)
    return "\n".join(unicodedata.normalize("NFC", line) for line in "".join(kept).split("\n"))


@given(st.text(ALPHABET, max_size=40))
def test_cleaning_is_what_a_plain_loop_gives_and_has_nothing_left_to_do(text: str) -> None:
    joined = join_texts([text], Counter())
    cleaned = clean(joined, Counter())
    assert cleaned == plain_clean(text)
    again: Counter[str] = Counter()
    assert clean(cleaned, again) == cleaned
    assert not again


@pytest.mark.parametrize(
    ("text", "name", "count"),
    [
        ("a\r\nb\rc\u2028d\u2029e\x85f\ng", "newlines", 5),
        ("a\x00\x01\x1f\x7f\x80b", "control_characters", 5),
        ("a\u200b\u00ad\ufeff\u2060b", "zero_width", 4),
        ("cafe\u0301\ncafé\nA\u030a\n", "nfc", 2),
    ],
)
def test_each_change_is_counted(text: str, name: str, count: int) -> None:
    counts: Counter[str] = Counter()
    clean(join_texts([text], counts), counts)
    assert counts == {name: count}
    assert name in CLEANING


def test_joiners_tabs_and_form_feeds_carry_meaning() -> None:
    text = "می\u200cخواهم\t\U0001f469\u200d\U0001f680\x0cnext"
    counts: Counter[str] = Counter()
    assert clean(text, counts) == text
    assert not counts


def test_texts_are_cleaned_apart_however_they_are_joined() -> None:
    counts: Counter[str] = Counter()
    assert clean(join_texts(["e", "\u0301\0", "\r", "\n"], counts), counts) == "e\0\u0301\0\n\0\n"
    assert counts == {"control_characters": 1, "newlines": 1}
