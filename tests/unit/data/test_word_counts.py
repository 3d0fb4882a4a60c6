from collections import Counter

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, models, normalizers, pre_tokenizers, trainers

from electra_dist.data import word_counts

# Letters of several scripts with and without marks, all kinds of white space, control characters
# that Python takes for white space, punctuation, Chinese, half a family emoji.
ALPHABET = "aBéE\u0301ßΣςİ 　\t\n\x0b\x1c\x85\u2028\u200d\xa0\x00.,!—«猫。🙂"


@settings(max_examples=60)
@given(
    sentences=st.lists(st.text(ALPHABET, max_size=30), max_size=20),
    lowercase=st.booleans(),
    strip_accents=st.sampled_from([None, True, False]),
    raw_words=st.sampled_from([3, 1 << 20]),
)
def test_words_are_those_of_the_text_as_a_whole(
    sentences: list[str], lowercase: bool, strip_accents: bool | None, raw_words: int
) -> None:
    normalizer = normalizers.BertNormalizer(lowercase=lowercase, strip_accents=strip_accents)
    splitter = pre_tokenizers.BertPreTokenizer()
    wanted = Counter(
        word
        for sentence in sentences
        for word, _ in splitter.pre_tokenize_str(normalizer.normalize_str(sentence))
    )
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(word_counts, "_RAW_WORDS", raw_words)
        patch.setattr(word_counts, "_BLOCK_CHARACTERS", 16)
        words = word_counts.count_words(sentences, normalizer, splitter)
        assert words == wanted
        assert word_counts.count_characters(words) == Counter("".join(wanted.elements()))
        assert Counter(" ".join(word_counts.repeated(words)).split()) == wanted


def test_a_trainer_sees_the_words_as_often_as_they_were_counted() -> None:
    sentences = ["low lower lowest"] * 7 + ["new newer " * 3] * 2 + ["x" * 9000, "猫"]
    splitter = pre_tokenizers.BertPreTokenizer()
    words = word_counts.count_words(sentences, normalizers.BertNormalizer(), splitter)
    vocabularies = []
    for text in (sentences, word_counts.repeated(words)):
        tokenizer = Tokenizer(models.BPE())
        tokenizer.pre_tokenizer = splitter
        trainer = trainers.BpeTrainer(vocab_size=40, min_frequency=6, show_progress=False)
        tokenizer.train_from_iterator(text, trainer=trainer)
        vocabularies.append(tokenizer.get_vocab())
    assert vocabularies[0] == vocabularies[1]
