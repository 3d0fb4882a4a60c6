import pytest
from hypothesis import given
from hypothesis import strategies as st

from electra_dist.data.sentences import SPLITTERS, split_at_punctuation, split_lines


@pytest.mark.parametrize(
    "sentences",
    [
        ["It rains.", "We stay!", "Do we?", "Yes… No."],
        ['He said "Go."', "She went.", "(They stayed.)", "“So be it.”", "«Bien.»", "Ende."],
        ["What?!", "No...", "Really."],
        ["Я пришёл.", "Он ушёл?", "Да!"],
        ["Η μέρα.", "Ἡ νύξ."],
        ["यह है।", "वह था।"],
        ["هل هذا؟", "نعم."],
        ["¿Qué?", "¡Nada!", "Él vino."],
        ["It cost 3.14 euros in 1999.", "2000 was dearer."],
    ],
)
def test_a_sentence_ends_at_a_mark_before_white_space(sentences: list[str]) -> None:
    expected = [s for part in sentences for s in part.replace("… ", "… \n").split("\n")]
    found = split_at_punctuation(" ".join(sentences))
    assert [sentence.strip() for sentence in found] == [s.strip() for s in expected]


def test_chinese_and_japanese_need_no_white_space() -> None:
    text = "你好。「再见！」他说。。好？ 好！"
    assert split_at_punctuation(text) == [
        "你好。",
        "「再见！」",
        "他说。。",
        "好？ ",
        "好！",
    ]


@pytest.mark.parametrize(
    "sentence",
    [
        "J. R. R. Tolkien and Z. Ö. Smith met.",
        "Mr. Smith, Dr. Jones and Mrs. Brown of St. Ives.",
        "Am 3. Oktober und am 12. Mai.",
        "the U.S. army",
        "See e.g. this, i.e. that, etc. and so on.",
        "Version 1.2.3 of a.out at example.com. is not split before lower case",
        "wait... what? no! yes",
        "No end at all",
        "He said. ",
    ],
)
def test_in_doubt_a_sentence_stays_whole(sentence: str) -> None:
    assert split_at_punctuation(sentence) == [sentence]


# Marks, spaces, letters of either case, digits, closers and line ends, dense enough to meet.
ALPHABET = "aBé1 \t\n\u3000.!?…。！？।؟\"')」»Mr"


@given(st.text(ALPHABET, max_size=60), st.sampled_from(sorted(SPLITTERS)))
def test_nothing_is_lost_and_lines_are_split_apart(text: str, splitter: str) -> None:
    split = SPLITTERS[splitter]
    lines = text.split("\n")
    for line in lines:
        assert "".join(split(line)) == line
        assert not line.strip() or all(part.strip() for part in split(line))
    stripped = [[part.strip() for part in split(line)] for line in lines]
    assert [s for s in map(str.strip, split(text)) if s] == [s for p in stripped for s in p if s]


def test_lines_leaves_lines_alone() -> None:
    assert split_lines("One. Two.\nThree.") == ["One. Two.", "Three."]
