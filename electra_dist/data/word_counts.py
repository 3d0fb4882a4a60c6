"""How often each word stands in a text, as WordPiece's normalizer and splitter see words.

Running text holds 25 times as many words as different ones. So the words between spaces are counted
first, by C code, and only the different ones are normalized and split: a fifth of the work on
English. Both look at one character at a time and end a word at each space, so the counts are those
of the text as a whole (tested against it).
"""

from collections import Counter
from collections.abc import Iterable, Iterator

from tokenizers.normalizers import Normalizer
from tokenizers.pre_tokenizers import PreTokenizer

# Memory: what is counted raw is normalized once it may hold this many words or characters.
_RAW_WORDS = 1 << 20
_RAW_CHARACTERS = 128 << 20
# Longer strings cost more page faults than they save calls (measured: 1.5 times the CPU at 16,384).
_BLOCK_CHARACTERS = 1 << 12


def count_words(
    sentences: Iterable[str], normalizer: Normalizer, splitter: PreTokenizer
) -> Counter[str]:
    """Word -> how often it stands in `sentences`.

    `normalizer` and `splitter` are BERT's: they treat each character alone and split at spaces.
    """
    words: Counter[str] = Counter()
    raw: Counter[str] = Counter()
    num_characters = 0
    for block in blocks(sentences):
        raw.update(block.split(" "))
        num_characters += len(block)
        if len(raw) > _RAW_WORDS or num_characters > _RAW_CHARACTERS:
            _add(words, raw, normalizer, splitter)
            raw, num_characters = Counter(), 0
    _add(words, raw, normalizer, splitter)
    return words


def count_characters(words: Counter[str]) -> Counter[str]:
    """Character -> how often it stands in the counted words."""
    characters: Counter[str] = Counter()
    for word, count in words.items():
        for character in word:
            characters[character] += count
    return characters


def repeated(words: Counter[str]) -> Iterator[str]:
    """Text that holds each word as often as it was counted, as the trainers take no counts."""

    def runs() -> Iterator[str]:
        for word, count in words.items():
            step = max(1, _BLOCK_CHARACTERS // (len(word) + 1))
            yield from [" ".join([word] * step)] * (count // step)
            if count % step:
                yield " ".join([word] * (count % step))

    return blocks(runs())


def blocks(pieces: Iterable[str]) -> Iterator[str]:
    """Pieces joined by spaces, some 4,000 characters at a time."""
    block: list[str] = []
    num_characters = 0
    for piece in pieces:
        block.append(piece)
        num_characters += len(piece) + 1
        if num_characters >= _BLOCK_CHARACTERS:
            yield " ".join(block)
            block, num_characters = [], 0
    if block:
        yield " ".join(block)


def _add(
    words: Counter[str], raw: Counter[str], normalizer: Normalizer, splitter: PreTokenizer
) -> None:
    """Adds the counts of raw words to `words`; words of one count are handled together."""
    by_count: dict[int, list[str]] = {}
    for word, count in raw.items():
        by_count.setdefault(count, []).append(word)
    for count, group in by_count.items():
        for block in blocks(group):
            for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(block)):
                words[word] += count
